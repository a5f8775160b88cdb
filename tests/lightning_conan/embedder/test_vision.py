import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchEmbed

from lightning_conan.embedder import blank, pack
from lightning_conan.embedder.vision import PatchProduct, patchify


class Counted(TorchDispatchMode):
    """Number of operations that run within."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "each"), [("text", 0), ("image", 0), ("audio", 16)])
def test_a_chunk_takes_no_operations_for_each_row(tiny, kind, each):
    """On a GPU each would wait for the host, or the host for it; a sound is cut into its encoder's windows."""
    model, counts = tiny[0], []
    for rows in (4, 24):
        chunk = pack([blank(model.config, kind, 16)] * rows, 10**6)[0]
        with torch.no_grad(), Counted() as counted:
            model(chunk)
        counts.append(counted.count)
    assert counts[1] - counts[0] <= 20 * each


def test_patches_of_many_are_those_of_each(tiny):
    torch.manual_seed(0)
    shapes = [(1, 3, 32, 32), (1, 3, 32, 32), (4, 3, 32, 48), (1, 3, 32, 32), (2, 3, 16, 64)]
    pixels = [torch.randint(0, 256, shape, dtype=torch.uint8) for shape in shapes]
    patches, grids = patchify(pixels, 8, 2, tiny[0].family.scaled)
    alone = [patchify([frames], 8, 2, tiny[0].family.scaled) for frames in pixels]
    assert torch.equal(patches, torch.cat([part for part, _ in alone]))
    assert grids == [grid for _, [grid] in alone] == [(1, 4, 4), (1, 4, 4), (2, 4, 6), (1, 4, 4), (1, 2, 8)]


def test_one_product_embeds_patches_as_the_convolution_does(tiny):
    torch.manual_seed(0)
    patches, mark, found = torch.randn(20, 3 * 2 * 8 * 8), torch.randn(20, 64), []
    for kind in (PatchProduct, Qwen3VLVisionPatchEmbed):
        layer = copy.deepcopy(tiny[0].backbone.visual.patch_embed)
        layer.__class__ = kind
        embedded = layer(patches)
        (embedded * mark).sum().backward()
        found.append([embedded.detach(), layer.proj.weight.grad, layer.proj.bias.grad])
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


def test_the_tower_convolves_nothing(tiny):
    assert type(tiny[0].backbone.visual.patch_embed) is PatchProduct


def test_places_are_those_that_the_tower_finds(tiny):
    """One grid several times, a video, a single patch square: bit for bit."""
    torch.manual_seed(0)
    tower = tiny[0].backbone.visual
    grids = [(1, 4, 4), (3, 2, 6), (1, 4, 4), (1, 2, 2), (3, 2, 6)]
    patches = torch.randn(sum(a * b * c for a, b, c in grids), 3 * 2 * 8 * 8)
    with torch.no_grad():
        expected = tower(patches, grid_thw=torch.tensor(grids))
        found = tower(patches, grid_thw=torch.tensor(grids), **tiny[0].family.layout(tower, grids, patches.device))
    assert torch.equal(found.pooler_output, expected.pooler_output)
    assert all(map(torch.equal, found.deepstack_features, expected.deepstack_features))
