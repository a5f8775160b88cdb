import pytest
import torch

from callbacks import FolderCheckpoint
from lightning_conan.embedder import tiny_embedder
from lightning_conan.stages import Specialist
from lightning_conan.training import Lora
from lightning_conan.training.adapters import Adapters
from runs import QUICK, Record, data, trainer


def adapted(dropout=0.0):
    """A model with adapters that change what it says."""
    torch.manual_seed(0)
    model = tiny_embedder(0)[0].train()
    adapters = Adapters(model, Lora(4, 8, dropout), ("backbone.language_model.layers.0.",), ())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model, adapters


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("half", [False, True])
def test_one_product_is_peft_s_own_sum(half, dropout):
    """Forward and gradient, with dropout, for inputs of any number of dimensions."""
    found = []
    for own in (True, False):
        model, _ = adapted(dropout)
        layer = model.backbone.language_model.layers[0].mlp.up_proj
        if not own:
            layer.lora_variant.clear()
        value = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            said = layer(value)
            flat = layer.eval()(value[0, 0])
        (said.float() * torch.linspace(-1, 1, said.numel()).view(said.shape)).sum().backward()
        gradients = [value.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]
        found.append([said.float(), flat.float(), *gradients])
        assert said.dtype == (torch.bfloat16 if half else torch.float32)
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= (2e-2 if half else 1e-6) * other.abs().max()


def test_adapters_merge_into_what_they_said():
    model, adapters = adapted()
    model.eval()
    value = torch.randn(2, 3, 128)
    layers = model.backbone.language_model.layers
    said = layers[0].mlp(value)
    adapters.merge(torch.float32)
    assert type(layers[0].mlp.up_proj) is torch.nn.Linear
    torch.testing.assert_close(layers[0].mlp(value), said, rtol=1e-4, atol=1e-5)


def test_adapters_share_their_inputs_under_autocast(encoded):
    """An input that is bfloat16 already is kept once, not a copy for each adapter that takes it."""
    model = tiny_embedder(0)[0].train()
    Adapters(model, Lora(4, 4), ("backbone.language_model.layers.0.self_attn.",), ())
    attention = model.backbone.language_model.layers[0].self_attn
    value, kept = torch.randn(1, 3, 128, dtype=torch.bfloat16, requires_grad=True), []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        found = [layer(value) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    assert [tensor.dtype for tensor in found] == [torch.bfloat16] * 3
    assert kept.count(value.data_ptr()) == 6  # the frozen weight's product keeps it too
    narrow = [layer.float()(value.float()) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    for one, other in zip(found, narrow, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.05)


def test_what_an_adapter_folder_cannot_hold_is_refused_before_training(base, world, tmp_path):
    record = Record()
    module = Specialist(base, "audio", QUICK, Lora(4, 8), train_fully=("audio_projector.", "audio_encoder.conv"))
    runner = trainer(tmp_path / "run", 2, FolderCheckpoint(tmp_path / "out", "adapter"), record)
    with pytest.raises(ValueError, match=r"whole modules besides LoRA, got 'audio_encoder\.conv'"):
        runner.fit(module, data(world, "audio"))
    assert not record.losses
