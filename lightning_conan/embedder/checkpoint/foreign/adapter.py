"""PEFT adapters that were trained elsewhere: each key resolved, each tensor's parts merged as PEFT merges them."""

from collections.abc import Mapping
from math import prod

from lightning_conan.embedder.checkpoint.foreign.dora import Dora, TableDora
from lightning_conan.embedder.checkpoint.foreign.keys import Key, MisfitError
from lightning_conan.embedder.checkpoint.foreign.known_base import KnownBase
from lightning_conan.embedder.checkpoint.foreign.low_rank import BiasShift, Factors, TableFactors
from lightning_conan.embedder.checkpoint.foreign.names import HEAD_WEIGHT, TABLE, Layout, resolve
from lightning_conan.embedder.checkpoint.foreign.part import Part
from lightning_conan.embedder.checkpoint.foreign.report import ForeignReport
from lightning_conan.embedder.checkpoint.foreign.same_base import relative_distance, same
from lightning_conan.embedder.checkpoint.foreign.settings import LoraSettings
from lightning_conan.embedder.checkpoint.foreign.token_tables import TokenTables
from lightning_conan.embedder.checkpoint.foreign.whole import Rows, Whole
from lightning_conan.embedder.checkpoint.tensors import TensorFiles

Roles = Mapping[str, Key]


