"""Video tasks of MMEB besides question answering: classification, retrieval by text, and moments within a video.

Annotations are JSONL files in ``video-tasks/data``, frames folders of images in ``video-tasks/frames``.
"""

from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from lightning_conan.boards.mmeb.data import Data, contents, rows_of
from lightning_conan.boards.mmeb.prompts import behind
from lightning_conan.boards.mmeb.task import Draft, Part, Spec, together

FRAME_FOLDERS = "video-tasks/frames"
LABELS = Path(__file__).with_name("video_labels.yaml")
CLASS_PROMPTS = {
    "SmthSmthV2": "What actions or object interactions are being performed by the person in the video?",
    "HMDB51": "What actions or objects interactions are the person in the video doing?",
    "UCF101": "What activities or sports are being performed by the person in the video?",
    "K700": "Recognize the category of the video content.",
    "Breakfast": "Recognize the breakfast type that the person is cooking in the video. ",
}
CLASS_FILES = {"SmthSmthV2": "ssv2", "HMDB51": "hmdb51", "UCF101": "ucf101", "K700": "k700", "Breakfast": "breakfast"}
SSV2_QUERIES = 1000
RETRIEVAL = {
    "MSR-VTT": ("msr-vtt", "video_id", "caption", "Find a video that contains the following visual content:"),
    "MSVD": ("msvd", "video_id", "caption", "Find the video snippet that corresponds to the given summary:"),
    "DiDeMo": ("didemo", "video", "caption", "Find a video that includes the following described scenes:"),
    "YouCook2": (
        *("youcook2-val", "id", "sentence"),
        "Find a video that demonstrates the following action while making a recipe:",
    ),
    "VATEX": ("vatex", "videoID", "enCap", "Select a video that fits the description provided:"),
}
"""Annotation file, column of the video, column of its caption, and instruction."""
VIDEO = "Understand the content of the provided video."
MOMENT = "Find the clip that corresponds to the described scene in the given video:"
MOMENT_FILES = {"QVHighlight": "qvhighlight", "Charades-STA": "charades_sta"}
SEEKER = {
    "text": "Find the clip that corresponds to the given text:",
    "image": "Select the video clip that aligns with the given text and image:",
    "video": "Find the clip that corresponds to the given sentence and video segment:",
}
SEEKER_CLIP = "Understand the content of the provided video clip."


def annotations(data: Data, file: str) -> list[Path]:
    """Annotation file of a task.

    Args:
        data: Folder of the data.
        file: Its name.
    """
    return data.files(f"video-tasks/data/{file}.jsonl")


def something_something(data: Data, draft: Draft) -> None:
    """Reads SmthSmthV2: the first 1,000 videos, each with its own choice of labels.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    root = f"{FRAME_FOLDERS}/video_cls/SSv2"
    rows = rows_of(annotations(data, CLASS_FILES[draft.spec.name]), ("video_id", "pos_text", "neg_text"))
    for row in islice(rows, SSV2_QUERIES):
        pool = [draft.entry(text, partial(together, text)) for text in row["neg_text"]]
        query = data.frames(f"{root}/{row['video_id']}"), behind(CLASS_PROMPTS[draft.spec.name])
        draft.query(query, [among(row["pos_text"], row["neg_text"], draft)], pool)


def among(answer: str, options: list[str], draft: Draft) -> str:
    """Returns the answer of a query.

    Args:
        answer: The answer.
        options: Its candidates.
        draft: The task, for the error.

    Raises:
        ValueError: It is not among them.
    """
    if answer not in options:
        raise ValueError(f"{draft.spec.name}: the answer must be among the candidates, got {answer!r} and {str(options)[:80]}.")
    return answer


def classification(data: Data, draft: Draft) -> None:
    """Reads a task whose queries are videos, and whose candidates are the names of all classes.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    name = draft.spec.name
    for row in rows_of(annotations(data, CLASS_FILES[name]), ("video_id", "pos_text")):
        query = data.frames(f"{FRAME_FOLDERS}/video_cls/{name}/{row['video_id']}"), behind(CLASS_PROMPTS[name])
        draft.entry(row["pos_text"], partial(together, row["pos_text"]))
        draft.query(query, [row["pos_text"]])
    for label in yaml.safe_load(LABELS.read_text(encoding="utf-8"))[name]:
        draft.entry(label, partial(together, label))


