"""Gradient caching: the exact gradient of a loss over all embeddings, with one chunk's graph in memory."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.embedder import Chunk

Embed = Callable[[Chunk], Float[Tensor, "rows dim"]]
Loss = Callable[[Float[Tensor, "items dim"]], Float[Tensor, ""]]
Backward = Callable[[Tensor, bool], None]
Learns = Callable[[Chunk], bool]
FEW = 16
"""Up to so many chunks, the last one's graph waits for the loss instead of being made again: a quarter of a chunk's time, which
no longer counts among more; and so few have a loss that is small beside a graph."""

NOTHING_LEARNED = (
    "A batch must hold something that a parameter which trains takes part in, and holds none, such as texts alone while an audio "
    "projector trains. Leave that source out."
)


class RandomStates:
    """Random states of CPU and current GPU, kept now and replayed later, so that dropout repeats itself.

    All lie in one block: thousands of small ones among what chunks leave behind would keep it from being given back.

    Args:
        count: How many there will be.
        device: Where chunks are computed.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.device = device
        self.apart = device.type in ("cuda", "mps")  # it draws its own numbers
        self.which = (device,) if device.type == "cuda" else ()
        self.kept = [state.new_empty(count, len(state)) for state in self.now()]

    def now(self) -> list[Tensor]:
        """The present state."""
        return [torch.get_rng_state(), *([getattr(torch, self.device.type).get_rng_state(*self.which)] if self.apart else [])]

    def keep(self, number: int) -> None:
        """Notes the present state."""
        for kept, state in zip(self.kept, self.now(), strict=True):
            kept[number] = state

    def replay(self, number: int) -> None:
        """Puts a state back."""
        torch.set_rng_state(self.kept[0][number].clone())  # given a view, torch 2.11 reads what lies elsewhere
        if self.apart:
            getattr(torch, self.device.type).set_rng_state(self.kept[1][number].clone(), *self.which)


def arriving(chunks: Sequence[Chunk], numbers: Sequence[int], device: torch.device) -> Iterator[tuple[int, Chunk]]:
    """Some chunks by their numbers, on the device; while one is computed, a thread brings the next."""
    if device.type == "cpu" or not numbers:
        yield from ((number, chunks[number]) for number in numbers)
        return

    def brought(number: int) -> tuple[int, Chunk]:
        return number, chunks[number].to(device)

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(brought, numbers[0])
        for number in numbers[1:]:
            arrived, coming = coming.result(), thread.submit(brought, number)
            yield arrived
        yield coming.result()


def embed_rows(embed: Embed, chunk: Chunk) -> Float[Tensor, "rows dim"]:
    """The rows that count: a rank may take part with one that does not."""
    return embed(chunk)[: len(chunk.rows)]


def one_pass_backward(
    embed: Embed, chunks: Sequence[Chunk], loss: Loss, backward: Backward, device: torch.device
) -> Float[Tensor, ""]:
    """What ``cached_backward`` does, where all chunks' graphs fit in memory together: each is embedded once."""
    arrived = arriving(chunks, range(len(chunks)), device)
    found, rows = zip(*((embed_rows(embed, chunk), chunk.rows) for _, chunk in arrived), strict=True)
    order = torch.tensor([row for part in rows for row in part], dtype=torch.long, device=device).argsort()
    value = loss(torch.cat(found)[order])
    if not value.requires_grad:
        raise ValueError(NOTHING_LEARNED)
    backward(value, True)
    return value.detach()


def cached_backward(
    embed: Embed,
    chunks: Sequence[Chunk],
    items: int,
    loss: Loss,
    backward: Backward,
    device: torch.device,
    learns: Learns = lambda _: True,
) -> Float[Tensor, ""]:
    """Accumulates the parameters' gradients of a loss over all chunks' rows, and returns the loss.

    GradCache of https://arxiv.org/abs/2101.06983: embed every chunk without a graph, take the loss's gradient with
    respect to the embeddings, then embed each chunk again with its graph and push that gradient through. Equal to
    the one-pass gradient; memory is one chunk's. Of few chunks the last is embedded once, with its graph.

    Args:
        embed: Embeds one chunk that lies on ``device``.
        chunks: All chunks of the batch, on the host.
        items: How many items they hold together.
        loss: From the embeddings, in the order of the items that were packed, to the loss.
        backward: What stands for ``Tensor.backward``; it is told whether the call is the last.
        device: Where to embed.
        learns: Whether anything that trains takes part in a chunk; those without, such as texts while an audio projector trains
            alone, are embedded once.

    Raises:
        ValueError: No chunk learns anything.
    """
    if len(chunks) == 1:
        return one_pass_backward(embed, chunks, loss, backward, device)
    states = RandomStates(len(chunks) + 1, device)
    embeddings = torch.empty(0)  # made once its width is known; it may be gigabytes, so that nothing else holds them
    learning: list[int] = []
    for number, chunk in arriving(chunks, range(len(chunks)), device):
        states.keep(number)
        learning += [number] if learns(chunk) else []
        waits = number == len(chunks) - 1 and number < FEW and number in learning
        with torch.set_grad_enabled(waits):
            piece = embed_rows(embed, chunk)
        if number == 0:
            embeddings = piece.new_empty(items, piece.shape[1])
        embeddings[chunk.rows] = piece.detach()
    states.keep(len(chunks))
    if not learning:
        raise ValueError(NOTHING_LEARNED)
    embeddings.requires_grad_()
    with torch.enable_grad():
        value = loss(embeddings)
    backward(value, False)  # what else the loss learns, such as a temperature, gets its gradient here
    assert embeddings.grad is not None, "the loss depends on the embeddings"
    value, gradient = value.detach(), embeddings.grad
    del embeddings  # none but their gradient is in memory when chunks' graphs are

    def push(piece: Tensor, rows: list[int], last: bool) -> None:
        backward((piece * gradient[rows].to(piece.dtype)).sum(), last)

    if waits:
        learning.pop()
        push(piece, chunk.rows, not learning)
    for number, chunk in arriving(chunks, learning, device):
        states.replay(number)
        push(embed_rows(embed, chunk), chunk.rows, number == learning[-1])
    states.replay(len(chunks))
    return value
