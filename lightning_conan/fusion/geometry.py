"""Lengths and angles of task vectors, over all tensors and by layer (arXiv 2606.09331)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_conan.embedder.checkpoint import LowRank

COLUMNS = 2**18
"""Entries that are multiplied at once, in float32; sums over them are float64."""


def gram_of(rows: Float[Tensor, "vectors entries"]) -> Float[Tensor, "vectors vectors"]:
    """Inner products of task vectors over one tensor, a row each."""
    products = [(block @ block.T).double() for block in rows.split(COLUMNS, dim=1)]
    return torch.stack(products).sum(dim=0)


def low_rank_gram(joined: LowRank, ranks: Int[Tensor, " vectors"]) -> Float[Tensor, "vectors vectors"]:
    """Inner products of low-rank task vectors from their factors: ``<U V, W X> = sum(U^T W * V X^T)``, nothing made dense.

    Args:
        joined: The task vectors, their factors side by side.
        ranks: Number of components of each.
    """
    products = (joined.up.T @ joined.up).double() * (joined.down @ joined.down.T).double()
    vector = torch.arange(len(ranks)).repeat_interleave(ranks)
    sums = torch.zeros(len(ranks), joined.rank, dtype=torch.float64).index_add_(0, vector, products)
    gram = torch.zeros(len(ranks), len(ranks), dtype=torch.float64).index_add_(1, vector, sums)
    gram.diagonal().clamp_(min=0)  # rounding can leave less where components cancel
    return gram


def group_of(name: str) -> str:
    """The layer or module that a tensor belongs to: ``backbone.language_model.layers.3``."""
    if found := re.match(r".*?\.(layers|blocks|deepstack_merger_list|merger_list)\.\d+", name):
        return found[0]
    return ".".join(name.split(".")[:3]) if name.count(".") > 2 else name.rsplit(".", 1)[0]


@dataclass
class Geometry:
    """Norms and cosines of task vectors.

    Args:
        norms: Each vector's length.
        cosines: The cosine of each two, keyed ``a-b``.
    """

    norms: dict[str, float] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_gram(cls, names: Sequence[str], gram: Float[Tensor, "vectors vectors"]) -> "Geometry":
        """Computes norms and cosines from inner products.

        Args:
            names: Names of the task vectors, by row.
            gram: Their inner products.
        """
        found = cls({name: float(gram[row, row]) ** 0.5 for row, name in enumerate(names)})
        for row, one in enumerate(names):
            for column, other in enumerate(names[row + 1 :], start=row + 1):
                scale = found.norms[one] * found.norms[other]
                if scale > 0:
                    found.cosines[f"{one}-{other}"] = float(gram[row, column]) / scale
        return found


def by_group(names: Sequence[str], grams: Mapping[str, Float[Tensor, "vectors vectors"]]) -> dict[str, Geometry]:
    """Computes the geometry of each layer or module, in natural order.

    Args:
        names: Names of the task vectors, by row.
        grams: Their inner products, by layer or module.
    """
    return {group: Geometry.from_gram(names, gram) for group, gram in sorted(grams.items(), key=lambda item: natural(item[0]))}


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
