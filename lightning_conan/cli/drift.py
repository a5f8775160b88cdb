"""`conan drift`: effect of a fusion on each modality, its cost, and the projector's share in it."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from lightning_conan.items import Modality, check_modality


def drift(
    specialists: dict[Modality, Path],
    states: dict[str, Path],
    diagnostic: dict[Modality, Path],
    out: Path,
    pairs: int = 512,
    device: str = "cpu",
) -> None:
    """Compares a fused model, and what came after it, with the specialists, modality by modality.

    Swap tests put parts of the specialist into the fused model and the other way round: an intact projector with a lower
    score is one that the backbone moved beneath. Writes drift.json, drift.png and report.html (needs the extra plots).

    Args:
        specialists: Specialist folders by modality.
        states: Folders by name: fused, and recovered or later ones if there are any.
        diagnostic: Packed pairs of each modality that no specialist has seen.
        out: The folder for drift.json, drift.png and report.html.
        pairs: Pairs that are used of each data set.
        device: Device to compute on, such as ``cuda:1``.
    """
    from lightning_conan.cli.common.closing import close
    from lightning_conan.cli.common.logging import quiet_libraries
    from lightning_conan.cli.common.pair_sets import read_sets
    from lightning_conan.drift import measure_drift, plot_drift, plot_verdicts
    from lightning_conan.drift.page import drift_page
    from lightning_conan.extras import require
    from lightning_conan.fusion.coefficient_plots import draw
    from lightning_conan.writer_lock import only_writer

    quiet_libraries()
    for name in (*specialists, *diagnostic):
        check_modality(name, "specialists and diagnostic")
    require("matplotlib", "Drawing drift")
    if not specialists:
        raise ValueError("specialists must name a folder by modality at least, got none.")
    sets = read_sets(diagnostic, next(iter(specialists.values())), pairs)
    with only_writer(out):
        report = measure_drift(specialists, states, sets, device)
        panels = [partial(plot_drift, layers=layers, title=modality) for modality, layers in report.layers.items()]
        drawn = draw(partial(plot_verdicts, verdicts=report.verdicts), *panels)
        files = {"drift.json": report.to_json().encode(), "drift.png": drawn, "report.html": drift_page(report, drawn).encode()}
        write_together(out, files)
    for verdict in report.verdicts.values():
        print(verdict.sentence())
    print(f"{out}: {', '.join(files)}")
    close("drift", [out / "report.html", out / "drift.json", out / "drift.png"], folder=states["fused"])


def write_together(out: Path, files: dict[str, bytes]) -> None:
    """Writes files of a folder, all or none.

    Args:
        out: The folder.
        files: Content by name; the first says whether an earlier result is replaced.
    """
    from lightning_conan.files import sync, warn_replaced, whole_file

    out.mkdir(parents=True, exist_ok=True)
    warn_replaced(out / next(iter(files)))
    with ExitStack() as stack:
        for name, content in files.items():
            file = stack.enter_context(whole_file(out / name))
            file.write(content)
            sync(file)


def run(args: Sequence[str]) -> None:
    """Parses the options, measures and draws."""
    from jsonargparse import auto_cli

    auto_cli(drift, args=list(args), prog="conan drift", as_positional=False, exit_on_error=False)
