"""Opens what others wrote as task vectors of a base: adapters and dense checkpoints, by folder or hub name."""

from functools import partial
from pathlib import Path

from lightning_conan.embedder.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lightning_conan.embedder.checkpoint.foreign.adapter import AdapterReader
from lightning_conan.embedder.checkpoint.foreign.dense import dense_parts, vocabulary_of
from lightning_conan.embedder.checkpoint.foreign.known_base import KnownBase
from lightning_conan.embedder.checkpoint.foreign.part import Part
from lightning_conan.embedder.checkpoint.foreign.report import ForeignReport
from lightning_conan.embedder.checkpoint.foreign.same_base import check_distances, compare_recorded, relative_distance
from lightning_conan.embedder.checkpoint.foreign.settings import REMEDY, LoraSettings
from lightning_conan.embedder.checkpoint.foreign.tensors import ForeignTensors
from lightning_conan.embedder.checkpoint.foreign.whole import Whole
from lightning_conan.embedder.checkpoint.provenance import PROVENANCE, Provenance, file_hash
from lightning_conan.embedder.checkpoint.tensors import TensorFiles, Tensors
from lightning_conan.embedder.checkpoint.upstream import Repository, Upstream, is_hub_name, read_json

MARKS = (ADAPTER_CONFIG, "config.json", "modules.json")
"""Files by which a folder of others is known."""
OUR_MARKS = (PROVENANCE, "omni_processor.json")
"""Files of a checkpoint folder of ours; one that lost the first is damaged, not foreign."""


def is_foreign(source: Path) -> bool:
    """True if a folder was written by others, or is no folder here but a name of the hub's."""
    if source.is_dir():
        return any((source / name).is_file() for name in MARKS) and not any((source / name).is_file() for name in OUR_MARKS)
    return is_hub_name(str(source)) and not source.parent.is_dir() and not source.exists()


def foreign_provenance(source: Path) -> Provenance:
    """Hashes the weights of a foreign checkpoint, as a specialist of no modality.

    Raises:
        ValueError: Its weights are missing, pickled, or cannot be fetched.
    """
    repository = Repository(str(source))
    paths = adapter_paths(repository) if is_adapter(repository) else Upstream(str(source), ("",)).paths()
    return Provenance("specialist", files={path.name: file_hash(path) for path in paths})


def open_foreign(source: Path, base: Path, tensors: Tensors, trust: bool = False, strict: bool = True) -> ForeignTensors:
    """Opens a foreign checkpoint on a base folder.

    Args:
        source: Its folder or hub name.
        base: The base folder.
        tensors: The base's tensors.
        trust: Take it even if it is far from the base.
        strict: False to list what is refused in the report instead of raising.

    Raises:
        ValueError: It merges by another rule, a key has no place in the base, or it was made from another base.
    """
    known, repository = KnownBase.from_folder(base, tensors), Repository(str(source))
    if is_adapter(repository):
        return adapter_on(repository, known, trust, strict)
    upstream = Upstream(str(source), ("",))
    report = ForeignReport(str(source), notes=pooling_notes(repository))
    parts = dense_parts(upstream, known, report)
    return finish(parts, known, report, trust, strict)


def adapter_on(source: Repository, base: KnownBase, trust: bool = False, strict: bool = True) -> ForeignTensors:
    """Opens an adapter on a base.

    Args:
        source: The adapter's folder or repository.
        base: The base.
        trust: Take it even if its base is far from this one.
        strict: False to list what is refused in the report instead of raising.

    Raises:
        ValueError: It merges by another rule, a key has no place in the base, or it was made from another base.
    """
    if not is_adapter(source):
        raise ValueError(
            f"{source.source} must be an adapter folder, it has no {ADAPTER_CONFIG}. Name the folder that PEFT wrote."
        )
    settings = LoraSettings.read(source.folder)
    report = ForeignReport(source.source, notes=pooling_notes(source))
    reader = AdapterReader(TensorFiles(adapter_paths(source)), settings, base, vocabulary_of(source), report)
    parts = reader.parts()
    report.count_kept([name for name in base.tensors.specs if name not in parts])
    compare_recorded(report, settings.base, base)
    if not any(part.startswith("base's") for part in report.distances):
        measure_whole(parts, base, report)
    found = finish(parts, base, report, trust, strict)
    check_change(parts, base, report, settings, strict)
    return found


