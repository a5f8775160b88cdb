"""Every family of backbones on two ranks: a step of a specialist and of TRACE is that of one process."""

import itertools
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from ranks import near, values
from scenarios import fit_jobs

from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
from lightning_conan.embedder.backbones.registry import FAMILIES as KNOWN
from lightning_conan.items import Item

KINDS = ("partly", "trace")
"""A specialist whose vision tower and first layer, experts too, train fully, the others by adapters; TRACE."""
STRATEGIES = ("ddp", "fsdp2")
STEPS = 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Any:
    """All runs: one process, and one pair of processes for all, since a pair takes ten seconds to start."""
    root = tmp_path_factory.mktemp("families")
    pictures, clips = draw_pairs("image", 8, 0), draw_pairs("video", 8, 0)
    pairs = [
        msgspec.structs.replace(
            picture,
            query=Item((*picture.query.parts, "and", *clip.query.parts)) if row % 2 else picture.query,
            target=Item((*clip.target.parts, *picture.target.parts)),
            reasoning=f"it is scene {row}",
        )
        for row, (picture, clip) in enumerate(zip(pictures, clips, strict=True))
    ]
    write_shards(pairs, root / "packed" / "image")
    folders = {name: save_folder(root / "bases" / name, *tiny_embedder(0, name), Provenance("base")) for name in KNOWN}
    alone = {(name, kind): (kind, folders[name], "auto") for name in KNOWN for kind in KINDS}
    jobs = {(*name, strategy): (*job[:2], strategy) for strategy in STRATEGIES for name, job in alone.items()}
    found = fit_jobs(alone, root / "packed", root / "alone", STEPS)
    return SimpleNamespace(alone=found, ranks=values(fit_jobs, jobs, root / "packed", root / "ranks", STEPS))


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    """Within 1e-5 of the largest gradient."""
    floor = 1e-5 * max(tensor.abs().max() for tensor in wanted.values())
    return found.keys() == wanted.keys() and all((found[name] - each).abs().max() <= floor for name, each in wanted.items())


@pytest.mark.parametrize("name", [*itertools.product(KNOWN, KINDS, STRATEGIES)], ids="-".join)
def test_a_step_is_that_of_one_process(runs, name):
    """Images, videos and texts in one batch; losses, gradients and weights as Qwen3-VL's, which all share the bounds."""
    alone, ranks = runs.alone[name[:2]], [rank[name] for rank in runs.ranks]
    for step in range(STEPS):
        assert sorted(key for rank in ranks for key in rank["keys"][step]) == sorted(alone["keys"][step])
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert close(rank["gradients"], alone["gradients"])
        assert all(near(rank["weights"][part], tensor) for part, tensor in alone["weights"].items())
    assert all(torch.equal(tensor, ranks[1]["weights"][part]) for part, tensor in ranks[0]["weights"].items())
    fully = "embedder.backbone.visual.merger." if name[1] == "trace" else "embedder.backbone.language_model.layers.0."
    assert any(part.startswith(fully) for part in alone["weights"])
