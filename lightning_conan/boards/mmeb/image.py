"""The 36 image tasks of MMEB: classification, question answering, retrieval and visual grounding, each on local pools.

Annotations are one Parquet folder a task in ``image-query``, of ``qry_inst``, ``qry_text``, ``qry_img_path``, ``tgt_inst``,
``tgt_text`` and ``tgt_img_path`` (those of targets are lists, the right one first); images lie in ``image-tasks``.
"""

from collections.abc import Iterator
from functools import partial

from lightning_conan.boards.mmeb.data import Data, Row, rows_of
from lightning_conan.boards.mmeb.prompts import PLACEHOLDER, behind, tidy, without_placeholder
from lightning_conan.boards.mmeb.task import Draft, Part, Spec, together

CLASSIFICATION = (
    *("ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397", "Place365", "ImageNet-A", "ImageNet-R", "ObjectNet"),
    "Country211",
)
ANSWERS = ("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W", "ScienceQA", "VizWiz", "GQA", "TextVQA")
TO_TEXT = ("VisualNews_i2t", "MSCOCO_i2t")
TO_IMAGE = ("VisDial", "VisualNews_t2i", "MSCOCO_t2i", "WebQA", "EDIS", "Wiki-SS-NQ")
IMAGE_TO_IMAGE = ("CIRR", "NIGHTS", "OVEN", "FashionIQ")
GROUNDING = ("MSCOCO", "RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing")
TEXTS = ("qry_text", "tgt_text")
INSTRUCTIONS = ("qry_inst", "tgt_inst")


def annotations(data: Data, name: str, *wanted: str) -> Iterator[Row]:
    """Yields the rows of a task.

    Args:
        data: Folder of the data.
        name: The task.
        wanted: Columns that it must have, besides texts.
    """
    files = data.files(f"image-query/{name}/test*.parquet", f"image-tasks/{name}/test*.parquet")
    return rows_of(files, (*TEXTS, *wanted), INSTRUCTIONS)


def images_in(data: Data) -> str:
    """Folder that the paths of images are relative to."""
    return data.folder("image-tasks/MMEB", "image-tasks")


def answer_texts(data: Data, draft: Draft, stripped: bool) -> None:
    """Reads a task whose queries are images with text, and whose candidates are texts.

    Args:
        data: Folder of the data.
        draft: The task.
        stripped: True to put the instruction on a line of its own (question answering).
    """
    root = images_in(data)
    for row in annotations(data, draft.spec.name, "qry_img_path"):
        instruction = without_placeholder(row.get("qry_inst"))
        instruction = f"\n{instruction.strip()}" if stripped else instruction
        query = data.media("image", f"{root}/{row['qry_img_path']}"), tidy(behind(instruction, row["qry_text"])) + "\n"
        pool = [draft.entry(text, partial(together, text)) for text in row["tgt_text"]]
        draft.query(query, row["tgt_text"][:1], pool)


def text_to_image(data: Data, draft: Draft) -> None:
    """Reads a task whose queries are texts, and whose candidates are images, some with a caption.

    Args:
        data: Folder of the data.
        draft: The task.

    Raises:
        ValueError: An instruction asks for an image in a query without one.
    """
    root, end = images_in(data), "\n\n" if draft.spec.name == "VisDial" else "\n"
    for row in annotations(data, draft.spec.name, "tgt_img_path"):
        if PLACEHOLDER in (instruction := row.get("qry_inst") or ""):
            raise ValueError(f"{draft.spec.name}: queries have no image, got the instruction {instruction!r}.")
        captioned, paths = bool(row["tgt_text"][0].strip()), row["tgt_img_path"]
        pool = [
            draft.entry(path, partial(image_with_text, data, f"{root}/{path}", row, text if captioned else None, "\n"))
            for path, text in zip(paths, row["tgt_text"], strict=True)
        ]
        draft.query([f"{instruction} {row['qry_text']}{end}"], paths[:1], pool)


def image_to_image(data: Data, draft: Draft) -> None:
    """Reads a task whose queries and candidates are images with text; candidates are told apart by image and caption.

    Args:
        data: Folder of the data.
        draft: The task.
    """
    root = images_in(data)
    for row in annotations(data, draft.spec.name, "qry_img_path", "tgt_img_path"):
        instruction = f"\n{without_placeholder(row.get('qry_inst')).strip()}"
        query = data.media("image", f"{root}/{row['qry_img_path']}"), tidy(behind(instruction, row["qry_text"])) + "\n"
        captioned = bool(row["tgt_text"][0].strip())
        pairs = list(zip(row["tgt_img_path"], row["tgt_text"], strict=True))
        names = [f"{path}:{text.strip(chr(34))}" for path, text in pairs]
        pool = [
            draft.entry(name, partial(image_with_text, data, f"{root}/{path}", row, text if captioned else None, ""))
            for name, (path, text) in zip(names, pairs, strict=True)
        ]
        draft.query(query, names[:1], pool)


def image_with_text(data: Data, path: str, row: Row, caption: str | None, end: str) -> tuple[Part, ...]:
    """Makes a candidate: an image, the instruction and its caption.

    Args:
        data: Folder of the data.
        path: Path of the image.
        row: The annotation.
        caption: The caption; None for a task without.
        end: Ends the text of candidates without a caption; a caption ends with a line feed.
    """
    instruction = without_placeholder(row.get("tgt_inst"))
    text = tidy(behind(instruction)) + end if caption is None else tidy(behind(f"{instruction} {caption}")) + "\n"
    return data.media("image", path), text


SPECS = (
    *(Spec(name, "image", "image/I-CLS", partial(answer_texts, stripped=False)) for name in CLASSIFICATION),
    *(Spec(name, "image", "image/I-QA", partial(answer_texts, stripped=True)) for name in ANSWERS),
    *(Spec(name, "image", "image/I-RET", partial(answer_texts, stripped=False)) for name in TO_TEXT),
    *(Spec(name, "image", "image/I-RET", text_to_image) for name in TO_IMAGE),
    *(Spec(name, "image", "image/I-RET", image_to_image) for name in IMAGE_TO_IMAGE),
    *(Spec(name, "image", "image/I-VG", image_to_image) for name in GROUNDING),
)
