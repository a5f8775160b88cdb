import pytest
import torch
from torch.nn import functional as F

from lightning_conan.embedder import pack, tiny_embedder
from lightning_conan.embedder.projector import Projector
from lightning_conan.embedder.vision import patchify
from lightning_conan.items import Item, Media
from samples import flac


def test_unit_norm_float32_one_each(tiny, encoded):
    with torch.no_grad():
        found = tiny[0].embed(list(encoded.values()))
    assert found.dtype == torch.float32
    assert found.shape == (len(encoded), 128)
    assert torch.allclose(found.norm(dim=1), torch.ones(len(encoded)))


def test_embeddings_are_normalised_in_float32(encoded):
    """A norm of bfloat16 is off by up to a hundredth, and scores over a temperature of 0.02 by half."""
    model = tiny_embedder(0)[0].bfloat16().eval()
    with torch.no_grad():
        found = model.embed([encoded["text"], encoded["image"]])
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)


def test_different_items_differ(tiny, encoded):
    with torch.no_grad():
        found = tiny[0].embed(list(encoded.values()))
    scores = found @ found.T - 2 * torch.eye(len(found))
    assert scores.max() < 0.9999


@pytest.mark.parametrize("budget", [1, 80, 10_000])
def test_a_vector_does_not_depend_on_its_neighbours(tiny, encoded, budget):
    """Alone, among others, in any order, under any padding, whatever came before (fault 24)."""
    model, items = tiny[0], list(encoded.values())
    with torch.no_grad():
        alone = torch.cat([model.embed([item]) for item in items])
        assert torch.allclose(model.embed(items, budget), alone, atol=1e-5)
        assert torch.allclose(model.embed(items[::-1], budget).flip(0), alone, atol=1e-5)
        assert torch.equal(model.embed(items[:1]), alone[:1])


def test_short_sounds_do_not_depend_on_each_other(tiny, processor):
    """None fills a window: the encoder's own count of a window's places would follow the longest of them."""
    model = tiny[0]
    mels = [processor(Item((Media("audio", flac(seconds), "a.flac"),))).inputs("audio")[0] for seconds in (0.3, 0.7, 0.5)]
    with torch.no_grad():
        alone = torch.cat([model.encode_frames("audio", [mel]) for mel in mels])
        assert torch.allclose(model.encode_frames("audio", mels), alone, atol=1e-5)


def test_equals_transformers_own_forward(tiny, encoded):
    """Vision, placeholders, DeepStack and positions as Qwen3-VL's own forward does them."""
    model, item = tiny[0], encoded["image and text"]
    patches, grids = patchify(item.inputs("vision"), 8, 2, model.family.scaled)
    ids = item.input_ids[None]
    with torch.no_grad():
        output = model.backbone(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=patches,
            image_grid_thw=torch.tensor(grids),
            mm_token_type_ids=(ids == model.config.backbone_config.image_token_id).int(),
        )
        model.backbone.rope_deltas = None
        expected = F.normalize(output.last_hidden_state[:, -1], dim=-1)
        assert torch.allclose(model.embed([item]), expected, atol=1e-5)


def test_text_after_an_image_keeps_its_positions(tiny, encoded):
    """transformers' Qwen3-VL remembers ``rope_deltas`` from the call before; we do not."""
    model = tiny[0]
    with torch.no_grad():
        before = model.embed([encoded["text"]])
        model.embed([encoded["two images"]])
        assert torch.equal(model.embed([encoded["text"]]), before)


def test_sound_reaches_the_embedding_through_the_projector(fresh, encoded):
    fresh.embed([encoded["audio"]]).sum().backward()
    assert fresh.audio_projector.linear_1.weight.grad.abs().sum() > 0
    assert fresh.audio_encoder.conv2d1.weight.grad.abs().sum() > 0


def test_a_wrong_number_of_frames_is_noticed(tiny, encoded):
    (chunk,) = pack([encoded["audio"]], 1000)
    chunk.inputs("audio")[0] = chunk.inputs("audio")[0][:, :20]
    with pytest.raises(AssertionError, match="placeholders for"):
        tiny[0](chunk)


def test_paper_sized_projector():
    """18,881,536 parameters at 2048 -> 3072 -> 4096 (arXiv 2606.09331)."""
    with torch.device("meta"):
        projector = Projector(2048, 3072, 4096)
    assert sum(parameter.numel() for parameter in projector.parameters()) == 18_881_536
