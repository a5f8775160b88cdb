"""Gradient caching: the exact gradient of a loss over all embeddings, with one chunk's graph in memory."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.embedder import Chunk

Embed = Callable[[Chunk], Float[Tensor, "rows dim"]]
Loss = Callable[[Float[Tensor, "items dim"]], Float[Tensor, ""]]
Backward = Callable[[Tensor], None]
Announce = Callable[[bool], None]


class RandomState:
    """The random state of CPU and current GPU, taken now and replayed later, so that dropout repeats itself."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.cpu = torch.get_rng_state()
        self.gpu = [torch.cuda.get_rng_state(device) for device in self.devices]

    def replay(self) -> None:
        """Puts the state back."""
        torch.set_rng_state(self.cpu)
        for device, state in zip(self.devices, self.gpu, strict=True):
            torch.cuda.set_rng_state(state, device)


def arriving(chunks: Sequence[Chunk], device: torch.device) -> Iterator[Chunk]:
    """Each chunk on the device; while one is computed, a thread brings the next."""
    if device.type == "cpu":
        yield from chunks
        return

    def brought(number: int) -> Chunk:
        return chunks[number].to(device)

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(brought, 0)
        for number in range(1, len(chunks)):
            arrived, coming = coming.result(), thread.submit(brought, number)
            yield arrived
        yield coming.result()


def cached_backward(
    embed: Embed,
    chunks: Sequence[Chunk],
    loss: Loss,
    backward: Backward,
    device: torch.device,
    one_pass: bool = False,
    announce: Announce = lambda _: None,
) -> Float[Tensor, ""]:
    """Accumulates the parameters' gradients of a loss over all chunks' rows, and returns the loss.

    GradCache of https://arxiv.org/abs/2101.06983: embed every chunk without a graph, take the loss's gradient with
    respect to the embeddings, then embed each chunk again with its graph and push that gradient through. Equal to
    the one-pass gradient; memory is one chunk's.

    Args:
        embed: Embeds one chunk that lies on ``device``.
        chunks: All chunks of the batch, on the host.
        loss: From the embeddings, in the order of the items that were packed, to the loss.
        backward: What stands for ``Tensor.backward`` (a Fabric's or a LightningModule's).
        device: Where to embed.
        one_pass: All chunks' graphs fit in memory together, so each is embedded once.
        announce: Called before each backward pass, with whether it is the last.
    """
    rows: list[int] = []
    pieces: list[Tensor] = []

    def embedded(chunk: Chunk) -> Tensor:
        return embed(chunk)[: len(chunk.rows)]

    def note(chunk: Chunk) -> None:
        rows.extend(chunk.rows)
        pieces.append(embedded(chunk))

    def in_order() -> Tensor:
        return torch.cat(pieces)[torch.tensor(rows, dtype=torch.long, device=device).argsort()]

    if one_pass or len(chunks) == 1:
        for chunk in arriving(chunks, device):
            note(chunk)
        value = loss(in_order())
        announce(True)
        backward(value)
        return value.detach()
    states = []
    with torch.no_grad():
        for chunk in arriving(chunks, device):
            states.append(RandomState(device))
            note(chunk)
    after = RandomState(device)
    embeddings = in_order().requires_grad_()
    pieces.clear()  # embeddings may be gigabytes: none but their gradient is in memory when chunks' graphs are
    with torch.enable_grad():
        value = loss(embeddings)
    backward(value)  # what else the loss learns, such as a temperature, gets its gradient here
    assert embeddings.grad is not None, "the loss depends on the embeddings"
    value, gradient = value.detach(), embeddings.grad
    del embeddings
    for number, (chunk, state) in enumerate(zip(arriving(chunks, device), states, strict=True)):
        state.replay()
        found = embedded(chunk)
        announce(number + 1 == len(chunks))
        backward((found * gradient[torch.tensor(chunk.rows, dtype=torch.long, device=device)].to(found.dtype)).sum())
    after.replay()
    return value