class AdapterReader:
    """Makes the parts of an adapter's tensors.

    Args:
        files: The adapter's file.
        settings: Its settings.
        base: The base.
        vocabulary: Token ids of the adapter's own tokenizer, if it has one.
        report: Receives what became of each key.
    """

    def __init__(
        self,
        files: TensorFiles,
        settings: LoraSettings,
        base: KnownBase,
        vocabulary: Mapping[str, int] | None,
        report: ForeignReport,
    ) -> None:
        self.files, self.settings, self.base, self.report = files, settings, base, report
        keys = [Key.parse(text) for text in files.specs]
        found = resolve([key.name for key in keys], base.tensors.specs)
        self.layout: Layout = found.layout
        self.tables = TokenTables(base, vocabulary, found.layout)
        report.layout, report.kind = found.layout.name, settings.kind
        self.groups: dict[str, dict[str, Key]] = {}
        self.unplaced = [key for key in keys if key.name not in found.mapped]
        for key in keys:
            if key.name in found.mapped:
                roles = self.groups.setdefault(found.mapped[key.name], {})
                if roles.setdefault(key.role, key) is not key:
                    report.refused[key.text] = f"stands for the same as {roles[key.role].text!r}"

    def parts(self) -> dict[str, Part]:
        """Makes the part of each tensor that the adapter changes; what does not fit is listed in the report as refused."""
        parts: dict[str, Part] = {}
        for name, roles in self.groups.items():
            try:
                if part := self.part(name, roles):
                    parts[name] = part
                    self.report.mapped |= {key.text: name for key in roles.values() if key.text not in self.report.ignored}
            except MisfitError as misfit:
                for key in roles.values():
                    self.report.ignored.pop(key.text, None)
                    self.report.refused[key.text] = str(misfit)
        for key in self.unplaced:
            self.leave(key)
        self.report.dropped_tokens = list(self.tables.dropped)
        if TABLE in parts and self.base.is_tied and HEAD_WEIGHT not in self.base.tensors.specs:
            self.report.notes.append("It changes the token embeddings, which the base's output head shares.")
        return parts

    def part(self, name: str, roles: Roles) -> Part | None:
        """Makes the part of one tensor, or returns None if it equals the base's.

        Args:
            name: The tensor's name.
            roles: Its keys by role.

        Raises:
            MisfitError: Keys that do not belong together, or that do not fit the base's tensor.
        """
        if copy := roles.get("copy"):
            self.check_copy(name, copy)
        found = frozenset(roles) - {"copy"}
        match sorted(found - {"magnitude"}):
            case ["down", "up"] | ["table down", "table up"]:
                return self.factors(name, roles, "magnitude" in found)
            case ["whole"] if found == {"whole"}:
                return self.whole(name, roles["whole"])
            case ["rows"] if found == {"rows"}:
                return self.token_rows(name, roles["rows"])
            case ["shift"] if found == {"shift"}:
                return self.shift(name, roles["shift"])
            case []:
                if not found:
                    return None
        raise MisfitError(
            f"stands for {name} as {', '.join(sorted(roles))} alone: factors need their other half, whole tensors none"
        )

    def factors(self, name: str, roles: Roles, dora: bool) -> Part:
        """Makes the part of a tensor that has factors.

        Args:
            name: The tensor's name.
            roles: Its keys by role.
            dora: True if it has lengths, too.

        Raises:
            MisfitError: Factors that do not fit each other, or the base's tensor.
        """
        table = "table up" in roles
        up, down = (roles["table up"], roles["table down"]) if table else (roles["up"], roles["down"])
        shapes = self.files.specs[up.text].shape, self.files.specs[down.text].shape
        wanted = self.base.tensors.specs[name].shape
        if min(len(shape) for shape in (*shapes, wanted)) < 2:
            raise MisfitError(misfit_shapes(shapes, wanted))
        rank = shapes[1][0]
        count, fits = (shapes[1][1], shapes[0]) if table else (shapes[0][0], (*shapes[1][1:], *shapes[0][1:]))
        rows = self.tables.rows_of(name, count)
        others = (wanted[1], rank) if table else (*wanted[1:], rank, *(1 for _ in wanted[2:]))
        if fits != others or (rows is None and count != wanted[0]):
            raise MisfitError(misfit_shapes(shapes, wanted))
        scale = self.scale(down, rank)
        if dora != self.settings.dora:
            raise MisfitError(f"has {'' if dora else 'no '}lora_magnitude_vector, and use_dora is {self.settings.dora}")
        if not dora:
            return (TableFactors if table else Factors)(self.files, rows, up.text, down.text, scale)
        magnitude = roles["magnitude"].text
        if prod(self.files.specs[magnitude].shape) != (wanted[1] if table else count):
            raise MisfitError(f"has {prod(self.files.specs[magnitude].shape)} lengths for a tensor of {list(wanted)}")
        if not table:
            return Dora(self.files, rows, up.text, down.text, scale, magnitude)
        if rows is not None and "copy" not in roles:
            raise MisfitError("is DoRA of a table whose rows are not the base's, and needs a copy of its own table")
        copy = None if rows is None else roles["copy"].text
        return TableDora(self.files, rows, up.text, down.text, scale, magnitude, copy)

    def scale(self, key: Key, rank: int) -> float:
        """Returns the factor on a module's product.

        Args:
            key: Key of the module.
            rank: Its rank.

        Raises:
            MisfitError: The settings say another rank.
        """
        try:
            return self.settings.scale(key.module, rank)
        except ValueError as error:
            raise MisfitError(f"does not fit the settings: {error}") from error

    def whole(self, name: str, key: Key) -> Part | None:
        """Makes the part of a tensor that was trained fully; None if it equals the base's.

        Args:
            name: The tensor's name.
            key: Its key.

        Raises:
            MisfitError: It has another shape.
        """
        shape, wanted = self.files.specs[key.text].shape, self.base.tensors.specs[name].shape
        rows = self.tables.rows_of(name, shape[0]) if shape else None
        if (rows is None and shape != wanted) or shape[1:] != wanted[1:]:
            raise MisfitError(f"has the shape {list(shape)} for a tensor of {list(wanted)}")
        part = Whole(self.files, rows, key.text)
        if same(part.merged(self.base.tensors[name]), self.base.tensors[name]):
            self.report.ignored[key.text] = f"equals {name} of the base"
            return None
        return part

    def token_rows(self, name: str, key: Key) -> Part:
        """Makes the part of a table in which some rows were trained.

        Args:
            name: The table's name.
            key: Its key.

        Raises:
            MisfitError: Rows that the settings do not name, or that the base does not have.
        """
        indices, shape = self.settings.tokens_of(key.module), self.files.specs[key.text].shape
        wanted = self.base.tensors.specs[name].shape
        if shape != (len(indices), *wanted[1:]):
            raise MisfitError(
                f"has the shape {list(shape)}, and trainable_token_indices names {len(indices)} rows of {wanted[1]}"
            )
        rows = None if self.tables.shares_rows() else self.tables.matched(wanted[0], self.tables.theirs_count(wanted[0]))
        places = [row if rows is None else rows.place(row) for row in indices]
        if missing := [row for row, place in zip(indices, places, strict=True) if place is None or not 0 <= place < wanted[0]]:
            raise MisfitError(f"has row {missing[0]}, whose token the base does not know or has as its own")
        return Rows(self.files, None, key.text, tuple(place for place in places if place is not None))

    def shift(self, name: str, key: Key) -> Part:
        """Makes the part of a bias that LoRA's own bias moves.

        Args:
            name: The bias' name.
            key: Its key.

        Raises:
            MisfitError: Another shape, or no factors that give its scale.
        """
        down = key.text.removesuffix("lora_B.bias") + "lora_A.weight"
        shape, wanted = self.files.specs[key.text].shape, self.base.tensors.specs[name].shape
        if shape != wanted or down not in self.files.specs:
            raise MisfitError(f"has the shape {list(shape)} for a bias of {list(wanted)}, and must have {down} beside it")
        return BiasShift(self.files, None, key.text, self.scale(key, self.files.specs[down].shape[0]))

    def check_copy(self, name: str, key: Key) -> None:
        """Holds an adapter's copy of a base layer against ours.

        Args:
            name: The tensor's name.
            key: The copy's key.

        Raises:
            MisfitError: It has another shape.
        """
        found, base = self.files[key.text], self.base.tensors[name]
        rows = self.tables.rows_of(name, len(found))
        moved = found if rows is None else rows.spread(found, base)
        if moved.shape != base.shape:
            raise MisfitError(f"has the shape {list(found.shape)} for a tensor of {list(base.shape)}")
        if not same(moved, base):
            self.report.distances[f"copy of {name}"] = off = relative_distance([(base, moved)])
            self.report.notes.append(
                f"Its copy of {name} is {off:.2g} of its length from the base's, to which its factors are added."
            )
            self.report.ignored[key.text] = "is a copy of its base's, which differs"
            return
        self.report.ignored[key.text] = f"equals {name} of the base"

    def leave(self, key: Key) -> None:
        """Ignores a key of the output head if it equals the token embeddings that the base ties it to; else refuses it."""
        if self.layout.place(key.name) != HEAD_WEIGHT:
            self.report.refused[key.text] = "names no tensor of the base"
        elif not self.base.is_tied:
            self.report.refused[key.text] = "is of an output head, which the base does not have"
        elif key.role in ("whole", "copy") and self.equals_table(key):
            self.report.ignored[key.text] = "equals the token embeddings, which the base's output head shares"
        else:
            self.report.refused[key.text] = (
                "changes the output head, which shares the base's token embeddings: merging would change both, and that was not "
                "trained. Train it with the head left out, or untied"
            )

    def equals_table(self, key: Key) -> bool:
        """True if a head's tensor equals the adapter's own token embeddings, or the base's where it has none."""
        found, own = self.files[key.text], self.groups.get(TABLE, {}).get("whole")
        if own is not None:
            return same(found, self.files[own.text])
        base = self.base.tensors[TABLE]
        rows = self.tables.rows_of(TABLE, len(found))
        return same(found if rows is None else rows.spread(found, base), base)


def misfit_shapes(shapes: tuple[tuple[int, ...], tuple[int, ...]], wanted: tuple[int, ...]) -> str:
    """Words for factors that do not fit a tensor.

    Args:
        shapes: Shapes of B and A.
        wanted: Shape of the tensor.
    """
    return f"has factors of the shapes {list(shapes[0])} and {list(shapes[1])} for a tensor of {list(wanted)}"
