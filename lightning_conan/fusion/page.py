"""The page of a coefficient search."""

from lightning_conan.fusion.coefficients import SearchResult
from lightning_conan.pages import Column, Section, document, figure, table


def alphas_page(found: SearchResult, drawn: bytes) -> str:
    """Returns the page: the best candidate beside the first, the trade-off, and all candidates.

    Args:
        found: Result of a search.
        drawn: Its plots, a PNG.
    """
    names, first = sorted(found.own), found.trials[0]
    best, kept = found.best, found.kept(found.best)
    columns = ["specialist", Column("coefficient"), Column("first"), Column("recall@1", 1, 100.0)]
    columns += [Column("recall@1, first", 1, 100.0), Column("specialist alone", 1, 100.0), Column("kept, %", 1, 100.0)]
    cells = [
        [name, best.alphas[name], first.alphas[name], best.scores[name], first.scores[name], found.own[name], 100 * kept[name]]
        for name in names
    ]
    summary = f"The best of {len(found.trials)} candidates reaches {best.value:.3f}, the first {first.value:.3f}."
    heads = ["candidate", Column("objective", 3), *(Column(f"{name}: coefficient") for name in names)]
    heads += [Column(f"{name}: recall@1", 1, 100.0) for name in names]
    trials = [
        [number, trial.value, *(trial.alphas[name] for name in names), *(trial.scores[name] for name in names)]
        for number, trial in enumerate(found.trials, start=1)
    ]
    return document(
        "Coefficients of a fusion",
        Section("Best", (table(columns, cells, "recall@1 in per cent on diagnostic pairs"),)),
        Section("Trade-off", (figure(drawn, "Shares of the specialists' scores that each candidate keeps"),)),
        Section("All candidates", (table(heads, trials, "The objective is a share of the specialists' scores"),)),
        summary=summary,
    )
