import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from lightning_conan.embedder.positions import mrope_positions


def test_text_counts_on_all_axes():
    assert mrope_positions([3, 2]).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_a_grid_spreads_and_then_advances_by_its_longer_side():
    assert mrope_positions([1, (2, 3), 1]).tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]


def test_equals_transformers(tiny, encoded):
    """The same positions as Qwen3-VL's own, for an item with an image and text."""
    model = tiny[0]
    item = encoded["image and text"]
    ids = item.input_ids[None]
    config = model.config.backbone_config
    frames = item.inputs("vision")[0]
    grid = torch.tensor([[1, frames.shape[2] // 8, frames.shape[3] // 8]])
    kinds = (ids == config.image_token_id).int()
    backbone: Qwen3VLModel = model.backbone
    expected, _ = backbone.get_rope_index(ids, image_grid_thw=grid, mm_token_type_ids=kinds)
    assert torch.equal(item.positions, expected[:, 0])
