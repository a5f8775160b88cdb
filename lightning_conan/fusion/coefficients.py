"""Coefficients by search: candidates are fused in memory and scored on pairs that no specialist has seen."""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lightning_conan.extras import require
from lightning_conan.fusion.recipe import Recipe
from lightning_conan.fusion.write import fused_model, specialist_model
from lightning_conan.retrieval import PairSet
from lightning_conan.terminal import Work

Scores = dict[str, float]


@dataclass(frozen=True)
class Search:
    """Settings of a coefficient search.

    Args:
        sampler: bayes (a Gaussian process learns which are worth a try) or grid (every combination).
        trials: Candidates of bayes, the recipe's own coefficients first.
        low: Smallest coefficient.
        high: Largest coefficient.
        values: Values of each coefficient on the grid.
        aim: Objective to maximise: the share of its specialist's score that the worst modality keeps, or the mean share, for
            which a modality may be sacrificed.
        seed: Seed of the sampler.
        token_budget: Padded tokens of a chunk when scoring.
    """

    sampler: Literal["bayes", "grid"] = "bayes"
    trials: int = 40
    low: float = 0.0
    high: float = 1.0
    values: tuple[float, ...] = (0.1, 0.3, 0.5)
    aim: Literal["worst", "mean"] = "worst"
    seed: int = 0
    token_budget: int = 16_384

    def __post_init__(self) -> None:
        if self.trials < 1 or not self.values:
            raise ValueError(f"search.trials must be positive and values not empty, got {self.trials} and {self.values}.")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"search.low must be below search.high, got {self.low} and {self.high}.")


@dataclass(frozen=True)
class Trial:
    """One candidate.

    Args:
        alphas: Its coefficients.
        scores: Recall@1 of each modality, in per cent.
        value: Value of the objective.
    """

    alphas: dict[str, float]
    scores: Scores
    value: float


@dataclass(frozen=True)
class SearchResult:
    """Result of a search: a folder's ``alphas.json``.

    Args:
        own: Recall@1 of each specialist on its own modality.
        trials: All candidates, in their order.
    """

    own: Scores
    trials: list[Trial]

    @property
    def best(self) -> Trial:
        """The first of the best candidates."""
        return max(self.trials, key=lambda trial: trial.value)

    def kept(self, trial: Trial) -> Scores:
        """Returns the share of each specialist's score that a candidate keeps; 1 where that score is 0."""
        return {name: share(score, self.own[name]) for name, score in trial.scores.items()}

    def _repr_html_(self) -> str:
        """Shows all candidates in a notebook, the best first."""
        from lightning_conan.pages import Column, fragment, table

        names = sorted(self.own)
        scores = [Column(f"recall@1 {name}, %", digits=1, full=100.0) for name in names]
        heads = [*(Column(f"alpha {name}") for name in names), *scores, Column("objective", digits=3)]
        ordered = sorted(self.trials, key=lambda trial: -trial.value)
        rows = [[*map(trial.alphas.get, names), *map(trial.scores.get, names), trial.value] for trial in ordered]
        own = ", ".join(f"{name} {self.own[name]:.1f}" for name in names)
        return fragment(table(heads, rows, f"{len(rows)} candidates; the specialists' own recall@1: {own} %"))

    def to_json(self) -> str:
        """Everything, the best first."""
        return (
            json.dumps({"best": asdict(self.best), "own": self.own, "trials": [asdict(t) for t in self.trials]}, indent=2) + "\n"
        )


def check_searchable() -> None:
    """Refuses to search without optuna.

    Raises:
        ValueError: It is not installed.
    """
    require("optuna", "Searching coefficients")


def search_alphas(recipe: Recipe, sets: Mapping[str, PairSet], search: Search, device: str = "cpu") -> SearchResult:
    """Tries coefficients for a recipe; needs the extra ``alphas``.

    Args:
        recipe: Base, specialists and method; its coefficients are the first candidate of bayes.
        sets: A data set for each specialist, of pairs that it has not seen.
        search: Settings of the search.
        device: Device that scores candidates.

    Raises:
        ValueError: No optuna, or a specialist without a data set.
    """
    check_searchable()
    import optuna

    recipe.check()
    if set(sets) != set(recipe.specialists):
        raise ValueError(f"There must be a data set for each of {sorted(recipe.specialists)}, got {sorted(sets)}.")
    odd = {name: alpha for name, alpha in recipe.alphas.items() if not search.low <= alpha <= search.high}
    if odd and search.sampler == "bayes":
        raise ValueError(f"The recipe's alphas are the first candidate and must be {search.low} to {search.high}, got {odd}.")
    own = {name: pairs.recall(*pairs.embed(specialist_model(recipe, name, device))) for name, pairs in sets.items()}
    model = fused_model(recipe).to(device)  # type: ignore[arg-type]
    trials: list[Trial] = []

    def value_of(trial: "optuna.Trial") -> float:
        alphas = {name: trial.suggest_float(name, search.low, search.high) for name in sorted(sets)}
        fused_model(replace(recipe, alphas=alphas), model)
        scores = {name: pairs.recall(*pairs.embed(model, search.token_budget)) for name, pairs in sets.items()}
        kept = [share(score, own[name]) for name, score in scores.items()]
        value = min(kept) if search.aim == "worst" else sum(kept) / len(kept)
        trials.append(Trial(alphas, scores, value))
        return value

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=sampler_of(search, sorted(sets)))
    if search.sampler == "bayes":
        study.enqueue_trial(dict(recipe.alphas))
    count = search.trials if search.sampler == "bayes" else len(search.values) ** len(sets)
    with Work("searching coefficients", count, "candidate") as work:
        study.optimize(value_of, n_trials=count, callbacks=[lambda *_: work.advance()])
    return SearchResult(own, trials)


def share(score: float, own: float) -> float:
    """Returns the share that is kept of a specialist's score; 1 where that is 0, and so nothing can be lost.

    Args:
        score: Recall@1 of the fused model on one modality, in per cent.
        own: Recall@1 of that modality's specialist.
    """
    return score / own if own else 1.0


def sampler_of(search: Search, names: list[str]) -> Any:
    """Returns optuna's sampler for a search over the named coefficients.

    Args:
        search: Sampler, seed, grid and trials.
        names: Names of the coefficients, which are the specialists'.
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import GPSampler, GridSampler

    warnings.simplefilter("ignore", ExperimentalWarning)  # its way of saying that GPSampler is young
    if search.sampler == "grid":
        return GridSampler({name: list(search.values) for name in names}, seed=search.seed)
    return GPSampler(seed=search.seed, deterministic_objective=True, n_startup_trials=min(10, search.trials))
