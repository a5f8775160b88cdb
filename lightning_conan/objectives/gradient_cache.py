"""Gradient caching: the exact gradient of a loss over all embeddings, with one chunk's graph in memory."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_conan.embedder import Chunk

OutputT = TypeVar("OutputT")
"""A tensor with a row for each item, or a named tuple of such tensors (None where there is nothing)."""
FEW = 16
"""Up to so many chunks, the last one's graph is kept until the loss is known instead of being computed again: a quarter of a
chunk's time, which no longer counts among more; and so few have a loss that is small beside a graph."""

NOTHING_LEARNED = (
    "A batch must hold something that a parameter which trains takes part in, and holds none, such as texts alone while an audio "
    "projector trains. Leave that source out."
)


@dataclass(frozen=True)
class ChunkStep(Generic[OutputT]):
    """The functions that make up a step over chunks.

    Args:
        embed: Embeds one chunk that lies on ``device``.
        loss: From the outputs of all items, in the order in which they were packed, to the loss.
        backward: Stands for ``Tensor.backward``; its second argument is True in the last call of a step.
        device: Where chunks are embedded.
        learns: True if any trainable parameter affects a chunk; other chunks, such as texts while an audio projector trains
            alone, are embedded once.
    """

    embed: Callable[[Chunk], OutputT]
    loss: Callable[[OutputT], Float[Tensor, ""]]
    backward: Callable[[Tensor, bool], None]
    device: torch.device
    learns: Callable[[Chunk], bool] = lambda _: True

    def rows(self, chunk: Chunk) -> OutputT:
        """Embeds a chunk without the dummy rows that keep ranks in step, which come last."""
        return each(lambda part: part[: len(chunk.rows)], self.embed(chunk))


def each(change: Callable[[Tensor], Tensor], output: OutputT) -> OutputT:
    """Changes every tensor of an output.

    Args:
        change: Called with each tensor; returns the one to put in its place.
        output: A tensor, or a named tuple of tensors and None.
    """
    changed: OutputT = tree_map(lambda part: change(part) if isinstance(part, Tensor) else part, output)
    return changed


def tensors_of(output: object) -> list[Tensor]:
    """The tensors of an output, in order."""
    return [part for part in tree_leaves(output) if isinstance(part, Tensor)]


