"""Bases that were grafted from published checkpoints, tied and untied, for what others trained from the same."""

from pathlib import Path

import pytest
from upstream import write_qwen3_omni, write_qwen3_vl

from lightning_conan.embedder import ProcessorConfig, graft_folder


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """``tied``, ``untied`` and ``omni``, as published."""
    root = tmp_path_factory.mktemp("published")
    write_qwen3_vl(root / "tied")
    write_qwen3_vl(root / "untied", tied=False)
    write_qwen3_omni(root / "omni")
    return root


@pytest.fixture(scope="session")
def bases(published, tmp_path_factory) -> dict[str, Path]:
    """A base folder of each."""
    root = tmp_path_factory.mktemp("bases")
    for name in ("tied", "untied"):
        graft_folder(str(published / name), str(published / "omni"), root / name, ProcessorConfig(), hidden=32, golden=False)
    return {name: root / name for name in ("tied", "untied")}
