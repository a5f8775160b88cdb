"""M-BEIR (arXiv 2311.17136): 16 cells of ten data sets, each on its own pool and on the union of all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.sources.manifest import json_lines
from lightning_conan.boards.scoring import TaskScores
from lightning_conan.boards.tasks import Collection, RetrievalTask, TaskSettings
from lightning_conan.files import whole_file
from lightning_conan.retrieval.trec import Qrels, read_qrels

DATA_SETS = ("visualnews", "fashion200k", "webqa", "edis", "nights", "oven", "infoseek", "fashioniq", "cirr", "mscoco")
"""By their numbers, which ids begin with."""
MODALITIES = {
    0: ("text", "image"),
    1: ("text", "text"),
    2: ("text", "image,text"),
    3: ("image", "text"),
    4: ("image", "image"),
    6: ("image,text", "text"),
    7: ("image,text", "image"),
    8: ("image,text", "image,text"),
}
"""Modalities of queries and candidates, by the number of the task."""
CELLS = (
    *("visualnews_task0", "mscoco_task0", "fashion200k_task0", "webqa_task1", "edis_task2", "webqa_task2"),
    *("visualnews_task3", "mscoco_task3", "fashion200k_task3", "nights_task4", "oven_task6", "infoseek_task6"),
    *("fashioniq_task7", "cirr_task7", "oven_task8", "infoseek_task8"),
)
FASHION = ("fashion200k", "fashioniq")
UNION = "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
INSTRUCTIONS = "instructions/query_instructions.tsv"


@dataclass(frozen=True)
class Cell:
    """One data set and task, in upstream's layout.

    Args:
        root: Folder of the data: ``query``, ``cand_pool``, ``qrels``, ``instructions`` and the images.
        name: A name in ``CELLS``.
    """

    root: Path
    name: str

    @property
    def data_set(self) -> str:
        """Name of the data set."""
        return self.name.partition("_task")[0]

    @property
    def modalities(self) -> tuple[str, str]:
        """Modalities of queries and candidates."""
        return MODALITIES[int(self.name.partition("_task")[2])]

    @property
    def queries(self) -> Path:
        """File of the queries."""
        return self.root / f"query/test/mbeir_{self.name}_test.jsonl"

    @property
    def qrels(self) -> Path:
        """File of the judgements."""
        return self.root / f"qrels/test/mbeir_{self.name}_test_qrels.txt"

    @property
    def pool(self) -> Path:
        """File of the local pool; that of the test split where there is one (MSCOCO)."""
        own = self.root / f"cand_pool/local/mbeir_{self.name}_test_cand_pool.jsonl"
        return own if own.is_file() else self.root / f"cand_pool/local/mbeir_{self.name}_cand_pool.jsonl"

    @property
    def measures(self) -> tuple[str, ...]:
        """Measures, the headline first. What M-BEIR calls Recall@k is 1 if any relevant candidate is among the first k."""
        return ("hit@10", "hit@20", "hit@50") if self.data_set in FASHION else ("hit@5", "hit@1", "hit@10")

    def prompts(self) -> list[str]:
        """Instructions of the cell's queries, in the order of the file.

        Raises:
            ValueError: There is none.
        """
        path = self.root / INSTRUCTIONS
        wanted = [str(DATA_SETS.index(self.data_set)), *map(kinds, self.modalities)]
        for line in path.read_text(encoding="utf-8").split("\n")[1:]:
            fields = line.strip().split("\t")
            if len(fields) > 4 and [fields[3], kinds(fields[0]), kinds(fields[1])] == wanted:
                return [sentence(prompt) for prompt in fields[4:] if prompt]
        raise ValueError(f"{path} must hold an instruction for {self.name} ({wanted}), got none.")


def kinds(modality: str) -> str:
    """Modalities in one order: upstream writes ``image,text`` and ``text,image``."""
    return ",".join(sorted(modality.replace(" ", "").split(",")))


def sentence(text: str | None) -> str:
    """Formats a text as upstream does: no outer quotes, a capital first letter, a full stop at the end."""
    text = (text or "").replace("\r", "").strip().strip('"')
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else f"{text}."


def content(image: str | None, text: str) -> dict[str, Any]:
    """Makes an item of a manifest: the image first, then the text.

    Args:
        image: Path of the image below the root; None or empty for none.
        text: The formatted text; empty for none.
    """
    return {**({"image": image} if image else {}), **({"text": text} if text else {})}


def read_queries(cell: Cell, prompts: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the id and the content of each query, once an instruction.

    Args:
        cell: The cell.
        prompts: Instructions before the text, by what is put behind the id.

    Raises:
        ValueError: A line lacks a field.
    """
    for where, value in json_lines(cell.queries):
        if not isinstance(value, dict) or not {"qid", "query_txt", "query_img_path"} <= set(value):
            raise ValueError(f"A query must have qid, query_txt and query_img_path, got {str(value)[:80]} in {where}.")
        for end, prompt in prompts.items():
            yield value["qid"] + end, content(value["query_img_path"], sentence(f"{prompt} {value['query_txt'] or ''}"))


