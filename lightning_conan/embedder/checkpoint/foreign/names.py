"""Names of tensors in the layouts of others, mapped to ours: every name is resolved, or listed as unknown."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

LANGUAGE, VISION, HEAD = "backbone.language_model.", "backbone.visual.", "lm_head."
TABLE = f"{LANGUAGE}embed_tokens.weight"
HEAD_WEIGHT = f"{HEAD}weight"
TOKEN_TABLES = (TABLE, HEAD_WEIGHT)
"""Tensors with a row for each token."""


@dataclass(frozen=True)
class Layout:
    """A way of naming a backbone's tensors.

    Args:
        name: Its name in reports.
        prefixes: Our prefix for each of theirs; the first that fits counts.
    """

    name: str
    prefixes: Mapping[str, str]

    def place(self, name: str) -> str | None:
        """Returns our name of a tensor, or None if no prefix fits."""
        for theirs, ours in self.prefixes.items():
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return None


def hearing(tower: str) -> dict[str, str]:
    """Our prefixes of an audio encoder within a backbone: its last two layers are the projector.

    Args:
        tower: Their prefix of it.
    """
    ends = {f"{tower}proj{number}.": f"audio_projector.linear_{number}." for number in (1, 2)}
    return {**ends, tower: "audio_encoder."}


OURS = Layout("lightning-conan", {"": ""})
HEAD_CLASS = {"model.language_model.": LANGUAGE, "model.visual.": VISION, **hearing("model.audio_tower."), HEAD: HEAD}
OLD = {"visual.": VISION, **hearing("audio_tower."), "model.": LANGUAGE, HEAD: HEAD}
LAYOUTS = (
    Layout("head class", HEAD_CLASS),
    Layout("base class", {"language_model.": LANGUAGE, "visual.": VISION, **hearing("audio_tower."), HEAD: HEAD}),
    Layout("text only", {"model.": LANGUAGE, HEAD: HEAD}),
    Layout("transformers 4.x", OLD),
    Layout("thinker, head class", {f"thinker.{theirs}": ours for theirs, ours in HEAD_CLASS.items()}),
    Layout("thinker, transformers 4.x", {f"thinker.{theirs}": ours for theirs, ours in OLD.items()}),
    Layout("text only, base class", {part: LANGUAGE + part for part in ("layers.", "embed_tokens.", "norm.")}),
    OURS,
)
"""All layouts that are read; of several that explain equally many names the first is taken."""


@dataclass(frozen=True)
class Resolution:
    """Names in one layout, mapped to ours.

    Args:
        layout: The layout that explains most of them.
        mapped: Our name of each.
        unknown: Names that the model has no tensor for.
    """

    layout: Layout
    mapped: Mapping[str, str]
    unknown: tuple[str, ...]


def resolve(names: Iterable[str], known: Collection[str]) -> Resolution:
    """Finds the layout in which a model has a tensor for most of some names.

    Args:
        names: Names of tensors, all in one layout.
        known: The model's names, as ours.

    Example:
        >>> found = resolve(["model.layers.0.mlp.up_proj.weight"], {"backbone.language_model.layers.0.mlp.up_proj.weight"})
        >>> found.layout.name, list(found.mapped.values()), found.unknown
        ('text only', ['backbone.language_model.layers.0.mlp.up_proj.weight'], ())
    """
    listed, best = list(names), None
    for layout in LAYOUTS:
        placed = {name: layout.place(name) for name in listed}
        mapped = {name: place for name, place in placed.items() if place in known and place is not None}
        found = Resolution(layout, mapped, tuple(name for name in listed if name not in mapped))
        if best is None or len(found.unknown) < len(best.unknown):
            best = found
    assert best is not None
    return best
