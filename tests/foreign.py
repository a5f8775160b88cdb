"""Adapters that plain PEFT writes on tiny Qwen3-VLs, with the weights that it merges them into."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, Qwen3VLForConditionalGeneration, Qwen3VLModel

from lightning_conan.embedder.processor import OWN_TOKENS

CLASSES = {"head": Qwen3VLForConditionalGeneration, "base": Qwen3VLModel}
TABLE = "backbone.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"


def ours(name: str) -> str:
    """Our name of a tensor of transformers' classes."""
    return name if name == HEAD else f"backbone.{name.removeprefix('model.')}"


def named(model: nn.Module) -> dict[str, Tensor]:
    return {ours(name): tensor.detach().clone() for name, tensor in model.state_dict().items()}


def write_adapter(
    upstream: Path, out: Path, kind: str = "head", seed: int = 0, size: float = 0.05, **config: Any
) -> dict[str, Tensor]:
    """Trains nothing: moves all that PEFT would train at random, saves it, and returns what PEFT merges, by our names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLASSES[kind].from_pretrained(upstream)
        peft = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **config}))
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += size * noise * (float(parameter.abs().mean()) or 1.0 if parameter.ndim == 1 else 1.0)
    peft.save_pretrained(out)
    return named(peft.merge_and_unload())


def shared_rows(processor: Any) -> Tensor:
    """Rows of the token tables that a grafted base has from its backbone."""
    own = {processor.tokenizer.get_vocab()[token] for token in OWN_TOKENS}
    return torch.tensor([row for row in range(max(processor.tokenizer.get_vocab().values()) + 1) if row not in own])


def dense(upstream: Path) -> dict[str, Tensor]:
    """The tensors of a published checkpoint, by our names."""
    return named(AutoModelForImageTextToText.from_pretrained(upstream))


def assert_sums(found, base, models, alphas, processor):
    """Each tensor is the base plus the weighted differences; of tables, the rows that the published checkpoint has."""
    rows = shared_rows(processor)
    moved = 0
    for name, start in base.items():
        wanted = start + sum(alphas[model] * (tensors[name] - start) for model, tensors in models.items() if name in tensors)
        one, other = (found[name][rows], wanted[rows]) if name in (TABLE, HEAD) else (found[name], wanted)
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
        moved += not torch.equal(wanted, start)
    assert moved
