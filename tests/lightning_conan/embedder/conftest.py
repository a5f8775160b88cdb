import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from upstream import write_qwen3_omni, write_qwen3_vl

from lightning_conan.cli.main import main
from lightning_conan.embedder import ProcessorConfig, graft_folder, load_folder
from lightning_conan.media.sampling import Sampling

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


@pytest.fixture(scope="session")
def wanted(grafted):
    """From items to their embeddings by the folder itself."""
    model, processor, _ = load_folder(grafted)

    def embed(*items):
        with torch.no_grad():
            return model.embed([processor(item) for item in items])

    return embed


@pytest.fixture(scope="session")
def exported(grafted, tmp_path_factory) -> Path:
    """``whole`` and ``stock``: the two exports for sentence-transformers."""
    root = tmp_path_factory.mktemp("exported")
    (root / "scores.json").write_text(
        json.dumps({"digits": {"recall@1": 95.0, "recall@10": 100.0, "ndcg@10": 98.0, "mrr": 97.0}})
    )
    for name, stock in {"whole": "false", "stock": "true"}.items():
        words = ["export", str(grafted), "--to", "sentence-transformers", str(root / name), "--stock", stock]
        assert main([*words, "--scores", str(root / "scores.json")]) == 0
    return root


@pytest.fixture(scope="session")
def whole(exported):
    return SentenceTransformer(str(exported / "whole"), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="session")
def stock(exported):
    return SentenceTransformer(str(exported / "stock"), device="cpu")
