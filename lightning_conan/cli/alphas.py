"""`conan alphas`: coefficients by search."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning_conan.fusion import Recipe, Search
from lightning_conan.fusion.coefficients import SearchResult


def alphas(
    recipe: Recipe,
    diagnostic: dict[str, Path],
    out: Path,
    search: Search = Search(),  # noqa: B008  # frozen
    pairs: int = 512,
    device: str = "cpu",
) -> None:
    """Searches the coefficients of a fusion, scored by retrieval, and writes the best fused folder.

    In the folder alphas.json lists every candidate, alphas.png draws the trade-off, and report.html shows both. `conan fit` on
    the stage Fused learns them by the contrastive loss instead. Needs the extras alphas and plots.

    Args:
        recipe: The base, the specialists, the method; its coefficients are the first candidate (but on a grid).
        diagnostic: Packed pairs for each specialist that it has not seen, in no benchmark either.
        out: The fused folder to write.
        search: Aim, number of trials and seed of the search.
        pairs: Pairs that are used of each data set; they stay in memory.
        device: Device that candidates are scored on, such as ``cuda:1``.
    """
    from lightning_conan.cli.common.closing import close
    from lightning_conan.cli.common.pair_sets import read_sets
    from lightning_conan.embedder.checkpoint import check_apart, check_replaceable
    from lightning_conan.extras import require
    from lightning_conan.fusion import fuse_folders, search_alphas
    from lightning_conan.fusion.coefficient_plots import plot_trials
    from lightning_conan.fusion.coefficients import check_searchable
    from lightning_conan.fusion.page import alphas_page
    from lightning_conan.writer_lock import only_writer

    check_searchable()  # neither this nor what follows after hours
    require("matplotlib", "Drawing the trade-off")
    check_apart(out, recipe.base, *recipe.specialists.values())
    check_replaceable(out, "fused")
    recipe.check()
    with only_writer(out):
        found = search_alphas(recipe, read_sets(diagnostic, recipe.home, pairs), search, device)
        drawn = plot_trials(found, next(iter(recipe.owning)))
        page = alphas_page(found, drawn).encode()
        beside = {"alphas.json": found.to_json().encode(), "alphas.png": drawn, "report.html": page}
        fuse_folders(replace(recipe, alphas=found.best.alphas), out, beside=beside)
    print_best(found)
    print(f"{out}: fused with the best; {out / 'alphas.png'} draws all")
    close("alphas", [out, out / "report.html"])


def print_best(found: SearchResult) -> None:
    """Prints the best candidate's coefficients and scores, beside those of the first."""
    first = found.trials[0]
    print(f"best of {len(found.trials)}, in brackets the first:")
    for name, alpha in sorted(found.best.alphas.items()):
        print(
            f"{name:<10}{alpha:5.2f} ({first.alphas[name]:.2f})   recall@1 {found.best.scores[name]:5.1f} "
            f"({first.scores[name]:.1f}) of the specialist's {found.own[name]:.1f}"
        )


def run(args: Sequence[str]) -> None:
    """Parses the options and searches."""
    from jsonargparse import auto_cli

    from lightning_conan.cli.common.logging import quiet_libraries

    quiet_libraries()
    auto_cli(alphas, args=list(args), prog="conan alphas", as_positional=False, exit_on_error=False)
