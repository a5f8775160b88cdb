from pathlib import Path

import pytest
from upstream import write_qwen3_omni, write_qwen3_vl

from lightning_conan.embedder import ProcessorConfig, graft_folder
from lightning_conan.media.video import Sampling

LIMITS = ProcessorConfig(
    min_pixels=4096,
    max_pixels=64 * 1024,
    video_min_pixels=4096,
    video_max_pixels=96 * 1024,
    frame_max_tokens=None,
    sampling=Sampling(fps=2.0, min_frames=4, max_frames=16),
)
"""The limits of ``upstream_processor``."""


@pytest.fixture(scope="session")
def upstream(tmp_path_factory) -> Path:
    """``qwen3_vl`` and ``qwen3_omni``, as published."""
    root = tmp_path_factory.mktemp("upstream")
    write_qwen3_vl(root / "qwen3_vl")
    write_qwen3_omni(root / "qwen3_omni")
    return root


@pytest.fixture(scope="session")
def grafted(upstream, tmp_path_factory) -> Path:
    """A base folder made of both."""
    out = tmp_path_factory.mktemp("grafted") / "base"
    graft_folder(str(upstream / "qwen3_vl"), str(upstream / "qwen3_omni"), out, LIMITS, hidden=32)
    return out
