"""Model card of a published folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_conan.embedder.checkpoint.provenance import Provenance
from lightning_conan.embedder.checkpoint.publish import is_repository
from lightning_conan.embedder.config import OmniConfig

CARD = "README.md"


def write_card(
    folder: Path,
    provenance: Provenance,
    config: OmniConfig,
    parameters: int,
    scores: Mapping[str, Any] | None,
    stock: bool,
    sides: bool,
) -> None:
    """Writes ``README.md`` with the front matter that hubs read.

    Args:
        folder: The folder to publish.
        provenance: State, parents and notes, without local paths.
        config: The model's config.
        parameters: Number of parameters that it holds.
        scores: Scores by data set, as `conan test` wrote them; None for no table.
        stock: True for a plain backbone without audio.
        sides: True if queries and candidates are embedded differently.
    """
    named = ["text", "image", "video", "visual document", *([] if stock else ["audio", *config.modalities])]
    modalities = ", ".join(named) if stock else f"{', '.join(named[:-1])} and {named[-1]}"
    sections = [
        front_matter(provenance, stock),
        f"# Omni-modal embedder ({provenance.state})",
        f"One vector of {config.dim} entries for {modalities}: {parameters:,} parameters, cosine similarity, last-token pooling.",
        usage(folder.name, stock, sides, stock and provenance.state == "reasoning"),
        "## Where it comes from",
        origin(provenance),
        *score_table(scores),
        "## Versions",
        "\n".join(f"- {name} {number}" for name, number in sorted(provenance.versions.items())),
    ]
    (folder / CARD).write_text("\n\n".join(section for section in sections if section) + "\n")


def front_matter(provenance: Provenance, stock: bool) -> str:
    """YAML for a hub's search; names only hub repositories as base models, never a local folder.

    Args:
        provenance: Its notes name the backbone and the audio encoder.
        stock: True for a plain backbone without audio.
    """
    sources = [str(provenance.notes[part]) for part in ("backbone", "audio") if part in provenance.notes]
    names = [source for source in sources if is_repository(source)]
    tags = ["sentence-transformers", "feature-extraction", "multimodal", "lightning-conan", *([] if stock else ["audio"])]
    lines = ["---", "library_name: sentence-transformers", "pipeline_tag: feature-extraction", "tags:"]
    lines += [f"- {tag}" for tag in tags]
    if names:
        lines += ["base_model:", *(f"- {name}" for name in names), "base_model_relation: finetune"]
    return "\n".join([*lines, "---"])


def usage(name: str, stock: bool, sides: bool, at_once: bool) -> str:
    """Code that loads the folder.

    Args:
        name: Name of the folder.
        stock: True for a plain backbone without audio.
        sides: True if queries and candidates are embedded differently.
        at_once: True for a reasoning model that was exported without its reasoning.
    """
    needs = "sentence-transformers" + ("" if stock else ", and `pip install .` in a checkout of lightning-conan")
    trust = "" if stock else ", trust_remote_code=True"  # the library asks for it; nothing but the package is imported
    queries = 'model.encode_query(["a small red circle"])\ncandidates = model.encode_document([{"image": "photo.jpg"}])'
    sound = "" if stock else ', {"audio": "clip.flac"}'
    vectors = f'vectors = model.encode(["a small red circle", {{"image": "photo.jpg"}}{sound}])'
    notes = ""
    if stock:
        notes += "\n\nA marker such as `<|im_end|>` in a text counts as the template's own: take it out of what you do not trust."
    if at_once:
        notes += "\n\nEvery query is embedded at once here, without any reasoning."
    return f"""```python
# pip install {needs}
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name.lstrip(".").split(".partial")[0]}"{trust})
{f"queries = {queries}" if sides else vectors}
```{notes}"""


def origin(provenance: Provenance) -> str:
    """State, parents and notes of a checkpoint."""
    lines = [f"- state: {provenance.state}" + (f" ({provenance.modality})" if provenance.modality else "")]
    lines += [f"- made from {role}: `{digest[:16]}`" for role, digest in sorted(provenance.parents.items())]
    lines += [f"- {name}: {value}" for name, value in sorted(provenance.notes.items())]
    return "\n".join([*lines, f"- fingerprint of the weights it was exported from: `{provenance.fingerprint[:16]}`"])


def score_table(scores: Mapping[str, Any] | None) -> list[str]:
    """Scores by data set, with the command that made them.

    Raises:
        ValueError: They are of another form.
    """
    if not scores:
        return []
    columns = ("recall@1", "recall@10", "ndcg@10", "mrr")
    try:
        rows = [
            f"| {name} | " + " | ".join(f"{values[column]:.1f}" for column in columns) + " |" for name, values in scores.items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"scores must be a file that `conan test` wrote, each data set's {columns}, got another.") from error
    head = f"| data set | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}"
    return ["## Scores", "In per cent, mean of both directions, by `conan test`:", "\n".join([head, *rows])]
