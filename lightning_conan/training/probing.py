"""The token budget that fits into a device, found by measuring a few forward and backward passes."""

import os
from collections.abc import Callable
from dataclasses import replace

import psutil
import torch
from torch.distributed.tensor import DTensor

from lightning_conan.embedder import Chunk, Encoded, OmniEmbedder, blank, pad
from lightning_conan.items import Modality
from lightning_conan.objectives.gradient_cache import tensors_of
from lightning_conan.training.memory_need import counted
from lightning_conan.training.sharding import whole_weights

PROBES, SHARE, MOST = (256, 768), 0.8, 2**17
"""Tokens of each of the two rows that find a budget, the share of free memory that a chunk may take, and tokens beyond which no
chunk is faster."""


def free_bytes(device: torch.device) -> int:
    """Free bytes of a device; of the host's memory, this process's part."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def fitting_budget(
    embedder: OmniEmbedder, embed: Callable[[Chunk], object], modality: Modality, device: torch.device, moments: int
) -> int:
    """Measures how many padded tokens fit into the device in a forward and backward pass.

    The number is rounded down to three binary digits, so that a little more or less free memory gives the same.

    Args:
        embedder: The model; room for the gradients of its trainable parameters is kept free, and none are left.
        embed: A stage's ``embed_chunk``; every token of the chunk is a generation target.
        modality: Passes through the model, besides texts.
        device: Device that chunks are embedded on.
        moments: Bytes that the optimizer's state will take.

    Raises:
        ValueError: Not even one token fits.
    """
    found = []
    for kind in sorted({"text", modality}):
        items = [blank(embedder.config, kind, tokens) for tokens in PROBES]
        items = [replace(item, labels=item.input_ids) for item in items]
        measured_bytes(embedder, embed, items[0], device)  # what is made once, such as cast weights, is there from now on
        few, many = (measured_bytes(embedder, embed, item, device) for item in items)
        # By the difference, since more tokens need no more gradients. A peak may be that of gradients, which hides a graph.
        per_token = max(more - less for less, more in zip(few, many, strict=True)) / (2 * len(items[1]) - 2 * len(items[0]))
        free = free_bytes(device)
        found.append(2 * len(items[0]) + (SHARE * free - few[1] - moments) / max(1.0, per_token))
        if found[-1] < 1:
            need, room, later = (size / 2**30 for size in (few[1], SHARE * free, moments))
            raise ValueError(
                f"token_budget: auto must find room for some tokens of {kind} in {room:.2f} GiB ({SHARE:.0%} of what is free), "
                f"got {need:.2f} for {2 * len(items[0])} and their gradients, and {later:.2f} for an optimizer's moments. "
                "Set training.checkpoint_activations, train less (a lower lora.rank), or use trainer/fsdp2.yaml."
            )
    budget = min(int(min(found)), MOST)
    digits = max(0, budget.bit_length() - 3)
    return budget >> digits << digits


def trained_bytes(embedder: OmniEmbedder) -> int:
    """Bytes of what trains, of a sharded model this rank's part."""
    trained = [parameter.detach() for parameter in embedder.parameters() if parameter.requires_grad]
    return sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes for tensor in trained)


def measured_bytes(
    embedder: OmniEmbedder, embed: Callable[[Chunk], object], item: Encoded, device: torch.device
) -> tuple[int, int]:
    """Measures a forward and backward pass over a chunk of one item, twice; leaves no gradients.

    On a CPU it counts the tensors that autograd saves, and half as much again for the others.

    Args:
        embedder: The model.
        embed: A stage's ``embed_chunk``.
        item: Stands twice in the chunk.
        device: Device that the chunk is embedded on.

    Returns:
        Bytes that the forward pass keeps, and the peak of both passes.
    """
    chunk = pad([item] * 2, [0, 1]).to(device)  # torch.compile makes another form for a single row
    if device.type == "cuda":
        start = torch.cuda.memory_allocated(device)
        learn(embed(chunk))  # a chunk finds the gradients of those before it
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        found = embed(chunk)
        graph = torch.cuda.memory_allocated(device) - before
        learn(found)
        peak = torch.cuda.max_memory_allocated(device) - start
    else:
        with whole_weights(embedder):  # in shards they would be counted each time that a layer gathers them
            weights = {tensor.untyped_storage().data_ptr() for tensor in [*embedder.parameters(), *embedder.buffers()]}
            with counted(weights) as kept:
                found = embed(chunk)
            learn(found)
        graph = sum(kept.values()) * 3 // 2
        peak = graph + trained_bytes(embedder)
    embedder.zero_grad()  # where coefficients are learned no optimizer would clear them
    return graph, peak


def learn(output: object) -> None:
    """Runs a backward pass, if any trainable parameter affects the output: an audio projector alone does not affect texts."""
    sums = [part.sum() for part in tensors_of(output) if part.requires_grad]
    if sums:
        torch.stack(sums).sum().backward()
