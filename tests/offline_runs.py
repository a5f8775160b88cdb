"""Reads the files of offline runs of Weights & Biases, by its own messages."""

import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK = 7, 32 * 1024
FULL, FIRST, LAST = 1, 2, 4


def records(path: Path):
    """Yields the records of a .wandb file, which is a log as LevelDB writes it, behind a header of its own."""
    data, place, parts = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        if (left := BLOCK - place % BLOCK) < HEADER:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + HEADER])
        if not kind:
            return
        piece = data[place + HEADER : place + HEADER + size]
        parts, place = piece if kind in (FULL, FIRST) else parts + piece, place + HEADER + size
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(parts)


@dataclass
class OfflineRun:
    """Content of an offline run: its id, settings, summary, history, and artifacts that it uses and logs."""

    id: str = ""
    name: str = ""
    ended: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    uses: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, Any] = field(default_factory=dict)
    tables: list[Any] = field(default_factory=list)


def values(items) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def read_run(path: Path) -> OfflineRun:
    run = OfflineRun()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.name = record.run.run_id, record.run.display_name
        if kind in ("run", "config"):
            run.config |= values((record.run.config if kind == "run" else record.config).update)
        if kind == "summary":
            run.summary |= values(record.summary.update)
        if kind == "history":
            run.history.append(values(record.history.item))
        if kind == "artifact":
            artifact = record.artifact
            if artifact.type == "run_table":
                run.tables.append(artifact)
            else:
                (run.uses if artifact.use_after_commit else run.logs)[artifact.name] = artifact
        run.ended |= kind == "exit"
    return run


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The runs below a folder, in the order of their beginning, once their files are complete."""
    deadline = time.monotonic() + 60
    while True:
        paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime)
        found = [read_run(path) for path in sorted(paths, key=lambda path: path.parent.name)]
        if all(run.ended for run in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)
