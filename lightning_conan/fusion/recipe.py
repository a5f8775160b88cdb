"""Recipe of a fusion: the base, the specialists, the method and the coefficients."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightning_conan import embedder  # its parts are imported when they are used: `--help` needs none
from lightning_conan.embedder.checkpoint.provenance import Provenance
from lightning_conan.embedder.modalities.registry import BUILT_IN, known_specs
from lightning_conan.embedder.modalities.spec import ModalitySpec
from lightning_conan.fusion import dare, della, iso_c, statistics, ties, tsv_m  # noqa: F401  # known by their names in a YAML
from lightning_conan.fusion.method import Method
from lightning_conan.fusion.task_arithmetic import TaskArithmetic

OutputType = Literal["base", "float32", "bfloat16", "float16", "delta"]


@dataclass(frozen=True)
class Recipe:
    """Specification of a fusion: a base, its specialists, and the coefficient of each.

    Args:
        base: The checkpoint folder that every specialist was trained from.
        specialists: Specialist folders by modality, dense or adapters. Adapters and dense checkpoints of others, by folder or hub
            name, under any name (docs/foreign.md).
        alphas: Coefficient of each specialist; the paper's for those that are not named. 0 skips a specialist.
        method: The fusion method.
        alphas_by_module: Other coefficients for tensors whose names match a pattern (a regular expression, anywhere in the name),
            such as ``visual`` or ``layers\\.(2[0-9]|3[0-5])``; of several that match the last holds.
        owner: The specialist that owns ``owned``, where that is a single one; ``owners`` names several.
        owned: Name prefixes of the tensors that only ``owner`` trains; by default those of the audio encoder and projector.
        dtype: Dtype of the result; ``base`` for the base's. bfloat16 loses small changes to rounding, which is reported.
            ``delta`` writes float32 differences to the base instead of a model; the base must be there to load them.
        seed: Seed of methods that draw at random.
        trust_base: Take checkpoints of others even if they are far from the base; the folder's provenance notes it.
        owners: Specialists whose own modules are copied bit for bit, and the name prefixes of these: they have no task vector.
            By default each modality with an encoder of its own owns that and its projector; the rows of its tokens go with them.

    Example:
        >>> recipe = Recipe(Path("base"), {"image": Path("image"), "audio": Path("audio")}, alphas={"audio": 0.0})
        >>> recipe.alphas_of("backbone.norm.weight")
        {'image': 0.3}
    """

    base: Path
    specialists: dict[str, Path]
    alphas: dict[str, float] = field(default_factory=dict)
    method: Method = TaskArithmetic()  # noqa: RUF009  # frozen
    alphas_by_module: dict[str, dict[str, float]] = field(default_factory=dict)
    owner: str | None = None
    owned: tuple[str, ...] | None = None
    dtype: OutputType = "base"
    seed: int = 0
    trust_base: bool = False
    owners: dict[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        paper = {spec.name: spec.alpha for spec in known_specs() if spec.name in self.specialists and spec.alpha is not None}
        object.__setattr__(self, "alphas", paper | self.alphas)
        if self.owners is not None and (self.owner is not None or self.owned is not None):
            raise ValueError(
                f"A recipe names owners, or one owner and what is owned, got owners={self.owners} beside owner={self.owner!r} "
                f"and owned={self.owned}. Leave these two out."
            )

    @property
    def owning(self) -> dict[str, tuple[str, ...]]:
        """Name prefixes of the tensors that are copied, by the specialist that they come from."""
        if self.owners is not None:
            return {name: tuple(prefixes) for name, prefixes in self.owners.items()}
        built_in = {spec.name: spec.owned for spec in BUILT_IN if spec.owned}
        others = {spec.name: spec.owned for spec in known_specs() if spec.entry and spec.name in self.specialists}
        first = self.owner or next(iter(built_in))
        every = tuple(prefix for prefixes in built_in.values() for prefix in prefixes)
        owned = every if self.owned is None else tuple(self.owned)
        return {first: (*owned, *others.pop(first, ())), **others}

    def owner_of(self, spec: ModalitySpec) -> str | None:
        """Specialist that the rows of a modality's tokens come from; None if they are fused like all others.

        Args:
            spec: A modality with modules of its own.
        """
        owning = self.owning
        found = [name for name, prefixes in owning.items() if {*prefixes} & {*spec.owned}]
        return next(iter((*found, *(name for name in (spec.name, self.owner) if name in owning))), None)

    @property
    def copied(self) -> tuple[str, ...]:
        """Name prefixes of all tensors that are copied from their owners."""
        return tuple(prefix for prefixes in self.owning.values() for prefix in prefixes)

    @property
    def home(self) -> Path:
        """The folder whose config and processor the result has: an owner's, or the base where the owners are foreign ones."""
        owners = [Path(self.specialists[name]) for name in self.owning if name in self.specialists]
        return next((folder for folder in owners if not embedder.is_foreign(folder)), Path(self.base))

    def alphas_of(self, name: str) -> dict[str, float]:
        """The coefficients of one tensor, without those of weight 0."""
        alphas = self.alphas
        for pattern, other in self.alphas_by_module.items():
            alphas = other if re.search(pattern, name) else alphas
        return {specialist: alpha for specialist, alpha in alphas.items() if alpha != 0}

    def _repr_html_(self) -> str:
        """Shows specialists, coefficients and method in a notebook; folders by their names."""
        from lightning_conan.pages import Column, fragment, note, table

        patterns = [*self.alphas_by_module]
        heads: list[str | Column] = ["specialist", "folder", *(Column(name, full=1.0) for name in ("coefficient", *patterns))]
        rows = [
            [name, Path(folder).name, *(alphas.get(name) for alphas in (self.alphas, *self.alphas_by_module.values()))]
            for name, folder in self.specialists.items()
        ]
        caption = f"Fusion of {Path(self.base).name} and {len(rows)} specialists by {self.method}"
        copied = [f"copied from {owner}: {', '.join(prefixes)}" for owner, prefixes in self.owning.items()]
        return fragment(table(heads, rows, caption), note("; ".join([*copied, f"dtype {self.dtype}, seed {self.seed}"])))

    def check(self) -> dict[str, Provenance]:
        """Reads and checks the provenance of the base and of each specialist.

        Raises:
            ValueError: Coefficients and specialists that do not match, a pattern that is none, or a folder that is none of this
                base's specialists.
        """
        for alphas in (self.alphas, *self.alphas_by_module.values()):
            if not self.specialists or set(self.specialists) != set(alphas):
                raise ValueError(
                    f"recipe.alphas must name the specialists {sorted(self.specialists)}, got {sorted(alphas)}. Give one each."
                )
            if odd := {name: alpha for name, alpha in alphas.items() if not math.isfinite(alpha)}:
                raise ValueError(f"alphas must be finite, got {odd}.")
        for pattern in self.alphas_by_module:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"alphas_by_module must have regular expressions, got {pattern!r} ({error}).") from error
        for owner in self.owning:
            if owner not in self.specialists:
                raise ValueError(f"owner must be among the specialists {sorted(self.specialists)}, got {owner!r}.")
        if twice := [prefix for prefix in self.copied if self.copied.count(prefix) > 1]:
            raise ValueError(f"owners must own different tensors, got {twice[0]!r} twice. Leave it to one of them.")
        found = {"base": embedder.check_folder(self.base, ("base",))}
        return found | {name: self.check_specialist(name, found["base"].fingerprint) for name in self.specialists}

    def check_specialist(self, name: str, base: str) -> Provenance:
        """Reads and checks the provenance of a specialist; of what others wrote only the weights are hashed.

        Args:
            name: Name of the specialist.
            base: Fingerprint of the base.

        Raises:
            ValueError: It is none of this base's specialists, or its weights cannot be read.
        """
        folder = Path(self.specialists[name])
        if embedder.is_foreign(folder):
            return embedder.foreign_provenance(folder)
        found = embedder.check_folder(folder, ("specialist",))
        if found.modality != name:
            raise ValueError(f"{folder} must be the {name} specialist, but it is that of {found.modality}.")
        if found.parents.get("base") != base:
            raise ValueError(f"{folder} was not trained from {self.base}: specialists of another base have no task vector here.")
        return found
