"""The 53 text tasks of MMEB-V3: BRIGHT, FollowIR, InfoSearch, LongEmbed, MultiConIR, NanoBEIR and R2MED, on whole corpora."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning_conan.boards.mmeb.data import Data, Row, rows_of
from lightning_conan.boards.mmeb.sounds import first
from lightning_conan.boards.mmeb.task import Draft, Spec, together

ROOT = "text-tasks"
BRIGHT = (
    *("aops", "biology", "earth_science", "economics", "leetcode", "pony", "psychology", "robotics", "stackoverflow"),
    *("sustainable_living", "theoremqa_questions", "theoremqa_theorems"),
)
FOLLOW_IR = ("core17-instructions", "news21-instructions", "robust04-instructions")
INFO_SEARCH = ("Audience-v1", "Clarity-v1", "Format-v1", "Language-v1", "Length-v1", "Source-v1")
LONG_EMBED = ("2wikimqa", "narrativeqa", "needle", "passkey", "qmsum", "summ_screen_fd")
MULTI_CON_IR = ("Books", "Legal Document", "Medical Case", "Movies", "People")
NANO_BEIR = (
    *("NanoArguAna", "NanoClimateFEVER", "NanoDBPedia", "NanoFEVER", "NanoFiQA2018", "NanoHotpotQA", "NanoMSMARCO"),
    *("NanoNFCorpus", "NanoNQ", "NanoQuoraRetrieval", "NanoSCIDOCS", "NanoSciFact", "NanoTouche2020"),
)
R2MED = (
    *("Bioinformatics", "Biology", "IIYi-Clinical", "MedQA-Diag", "MedXpertQA-Exam", "Medical-Sciences", "PMC-Clinical"),
    "PMC-Treatment",
)
SHARD = "train-00000-of-00001.parquet"
PLACES = {
    "BRIGHT": ("{0}/examples/{1}-00000-of-00001.parquet", "{0}/documents/{1}-00000-of-00001.parquet"),
    **dict.fromkeys(("FollowIR", "InfoSearch"), ("{0}/{1}/queries.jsonl", "{0}/{1}/corpus.jsonl", "{0}/{1}/qrels_og/test.jsonl")),
    "LongEmbed": ("{0}/{1}/queries.jsonl", "{0}/{1}/corpus.jsonl", "{0}/{1}/qrels.jsonl"),
    "MultiConIR": ("{0}_v2/{1}/queries.jsonl", "{0}_v2/{1}/corpus.jsonl", "{0}_v2/{1}/qrels.jsonl"),
    "NanoBEIR": tuple(f"{{0}}/{{1}}/{part}/{SHARD}" for part in ("queries", "corpus", "qrels")),
    "R2MED": ("{0}/{1}/query.jsonl", "{0}/{1}/corpus.jsonl", "{0}/{1}/qrels.jsonl"),
}
"""Files of queries, corpus and judgements of each collection; BRIGHT's queries hold their judgements."""
INSTRUCTIONS = {"InfoSearch": "instruction_changed", "FollowIR": "instruction_og"}
"""Column that stands before the query."""
MEASURES = ("hit@1", "ndcg@5", "ndcg@10", "hit@5")


def read(data: Data, draft: Draft, collection: str) -> None:
    """Reads a task. Documents without text are left out, as upstream does: relevant ones are never found.

    Args:
        data: Folder of the data.
        draft: The task.
        collection: Name of its collection.

    Raises:
        ValueError: No query has a relevant document.
    """
    places = [f"{ROOT}/{place.format(collection, draft.spec.name)}" for place in PLACES[collection]]
    queries, corpus, *judged = data.each(*([place] for place in places))
    grades = judgements(judged[0]) if judged else None
    for row in rows_of(corpus):
        text, title = row.get("text") or row.get("content") or "", row.get("title") or ""
        if text:
            name = first(row, "_id", "id", "doc_id", "document_id", "corpus-id")
            draft.entry(name, partial(together, f"{title}\n{text}" if title else text))
    draft.graded = True
    for name, row, text in texts(rows_of(queries), collection):
        draft.query([text], gold(row) if grades is None else grades.get(name, {}))
    if not any(draft.labels):
        raise ValueError(f"{draft.spec.name}: no query has a relevant document. Do {places[-1]} and {places[0]} belong together?")


def texts(rows: Iterator[Row], collection: str) -> Iterator[tuple[str, Row, str]]:
    """Yields the id, the row and the text of each query that has one, its instruction in front.

    Args:
        rows: The queries.
        collection: Name of the collection.
    """
    for row in rows:
        text = next((row[name] for name in ("text", "query", "query_content", "short_query") if row.get(name)), "")
        if instruction := row.get(INSTRUCTIONS.get(collection, "")):
            text = f"{instruction} {text}".strip()
        if text:
            yield first(row, "_id", "id", "qid", "query_id", "query-id"), row, text


def gold(row: Row) -> list[str]:
    """Ids of a query's relevant documents, in BRIGHT."""
    found: Any = row.get("gold_ids") or row.get("gold_ids_long") or []
    return [str(name) for name in (json.loads(found) if isinstance(found, str) else found) if name is not None]


def judgements(files: Sequence[Path]) -> dict[str, dict[str, int]]:
    """Reads grades by query and document, of which those above 0 count.

    Raises:
        ValueError: A grade is no whole number.
    """
    grades: dict[str, dict[str, int]] = {}
    for row in rows_of(files):
        value: Any = row.get("label", row.get("score", 1))
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = 1.0  # upstream takes what is no number for relevant
        if (grade := int(number)) != number:
            raise ValueError(f"A grade must be a whole number, got {value!r} in {files[0]}.")
        if grade > 0:
            query = first(row, "query_id", "query-id", "qid", "q_id", "id")
            grades.setdefault(query, {})[first(row, "corpus_id", "corpus-id", "doc_id", "document_id", "p_id")] = grade
    return grades


COLLECTIONS = {
    "BRIGHT": BRIGHT,
    "FollowIR": FOLLOW_IR,
    "InfoSearch": INFO_SEARCH,
    "LongEmbed": LONG_EMBED,
    "MultiConIR": MULTI_CON_IR,
    "NanoBEIR": NANO_BEIR,
    "R2MED": R2MED,
}
SPECS = tuple(
    Spec(name, "text", f"text/{collection}", partial(read, collection=collection), MEASURES)
    for collection, names in COLLECTIONS.items()
    for name in names
)
