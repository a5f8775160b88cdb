"""Memory need of a stage: counted from the config, activations measured on one layer."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor
from transformers.initialization import no_init_weights

from lightning_conan.embedder import OmniConfig, OmniEmbedder, blank, pack
from lightning_conan.embedder.modalities import spec_of, towers_of
from lightning_conan.items import Modality
from lightning_conan.objectives.generation import AT_ONCE, generation_loss
from lightning_conan.training.adapters import Adapters
from lightning_conan.training.settings import Lora

TOKENS = 64, 256
"""Numbers of tokens that are measured: the difference is that of activations, which grow in proportion; the rest does not."""


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
    tower = spec_of(modality).tower
    return tower.depth(config) if tower else 0


def tower_inputs(config: OmniConfig, modality: Modality) -> int:
    """Numbers that enter a layer of that tower, for each token of the language model.

    Args:
        config: The model's config.
        modality: The modality.
    """
    tower = spec_of(modality).tower
    return tower.width(config) if tower else 0


def shallow(config: OmniConfig, layers: int, depth: int) -> OmniConfig:
    """The config with few layers and a small vocabulary, all widths unchanged.

    Args:
        config: The model's config.
        layers: Layers of the language model.
        depth: Layers of each tower.
    """
    small = copy.deepcopy(config)
    text, ids = small.get_text_config(), count(1)
    text.num_hidden_layers, text.vocab_size = layers, 64
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    for tower in towers_of(small):
        tower.shrink(small, depth, ids)
    small.emb_token_id, small.output_head = next(ids), False
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
    """Bytes of each storage that autograd saves within the block, without those of weights."""
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