def read_pool(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the id and the content of each candidate.

    Raises:
        ValueError: A line lacks a field.
    """
    for where, value in json_lines(path):
        if not isinstance(value, dict) or not {"did", "txt", "img_path"} <= set(value):
            raise ValueError(f"A candidate must have did, txt and img_path, got {str(value)[:80]} in {where}.")
        yield value["did"], content(value["img_path"], sentence(value["txt"]))


def read_board(root: Path, cells: Sequence[str] = CELLS, union: bool = True, all_prompts: bool = False) -> list[RetrievalTask]:
    """Reads M-BEIR's cells, each on its local pool and, if asked, on the union pool.

    Upstream draws one of a cell's instructions at random for each query. Here all queries take the first, or each takes all of
    them: then the mean over queries is what upstream's score is on average.

    Args:
        root: Folder in upstream's layout.
        cells: Names in ``CELLS``.
        union: True to search the union pool, too.
        all_prompts: True to ask each query with each instruction.

    Raises:
        ValueError: Unknown cells, or files that are not there, all of them named.
    """
    if odd := [name for name in cells if name not in CELLS]:
        raise ValueError(f"M-BEIR's cells are {', '.join(CELLS)}, got {odd[0]!r}.")
    found = [Cell(root, name) for name in cells]
    needed = [root / INSTRUCTIONS, *([root / UNION] if union else [])]
    needed += [path for cell in found for path in (cell.queries, cell.qrels, cell.pool)]
    if missing := [str(path.relative_to(root)) for path in dict.fromkeys(needed) if not path.is_file()]:
        raise ValueError(f"{root} lacks {len(missing)} of M-BEIR's files: {', '.join(missing[:10])}. Download them there.")
    whole = Collection(root / UNION, read_pool(root / UNION), root) if union else None
    return [task for cell in found for task in read_cell(cell, whole, all_prompts)]


def read_cell(cell: Cell, union: Collection | None, all_prompts: bool) -> Iterator[RetrievalTask]:
    """Yields a cell on its local pool, and on the union pool if there is one.

    Args:
        cell: The cell.
        union: The union pool.
        all_prompts: True to ask each query with each instruction; ids end with its number: ``9:0#2``.
    """
    found = cell.prompts()
    prompts = {f"#{number}": prompt for number, prompt in enumerate(found)} if all_prompts else {"": found[0]}
    queries = Collection(cell.queries, read_queries(cell, prompts), cell.root)
    qrels = {f"{query}{end}": grades for query, grades in relevant_only(read_qrels(cell.qrels)).items() for end in prompts}
    task = partial(RetrievalTask, queries=queries, qrels=qrels)
    local = Collection(cell.pool, read_pool(cell.pool), cell.root)
    yield task(cell.name, corpus=local, settings=TaskSettings(cell.measures, group="M-BEIR local"))
    if union is not None:
        yield task(f"{cell.name}_union", corpus=union, settings=TaskSettings(cell.measures, group="M-BEIR union"))


def relevant_only(qrels: Qrels) -> Qrels:
    """Judgements of relevant candidates alone: upstream reads no others."""
    kept = {query: {entry: grade for entry, grade in grades.items() if grade > 0} for query, grades in qrels.items()}
    return {query: grades for query, grades in kept.items() if grades}


def write_run_file(out: Path, found: TaskScores) -> None:
    """Writes a cell's ranking to ``run_files`` as UniIR's retriever does: ``qid Q0 did rank score run task``.

    Args:
        out: Folder of the evaluation.
        found: Result of a cell.
    """
    name = found.task.name.removesuffix("_union")
    task = name.rpartition("_task")[2]
    k = max(int(measure.partition("@")[2]) for measure in found.task.settings.measures)
    run = f"mbeir_{name}_{'union' if found.task.name != name else 'single'}_pool_test_k{k}"
    lines = []
    for query, entries in found.run.items():
        grades = found.task.qrels[query]
        ordered = sorted(entries, key=lambda entry: (-entries[entry], grades.get(entry, 0)))[:k]
        lines += [f"{query} Q0 {entry} {rank} {entries[entry]} {run} {task}\n" for rank, entry in enumerate(ordered, start=1)]
    place = out / "run_files"
    place.mkdir(parents=True, exist_ok=True)
    with whole_file(place / f"{run}_run.txt") as file:
        file.write("".join(lines).encode())
