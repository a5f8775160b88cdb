"""The five audio classification tasks of MMEB-V3: an audio clip among the names of all classes that occur."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from lightning_conan.boards.mmeb.data import Data, Row, columns_of, rows_of
from lightning_conan.boards.mmeb.sounds import ROOT, first, sounds, within
from lightning_conan.boards.mmeb.task import Draft, Part, Spec, together

PROMPTS = {
    "NSynth": "Recognize the musical instrument category of the audio.",
    "ESC-50": "Recognize the environmental sound category of the audio.",
    "UrbanSound8K": "Recognize the urban sound category of the audio.",
    "SpeechCommands": "Recognize the spoken word category in the audio.",
    "CREMA-D": "Recognize the emotion expressed in the speech audio.",
}
FILES = {
    "NSynth": ("nsynth-1k/eval/query.parquet",),
    "ESC-50": ("esc50/*.parquet", "esc50/data/*.parquet"),
    "UrbanSound8K": ("urbansound8k/csv_files/test.csv",),
    "SpeechCommands": ("speechcommand-1k/query_eval.parquet",),
    "CREMA-D": ("creamD/processed.csv", "creamD/data/*.parquet"),
}
NUMBERED: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "NSynth": (
        ("label_id", ("label",)),
        ("instrument_family", ("instrument_family_str",)),
        ("instrument_family_id", ("instrument_family_str",)),
        ("label", ("label_name",)),
        ("target", ("label_name",)),
        ("class_id", ("class",)),
        ("classID", ("class",)),
    ),
    "ESC-50": (("target", ("category",)),),
    "UrbanSound8K": (("classID", ("class", "classname")),),
    "SpeechCommands": (("label_id", ("label_name", "label")), ("label", ("label_name", "label"))),
    "CREMA-D": (("label", ("label_name", "major_emotion", "emotion", "label")),),
}
"""Columns that number the classes, in upstream's order, each with those that may name them."""
NAMED = {
    "NSynth": ("instrument_family_str", "label_name", "category", "class"),
    "UrbanSound8K": ("class", "classname"),
    "CREMA-D": ("label_name", "major_emotion", "emotion"),
}
"""Columns that name the classes where none numbers them."""
FILE_NAMES = ("slice_file_name", "slice_filename", "file_name", "filename")


def read(data: Data, draft: Draft) -> None:
    """Reads a task.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    name = draft.spec.name
    files = data.files(*(f"{ROOT}/{pattern}" for pattern in FILES[name]))
    numbers, names = label_columns(name, columns_of(files))
    found = list(clips(data, name, files, [column for column in (numbers, names) if column]))
    labels = [str(row[names or numbers]) for row, _ in found]
    for label in classes([int(row[numbers]) for row, _ in found] if numbers else None, labels):
        draft.entry(label, partial(together, label))
    pool = list(draft.numbers.values())
    for label, (_, part) in zip(labels, found, strict=True):
        draft.query([part, PROMPTS[name]], [label], pool)


def clips(data: Data, name: str, files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[Row, Part]]:
    """Yields rows with their audio.

    Args:
        data: Folder of the data.
        name: The task.
        files: A CSV file, or Parquet files.
        columns: Columns of the classes.
    """
    folder = f"{ROOT}/{FILES[name][0].partition('/')[0]}"
    if files[0].suffix == ".parquet":
        yield from sounds(data, files, folder, columns)
        return
    for row in rows_of(files, columns):
        yield row, data.media("audio", within(listed(row, name), folder))


def listed(row: Row, name: str) -> str:
    """Path of a row's file, which the two data sets with CSV files tell each in its own way.

    Args:
        row: The row.
        name: The task.

    Raises:
        ValueError: There is none.
    """
    if row.get("path"):
        return str(row["path"])
    return f"AudioWAV/{first(row, 'file')}" if name == "CREMA-D" else f"audio/fold{first(row, 'fold')}/{first(row, *FILE_NAMES)}"


def label_columns(name: str, columns: Sequence[str]) -> tuple[str, str]:
    """Columns of the classes' numbers and names; an empty one for none.

    Args:
        name: The task.
        columns: Columns that are there.

    Raises:
        ValueError: There is neither.
    """
    for numbers, names in NUMBERED[name]:
        if numbers in columns:
            return numbers, next((column for column in names if column in columns), "")
    if found := next((column for column in NAMED.get(name, ()) if column in columns), ""):
        return "", found
    raise ValueError(f"{name} must have a column of classes, such as {NUMBERED[name][0][0]}, got {list(columns)}.")


def classes(numbers: Sequence[int] | None, labels: Sequence[str]) -> list[str]:
    """Names of all classes in the order of their numbers; of one that does not occur, its number.

    Args:
        numbers: Number of each row's class; None if classes have none.
        labels: Name of each row's class.
    """
    if numbers is None:
        return sorted(set(labels))
    named: dict[int, str] = {}
    for number, label in zip(numbers, labels, strict=True):
        named.setdefault(number, label)
    return [named.get(number, str(number)) for number in range(max(named) + 1)]


SPECS = tuple(Spec(name, "audio", "audio/classification", read) for name in PROMPTS)
