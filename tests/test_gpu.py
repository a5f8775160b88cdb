"""Properties that hold on two cores hold on an NVIDIA GPU, in bfloat16 and under FSDP2; skipped where there is none."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lightning_conan.cli.main import main
from lightning_conan.embedder import load_folder, pack, tiny_embedder
from lightning_conan.embedder.attention import segment_attention
from lightning_conan.objectives import ChunkStep, cached_backward, gradient_cache, one_pass_backward
from lightning_conan.training import Lora
from lightning_conan.training.adapters import Adapters
from lightning_conan.training.probing import fitting_budget, trained_bytes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
GPU = torch.device("cuda")
CONFIGS = Path(__file__).parents[1] / "configs"
EXACT, HALF = 1e-4, 2e-2
"""Shares of the largest value by which float32 and bfloat16 may differ."""


def differs(found, expected):
    """The largest difference, as a share of the largest value."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("bounds", [[0, 64, 128, 192], [0, 3, 4, 90, 120, 121], [0, 500]])
def test_flash_attention_over_segments(bounds):
    """Forward and gradient, against softmax written out in float64."""
    torch.manual_seed(0)
    tensors = [torch.randn(1, 2, bounds[-1], 64, device=GPU, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    longest = max(stop - start for start, stop in itertools.pairwise(bounds))
    where = {"cu_seq_lens_q": torch.tensor(bounds, device=GPU), "max_length_q": longest}
    fast, _ = segment_attention(torch.nn.Identity(), *tensors, None, **where, scaling=0.3)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    query, key, value = wide
    parts = [slice(*pair) for pair in itertools.pairwise(bounds)]
    seen = [(query[:, :, part] @ key[:, :, part].mT * 0.3).softmax(-1) @ value[:, :, part] for part in parts]
    slow = torch.cat(seen, dim=2).transpose(1, 2)
    mark = torch.randn_like(slow)
    assert differs(fast, slow) < HALF
    gradients = [torch.autograd.grad((out * mark.to(out.dtype)).sum(), leaves) for out, leaves in ((fast, tensors), (slow, wide))]
    assert all(differs(found, expected) < HALF for found, expected in zip(*gradients, strict=True))


def test_embeddings_are_those_of_the_host(encoded, monkeypatch):
    """In float32 exactly, in bfloat16 nearly; and there each item's own, whatever lies beside it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # torch rounds what convolutions take otherwise
    items = list(encoded.values())
    model = tiny_embedder(0)[0]
    with torch.no_grad():
        host = model.embed(items)
        model.to(GPU)
        there = model.embed(items).cpu()
        with torch.autocast("cuda", torch.bfloat16):
            half = model.embed(items).cpu()
            alone = torch.cat([model.embed([item]) for item in items]).cpu()
    assert differs(there, host) < EXACT
    assert F.cosine_similarity(half, host).min() > 0.999
    assert F.cosine_similarity(half, alone).min() > 0.999


@pytest.mark.parametrize(("half", "compiled"), [(False, None), (True, None), (True, "inductor")])
def test_cached_gradients_are_those_of_one_pass(encoded, monkeypatch, half, compiled):
    """With dropout on, which the GPU draws."""
    monkeypatch.setattr(gradient_cache, "FEW", 0)
    items = [encoded[name] for name in ("text", "image", "video", "document", "audio", "image and text")]
    chunks = pack(items, 60)
    assert len(chunks) > 2
    found = []
    for way in ("one pass", "cached", "again"):
        torch.manual_seed(0)
        model = tiny_embedder(0)[0].to(GPU).train()
        Adapters(model, Lora(4, 8, 0.3), ("backbone.", "audio_encoder."), ())
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.switch("sdpa", compiled)
        step = ChunkStep(model, lambda rows: (rows @ rows.T).logsumexp(1).mean(), lambda value, last: value.backward(), GPU)
        torch.manual_seed(1)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            value = one_pass_backward(step, chunks) if way == "one pass" else cached_backward(step, chunks, len(items))
        found.append((value, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (one, expected), (other, gradients), (again, same) = found
    limit = HALF if half else EXACT
    assert abs(other - one) < limit * abs(one)
    assert abs(other - again) < limit * abs(one)
    floor = 1e-3 * max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        size = gradient.abs().max().clamp(min=floor)
        assert (gradients[name] - gradient).abs().max() < 5 * limit * size, name
        assert (same[name] - gradients[name]).abs().max() < 5 * limit * size, name


def test_a_budget_is_measured_and_leaves_nothing():
    model = tiny_embedder(0)[0].to(GPU).train()
    found = fitting_budget(model, model, "image", GPU, 2 * trained_bytes(model))
    assert 1024 <= found <= 2**17
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("strategy", ["gpu", "fsdp2"])
@pytest.mark.parametrize("stage", ["specialist", "recovery"])
def test_the_verbs_on_one_gpu(strategy, stage, base, fused, world, tmp_path, capsys):
    """Fit, resume and test as the configs say; the folder's vectors are those that the host finds (else it would not load so)."""
    name = "image" if stage == "specialist" else "audio"
    packed = str(world / name)
    options = ["--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "tiny" / f"{stage}.yaml")]
    options += ["--config", str(CONFIGS / "trainer" / f"{strategy}.yaml"), "--trainer.devices", "1"]
    options += ["--trainer.default_root_dir", str(tmp_path / "work"), "--trainer.logger", "false"]
    options += ["--model.init_args.folder", str(base if stage == "specialist" else fused)]
    options += ["--data.init_args.train", packed, "--data.init_args.batch_size", "8"]
    options += ["--model.init_args.training.token_budget", "300"]
    options += ["--trainer.callbacks.out", str(tmp_path / "out")]
    for steps in (2, 4):
        more = ["--trainer.max_steps", str(steps), *(["--ckpt_path", "last"] if steps == 4 else [])]
        assert main(["fit", *options, *more]) == 0, capsys.readouterr().err
    load_folder(tmp_path / "out", verify=True)
    scored = ["test", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "tiny/test.yaml")]
    scored += ["--config", str(CONFIGS / "trainer" / f"{strategy}.yaml"), "--trainer.devices", "1", "--trainer.logger", "false"]
    scored += ["--model.init_args.folder", str(tmp_path / "out"), "--data.init_args.test", f"{{held: {packed}}}"]
    assert main(scored) == 0, capsys.readouterr().err
