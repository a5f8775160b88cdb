"""`conan fuse`: specialists to one folder."""

from collections.abc import Sequence
from pathlib import Path


def run(args: Sequence[str]) -> None:
    """Parses the options and fuses."""
    from jsonargparse import auto_cli

    from lightning_conan.cli.quiet import quiet_libraries
    from lightning_conan.fusion import Recipe, fuse_folders

    def fuse(recipe: Recipe, out: Path) -> None:
        """Fuses specialists of one base: base + sum of alpha times task vector, not normalised.

        Args:
            recipe: The base, the specialists and their coefficients.
            out: The folder to write.
        """
        report = fuse_folders(recipe, out)
        alphas = ", ".join(f"{name} {alpha:g}" for name, alpha in sorted(report.alphas.items()))
        print(f"{out}: {len(report.fused)} tensors fused ({alphas}), {len(report.copied)} copied from {recipe.owner}")

    quiet_libraries()
    auto_cli(fuse, args=list(args), prog="conan fuse", as_positional=False)
