"""Accuracy against tokens: what each threshold on the first token would have done to a test set."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from lightning_conan.files import whole_file
from lightning_conan.items import Pair

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLDS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.1)
"""Of the table: 0 embeds every query at once, above 1 reasons about each."""
MOST = 120
"""Tokens after which ``<|emb|>`` is forced."""


@dataclass(frozen=True)
class Routed:
    """A test query's results by both routes.

    Args:
        key: Key of the pair.
        group: Group that the query is counted in, such as its difficulty.
        probability: Probability of ``<|emb|>`` as first token; 1 for an embedder that writes nothing.
        likeliest: True if the default route embeds it at once.
        direct: Rank of its target where it is embedded at once, from 1.
        reasoned: Rank after reasoning.
        tokens: Tokens of the reasoning.
    """

    key: str
    group: str
    probability: float
    likeliest: bool
    direct: int
    reasoned: int
    tokens: int

    def outcome(self, threshold: float | None = None) -> tuple[int, int]:
        """Returns the rank of the target, and the tokens written.

        Args:
            threshold: Probability from which the query is embedded at once; by default ``<|emb|>`` has to be the likeliest.
        """
        at_once = self.likeliest if threshold is None else self.probability >= threshold
        return (self.direct, 0) if at_once else (self.reasoned, self.tokens)


Sets = dict[str, list[Routed]]
"""Results by test set."""


def measure_routes(folder: Path, pairs: Sequence[Pair], groups: Mapping[str, str]) -> list[Routed]:
    """Embeds test queries by both routes, and ranks their targets among all of the set.

    Args:
        folder: A checkpoint folder.
        pairs: The test set.
        groups: Group of each pair, by key.
    """
    import torch

    from lightning_conan.embedder import load_folder
    from lightning_conan.reasoning import Decoding
    from lightning_conan.reasoning.routing import encode_both

    model, processor, _ = load_folder(folder)
    with torch.inference_mode():
        targets = model.embed([processor(pair.target, "target") for pair in pairs])
        queries = [processor(pair.query, "query") for pair in pairs]
        if not processor.config.reasons:
            ranks = ranks_of(model.embed(queries) @ targets.T)
            return [Routed(pair.key, groups[pair.key], 1.0, True, at, at, 0) for pair, at in zip(pairs, ranks, strict=True)]
        both = encode_both(model, queries, Decoding(max_new_tokens=MOST))
    direct, reasoned = (ranks_of(found @ targets.T) for found in (both.direct, both.reasoned.embeddings))
    sure, likeliest = both.probability.tolist(), both.likeliest
    return [
        Routed(pair.key, groups[pair.key], sure[row], likeliest[row], direct[row], reasoned[row], len(both.reasoned.tokens[row]))
        for row, pair in enumerate(pairs)
    ]


def ranks_of(scores: "Tensor") -> list[int]:
    """Ranks of the targets on the diagonal among their rows, from 1; an equal score counts as better.

    Args:
        scores: Square matrix, a row a query.
    """
    ranks: list[int] = (scores >= scores.diagonal()[:, None]).sum(dim=1).tolist()
    return ranks


def kept_routes(path: Path, folder: Path, tests: Mapping[str, Sequence[Pair]], groups: Mapping[str, str]) -> Sets:
    """Measures both routes on each test set, or reads what was measured before.

    Args:
        path: JSON file of the results.
        folder: A checkpoint folder.
        tests: Test sets by name.
        groups: Group of each pair, by key.
    """
    if not path.is_file():
        found = {name: [asdict(row) for row in measure_routes(folder, pairs, groups)] for name, pairs in tests.items()}
        with whole_file(path) as file:
            file.write(json.dumps(found).encode() + b"\n")
    return {name: [Routed(**row) for row in rows] for name, rows in json.loads(path.read_text()).items()}


def summary(rows: Sequence[Routed], threshold: float | None = None) -> dict[str, float]:
    """Recall@1 and @5 in per cent, bypass in per cent, and tokens a query.

    Args:
        rows: Results.
        threshold: See ``Routed.outcome``.
    """
    found = [row.outcome(threshold) for row in rows]
    ranks, tokens = [rank for rank, _ in found], [number for _, number in found]
    recalls = {f"recall@{k}": 100 * mean(rank <= k for rank in ranks) for k in (1, 5)}
    return {**recalls, "bypass": 100 * mean(number == 0 for number in tokens), "tokens": mean(tokens)}


def curve(rows: Sequence[Routed]) -> list[tuple[float, float]]:
    """Tokens a query and recall@1 of every threshold that changes a route, from none to all reasoned.

    Args:
        rows: Results.
    """
    ordered = sorted(rows, key=lambda row: row.probability)
    tokens, hits = 0, sum(row.direct == 1 for row in ordered)
    points = [(0.0, 100 * hits / len(ordered))]
    for place, row in enumerate(ordered):
        tokens, hits = tokens + row.tokens, hits + (row.reasoned == 1) - (row.direct == 1)
        if place + 1 == len(ordered) or ordered[place + 1].probability > row.probability:
            points.append((tokens / len(ordered), 100 * hits / len(ordered)))
    return points