def retrieval(data: Data, draft: Draft) -> None:
    """Reads a task whose queries are captions, and whose candidates are all videos.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    file, video, caption, instruction = RETRIEVAL[draft.spec.name]
    published = f"{FRAME_FOLDERS}/video_ret/data/ziyan/video_retrieval/{draft.spec.name}/frames"
    root = data.folder(published, f"{FRAME_FOLDERS}/video_ret/{draft.spec.name}")
    for row in rows_of(annotations(data, file), (video, caption)):
        name = PurePosixPath(row[video]).stem if video == "video" else str(row[video])
        text = row[caption] if isinstance(row[caption], str) else row[caption][0]
        draft.entry(name, partial(clip, data, f"{root}/{name}", VIDEO))
        draft.query([f"{instruction} {text}"], [name])


def clip(data: Data, folder: str, instruction: str, count: int | None = 8) -> tuple[Part, ...]:
    """Makes a candidate: a video and the instruction.

    Args:
        data: Folder of the data.
        folder: Folder of its frames.
        instruction: The task's instruction of candidates.
        count: Number of frames; None for all.
    """
    return data.frames(folder, count), behind(instruction)


def moments(data: Data, draft: Draft) -> None:
    """Reads a task whose candidates are clips of the query's own video, in folders of which some begin with ``positive``.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    name = draft.spec.name
    root = data.folder(f"{FRAME_FOLDERS}/video_mret/{name}", f"{FRAME_FOLDERS}/video_mret/{name.replace('-', '_')}")
    for row in rows_of(annotations(data, MOMENT_FILES[name]), ("query", "video_path")):
        folder = f"{root}/{PurePosixPath(row['video_path']).stem}"
        query = data.frames(f"{folder}/query"), behind(MOMENT, row["query"])
        clips = [f"{folder}/{path.name}" for path in contents(data.root / folder) if path.is_dir() and path.name != "query"]
        positive = [path for path in clips if PurePosixPath(path).name.startswith("positive")]
        if not positive:
            data.missing.append(f"{folder}/positive*")
        pool = [draft.entry(path, partial(clip, data, path, VIDEO)) for path in clips]
        draft.query(query, positive, pool)


def moment_seeker(data: Data, draft: Draft) -> None:
    """Reads MomentSeeker: queries of text, of an image with text or of a video with text, each among clips of its own.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    root = f"{FRAME_FOLDERS}/video_mret/MomentSeeker"

    def place(path: str) -> str:
        return f"{root}/video_frames/{path.partition('.mp4')[0].replace('/', '_')}"

    wanted = ("query", "positive_frames", "negative_frames", "input_frames")
    for row in rows_of(annotations(data, "momentseeker_1k6"), wanted):
        shown = row["input_frames"] or ""
        query: list[Any] = [f"{SEEKER['text']} {row['query']}"]
        if shown.endswith(".mp4"):
            query = [data.frames(place(shown), None), behind(SEEKER["video"], row["query"])]
        elif shown.endswith(".jpg"):
            query = [data.media("image", f"{root}/query_{shown}"), behind(SEEKER["image"], row["query"])]
        positive = [place(entry["output_path"]) for entry in row["positive_frames"]]
        clips = positive + [place(entry["output_path"]) for entry in row["negative_frames"]]
        pool = [draft.entry(path, partial(clip, data, path, SEEKER_CLIP, None)) for path in clips]
        draft.query(query, positive, pool)


SPECS = (
    Spec("SmthSmthV2", "video", "video/V-CLS", something_something),
    *(Spec(name, "video", "video/V-CLS", classification) for name in ("HMDB51", "UCF101", "K700", "Breakfast")),
    *(Spec(name, "video", "video/V-RET", retrieval) for name in RETRIEVAL),
    *(Spec(name, "video", "video/V-MR", moments) for name in MOMENT_FILES),
    Spec("MomentSeeker", "video", "video/V-MR", moment_seeker),
)
