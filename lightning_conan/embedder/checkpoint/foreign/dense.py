"""Dense checkpoints of the same architecture: sharded, tied or not, in any layout, with another vocabulary."""

from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from lightning_conan.embedder.backbones import backbone_of
from lightning_conan.embedder.checkpoint.foreign.known_base import KnownBase
from lightning_conan.embedder.checkpoint.foreign.names import HEAD_WEIGHT, OURS, TABLE, TOKEN_TABLES, Resolution, resolve
from lightning_conan.embedder.checkpoint.foreign.part import Part
from lightning_conan.embedder.checkpoint.foreign.report import ForeignReport
from lightning_conan.embedder.checkpoint.foreign.rows import TokenRows, match_rows
from lightning_conan.embedder.checkpoint.foreign.same_base import measure_files, same
from lightning_conan.embedder.checkpoint.foreign.whole import Whole
from lightning_conan.embedder.checkpoint.tensors import TensorFiles
from lightning_conan.embedder.checkpoint.upstream import Upstream


def dense_parts(upstream: Upstream, base: KnownBase, report: ForeignReport) -> dict[str, Part]:
    """Maps each tensor of a dense checkpoint to the base's; what does not fit is listed in the report as refused.

    Args:
        upstream: The checkpoint.
        base: The base.
        report: Receives what became of each key.

    Raises:
        ValueError: Another architecture, or a tokenizer that does not fit the tables.
    """
    config = backbone_config_of(upstream, base)
    check_architecture(upstream.source, config, base)
    files = upstream.tensors()
    found = resolve(files.specs, base.tensors.specs)
    report.layout = found.layout.name
    rows = rows_of(upstream, files, found, base)
    report.dropped_tokens = list(rows.dropped) if rows else []
    parts: dict[str, Part] = {}
    for key, name in found.mapped.items():
        spec, wanted = files.specs[key], base.tensors.specs[name]
        matched = rows if name in TOKEN_TABLES else None
        if spec.shape[1:] != wanted.shape[1:] or (matched is None and spec.shape != wanted.shape):
            report.refused[key] = f"has the shape {list(spec.shape)} for a tensor of {list(wanted.shape)}"
        else:
            parts[name], report.mapped[key] = Whole(files, matched, key), name
    for key in found.unknown:
        leave(key, files, found, report)
    tie_head(parts, config, base)
    complete(parts, base, report)
    report.distances |= measure_files(files, base)
    return parts


def backbone_config_of(upstream: Upstream, base: KnownBase) -> PreTrainedConfig:
    """Returns the config of a checkpoint's backbone: its own, or that within a config of ours.

    Args:
        upstream: The checkpoint.
        base: The base.

    Raises:
        ValueError: It is of another family than the base.
    """
    config = upstream.config
    config = getattr(config, "backbone_config", config)
    if config.model_type != base.config.model_type:
        raise ValueError(
            f"{upstream.source} must be of the family of {base.where}, {base.config.model_type!r}, it is {config.model_type!r}. "
            "Name one of its family."
        )
    return config


def check_architecture(source: str, config: PreTrainedConfig, base: KnownBase) -> None:
    """Refuses a checkpoint whose weights mean something else than the base's.

    Args:
        source: Its folder or hub name, for the error.
        config: Config of its backbone.
        base: The base.

    Raises:
        ValueError: Names the first setting that differs.
    """
    for part, names in backbone_of(config.model_type).decisive.items():
        theirs, ours = getattr(config, part), getattr(base.config, part)
        for name in names:
            values: tuple[Any, Any] = getattr(theirs, name, None), getattr(ours, name, None)
            if values[0] != values[1]:
                raise ValueError(
                    f"{part}.{name} of {source} must be {values[1]!r} as of {base.where}, got {values[0]!r}: it is another "
                    "architecture, and no difference of weights has a meaning. Name its own base."
                )


def rows_of(upstream: Upstream, files: TensorFiles, found: Resolution, base: KnownBase) -> TokenRows | None:
    """Matches the rows of a checkpoint's tables with the base's by token; None if it has no table.

    Args:
        upstream: The checkpoint, for its tokenizer.
        files: Its tensors.
        found: Its names, mapped to ours.
        base: The base.

    Raises:
        ValueError: It has no tokenizer, or one with more tokens than its table has rows.
    """
    key = next((key for key, name in found.mapped.items() if name in TOKEN_TABLES), None)
    if key is None:
        return None
    theirs = vocabulary_of(upstream)
    if theirs is None and found.layout != OURS:
        raise ValueError(
            f"{upstream.source} must have its tokenizer beside its weights, by which rows are matched. Copy it there."
        )
    count, wanted = files.specs[key].shape[0], base.tensors.specs[found.mapped[key]].shape[0]
    try:
        return match_rows(base.vocabulary, theirs or base.vocabulary, wanted, count)
    except ValueError as error:
        raise ValueError(f"The tokenizer of {upstream.source} does not fit its weights: {error}") from error


def vocabulary_of(upstream: Any) -> dict[str, int] | None:
    """Returns the token ids of a repository's tokenizer; None if it has none."""
    for folder in (upstream.folder, upstream.root):
        if (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            return dict(tokenizer.get_vocab())
    return None


def leave(key: str, files: TensorFiles, found: Resolution, report: ForeignReport) -> None:
    """Ignores an output head that equals the checkpoint's own token embeddings; refuses every other key.

    Args:
        key: A key that the base has no tensor for.
        files: The checkpoint's tensors.
        found: Its names, mapped to ours.
        report: Receives what becomes of the key.
    """
    table = next((theirs for theirs, name in found.mapped.items() if name == TABLE), None)
    if found.layout.place(key) != HEAD_WEIGHT:
        report.refused[key] = "names no tensor of the base"
    elif table is not None and same(files[key], files[table]):
        report.ignored[key] = "equals the token embeddings, which the base's output head shares"
    else:
        report.refused[key] = "is an output head that differs from the token embeddings, and the base has none of its own"


def tie_head(parts: dict[str, Part], config: PreTrainedConfig, base: KnownBase) -> None:
    """Takes the token embeddings of a tied checkpoint as its output head, for a base that has one of its own.

    Args:
        parts: Parts by name, to which the head's is added.
        config: Config of the checkpoint.
        base: The base.
    """
    if HEAD_WEIGHT in base.tensors.specs and HEAD_WEIGHT not in parts and config.tie_word_embeddings and TABLE in parts:
        parts[HEAD_WEIGHT] = parts[TABLE]


def complete(parts: dict[str, Part], base: KnownBase, report: ForeignReport) -> None:
    """Lists the tensors that the checkpoint lacks: those of audio and of the output head are the base's, others are refused.

    Args:
        parts: Parts by name.
        base: The base.
        report: Receives them.
    """
    missing = [name for name in base.tensors.specs if name not in parts]
    report.count_kept([name for name in missing if not name.startswith("backbone.")])
    if report.refused:
        return  # which may be why they are missing
    report.refused |= {name: "the source does not have" for name in missing if name.startswith("backbone.")}
