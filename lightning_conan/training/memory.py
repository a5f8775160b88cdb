"""Memory need of a stage: counted from the config, activations measured on one layer."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.initialization import no_init_weights

from lightning_conan.embedder import Chunk, Encoded, OmniConfig, OmniEmbedder, blank, pack, pad
from lightning_conan.items import Modality
from lightning_conan.objectives.generation import AT_ONCE, generation_loss
from lightning_conan.objectives.gradient_cache import tensors_of
from lightning_conan.training.adapters import Adapters
from lightning_conan.training.settings import Lora
from lightning_conan.training.sharding import whole_weights

TOKENS = 64, 256
"""Numbers of tokens that are measured: the difference is that of activations, which grow in proportion; the rest does not."""
PROBES, SHARE, MOST = (256, 768), 0.8, 2**17
"""Tokens of each of the two rows that find a budget, the share of free memory that a chunk may take, and tokens beyond which no
chunk is faster."""


@dataclass(frozen=True)
class Plan:
    """A stage whose memory need is estimated.

    Args:
        modality: The modality that passes through the model.
        lora_prefixes: Name prefixes of modules whose linear layers get adapters.
        trainable_prefixes: Name prefixes of parameters that train fully.
        lora: The adapters; None for none.
        token_budget: Padded tokens of a chunk.
        checkpoint_activations: Keeps only layers' inputs.
        batch_size: Pairs of this device's share of a batch.
        writes: Computes a generation loss of all tokens of texts, as TRACE does.
    """

    modality: Modality
    lora_prefixes: tuple[str, ...] = ()
    trainable_prefixes: tuple[str, ...] = ()
    lora: Lora | None = None
    token_budget: int = 16_384
    checkpoint_activations: bool = False
    batch_size: int = 1024
    writes: bool = False


def memory_need(config: OmniConfig, plan: Plan) -> dict[str, int]:
    """Bytes by part: frozen weights in bfloat16; trained ones, their gradients and AdamW's moments in float32.

    Args:
        config: The model's config.
        plan: The stage.
    """
    with torch.device("meta"), no_init_weights():
        model = prepared(config, plan)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    activations = activation_bytes(config, plan) if trained else inference_bytes(config, plan)
    # In float32, and what they become: their softmax, and the gradient.
    logits = {f"logits of {AT_ONCE:,} tokens": 3 * 4 * AT_ONCE * int(config.get_text_config().vocab_size)} if plan.writes else {}
    return {
        "frozen weights, bfloat16": 2 * frozen,
        "trained weights, float32": 4 * trained,
        "their gradients": 4 * trained,
        "AdamW's moments": 8 * trained,
        f"activations of {plan.token_budget:,} {plan.modality} tokens": activations,
        **logits,
        f"embeddings and scores of {plan.batch_size:,} pairs": 4 * plan.batch_size * (4 * config.dim + 3 * plan.batch_size),
    }


def prepared(config: OmniConfig, plan: Plan) -> OmniEmbedder:
    """The model with adapters added and frozen parameters frozen.

    Args:
        config: The model's config.
        plan: The stage.
    """
    model = OmniEmbedder(config)
    model.train()
    if plan.writes:
        model.free_emb_rows()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(plan.trainable_prefixes))
    if plan.lora is not None:
        Adapters(model, plan.lora, plan.lora_prefixes, plan.trainable_prefixes)
    return model


def activation_bytes(config: OmniConfig, plan: Plan) -> int:
    """Bytes of a chunk's activations: measured with a layer more and less of each tower, and extended to all.

    Args:
        config: The model's config.
        plan: The stage.
    """
    least = saved_bytes(shallow(config, 2, 1), plan)  # the language model's last layer keeps less than the others
    language = saved_bytes(shallow(config, 3, 1), plan) - least
    tower = saved_bytes(shallow(config, 2, 2), plan) - least
    layers, depth = config.get_text_config().num_hidden_layers, tower_depth(config, plan.modality)
    rest = least - 2 * language - tower
    if plan.checkpoint_activations:
        inputs = 2 * (layers * config.dim + (depth * tower_inputs(config, plan.modality) if tower else 0))
        total = rest + language + inputs + max(language, tower)  # the last layer's own is part of the rest
    else:
        total = rest + layers * language + depth * tower
    return int(total * plan.token_budget)


def inference_bytes(config: OmniConfig, plan: Plan) -> int:
    """Bytes of a chunk without gradients: a layer's widest tensors, input, gate, up and output, at a time.

    Args:
        config: The model's config.
        plan: The stage, of which nothing trains.
    """
    text = config.get_text_config()
    return 6 * plan.token_budget * (int(text.hidden_size) + int(text.intermediate_size))


def tower_depth(config: OmniConfig, modality: Modality) -> int:
    """Layers of the tower that a modality passes before the language model.

    Args:
        config: The model's config.
        modality: The modality.
    """
    if modality == "audio":
        return int(config.audio_config.encoder_layers)
    return 0 if modality == "text" else int(config.backbone_config.vision_config.depth)


def tower_inputs(config: OmniConfig, modality: Modality) -> int:
    """Numbers that enter a layer of that tower, for each token of the language model.

    Args:
        config: The model's config.
        modality: The modality.
    """
    if modality == "audio":
        return int(config.audio_config.d_model)
    vision = config.backbone_config.vision_config
    merge = int(vision.spatial_merge_size)
    return int(vision.hidden_size) * merge * merge


def shallow(config: OmniConfig, layers: int, depth: int) -> OmniConfig:
    """The config with few layers and a small vocabulary, all widths unchanged.

    Args:
        config: The model's config.
        layers: Layers of the language model.
        depth: Layers of each tower.
    """
    small = copy.deepcopy(config)
    text, vision = small.get_text_config(), small.backbone_config.vision_config
    text.num_hidden_layers, text.vocab_size = layers, 64
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    vision.depth, vision.deepstack_visual_indexes = depth, [0]
    small.audio_config.encoder_layers = depth
    small.backbone_config.image_token_id, small.backbone_config.video_token_id = 1, 2
    small.audio_token_id, small.emb_token_id, small.output_head = 3, 4, False
    return small


def saved_bytes(config: OmniConfig, plan: Plan) -> float:
    """Bytes that autograd keeps of a token for the backward pass, without weights.

    Args:
        config: A shallow config.
        plan: The stage.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with no_init_weights():
            model = prepared(config, plan)
    finally:
        torch.set_default_dtype(default)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    items = [blank(config, plan.modality, tokens) for tokens in TOKENS]
    if plan.writes:
        items = [replace(item, labels=item.input_ids) for item in items]
    found = []
    for item in items:
        with counted(weights) as kept, torch.autocast("cpu", torch.bfloat16):
            model(pack([item], len(item))[0], writing=generation_loss if plan.writes else None)
        found.append(sum(kept.values()))
    return (found[1] - found[0]) / (len(items[1]) - len(items[0]))


@contextmanager
def counted(weights: set[int]) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd saves within the block, those of weights left out."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # a freed storage's address would be given out again

    def pack_hook(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        yield kept


def free_bytes(device: torch.device) -> int:
    """Free bytes of a device; of the host's memory, this process's part."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def fitting_budget(
    embedder: OmniEmbedder, embed: Callable[[Chunk], object], modality: Modality, device: torch.device, moments: int
) -> int:
    """The padded tokens whose forward and backward pass fit into the device, by measuring a few; of three binary digits, so that
    a little more or less free memory finds the same.

    Args:
        embedder: The model; gradients of what trains count as taken, and none are left.
        embed: A stage's ``embed_chunk``; every token of the chunk is a generation target.
        modality: The modality that passes through it, besides texts.
        device: Where chunks are embedded.
        moments: Bytes that an optimizer will take.

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
    """Memory of what a forward pass over an item, twice, keeps; and the peak of both passes and their gradients, of which none
    are left. On the host what autograd keeps, and half as much for what it does not.

    Args:
        embedder: The model.
        embed: A stage's ``embed_chunk``.
        item: The item.
        device: Where chunks are embedded.
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
