"""MMEB-V2 and MMEB-V3 as lists of tasks, read at once: what is missing is listed before anything is embedded."""

from collections.abc import Sequence
from pathlib import Path

from lightning_conan.boards.mmeb import audio, image, omniset, text, video, video_qa, visdoc
from lightning_conan.boards.mmeb.data import Data, MissingError
from lightning_conan.boards.mmeb.task import Draft, MmebTask, Spec

V2: tuple[Spec, ...] = (*image.SPECS, *video.SPECS, *video_qa.SPECS, *visdoc.SPECS)
"""78 tasks: 36 of images, 18 of videos, 24 of documents."""
V3: tuple[Spec, ...] = (*audio.SPECS, *text.SPECS, *omniset.SPECS)
"""Tasks that V3 adds for audio (11), text (53) and across modalities (12)."""
SHOWN = 3
"""Missing media of a task that are named, besides their number."""


def read_mmeb(root: Path, specs: Sequence[Spec], cells: Sequence[str] | None = None) -> list[MmebTask]:
    """Reads tasks of a board.

    Args:
        root: Folder of the data in upstream's layout (that of MMEB-V3, which holds V2's too).
        specs: The board's tasks.
        cells: Names of tasks; None for all.

    Raises:
        ValueError: An unknown task; files that are not there, of all tasks; or an annotation of another form.
    """
    known = {spec.name: spec for spec in specs}
    if odd := [name for name in cells or () if name not in known]:
        raise ValueError(f"Tasks of this board are {', '.join(known)}, got {odd[0]!r}.")
    drafts, absent = [], []
    for name in cells or known:
        draft, data = Draft(known[name], root), Data(root)
        try:
            known[name].read(data, draft)
            missing, shown = data.missing, SHOWN
        except MissingError as error:
            missing, shown = error.files, len(error.files)
        if missing:
            few = ", ".join(missing[:shown]) + (", ..." if len(missing) > shown else "")
            absent.append(f"{name} ({len(missing)}: {few})")
        drafts.append(draft)
    if absent:
        raise ValueError(
            f"{root} lacks files of {len(absent)} of {len(drafts)} tasks: {'; '.join(absent)}. "
            "Download and unpack them there, or choose other tasks by --cells."
        )
    return [draft.task() for draft in drafts]
