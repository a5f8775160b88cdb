"""TUTSound of MMEB-V3: find when an event of a recording happens, among its events and seconds without any."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import av

from lightning_conan.boards.mmeb.data import Data
from lightning_conan.boards.mmeb.task import Draft, Part, Spec

INSTRUCTION = "Retrieve the sound event categories that best match the given audio."
FOLDER = "audio-tasks/tutsound/TUT-sound-events-2017-development"
WINDOW, STRIDE, SHORTEST = 1.0, 0.5, 0.05
"""Seconds of a distractor, between two, and of the shortest event."""
OVERLAP = 0.1
"""Intersection over union with any event from which a window is no distractor."""
DISTRACTORS = 50
Segment = tuple[float, float]


def events(paths: Sequence[Path]) -> dict[str, list[tuple[str, float, float]]]:
    """Labels and seconds of the events of each recording, of all folds."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").split("\n"):
            fields = line.strip().split("\t")
            fields = fields if len(fields) >= 5 else line.split()
            if len(fields) >= 5:
                found.setdefault(fields[0].strip(), []).append((fields[4].strip(), float(fields[2]), float(fields[3])))
    return found


def seconds_of(path: Path) -> float:
    """Length of a recording, by its header."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return float((stream.duration or 0) * (stream.time_base or 0))


def clamped(start: float, end: float, length: float) -> Segment:
    """An event within its recording, of some length: a few have none.

    Args:
        start: Its first second.
        end: Its last second.
        length: Seconds of the recording.
    """
    start = max(0.0, start)
    end = min(end if end > start else start + SHORTEST, length)
    if end <= start:
        start, end = max(0.0, length - SHORTEST), length
    return start, end if end > start else start + 1e-3


def overlap(first: Segment, second: Segment) -> float:
    """Intersection over the span of both.

    Args:
        first: Seconds of one segment.
        second: Seconds of the other.
    """
    both = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    span = max(first[1], second[1]) - min(first[0], second[0])
    return both / span if span > 0 else 0.0


def distractors(taken: Sequence[Segment], length: float) -> list[Segment]:
    """The first windows of a recording that overlap with no event.

    Args:
        taken: Its events.
        length: Its seconds.
    """
    found, start = [], 0.0
    while start + WINDOW <= length:
        window = start, start + WINDOW
        if max((overlap(window, event) for event in taken), default=0.0) < OVERLAP:
            found.append(window)
        start += STRIDE
    return found[:DISTRACTORS]


def named(recording: str, segment: Segment) -> str:
    """The board's name of a segment.

    Args:
        recording: Path of its recording.
        segment: Its seconds.
    """
    return f"{recording}|{segment[0]:.3f}-{segment[1]:.3f}"


def cut(data: Data, path: str, segment: Segment) -> tuple[Part, ...]:
    """Makes a candidate: a segment and the instruction.

    Args:
        data: Folder of the data.
        path: Path of the recording.
        segment: Its seconds.
    """
    return data.media("audio", path, *segment), INSTRUCTION


def read(data: Data, draft: Draft, strict: bool) -> None:
    """Reads the task: an event's label and its recording, among segments of that.

    Args:
        data: Folder of the data.
        draft: The task.
        strict: True if the event itself must be found; False if any of its label will do.
    """
    folds = data.each(*([f"{FOLDER}/evaluation_setup/street_fold{fold}_evaluate.txt"] for fold in range(1, 5)))
    for recording, listed in sorted(events([path for fold in folds for path in fold]).items()):
        path = f"{FOLDER}/{recording}"
        audio = data.media("audio", path)
        if not (data.root / path).is_file():
            continue
        length = seconds_of(data.root / path)
        taken = [clamped(start, end, length) for _, start, end in listed]
        pool = [
            draft.entry(named(recording, segment), partial(cut, data, path, segment))
            for segment in taken + distractors(taken, length)
        ]
        for (label, _, _), segment in zip(listed, taken, strict=True):
            alike = [other for (kind, _, _), other in zip(listed, taken, strict=True) if kind == label]
            right = [named(recording, found) for found in ([segment] if strict else alike)]
            draft.query([audio, f"{INSTRUCTION}\nQuery: {label}"], right, pool)


SPECS = (
    Spec("TUTSound", "audio", "audio/grounding", partial(read, strict=False)),
    Spec("TUTSound(hard)", "audio", "audio/grounding", partial(read, strict=True)),
)
