"""Relevance judgements (qrels) and rankings (runs) in TREC's text formats, as BEIR and M-BEIR write them."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from lightning_conan.files import whole_file

Qrels = dict[str, dict[str, int]]
"""Grade of each judged document, by query id and document id; a document without one is not relevant."""
Run = dict[str, dict[str, float]]
"""Score of each found document, by query id and document id."""
BEIR = ["query-id", "corpus-id", "score"]


def rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields the place and the fields of each line that is not empty; of files with tabs these alone separate fields."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                fields = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
                yield f"{path}:{number}", [field.strip() for field in fields]


def read_qrels(path: Path) -> Qrels:
    """Reads relevance judgements.

    Three layouts are told apart by the number of columns: TREC's ``qid 0 did grade``, M-BEIR's with a fifth column for the
    task, and BEIR's ``query-id corpus-id score`` with its header.

    Raises:
        ValueError: A line of another form, a grade that is no whole number, or two grades for one document.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "qrels.txt"
        ...     _ = path.write_text("q1 0 d1 2\\nq1 0 d2 0\\n")
        ...     read_qrels(path)
        {'q1': {'d1': 2, 'd2': 0}}
    """
    qrels: Qrels = {}
    beir = False
    for where, fields in rows(path):
        if not qrels and not beir and fields == BEIR:
            beir = True
            continue
        if len(fields) != 3 if beir else len(fields) not in (4, 5):
            trec = "qid 0 did grade (TREC), with a task behind it (M-BEIR), or BEIR's header first"
            rule = "query-id, corpus-id and score" if beir else trec
            raise ValueError(f"A line of qrels must be {rule}, got {' '.join(fields)[:80]!r} in {where}.")
        query, document, grade = (fields[0], fields[1], fields[2]) if beir else (fields[0], fields[2], fields[3])
        try:
            value = int(grade)
        except ValueError:
            raise ValueError(f"A grade must be a whole number, got {grade[:80]!r} in {where}.") from None
        judged = qrels.setdefault(query, {})
        if judged.setdefault(document, value) != value:
            raise ValueError(
                f"A document must have one grade, {document!r} has {judged[document]} and {value} for {query!r} in {where}."
            )
    if not qrels:
        raise ValueError(f"{path} must hold at least 1 judgement, got 0.")
    return qrels


def write_qrels(path: Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Writes relevance judgements in TREC's format, whole or not at all.

    Args:
        path: The file.
        qrels: Grades by query id and document id.

    Raises:
        ValueError: An id that is empty or holds white space, which separates fields.
    """
    lines = [f"{name(query)} 0 {name(document)} {grade}\n" for query, found in qrels.items() for document, grade in found.items()]
    with whole_file(path) as file:
        file.write("".join(lines).encode())


def read_run(path: Path) -> Run:
    """Reads a ranking: ``qid Q0 did rank score tag``, with a seventh column in M-BEIR's.

    Ranks are not read: as in trec_eval, the scores decide.

    Raises:
        ValueError: A line of another form, a score that is not finite, or a document that stands twice.
    """
    run: Run = {}
    for where, fields in rows(path):
        if len(fields) not in (6, 7):
            raise ValueError(f"A line of a run must be qid Q0 did rank score tag, got {' '.join(fields)[:80]!r} in {where}.")
        query, document = fields[0], fields[2]
        try:
            score = float(fields[4])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise ValueError(f"A score must be a finite number, got {fields[4][:80]!r} in {where}.")
        found = run.setdefault(query, {})
        if document in found:
            raise ValueError(f"A document must be found once, {document!r} stands twice for {query!r} in {where}.")
        found[document] = score
    if not run:
        raise ValueError(f"{path} must hold at least 1 line, got 0.")
    return run


def write_run(path: Path, run: Mapping[str, Mapping[str, float]], tag: str = "lightning-conan") -> None:
    """Writes a ranking in TREC's format, best first, whole or not at all.

    Args:
        path: The file.
        run: Scores by query id and document id; of equal scores the first given comes first.
        tag: Name of the run.

    Raises:
        ValueError: An id or the tag is empty or holds white space, which separates fields.
    """
    lines = []
    for query, found in run.items():
        ordered = sorted(found.items(), key=lambda entry: -entry[1])
        lines += [
            f"{name(query)} Q0 {name(document)} {rank} {score:.9g} {name(tag)}\n"
            for rank, (document, score) in enumerate(ordered, start=1)
        ]
    with whole_file(path) as file:
        file.write("".join(lines).encode())


def name(text: str) -> str:
    """Returns an id that a line can hold.

    Raises:
        ValueError: It is empty or holds white space.
    """
    if not text or text.split() != [text]:
        raise ValueError(f"An id in a TREC file must not be empty or hold white space, got {text!r}. Rename it.")
    return text
