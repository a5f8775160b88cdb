"""Runs mteb's mock tasks, and two sets of sounds, on our encoder and on an exported folder: `mteb_grid.py FOLDER EXPORTED CACHE`.

Prints, as JSON, what passed by modality, what failed, and the scores of the sounds. A process of its own, since torchcodec finds
FFmpeg's libraries by the environment that a process starts with.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import mteb
import sklearn
from mteb.mocks import ALL_MOCK_TASK_TEST_GRID, MOCK_MULTIMODAL_TASKS
from mteb.mocks.mock_run import get_compatible_mock_tasks
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb_tasks import scores
from sentence_transformers import SentenceTransformer

from lightning_conan.boards.mteb_encoder import MtebEncoder
from lightning_conan.boards.mteb_model import mteb_model
from lightning_conan.cli.common.logging import quiet_libraries


def kind_of(task):
    """Modality that a task is counted under, as mteb groups its mock tasks."""
    kinds = {*task.metadata.modalities}
    if kinds >= {"audio", "video"}:
        return "audio-visual"
    return next(kind for kind in ("video", "audio", "image", "text") if kind in kinds)


def grid(model):
    """Passed tasks by modality, and the error of each that failed."""
    assert {task.metadata.name for task in get_compatible_mock_tasks(model)} == {
        task.metadata.name for task in ALL_MOCK_TASK_TEST_GRID
    }
    passed, failed = Counter(), {}
    tasks = {task.metadata.name: task for task in (*ALL_MOCK_TASK_TEST_GRID, *MOCK_MULTIMODAL_TASKS)}  # one stands there twice
    for task in tasks.values():
        try:
            mteb.evaluate(model, [task], cache=None, show_progress_bar=False, co2_tracker=False)
        except Exception as error:
            failed[task.metadata.name] = f"{type(error).__name__}: {error}"[:300]
        else:
            passed[kind_of(task)] += 1
    return {"passed": passed, "failed": failed}


def stock_wrapper(folder):
    """mteb's own wrapper around an exported folder; from a live object it does not find out what the model takes."""
    found = SentenceTransformerEncoderWrapper(SentenceTransformer(str(folder), trust_remote_code=True, device="cpu"))
    meta = found.mteb_model_meta
    found.mteb_model_meta = meta.model_copy(update={"modalities": ["text", "image", "audio", "video"]})
    return found


if __name__ == "__main__":
    quiet_libraries()
    sklearn.set_config(assume_finite=True, skip_parameter_validation=True)  # half of the time is its checks
    folder, exported, cache = map(Path, sys.argv[1:])
    models = {"ours": MtebEncoder(folder, cache), "exported": mteb_model(exported, "cpu")}
    found = {name: grid(model) for name, model in models.items()}
    models["wrapper"] = stock_wrapper(exported)
    for kind in ("tones", "sounds"):
        found[kind] = {name: scores(model, kind) for name, model in models.items()}
    print(json.dumps(found))
