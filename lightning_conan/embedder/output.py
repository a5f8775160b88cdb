"""The result of embedding a chunk."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class ChunkOutput(NamedTuple):
    """Tensors with a row for each item of a chunk or a batch; a named tuple, which FSDP2 looks into.

    Args:
        embeddings: Unit-norm float32 embeddings.
        generation_losses: Each row's mean cross-entropy of the tokens that it should write, 0 for a row without a generation
            target; None where none is computed.
        turned: Each row's mean of 1 - cosine between its tokens' hidden states and those in a specialist, 0 for a row without
            such tokens; None where none is computed.
        prompts: Unit-norm float32 embeddings by each prompt's last hidden state, before its generation target; None where
            ``prompt_weight`` is 0.
    """

    embeddings: Float[Tensor, "rows dim"]
    generation_losses: Float[Tensor, " rows"] | None = None
    turned: Float[Tensor, " rows"] | None = None
    prompts: Float[Tensor, "rows dim"] | None = None
