import itertools

import torch

from lightning_conan.embedder.attention import NAME, segment_attention


def reference(query, key, value, bounds, scaling):
    """Softmax attention, segment by segment, written out."""
    pieces = []
    for start, stop in itertools.pairwise(bounds):
        part = slice(start, stop)
        weights = (query[:, :, part] @ key[:, :, part].transpose(-1, -2) * scaling).softmax(dim=-1)
        pieces.append(weights @ value[:, :, part])
    return torch.cat(pieces, dim=2).transpose(1, 2)


def both(bounds):
    torch.manual_seed(0)
    tensors = [torch.randn(1, 2, bounds[-1], 8, requires_grad=True) for _ in range(3)]
    longest = max(stop - start for start, stop in itertools.pairwise(bounds))
    where = {"cu_seq_lens_q": torch.tensor(bounds), "max_length_q": longest}
    fast, _ = segment_attention(torch.nn.Identity(), *tensors, None, **where, scaling=0.3)
    slow = reference(*tensors, bounds, 0.3)
    mark = torch.randn_like(slow)
    gradients = [torch.autograd.grad((out * mark).sum(), tensors) for out in (fast, slow)]
    return fast, slow, gradients


def test_equal_and_unequal_segments_forward_and_gradient():
    for bounds in ([0, 4, 8, 12], [0, 3, 4, 9, 12, 13], [0, 5]):
        fast, slow, gradients = both(bounds)
        assert torch.allclose(fast, slow, atol=1e-6)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_towers_use_it_and_agree_with_transformers(fresh, encoded):
    items = [encoded[name] for name in ("image", "two images", "video", "audio", "long audio")]
    assert fresh.backbone.visual.config._attn_implementation == NAME
    with torch.no_grad():
        fast = fresh.embed(items)
        for tower in (fresh.backbone.visual, fresh.audio_encoder):
            tower.config._attn_implementation = "sdpa"
        assert torch.allclose(fresh.embed(items), fast, atol=1e-6)