class RandomStates:
    """Random states of CPU and current GPU, saved before each chunk and restored later, so that dropout repeats itself.

    All lie in one block: thousands of small ones between the freed memory of chunks would keep it from being returned.

    Args:
        count: Number of states.
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
        """Saves the present state."""
        for kept, state in zip(self.kept, self.now(), strict=True):
            kept[number] = state

    def replay(self, number: int) -> None:
        """Restores a state."""
        torch.set_rng_state(self.kept[0][number].clone())  # given a view, torch 2.11 reads what lies elsewhere
        if self.apart:
            getattr(torch, self.device.type).set_rng_state(self.kept[1][number].clone(), *self.which)


def arriving(chunks: Sequence[Chunk], numbers: Sequence[int], device: torch.device) -> Iterator[tuple[int, Chunk]]:
    """Yields chunks with their numbers, on the device; while one is computed, a thread transfers the next.

    Args:
        chunks: All chunks, on the host.
        numbers: Positions in ``chunks``, in the order in which they are yielded.
        device: Device to transfer to.
    """
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


def one_pass_backward(step: ChunkStep[OutputT], chunks: Sequence[Chunk]) -> Float[Tensor, ""]:
    """Like ``cached_backward``, where all chunks' graphs fit in memory together: each is embedded once.

    Args:
        step: Embedding, loss and backward.
        chunks: All chunks of the batch, on the host.

    Raises:
        ValueError: No trainable parameter affects the loss.
    """
    arrived = arriving(chunks, range(len(chunks)), step.device)
    found, rows = zip(*((step.rows(chunk), chunk.rows) for _, chunk in arrived), strict=True)
    order = torch.tensor([row for part in rows for row in part], dtype=torch.long, device=step.device).argsort()
    joined = [torch.cat(parts)[order] for parts in zip(*map(tensors_of, found), strict=True)]
    value = step.loss(each(lambda _: joined.pop(0), found[0]))
    if not value.requires_grad:
        raise ValueError(NOTHING_LEARNED)
    step.backward(value, True)
    return value.detach()


def cached_backward(step: ChunkStep[OutputT], chunks: Sequence[Chunk], items: int) -> Float[Tensor, ""]:
    """Accumulates the parameters' gradients of a loss over all chunks' rows, and returns the loss.

    GradCache of https://arxiv.org/abs/2101.06983: embed every chunk without a graph, take the loss's gradient with
    respect to the outputs, then embed each chunk again with its graph and push that gradient through. Equal to
    the one-pass gradient; memory is one chunk's. Of few chunks the last is embedded once, with its graph.

    Args:
        step: Embedding, loss and backward.
        chunks: All chunks of the batch, on the host.
        items: Number of items that they hold together.

    Raises:
        ValueError: No trainable parameter affects any chunk.
    """
    if len(chunks) == 1:
        return one_pass_backward(step, chunks)
    states = RandomStates(len(chunks) + 1, step.device)
    outputs, learning, waiting = embed_without_graph(step, chunks, items, states)
    states.keep(len(chunks))
    if not learning:
        raise ValueError(NOTHING_LEARNED)
    value, gradients = output_gradients(step, outputs)
    del outputs  # none but their gradients are in memory when chunks' graphs are

    def push(piece: OutputT, rows: list[int], last: bool) -> None:
        parts = zip(tensors_of(piece), gradients, strict=True)
        sums = [(part * gradient[rows].to(part.dtype)).sum() for part, gradient in parts]
        step.backward(torch.stack(sums).sum(), last)

    if waiting is not None:
        learning.pop()
        push(*waiting, not learning)
    for number, chunk in arriving(chunks, learning, step.device):
        states.replay(number)
        push(step.rows(chunk), chunk.rows, number == learning[-1])
    states.replay(len(chunks))
    return value


def embed_without_graph(
    step: ChunkStep[OutputT], chunks: Sequence[Chunk], items: int, states: RandomStates
) -> tuple[OutputT, list[int], tuple[OutputT, list[int]] | None]:
    """The outputs of all items, the numbers of the chunks that learn, and, of few chunks, the last one's output with its graph
    and rows, if it learns.

    Args:
        step: Embedding, loss and backward.
        chunks: All chunks of the batch, on the host.
        items: Number of items that they hold together.
        states: Get the random state before each chunk.
    """
    outputs: OutputT
    learning: list[int] = []
    waiting = None
    for number, chunk in arriving(chunks, range(len(chunks)), step.device):
        states.keep(number)
        learning += [number] if step.learns(chunk) else []
        waits = number == len(chunks) - 1 and number < FEW and number in learning
        with torch.set_grad_enabled(waits):
            piece = step.rows(chunk)
        if number == 0:  # made once the widths are known; it may be gigabytes, so that nothing else holds them
            outputs = each(lambda part: part.new_empty(items, *part.shape[1:]), piece)
        for whole, part in zip(tensors_of(outputs), tensors_of(piece), strict=True):
            whole[chunk.rows] = part.detach()
        waiting = (piece, chunk.rows) if waits else None
    return outputs, learning, waiting


def output_gradients(step: ChunkStep[OutputT], outputs: OutputT) -> tuple[Float[Tensor, ""], list[Tensor]]:
    """The loss of all outputs and its gradient with respect to each; other tensors that the loss depends on, such as a
    temperature, get their gradients here.

    Args:
        step: Loss and backward.
        outputs: Outputs of all items, without a graph.
    """
    leaves = [part.requires_grad_() for part in tensors_of(outputs)]
    with torch.enable_grad():
        value = step.loss(outputs)
    step.backward(value, False)
    assert any(leaf.grad is not None for leaf in leaves), "the loss depends on the embeddings"
    return value.detach(), [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
