"""`conan fuse`: specialists to one folder."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_conan import fusion
from lightning_conan.fusion import Recipe

if TYPE_CHECKING:
    from lightning_conan.embedder.checkpoint import ForeignReport

ALARM = 0.05
"""Share of the change that rounding may take before it is worth a word."""


def fuse(recipe: Recipe, out: Path, workers: int = 2, dry: bool = False, trust_base: bool = False) -> None:
    """Fuses specialists of one base, tensor by tensor (--mergekit FILE instead of --recipe reads a mergekit YAML of folders).

    Args:
        recipe: The base, the specialists, their coefficients and the method.
        out: The folder to write.
        workers: Tensors that are made at once.
        dry: Only print what would become of each tensor, and of each key of checkpoints that others wrote.
        trust_base: Take checkpoints of others even if they are far from the base (sets recipe.trust_base).
    """
    from lightning_conan.cli.common.closing import close
    from lightning_conan.cli.common.logging import quiet_libraries
    from lightning_conan.terminal import printable

    quiet_libraries()
    recipe = replace(recipe, trust_base=recipe.trust_base or trust_base)
    if dry:
        for name, report in fusion.foreign_reports(recipe):
            for line in report.lines():
                print(printable(f"{name}: {line}"))
        for name, action, spec in fusion.dry_run(recipe):
            print(f"{action:<8}{printable(name)}  {list(spec.shape)} {str(spec.dtype).removeprefix('torch.')}")
        return
    result = fusion.fuse_folders(recipe, out, workers)
    alphas = ", ".join(f"{name} {alpha:g}" for name, alpha in sorted(result.alphas.items()))
    print(f"{out}: {len(result.fused)} tensors fused ({alphas}), {len(result.copied)} copied from {', '.join(recipe.owning)}")
    if result.rounding_loss > ALARM:
        print(
            f"rounding took {result.rounding_loss:.0%} of the change: the specialists differ from the base by less than "
            "the output's dtype resolves. Write it with --recipe.dtype float32.",
            file=sys.stderr,
        )
    for name, norm in sorted(result.norms.items()):
        if norm == 0 and name not in recipe.owning and recipe.alphas[name]:
            print(printable(f"{name}: its task vector is 0, so it adds nothing. Was it trained?"), file=sys.stderr)
    for name, report in result.foreign.items():
        tell_foreign(name, report)
    close("fuse", [out])


def tell_foreign(name: str, report: "ForeignReport") -> None:
    """Prints a line on a specialist that others wrote, and on stderr its differences to the base.

    Args:
        name: Name of the specialist.
        report: What became of its keys.
    """
    from lightning_conan.terminal import printable

    print(printable(f"{name}: {report.lines()[0]}; all keys are in fusion.json"))
    trusted = ["It is far from the base, and was taken because of trust_base."] if report.trusted else []
    for note in [*report.notes, *trusted]:
        print(printable(f"{name}: {note}"), file=sys.stderr)


def fuse_mergekit(mergekit: Path, out: Path, workers: int = 2, dry: bool = False, trust_base: bool = False) -> None:
    """Fuses what a mergekit YAML describes, whose models are specialist folders or checkpoints of others.

    Args:
        mergekit: The YAML; paths in it are relative to it.
        out: The folder to write.
        workers: Tensors that are made at once.
        dry: Only print what would become of each tensor, and of each key of checkpoints that others wrote.
        trust_base: Take checkpoints of others even if they are far from the base.
    """
    fuse(fusion.read_mergekit(mergekit), out, workers, dry, trust_base)


def run(args: Sequence[str]) -> None:
    """Parses the options and fuses."""
    from jsonargparse import auto_cli

    verb = fuse_mergekit if any(word.split("=")[0] == "--mergekit" for word in args) else fuse
    auto_cli(verb, args=list(args), prog="conan fuse", as_positional=False, exit_on_error=False)
