"""Batches of plain rows, encoded for a stage: texts, images, arrays and paths, as sentence-transformers takes them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_conan.embedder import Batch, Encoded, ItemBatch, OmniProcessor
from lightning_conan.embedder.processor import Decoded, kind_of
from lightning_conan.extras import require
from lightning_conan.items import MODALITIES, Item, Media, Modality, Side, check_modality
from lightning_conan.training.columns import SIDES, as_list, check_columns, check_named_file, keys_of, label, negatives_of

if TYPE_CHECKING:
    from lightning_conan.embedder.sentence_inputs import InputReader

TASK = "pairs"
"""Task of pairs that name none."""


class EncodedInput(NamedTuple):
    """An encoded input.

    Args:
        encoded: Tokens, pixels and log-mels.
        digest: Content hash, equal for equal contents.
        kinds: Modalities that it holds; a page that is decoded already counts as an image.
    """

    encoded: Encoded
    digest: str
    kinds: list[Modality]


@dataclass(frozen=True)
class Collate:
    """Encodes plain rows to a batch; a ``collate_fn`` for a DataLoader, whose workers then encode.

    A row is a dictionary with ``query`` and ``target``, and optionally ``negative`` (one or a list) or ``negative_1`` and so on,
    ``key``, ``task``, ``modality`` and ``reasoning``; or a single item, to be embedded alone. A batch of plain rows that a stage
    gets is a dictionary of lists with the same names. Queries, targets and negatives may be of any form of ``InputReader``.

    Args:
        processor: Encodes the inputs.
        modality: Modality of pairs that name none and hold media of several kinds, or pages; None where there is none to assume.

    Example:
        >>> from lightning_conan.embedder import tiny_embedder
        >>> collate = Collate(tiny_embedder()[1])
        >>> red, rot, blau, one, eins = (Item((text,)) for text in ("red", "rot", "blau", "one", "eins"))
        >>> batch = collate([{"query": red, "target": rot, "negative": [blau, rot]}, {"query": one, "target": eins}])
        >>> batch.modality, [len(row) for row in batch.negatives]
        ('text', [2, 0])
    """

    processor: OmniProcessor
    modality: Modality | None = None

    def __call__(self, rows: Sequence[Any]) -> Batch | ItemBatch:
        if not rows:
            raise ValueError("A batch must have a row, got an empty list. Leave it out of the loader.")
        if all(isinstance(row, Mapping) and not set(SIDES).isdisjoint(row) for row in rows):
            names = dict.fromkeys(chain.from_iterable(rows))
            return self.columns({name: [row.get(name) for row in rows] for name in names})
        return self.items(rows)

    @cached_property
    def reader(self) -> "InputReader":
        """Reads sentence-transformers' forms of inputs."""
        require("sentence_transformers", "Reading plain texts, images, arrays and paths")
        from lightning_conan.embedder.sentence_inputs import InputReader  # takes seconds to import

        return InputReader(self.processor)

    def columns(self, columns: Mapping[str, Any]) -> Batch | ItemBatch:
        """Encodes a dictionary of lists: pairs if it has queries and targets, else items.

        Raises:
            ValueError: A name that has no meaning, lists of several lengths, or an input that cannot be encoded.
        """
        if any(isinstance(column, Mapping | Batch | ItemBatch) for column in columns.values()):
            raise ValueError(
                f"A step takes the batch of one loader, got those of several, {[*columns]}. Pass one loader, whose "
                "batch_sampler may alternate, or datamodules.RehearsalData."
            )
        if {*columns} <= {*MODALITIES, "key"} and not {*columns} <= {"key"}:
            kinds = [name for name in columns if name != "key"]
            rows = zip(*(as_list(name, columns[name]) for name in kinds), strict=True)
            check_columns(columns, kinds)
            return self.items([dict(zip(kinds, row, strict=True)) for row in rows], None, columns.get("key"))
        found = [side for side in SIDES if columns.get(side) is not None]
        check_columns(columns, found)
        if len(found) == len(SIDES):
            return self.pairs(columns)
        if odd := [name for name in columns if name not in ("key", *found)]:
            raise ValueError(
                f"Items that are embedded alone have no {odd[0]!r}, got {[*columns]}. Leave it out, or add the target."
            )
        return self.items(as_list(found[0], columns[found[0]]), found[0], columns.get("key"))

    def pairs(self, columns: Mapping[str, Any]) -> Batch:
        """Encodes pairs.

        Args:
            columns: Lists by name, of one length.

        Raises:
            ValueError: An input cannot be encoded, or the rows are of several tasks or modalities.
        """
        if not (count := len(columns["query"])):
            raise ValueError("A batch of pairs must have a row, got empty lists. Leave it out of the loader.")
        keys = keys_of(columns.get("key"), count)
        queries, targets = ([*self.side(columns, side, keys)] for side in SIDES)
        negatives = [
            [self.encode(value, "target", f"A negative of row {keys[row] or row}") for value in values]
            for row, values in enumerate(negatives_of(columns, count))
        ]
        kinds = list(dict.fromkeys(kind for found in (*queries, *targets) for kind in found.kinds))
        encoded = [found.encoded for found in queries]
        if columns.get("reasoning") is not None:
            words = as_list("reasoning", columns["reasoning"])
            if self.processor.config.ends and any(words):
                raise ValueError("Only Trace trains on reasoning, got a column of it. Remove it, or begin from a TRACE folder.")
            encoded = [self.processor.teach(query, text or "") for query, text in zip(encoded, words, strict=True)]
        return Batch(
            task=label(columns, "task") or TASK,
            modality=self.modality_of(label(columns, "modality"), kinds),
            keys=keys,
            queries=encoded,
            targets=[found.encoded for found in targets],
            negatives=[[found.encoded for found in row] for row in negatives],
            query_hashes=[found.digest for found in queries],
            target_hashes=[found.digest for found in targets],
            negative_hashes=[found.digest for row in negatives for found in row],
        )

    def side(self, columns: Mapping[str, Any], side: Side, keys: list[str]) -> Iterator[EncodedInput]:
        """Yields the encoded inputs of a side.

        Args:
            columns: Lists by name.
            side: Name of the list.
            keys: Name rows in errors; empty strings where there are none.
        """
        for row, value in enumerate(as_list(side, columns[side])):
            yield self.encode(value, side, f"The {side} of row {keys[row] or row}")

    def items(self, values: Sequence[Any], side: Side | None = None, keys: Any = None) -> ItemBatch:
        """Encodes items that are embedded alone.

        Args:
            values: The items; those that are encoded already stay as they are.
            side: Side of a search; None if the model reads both alike.
            keys: A list of keys; None for none.

        Raises:
            ValueError: An item cannot be encoded, or the model tells sides apart and none is given.
        """
        side = self.side_or_any(side)
        named = keys_of(keys, len(values))
        found = [
            EncodedInput(value, "", []) if isinstance(value, Encoded) else self.encode(value, side, f"Item {named[row] or row}")
            for row, value in enumerate(values)
        ]
        kinds = ["+".join(each.kinds) for each in found]
        return ItemBatch(0, side, [*range(len(values))], named, kinds, [each.encoded for each in found], [])

    def side_or_any(self, side: Side | None) -> Side:
        """The side, or any if the model reads queries and targets alike.

        Raises:
            ValueError: It does not, and no side is given.
        """
        if side is None and self.processor.config.tells_sides:
            raise ValueError(
                "This model reads queries and targets differently, so a side must be given, got none. Pass side='query' or "
                "side='target' to embed; to predict, a dictionary {'query': [...]} or {'target': [...]}."
            )
        if side not in (None, *SIDES):
            raise ValueError(f"side must be 'query' or 'target', got {side!r}.")
        return side or "target"

    def encode(self, value: Any, side: Side, what: str) -> EncodedInput:
        """Encodes one input.

        Args:
            value: An ``Item``, or an input in one of sentence-transformers' forms.
            side: Side of a search.
            what: Names it in errors.

        Raises:
            ValueError: It is of another form, or one of its media is invalid or over a limit.
        """
        try:
            if isinstance(value, Item):
                return EncodedInput(self.processor(value, side), value.content_hash(), kinds_of(value.parts))
            from lightning_conan.embedder.sentence_inputs import content_hash

            if isinstance(value, str | PurePath):
                check_named_file(str(value))
            turns = self.reader.turns(value)
            kinds = kinds_of([part for _, parts in turns for part in parts])
            return EncodedInput(self.reader.encode_turns(turns, side), content_hash(turns), kinds)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{what} cannot be encoded: {error} Leave it out, or pack the data (`conan pack`) and use "
                "datamodules.SpecialistData, which skips and lists such pairs."
            ) from error

    def modality_of(self, named: str | None, kinds: Sequence[Modality]) -> Modality:
        """Modality of a batch: the one that it names, or the one of its media.

        Args:
            named: The batch's own name for it.
            kinds: Modalities of all queries and targets.

        Raises:
            ValueError: It is none, or media are of several kinds and none is named.
        """
        if named is not None:
            check_modality(named)
            return named
        media = [kind for kind in kinds if kind != "text"]
        pages = self.modality == "document" and "image" in media
        if self.modality is not None and (self.modality in media or pages):
            return self.modality
        if len(media) > 1:
            raise ValueError(
                f"Pairs that hold media of several kinds must say which modality they train, got {media}. Add 'modality', one of "
                "these, to the batch."
            )
        return media[0] if media else "text"


def kinds_of(parts: Sequence[str | Media | Decoded]) -> list[Modality]:
    """Modalities of parts, each once; pixels of a page that is decoded already count as an image's."""

    def kind(part: str | Media | Decoded) -> Modality:
        if isinstance(part, str | Media):
            return "text" if isinstance(part, str) else part.modality
        return kind_of(part).name

    return list(dict.fromkeys(kind(part) for part in parts))