def finish(parts: dict[str, Part], base: KnownBase, report: ForeignReport, trust: bool, strict: bool) -> ForeignTensors:
    """Checks a report and returns the tensors that it describes.

    Args:
        parts: Parts by tensor.
        base: The base.
        report: The report.
        trust: Take it even if it is far from the base.
        strict: False to raise nothing.
    """
    if strict:
        check_distances(report, base, trust)
        report.check(base.where)
    return ForeignTensors(base.tensors, parts, report)


def check_change(parts: dict[str, Part], base: KnownBase, report: ForeignReport, settings: LoraSettings, strict: bool) -> None:
    """Refuses an adapter that changes nothing: one that was not trained, or is scaled by 0.

    Args:
        parts: Parts by tensor.
        base: The base.
        report: Receives a note where nothing is raised.
        settings: The adapter's settings.
        strict: False to raise nothing.

    Raises:
        ValueError: Its task vector is 0.
    """
    if not all(part.is_zero(partial(base.tensors.__getitem__, name)) for name, part in parts.items()):
        return
    why = "lora_alpha is 0" if settings.alpha == 0 else "its lora_B are 0, as before the first step of training"
    if strict:
        raise ValueError(
            f"{report.source} must change a tensor, but its task vector is 0: {why}. Leave it out, or name one that was trained."
        )
    report.notes.append(f"Its task vector is 0: {why}.")


def measure_whole(parts: dict[str, Part], base: KnownBase, report: ForeignReport) -> None:
    """Measures the distance of the matrices that an adapter holds whole; its factors say nothing of its base.

    Args:
        parts: Parts by tensor.
        base: The base.
        report: Receives the distance.
    """
    whole = [name for name, part in parts.items() if isinstance(part, Whole) and len(base.tensors.specs[name].shape) > 1]
    if whole:
        pairs = ((base.tensors[name], parts[name].merged(base.tensors[name])) for name in whole)
        report.distances["whole tensors"] = relative_distance(pairs)


def is_adapter(source: Repository) -> bool:
    """True if a repository holds an adapter."""
    return (source.folder / ADAPTER_CONFIG).is_file()


def adapter_paths(source: Repository) -> list[Path]:
    """Returns the path of an adapter's weights.

    Raises:
        ValueError: They are pickled or missing, or there are others beside them, which PEFT would not read.
    """
    names = source.names()
    others = [name for name in names if name.endswith(".safetensors") and name != ADAPTER_WEIGHTS]
    if others:
        raise ValueError(
            f"{source.source} holds {others[0]} beside {ADAPTER_CONFIG}: weights that are not the adapter's, such as a tower "
            f"that was trained fully, would be lost. {REMEDY}"
        )
    if ADAPTER_WEIGHTS not in names:
        pickled = next((name for name in names if name.endswith((".bin", ".pt"))), None)
        told = f"it holds {pickled}, and a pickle can run code" if pickled else "it does not"
        raise ValueError(f"{source.source} must hold {ADAPTER_WEIGHTS}, but {told}. Save it again with PEFT's save_pretrained.")
    return [source.file(ADAPTER_WEIGHTS)]


def pooling_notes(source: Repository) -> list[str]:
    """Notes that a sentence-transformers folder pools otherwise than we do."""
    modules = read_json(source.root / "modules.json", list)
    paths = [source.root / module["path"] / "config.json" for module in modules if module["type"].endswith(".Pooling")]
    for path in paths:
        config = read_json(path)
        if not (config.get("pooling_mode") == "lasttoken" or config.get("pooling_mode_lasttoken")):
            return [f"It was trained with another pooling than the last token's ({path.parent.name})."]
    return []
