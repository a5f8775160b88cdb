"""Projector of an encoder: from its rows to the backbone's token embeddings."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Projector(nn.Module):
    """A two-layer MLP (arXiv 2606.09331): 18,881,536 parameters at 2048 -> 3072 -> 4096."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, hidden_dim)
        self.linear_2 = nn.Linear(hidden_dim, out_dim)

    def forward(self, frames: Float[Tensor, "frames in_dim"]) -> Float[Tensor, "frames out_dim"]:
        # While it trains it is float32, and the encoder before it may be bfloat16.
        projected: Tensor = self.linear_2(F.gelu(self.linear_1(frames.to(self.linear_1.weight.dtype))))
        return projected
