"""Classifiers that guess a query's route from its surface: where they are at chance, only the content tells the difficulty."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import log

from lightning_conan.items import Item

Features = Callable[[Item], Iterable[str]]


def text_features(query: Item) -> list[str]:
    """The words of a query, and its pairs of neighbouring words."""
    words = re.findall(r"\w+|[^\w\s]", " ".join(part for part in query.parts if isinstance(part, str)))
    return [*words, *(f"{one} {other}" for one, other in pairwise(words))]


def media_features(query: Item) -> list[str]:
    """The kinds of media that a query holds."""
    return sorted({part.modality for part in query.parts if not isinstance(part, str)}) or ["none"]


GUESSES: dict[str, Features] = {"its words": text_features, "presence of an image": media_features}


class NaiveBayes:
    """Naive Bayes over sets of features, with add-one smoothing.

    Args:
        features: Features of each training query.
        labels: True for those to reason about.

    Raises:
        ValueError: All labels are the same.
    """

    def __init__(self, features: Sequence[Iterable[str]], labels: Sequence[bool]) -> None:
        self.sizes = Counter(labels)
        if len(self.sizes) < 2:
            raise ValueError(f"labels must hold both routes, got {dict(self.sizes)}. Draw more queries.")
        self.counts = {label: Counter[str]() for label in (False, True)}
        for found, label in zip(features, labels, strict=True):
            self.counts[label].update(set(found))

    def __call__(self, features: Iterable[str]) -> bool:
        """True if reasoning is likelier than not; a tie is a no."""
        score = log(self.sizes[True] / self.sizes[False])
        for name in set(features):
            rates = [(self.counts[label][name] + 1) / (self.sizes[label] + 2) for label in (True, False)]
            score += log(rates[0] / rates[1])
        return score > 1e-9


def guess_accuracy(features: Features, train: Sequence[tuple[Item, bool]], test: Sequence[tuple[Item, bool]]) -> float:
    """Accuracy in per cent of guessing the route of test queries.

    Args:
        features: Features of a query that are seen.
        train: Queries, each with True if it is to be reasoned about.
        test: Queries to guess, with the right answer.
    """
    guess = NaiveBayes([list(features(query)) for query, _ in train], [label for _, label in train])
    return 100 * sum(guess(features(query)) == label for query, label in test) / len(test)
