"""`conan fuse`: specialists to one folder."""

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_conan import fusion
from lightning_conan.fusion import Recipe

ALARM = 0.05
"""Share of the change that rounding may take before it is worth a word."""


def fuse(recipe: Recipe, out: Path, workers: int = 2, dry: bool = False) -> None:
    """Fuses specialists of one base, tensor by tensor (--mergekit FILE instead of --recipe reads a mergekit YAML of folders).

    Args:
        recipe: The base, the specialists, their coefficients and the method.
        out: The folder to write.
        workers: Tensors that are made at once.
        dry: Only print what would become of each tensor.
    """
    from lightning_conan.cli.common.logging import quiet_libraries
    from lightning_conan.terminal import printable

    quiet_libraries()
    if dry:
        for name, action, spec in fusion.dry_run(recipe):
            print(f"{action:<8}{printable(name)}  {list(spec.shape)} {str(spec.dtype).removeprefix('torch.')}")
        return
    report = fusion.fuse_folders(recipe, out, workers)
    alphas = ", ".join(f"{name} {alpha:g}" for name, alpha in sorted(report.alphas.items()))
    print(f"{out}: {len(report.fused)} tensors fused ({alphas}), {len(report.copied)} copied from {recipe.owner}")
    if report.rounding_loss > ALARM:
        print(
            f"rounding took {report.rounding_loss:.0%} of the change: the specialists differ from the base by less than "
            "the output's dtype resolves. Write it with --recipe.dtype float32.",
            file=sys.stderr,
        )


def fuse_mergekit(mergekit: Path, out: Path, workers: int = 2, dry: bool = False) -> None:
    """Fuses what a mergekit YAML describes, whose models are specialist folders.

    Args:
        mergekit: The YAML; paths in it are relative to it.
        out: The folder to write.
        workers: Tensors that are made at once.
        dry: Only print what would become of each tensor.
    """
    fuse(fusion.read_mergekit(mergekit), out, workers, dry)


def run(args: Sequence[str]) -> None:
    """Parses the options and fuses."""
    from jsonargparse import auto_cli

    verb = fuse_mergekit if any(word.split("=")[0] == "--mergekit" for word in args) else fuse
    auto_cli(verb, args=list(args), prog="conan fuse", as_positional=False, exit_on_error=False)
