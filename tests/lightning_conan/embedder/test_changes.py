"""Adapters and differences on a base, tensor by tensor, in small."""

import json

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file

from lightning_conan.embedder import Provenance
from lightning_conan.embedder.checkpoint.adapter import AdapterTensors
from lightning_conan.embedder.checkpoint.delta import DeltaTensors, write_delta_config
from lightning_conan.embedder.checkpoint.tensors import TensorFiles

GENERATOR = torch.Generator().manual_seed(0)
BASE = {name: torch.randn(64, 48, generator=GENERATOR).to(torch.bfloat16) for name in ("m.weight", "n.weight", "o.weight")}
DOWN, UP = torch.randn(4, 48, generator=GENERATOR) / 300, torch.randn(64, 4, generator=GENERATOR) / 10


@pytest.fixture
def base(tmp_path):
    save_file(BASE, tmp_path / "base.safetensors")
    return TensorFiles([tmp_path / "base.safetensors"])


@pytest.fixture
def adapter(tmp_path):
    """LoRA on ``m``; ``n`` trained fully."""
    low = {"base_model.model.m.lora_A.weight": DOWN, "base_model.model.m.lora_B.weight": UP}
    save_file(low | {"base_model.model.n.weight": 2 * BASE["n.weight"].float() + 1e-4}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6}))
    return tmp_path


def test_an_adapter_rounds_once(adapter, base):
    """Adding a rounded change is off in every tenth entry."""
    found, wanted = AdapterTensors(adapter, base), BASE["m.weight"].float() + 1.5 * (UP @ DOWN)
    assert torch.equal(found["m.weight"], wanted.to(torch.bfloat16))
    assert not torch.equal(BASE["m.weight"] + (1.5 * (UP @ DOWN)).to(torch.bfloat16), wanted.to(torch.bfloat16))
    assert torch.equal(found["n.weight"], (2 * BASE["n.weight"].float() + 1e-4).to(torch.bfloat16))
    assert torch.equal(found["o.weight"], BASE["o.weight"])


def test_an_exact_adapter_does_not_round(adapter, base):
    found = AdapterTensors(adapter, base, exact=True)
    assert torch.equal(found["m.weight"], BASE["m.weight"].float() + 1.5 * (UP @ DOWN))
    assert torch.equal(found["n.weight"], 2 * BASE["n.weight"].float() + 1e-4)
    assert {name: spec.dtype for name, spec in found.specs.items()} == {
        "m.weight": torch.float32,
        "n.weight": torch.float32,
        "o.weight": torch.bfloat16,
    }
    assert base.specs["m.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("change", [{"use_rslora": True}, {"rank_pattern": {"m": 2}}, {"bias": "all"}, {"peft_type": "IA3"}])
def test_an_adapter_whose_scale_or_form_is_another_is_refused(adapter, base, change):
    (name,) = change
    config = json.loads((adapter / "adapter_config.json").read_text()) | change
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{name} in .* must be"):
        AdapterTensors(adapter, base)


def test_differences_are_added_in_float32(tmp_path, base):
    delta = {name: torch.full((64, 48), 2.0**-12) for name in BASE}
    save_file(delta, tmp_path / "delta.safetensors")
    write_delta_config(tmp_path, tmp_path, ["o.weight"])
    found = DeltaTensors(tmp_path, [tmp_path / "delta.safetensors"], base)
    assert torch.equal(found["m.weight"], BASE["m.weight"].float() + 2.0**-12)
    assert torch.equal(found["o.weight"], delta["o.weight"]), "a whole tensor is no difference"


def test_a_fingerprint_is_of_the_weights_whatever_their_files_are_called():
    """Folders name their parents by it, so it may not change."""
    files = {"a.safetensors": "2", "b.safetensors": "1", "golden/vectors.safetensors": "0", "tokenizer.json": "3"}
    others = {"x.safetensors": "1", "y.safetensors": "2"}
    for listed in (files, others):
        assert Provenance("base", files=listed).fingerprint == blake3(b"12").hexdigest()
