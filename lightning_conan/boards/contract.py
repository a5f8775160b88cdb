"""Contract of a score: all that decides about it besides the weights, so that only like is compared with like."""

import hashlib
import json
from importlib.metadata import version
from typing import Any

from lightning_conan.boards.embedding import Hashed
from lightning_conan.boards.tasks import RetrievalTask
from lightning_conan.embedder import OmniProcessor

PACKAGES = ("lightning-conan", "torch", "transformers", "av", "pillow", "torchvision", "numpy")
TIES = "among equal scores entries of a lower grade come first"


def contract_of(task: RetrievalTask, queries: Hashed, corpus: Hashed, processor: OmniProcessor) -> dict[str, Any]:
    """Describes one task's evaluation.

    Args:
        task: The task.
        queries: Contents of its queries.
        corpus: Contents of its corpus.
        processor: Encodes the items.
    """
    config = processor.config
    return {
        "instruction": config.instruction,
        "query_instruction": task.settings.query_instruction,
        "target_instruction": task.settings.target_instruction,
        "frames_per_second": config.sampling.fps,
        "frames": [config.sampling.min_frames, config.sampling.max_frames],
        "sampling_rate": 16_000,
        "processor": processor.fingerprint,
        "pool": "whole corpus" if task.candidates is None else "the query's candidates",
        "drop_self": task.settings.drop_self,
        "measures": list(task.settings.measures),
        "ties": TIES,
        "queries": digest([[query, queries.contents[task.queries.numbers[query]]] for query in sorted(task.qrels)]),
        "corpus": corpus.fingerprint,
        "qrels": digest(sorted((query, sorted(grades.items())) for query, grades in task.qrels.items())),
        "board": dict(task.board),
        "candidates": digest(sorted((query, list(pool)) for query, pool in (task.candidates or {}).items())),
    }


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that decide about what is decoded and computed."""
    return {name: version(name) for name in PACKAGES}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of the fields in which two contracts differ.

    Args:
        before: The contract of an earlier score.
        now: The contract of this one.
    """
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
