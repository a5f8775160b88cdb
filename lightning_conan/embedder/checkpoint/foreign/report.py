"""Report on a foreign checkpoint: what each of its tensors became."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class ForeignReport:
    """Tensors of a foreign checkpoint that were mapped, ignored and refused: an entry of ``foreign`` in ``fusion.json``.

    Args:
        source: Its folder or hub name.
        kind: ``dense``, or ``LoRA`` with its variants.
        layout: The layout of its names.
        base: The base that it names, if it names one.
        notes: Differences to the base that do not refuse it, each a sentence.
        distances: Relative distances that were measured between its base and ours, by part.
        trusted: True if it was taken in spite of its distance (``trust_base``).
        mapped: The tensor that each of its keys is a part of.
        ignored: Keys that change nothing, each with the reason.
        kept: Number of tensors that it does not have, by part: they are the base's.
        dropped_tokens: Its tokens that the base does not know.
        refused: Keys that the base has no tensor for, or that do not fit it, each with the reason.
    """

    source: str
    kind: str = "dense"
    layout: str = ""
    base: str | None = None
    notes: list[str] = field(default_factory=list)
    distances: dict[str, float] = field(default_factory=dict)
    trusted: bool = False
    mapped: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    dropped_tokens: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def is_adapter(self) -> bool:
        """True for an adapter."""
        return self.kind != "dense"

    def count_kept(self, names: list[str]) -> None:
        """Counts the tensors that the base gives, by the first part of their names."""
        for name in names:
            part = ".".join(name.split(".")[:2]) if name.startswith("backbone.") else name.split(".")[0]
            self.kept[part] = self.kept.get(part, 0) + 1

    def check(self, base: Path | str) -> None:
        """Refuses a source with a key that has no place in the base.

        Args:
            base: The base's folder, for the error.

        Raises:
            ValueError: Names the first such key, the reason, and the counts.
        """
        if self.refused:
            key, why = next(iter(self.refused.items()))
            total = len(self.refused) + len(self.mapped) + len(self.ignored)
            raise ValueError(
                f"Each of the {total} tensors in {self.source} must have a place in {base}, but {len(self.refused)} do not, such "
                f"as {key!r}, which {why}. It is of the layout {self.layout!r} at best; `conan fuse --dry true` lists all."
            )

    def lines(self) -> list[str]:
        """The report as text: a line of counts, and one for each key."""
        counts = f"{len(self.mapped)} mapped, {len(self.ignored)} ignored, {len(self.refused)} refused"
        kept = "".join(f", {count} of {part} from the base" for part, count in sorted(self.kept.items()))
        measured = "".join(f", {part} {value:.2g} from the base" for part, value in self.distances.items())
        lines = [f"{self.source}: {self.kind}, {self.layout}: {counts}{kept}{measured}", *self.notes]
        lines += [f"  {key} -> {name}" for key, name in self.mapped.items()]
        lines += [f"  {key} is ignored: it {why}" for key, why in self.ignored.items()]
        lines += [f"  {key} is refused: it {why}" for key, why in self.refused.items()]
        if self.dropped_tokens:
            lines.append(
                f"  rows of {len(self.dropped_tokens)} tokens that the base does not know are dropped: {self.dropped_tokens[:8]}"
            )
        return lines
