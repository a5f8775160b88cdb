"""Images and frames as the vision tower takes them: patches of many at once, and the position of each.

transformers' tower loops over images for some of that, a dozen operations each, and waits for a GPU to report their sizes; the
host knows those.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from math import prod
from typing import Any, no_type_check

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_conan.embedder.backbones import BackboneSpec
from lightning_conan.embedder.backbones.spec import Grid

Pixels = Sequence[UInt8[Tensor, "_ 3 _ _"]]


class PatchProduct(nn.Module):
    """Patch embedding as one matrix product, which equals transformers' convolution as patches do not overlap: on a CPU in a
    quarter of the time forward and a sixth backward, on some GPUs in a fiftieth
    (https://github.com/huggingface/transformers/issues/45750). A module of a tower becomes one by its ``__class__``.
    """

    proj: nn.Conv3d

    @no_type_check  # by tests, which torch.compile could not look through
    def forward(self, hidden_states: Float[Tensor, "patches values"]) -> Float[Tensor, "patches dim"]:
        weight = self.proj.weight.flatten(1)
        return F.linear(hidden_states.to(weight.dtype), weight, self.proj.bias)


def encode_pixels(family: BackboneSpec, tower: Any, pixels: Pixels) -> tuple[Float[Tensor, "tokens dim"], list[Tensor]]:
    """Encodes images and videos.

    Args:
        family: The backbone's family.
        tower: The vision tower.
        pixels: uint8 frames of each, (frames, 3, height, width), resized.

    Returns:
        Visual tokens of all inputs, one after the other, and features for the first layers, where the family has them.
    """
    patches, grids = patchify(pixels, tower.config.patch_size, tower.config.spatial_merge_size, family.scaled)
    places = family.layout(tower, grids, patches.device)
    output = tower(patches.to(tower.dtype), grid_thw=torch.tensor(grids), **places)
    return output.pooler_output, family.features(output)


def patchify(
    pixels: Pixels, patch: int, merge: int, scaled: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, "patches values"], list[Grid]]:
    """Converts pixels to the vision tower's patches, and their grids.

    A single frame stands twice, since patches span two frames. The order is that of the published processors: patches
    that merge into one token lie side by side.

    Args:
        pixels: uint8 frames of each input; sides are multiples of ``patch * merge``.
        patch: Side of a patch, in pixels.
        merge: Patches a side that merge into one token.
        scaled: Scales patches of bytes (``BackboneSpec.scaled``).
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
    return scaled(torch.cat(parts)), grids


def repeated(places: Mapping[str, Tensor], grids: Sequence[Grid], device: torch.device) -> dict[str, Tensor]:
    """Repeats what was computed once for each distinct grid, in the order of all grids.

    Args:
        places: Tensors with a row for each patch of the distinct grids, in the order of their first occurrence.
        grids: Of images and pairs of frames.
        device: Of the results.
    """
    distinct = list(dict.fromkeys(grids))
    pieces = torch.arange(sum(map(prod, distinct))).split([prod(grid) for grid in distinct])
    spans = dict(zip(distinct, pieces, strict=True))
    chosen = torch.cat([spans[grid] for grid in grids]).to(device)
    return {name: tensor.to(device)[chosen] for name, tensor in places.items()}
