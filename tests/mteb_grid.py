"""Runs mteb's mock tasks on one of our encoders and prints what came of each, as JSON: `python tests/mteb_grid.py FOLDER CACHE`.

FOLDER is a checkpoint folder, for our encoder with its CACHE, or one that was exported, for mteb's wrapper. A process of its own,
since torchcodec finds FFmpeg's libraries by the environment that a process starts with.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import mteb
from mteb.mocks import ALL_MOCK_TASK_TEST_GRID, MOCK_MULTIMODAL_TASKS

from lightning_conan.boards.mteb_encoder import MtebEncoder
from lightning_conan.boards.mteb_model import mteb_model
from lightning_conan.cli.common.logging import quiet_libraries


def kind_of(task):
    """Modality that a task is counted under, as mteb groups its mock tasks."""
    kinds = {*task.metadata.modalities}
    if kinds >= {"audio", "video"}:
        return "audio-visual"
    return next(kind for kind in ("video", "audio", "image", "text") if kind in kinds)


def run(model, only=None):
    """Passed and failed tasks by modality."""
    found = {}
    for task in (*ALL_MOCK_TASK_TEST_GRID, *MOCK_MULTIMODAL_TASKS):
        name = task.metadata.name
        if only and name not in only:
            continue
        try:
            mteb.evaluate(model, [task], cache=None, show_progress_bar=False, co2_tracker=False)
        except Exception as error:
            found[name] = kind_of(task), f"{type(error).__name__}: {error}"[:300]
        else:
            found[name] = kind_of(task), ""
    return found


if __name__ == "__main__":
    quiet_libraries()
    folder, *rest = map(Path, sys.argv[1:])
    model = MtebEncoder(folder, rest[0]) if rest else mteb_model(folder, "cpu")
    assert {*mteb.mocks.mock_run.get_compatible_mock_tasks(model)} == {*ALL_MOCK_TASK_TEST_GRID}
    found = run(model)
    passed = Counter(kind for kind, error in found.values() if not error)
    print(json.dumps({"passed": passed, "failed": {name: error for name, (_, error) in found.items() if error}}))
