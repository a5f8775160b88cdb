"""`conan doctor`: what works on this machine, what will be slow, and whether a folder's vectors still come out right."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from lightning_conan.cli.common.libraries import LIBRARIES, misfits

OK, SLOW, FAIL = "ok", "slow", "FAIL"
DECODERS = {"video": ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4"), "audio": ("flac", "mp3float", "aac", "vorbis", "opus")}
NEEDED = {"h264", "vp9", "flac", "mp3float", "vorbis"}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    found: str
    verdict: str = OK
    remedy: str = ""


def check_packages() -> Iterator[Finding]:
    """Yields a failure for each required package that is missing or outside its version range."""
    from packaging.requirements import Requirement

    for line in metadata.requires("lightning-conan") or []:
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield Finding(need.name, "missing", FAIL, f"pip install '{line}'")
            continue
        if not need.specifier.contains(found, prereleases=True):
            yield Finding(need.name, found, FAIL, f"pip install '{line}'")


def check_torch() -> Iterator[Finding]:
    """Yields the versions of torch and its companions, and the GPUs that it sees."""
    broken = {name: Finding(name, reason, FAIL, remedy) for name, reason, remedy in misfits()}
    if "torch" in broken:
        yield broken["torch"]
        return
    import torch

    yield Finding("torch", f"{torch.__version__}, built for CUDA {torch.version.cuda}")
    for name in LIBRARIES[1:]:
        yield broken.get(name) or Finding(name, metadata.version(name))
    if not torch.cuda.is_available():
        yield Finding("GPU", "none", SLOW, "models of billions of parameters need one; the tiny configuration does not")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        half = SLOW if device.major < 8 else OK
        yield Finding(
            f"GPU {index}",
            f"{device.name}, {device.total_memory / 2**30:.0f} GiB",
            half,
            "no bfloat16 units" if half == SLOW else "",
        )


def check_decoders() -> Iterator[Finding]:
    """Yields the decoders of every modality, and those that are missing."""
    import av
    import pypdfium2
    from PIL import features

    for kind, names in DECODERS.items():
        missing = [name for name in names if name not in av.codecs_available]
        lost = sorted(NEEDED & set(missing))
        remedy = f"reinstall av: without {', '.join(lost)} such files are quarantined" if lost else ""
        have = ", ".join(name for name in names if name not in missing)
        yield Finding(f"{kind} decoders", f"{have} (av {av.__version__})", FAIL if lost else OK, remedy)
    lost = [name for name in ("jpg", "zlib", "webp") if not features.check(name)]
    yield Finding(
        "image decoders",
        "JPEG, PNG, WebP" if not lost else f"without {lost}",
        FAIL if lost else OK,
        "reinstall pillow" if lost else "",
    )
    yield Finding("PDF pages", f"pypdfium2 {pypdfium2.version.PYPDFIUM_INFO}")


def check_machine() -> Iterator[Finding]:
    """Yields cores, threads, memory and free disk space."""
    cores, threads = os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS", "unset")
    yield Finding("machine", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {cores} cores")
    yield Finding(
        "OMP_NUM_THREADS",
        threads,
        OK if threads != "unset" else SLOW,
        "set it to 1 when several processes share the cores" if threads == "unset" else "",
    )
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        yield Finding("memory", f"{memory:.0f} GiB", OK if memory >= 6 else SLOW, "the demo needs 6 GiB" if memory < 6 else "")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Finding(
        "free disk here",
        f"{free:.0f} GiB",
        OK if free >= 5 else SLOW,
        "" if free >= 5 else "a run writes several copies of the model",
    )


def examine_machine() -> int:
    """Prints all findings and returns the exit status."""
    checks: list[Callable[[], Iterator[Finding]]] = [check_machine, check_packages, check_torch, check_decoders]
    failed = 0
    for check in checks:
        for finding in check():
            failed += finding.verdict == FAIL
            remedy = f"  -> {finding.remedy}" if finding.remedy else ""
            print(f"{finding.verdict:<5}{finding.what:<18}{finding.found}{remedy}")
    print("something cannot work, see FAIL" if failed else "everything needed is there")
    return int(failed > 0)


def examine_folder(folder: Path, record: bool, dtype: str | None, device: str) -> int:
    """Loads a checkpoint folder, compares its golden vectors with recomputed ones, prints each and returns the exit status.

    Args:
        folder: The checkpoint folder.
        record: Write new golden vectors first.
        dtype: Name of a torch dtype for the weights; None for the folder's own on a CPU and bfloat16 on other devices.
        device: Device to embed on, such as ``cuda:1``.

    Returns:
        1 if a vector differs by more than is allowed, else 0.
    """
    import torch

    from lightning_conan.embedder import load_folder
    from lightning_conan.embedder.checkpoint import changed_versions, compare_golden, record_golden
    from lightning_conan.terminal import printable

    model, processor, provenance = load_folder(folder, dtype=getattr(torch, dtype) if dtype else None, device=device)
    count = sum(parameter.numel() for parameter in model.parameters())
    found = str(model.dtype).removeprefix("torch.")
    print(f"{folder}: {provenance.state}, {count:,} parameters, {found}; every file and tensor as it should be")
    if record:
        record_golden(folder, model, processor)
    off, allowed = compare_golden(folder, model, processor)
    for name, value in off.items():
        print(f"{OK if value <= allowed else FAIL:<5}{printable(name):<10}off by {value:.1e}, allowed {allowed:.0e}")
    if all(value <= allowed for value in off.values()):
        return 0
    print(changed_versions(folder), file=sys.stderr)
    return 1


def run(args: Sequence[str]) -> None:
    """Parses the options and examines."""
    from jsonargparse import ArgumentParser

    from lightning_conan.cli.common.logging import quiet_libraries

    parser = ArgumentParser(
        prog="conan doctor",
        exit_on_error=False,
        description="Checks this machine, or a checkpoint folder on it; exit status 1 when something cannot work.",
    )
    parser.add_argument("--config", action="config", help="Read options from a YAML file.")
    parser.add_argument(
        "folder", type=Path | None, nargs="?", help="A checkpoint folder: load it strictly and recompute its golden vectors."
    )
    parser.add_argument(
        "--record", type=bool, default=False, help="Record the golden vectors again instead of comparing with them."
    )
    parser.add_argument(
        "--dtype",
        type=Literal["float32", "float16", "bfloat16"] | None,
        default=None,
        help="Dtype of the weights; by default the folder's on a CPU, bfloat16 on other devices.",
    )
    parser.add_argument("--device", type=str, default="cpu", help="Device to embed on: cpu, cuda, cuda:1, mps.")
    options = parser.parse_args(list(args))
    quiet_libraries()
    status = (
        examine_machine()
        if options.folder is None
        else examine_folder(options.folder, options.record, options.dtype, options.device)
    )
    if status:
        raise SystemExit(status)
