"""OmniSET, the cross-modal tasks of MMEB-V3: the same content in another modality, which the instruction names.

Candidates are text, image, video and audio of the right content and of hard negatives. The right content in a wrong modality does
not count.
"""

from collections.abc import Sequence
from functools import partial

from lightning_conan.boards.mmeb.data import Data, rows_of
from lightning_conan.boards.mmeb.prompts import behind
from lightning_conan.boards.mmeb.task import Draft, Part, Spec
from lightning_conan.items import Modality

ROOT = "omniset"
KINDS: dict[str, tuple[Modality, str]] = {
    "t": ("text", "txt"),
    "i": ("image", "jpg"),
    "v": ("video", "mp4"),
    "a": ("audio", "wav"),
}
"""Modality and suffix by its letter in a task's name."""
CANDIDATE = "Represent the given text, image, video, or audio."


def stem(number: int) -> str:
    """Name of a content's files, without suffix."""
    return f"COCO_val2014_{number:012d}"


def medium(data: Data, number: int, kind: str) -> Part:
    """One content in a modality other than text.

    Args:
        data: Folder of the data.
        number: Number of the content.
        kind: Letter of the modality.
    """
    if kind == "v":
        return data.frames(f"{ROOT}/frames_omni/{stem(number)}")
    folder = "val2014" if kind == "i" else "audios"
    return data.media("image" if kind == "i" else "audio", f"{ROOT}/{folder}/{stem(number)}.{KINDS[kind][1]}")


def candidate(data: Data, number: int, kind: str, captions: dict[int, str]) -> Sequence[Part]:
    """Makes a candidate.

    Args:
        data: Folder of the data.
        number: Number of the content.
        kind: Letter of the modality.
        captions: Text of each content.

    Raises:
        ValueError: The content has no text.
    """
    if kind != "t":
        return medium(data, number, kind), behind(CANDIDATE) + (" " if kind == "a" else "")
    if not captions.get(number):
        raise ValueError(f"Each candidate needs a caption, {number} has none in {data.root / ROOT}/catalog.jsonl.")
    return [captions[number]]


def read(data: Data, draft: Draft, given: str, wanted: str) -> None:
    """Reads a task.

    Args:
        data: Folder of the data.
        draft: The task.
        given: Letter of the query's modality.
        wanted: Letter of the modality that it asks for.
    """
    listed, catalog = data.each([f"{ROOT}/omniset.jsonl"], [f"{ROOT}/catalog.jsonl"])
    captions = {int(row["image_id"]): (row["captions"] or [""])[0] for row in rows_of(catalog, ("image_id", "captions"))}
    instruction = f"Find the {KINDS[wanted][0]} that best matches the given {KINDS[given][0]}: "
    for row in rows_of(listed, ("image_id", "hard_negatives")):
        number = int(row["image_id"])
        text = row.get("qry_text") or captions.get(number) or " ".join(row.get("objects") or [])
        pool = [
            draft.entry(f"{stem(other)}.{KINDS[kind][1]}", partial(candidate, data, other, kind, captions))
            for other in dict.fromkeys([number, *map(int, row["hard_negatives"])])
            for kind in KINDS
        ]
        query: list[Part] = [f"{instruction}{text}"] if given == "t" else [medium(data, number, given), instruction]
        draft.query(query, [f"{stem(number)}.{KINDS[wanted][1]}"], pool)


SPECS = tuple(
    Spec(f"OmniSET_{given}2{wanted}", "omniset", "omniset", partial(read, given=given, wanted=wanted), ("hit@1", "mrr", "hit@5"))
    for given in KINDS
    for wanted in KINDS
    if given != wanted
)
