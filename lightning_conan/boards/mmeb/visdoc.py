"""The 24 visual-document tasks of MMEB: text queries, pages of all documents, graded relevance.

Each is a folder in ``visdoc-tasks/data`` with Parquet files in ``queries``, ``corpus`` and ``qrels``, as the data sets of ViDoRe
and VisRAG on the hub. Pages are the corpus' own images, or files in ``visdoc-tasks/images``, which upstream prefers.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath

from lightning_conan.boards.mmeb.data import Cell, Data, MediaColumn, Row, rows_of
from lightning_conan.boards.mmeb.prompts import behind
from lightning_conan.boards.mmeb.task import Draft, Name, Part, Spec

QUERY = "Find a document image that matches the given query:"
PAGE = "Understand the content of the provided document image."
VIDORE = {
    "arxivqa": "arxivqa_test_subsampled_beir",
    "docvqa": "docvqa_test_subsampled_beir",
    "infovqa": "infovqa_test_subsampled_beir",
    "tabfquad": "tabfquad_test_subsampled_beir",
    "tatdqa": "tatdqa_test_beir",
    "shiftproject": "shiftproject_test_beir",
    "syntheticDocQA_artificial_intelligence": "syntheticDocQA_artificial_intelligence_test_beir",
    "syntheticDocQA_energy": "syntheticDocQA_energy_test_beir",
    "syntheticDocQA_government_reports": "syntheticDocQA_government_reports_test_beir",
    "syntheticDocQA_healthcare_industry": "syntheticDocQA_healthcare_industry_test_beir",
}
VIDORE_2 = {
    "esg_reports_human_labeled_v2": "esg_reports_human_labeled_v2",
    "biomedical_lectures_v2_multilingual": "biomedical_lectures_v2",
    "economics_reports_v2_multilingual": "economics_reports_v2",
    "esg_reports_v2_multilingual": "esg_reports_v2",
}
"""The board's English versions of three of these sets stand in its YAML and not in its mean."""
VISRAG = ("ArxivQA", "ChartQA", "MP-DocVQA", "SlideVQA", "InfoVQA", "PlotQA")
OTHER = {
    "ViDoSeek-page": ("ViDoSeek-page-fixed", "ViDoSeek-page"),
    "ViDoSeek-doc": ("ViDoSeek",),
    "MMLongBench-page": ("MMLongBench-page-fixed", "MMLongBench"),
    "MMLongBench-doc": ("MMLongBench-doc",),
}
MEASURES = ("ndcg@5", "ndcg@10", "hit@1", "hit@5")


def read(data: Data, draft: Draft, sets: tuple[str, ...], split: str, images: str, file: Callable[[str], str]) -> None:
    """Reads a task.

    Args:
        data: Folder of the data.
        draft: The task.
        sets: Names that its data set may have in ``visdoc-tasks/data``.
        split: Split of the data set.
        images: Folder of its pages below ``visdoc-tasks/images``.
        file: Name of a page's file, by its id.

    Raises:
        ValueError: A column is missing, or a grade is no whole number.
    """
    folder = data.folder(*(f"{place}/{name}" for name in sets for place in ("visdoc-tasks/data", "visdoc-tasks")))
    queries, corpus, judged = data.each(
        *((f"{folder}/{part}/{split}*.parquet", f"{folder}/{part}/*.parquet") for part in ("queries", "corpus", "qrels"))
    )
    draft.graded = True
    grades: dict[Name, dict[Name, int]] = {}
    for row in rows_of(judged, ("query-id", "corpus-id", "score")):
        if (grade := grade_of(row, draft)) > 0:
            found = grades.setdefault(row["query-id"], {})
            found[row["corpus-id"]] = max(grade, found.get(row["corpus-id"], 0))
    pages, root = MediaColumn(corpus, "image"), data.folder(f"visdoc-tasks/images/{images}", f"visdoc-tasks/{images}")
    for number, row in enumerate(rows_of(corpus, ("corpus-id",))):
        name = row["corpus-id"]
        draft.entry(name, partial(page, data, pages, number, f"{root}/{file(str(name))}"))
    for row in rows_of(queries, ("query-id", "query")):
        draft.query([f"{QUERY} {row['query']}"], grades.get(row["query-id"], {}))


def grade_of(row: Row, draft: Draft) -> int:
    """Grade of a judgement.

    Args:
        row: The judgement.
        draft: The task, for the error.

    Raises:
        ValueError: It is no whole number.
    """
    if (grade := int(row["score"])) != row["score"]:
        raise ValueError(f"{draft.spec.name}: a grade must be a whole number, got {row['score']!r} for {row['query-id']!r}.")
    return grade


def page(data: Data, column: MediaColumn, row: int, path: str) -> tuple[Part, ...]:
    """Makes a candidate: the page's file if there is one, else the corpus' image.

    Args:
        data: Folder of the data.
        column: Images of the corpus.
        row: Number of the page in it.
        path: Path of its file.
    """
    there = (data.root / path).is_file()
    return data.media("image", path) if there else Cell(column, row, "image", path), behind(PAGE)


def numbered(name: str) -> str:
    """File of a page of ViDoRe."""
    return f"{name}.png"


def shortened(name: str) -> str:
    """File of a page of VisRAG: upstream cuts long names, and adds a hash."""
    path = PurePosixPath(name)
    stem = name.removesuffix(path.suffix)
    return f"{stem[:50]}_{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()[:8]}{path.suffix}"


def spec(name: str, group: str, sets: tuple[str, ...], split: str = "test", images: str = "") -> Spec:
    """Describes a task.

    Args:
        name: The board's name.
        group: Group of tasks.
        sets: Names that its data set may have.
        split: Split of the data set.
        images: Folder of its pages; that of the name by default.
    """
    file = shortened if group == "VisRAG" else numbered
    reader = partial(read, sets=sets, split=split, images=images or name, file=file)
    return Spec(name, "visdoc", f"visdoc/VD-{group}", reader, MEASURES)


SPECS = (
    *(spec(f"ViDoRe_{name}", "Vidore-V1", (folder,)) for name, folder in VIDORE.items()),
    *(spec(f"ViDoRe_{name}", "Vidore-V2", (folder,), images=name) for name, folder in VIDORE_2.items()),
    *(spec(f"VisRAG_{name}", "VisRAG", (f"VisRAG-Ret-Test-{name}",), "train") for name in VISRAG),
    *(spec(name, "OOD", sets) for name, sets in OTHER.items()),
)
