"""Result of one input, and vectors as clients ask for them."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.retrieval.store import shorten

Format = Literal["float", "base64"]


@dataclass(frozen=True)
class Embedded:
    """The vector of one input, and its cost.

    Args:
        vector: Unit-norm, float32, on the CPU.
        tokens: Tokens read, media included.
        written: Token ids of the reasoning; None for an input that the model does not reason about.
        truncated: True if the reasoning was cut.
    """

    vector: Float[Tensor, " dim"]
    tokens: int
    written: list[int] | None = None
    truncated: bool = False


def stacked(found: Sequence[Embedded], dim: int | None = None) -> Float[Tensor, "items dim"]:
    """Puts vectors into one tensor, cut to their first entries and unit-norm again.

    Args:
        found: At least one result.
        dim: Entries to keep; None for all.
    """
    vectors = torch.stack([one.vector for one in found])
    return vectors if dim is None else shorten(vectors, dim)


def formatted(vectors: Float[Tensor, "items dim"], form: Format) -> list[list[float]] | list[str]:
    """Converts vectors to numbers, or each to the base64 of little-endian float32.

    Args:
        vectors: The vectors.
        form: The format.
    """
    rows = vectors.numpy()
    if form == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
    return rows.tolist()  # type: ignore[no-any-return]
