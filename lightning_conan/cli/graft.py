"""`conan graft`: a base folder."""

from collections.abc import Sequence
from pathlib import Path

from lightning_conan.cli.quiet import quiet_libraries


def graft(out: Path, tiny: bool = False, seed: int = 0) -> None:
    """Makes a base folder: backbone, audio encoder and a fresh projector.

    Args:
        out: The folder to write.
        tiny: The tiny configuration, about a million randomly started parameters.
        seed: Fixes the random start.
    """
    from lightning_conan.embedder import Provenance, save_folder, tiny_embedder

    quiet_libraries()
    if not tiny:
        raise ValueError("graft makes only the tiny configuration so far, got tiny=false. Add --tiny true.")
    model, processor = tiny_embedder(seed)
    save_folder(out, model, processor, Provenance("base", notes={"tiny": True, "seed": seed}))
    print(f"{out}: base, {sum(p.numel() for p in model.parameters()):,} parameters, seed {seed}")


def run(args: Sequence[str]) -> None:
    """Parses the options and grafts."""
    from jsonargparse import auto_cli

    auto_cli(graft, args=list(args), prog="conan graft", as_positional=False)
