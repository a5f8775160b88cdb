"""Images and frames as the vision tower takes them: patches of many at once, and the position of each.

transformers' tower loops over images for some of that, a dozen operations each, and waits for a GPU to report their sizes; the
host knows those.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, no_type_check

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchEmbed
from transformers.vision_utils import (
    get_vision_attention_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

Pixels = Sequence[UInt8[Tensor, "_ 3 _ _"]]
Grid = tuple[int, int, int]
"""Frame pairs, rows and columns of patches."""


class PatchProduct(Qwen3VLVisionPatchEmbed):
    """Patch embedding as one matrix product, which equals transformers' convolution as patches do not overlap: on a CPU in a
    quarter of the time forward and a sixth backward, on some GPUs in a fiftieth
    (https://github.com/huggingface/transformers/issues/45750).
    """

    @no_type_check  # by tests, which torch.compile could not look through
    def forward(self, hidden_states: Float[Tensor, "patches values"]) -> Float[Tensor, "patches dim"]:
        weight = self.proj.weight.flatten(1)
        return F.linear(hidden_states.to(weight.dtype), weight, self.proj.bias)


def encode_pixels(tower: Any, pixels: Pixels) -> tuple[Float[Tensor, "tokens dim"], list[Tensor]]:
    """Encodes images and videos.

    Args:
        tower: The vision tower.
        pixels: uint8 frames of each, (frames, 3, height, width), resized.

    Returns:
        Visual tokens of all inputs, one after the other, and DeepStack's features for the first layers.
    """
    patches, grids = patchify(pixels, tower.config.patch_size, tower.config.spatial_merge_size)
    output = tower(patches.to(tower.dtype), grid_thw=torch.tensor(grids), **layout(tower, grids, patches.device))
    return output.pooler_output, list(output.deepstack_features)


def patchify(pixels: Pixels, patch: int, merge: int) -> tuple[Float[Tensor, "patches values"], list[Grid]]:
    """Converts pixels to the vision tower's patches, with values in [-1, 1], and their grids.

    A single frame stands twice, since patches span two frames. The order is that of Qwen3-VL's processors: patches
    that merge into one token lie side by side.

    Args:
        pixels: uint8 frames of each input; sides are multiples of ``patch * merge``.
        patch: Side of a patch, in pixels.
        merge: Patches a side that merge into one token.
    """
    parts: list[Tensor] = []
    grids: list[Grid] = []
    for _, like in groupby(pixels, key=lambda frames: frames.shape):
        run = torch.stack(list(like))
        if run.shape[1] % 2:
            run = torch.cat([run, run[:, -1:]], dim=1)
        pairs, rows, columns = run.shape[1] // 2, run.shape[3] // patch, run.shape[4] // patch
        grids += [(pairs, rows, columns)] * len(run)
        run = run.view(len(run) * pairs, 2, 3, rows // merge, merge, patch, columns // merge, merge, patch)
        parts.append(run.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * 2 * patch * patch))
    return torch.cat(parts).float().div_(127.5).sub_(1), grids


def layout(tower: Any, grids: Sequence[Grid], device: torch.device) -> dict[str, Any]:
    """Computes positions, weights and bounds of grids on the host, once for each distinct grid; the tower would compute all.

    Args:
        tower: The vision tower.
        grids: Of images and pairs of frames.
        device: Of the results.
    """
    distinct = list(dict.fromkeys(grids))
    table, merge = torch.tensor(distinct), tower.config.spatial_merge_size
    indices, weights = get_vision_interpolation_indices_and_weights(
        table, tower.num_grid_per_side, tower.interpolation_mode, tower.interpolation_align_corners, merge
    )
    bounds, longest = get_vision_attention_seqlens(torch.tensor(grids), tower.config)
    pieces = torch.arange(len(indices)).split([pairs * rows * columns for pairs, rows, columns in distinct])
    spans = dict(zip(distinct, pieces, strict=True))
    chosen = torch.cat([spans[grid] for grid in grids]).to(device)
    places = {"position_ids": get_vision_position_ids(table, merge), "interp_indices": indices, "interp_weights": weights}
    found = {name: tensor.to(device)[chosen] for name, tensor in places.items()}
    return found | {"cu_seqlens": bounds.to(device), "max_seqlen": longest}
