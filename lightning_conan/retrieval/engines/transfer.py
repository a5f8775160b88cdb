"""Brings an engine's index in line with embeddings on disk: adds, replaces and deletes by key."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_conan.retrieval.engines.engine import Engine, Stamp
from lightning_conan.retrieval.engines.recall import Reached, tune
from lightning_conan.retrieval.engines.rows import BLOCK, PartStream
from lightning_conan.terminal import Work


@dataclass
class Counts:
    """Rows of an upsert.

    Args:
        new: Keys that were not there.
        replaced: Keys whose vector or payload was another.
        unchanged: Keys that were there already.
    """

    new: int = 0
    replaced: int = 0
    unchanged: int = 0


def check_origin(engine: Engine, model: str, dim: int) -> Stamp | None:
    """Reads an index' stamp and refuses vectors that do not belong there.

    Args:
        engine: The index.
        model: Fingerprint of the vectors' model.
        dim: Their length.

    Raises:
        ValueError: The index holds vectors of another model or length.
    """
    stamp = engine.stamp()
    if stamp and stamp.model != model:
        raise ValueError(
            f"{engine.place} holds vectors of another model, and those of two cannot be compared. Choose another --at or --name."
        )
    if stamp and stamp.dim != dim:
        raise ValueError(f"{engine.place} holds vectors of {stamp.dim} entries, these have {dim}. Choose another --at or --name.")
    return stamp


def upsert(engine: Engine, source: PartStream, block: int = BLOCK) -> Counts:
    """Writes what an index lacks of the embeddings, or has otherwise; the same call again resumes where one was killed.

    Args:
        engine: The index, which is made if there is none.
        source: Embeddings.
        block: Rows that are in memory at once.

    Raises:
        ValueError: The index holds vectors of another model or length.
    """
    if check_origin(engine, source.model, source.dim) is None:
        engine.create(Stamp(source.model, source.dim))
    counts = Counts()
    with Work("writing rows", len(source), "row") as work:
        for rows in source.blocks(block):
            there = engine.digests(rows.keys)
            different = [i for i, digest in enumerate(rows.digests()) if there.get(rows.keys[i]) != digest]
            if different:
                engine.put(rows.take(different))
            replaced = sum(rows.keys[i] in there for i in different)
            counts.new += len(different) - replaced
            counts.replaced += replaced
            counts.unchanged += len(rows) - len(different)
            work.advance(len(rows))
        work.wait_for("the engine to commit them")
        engine.commit()
    return counts


def delete_keys(engine: Engine, keys: Sequence[str]) -> int:
    """Deletes rows by key, and returns how many there were.

    Args:
        engine: The index.
        keys: Of the rows; a key that is not there is ignored.

    Raises:
        ValueError: There is no index.
    """
    engine.required_stamp()
    found = 0
    for start in range(0, len(keys), BLOCK):
        there = list(engine.digests(keys[start : start + BLOCK]))
        if there:
            engine.remove(there)
        found += len(there)
    engine.commit()
    return found


def build_index(engine: Engine, wanted: float, queries: PartStream | None = None) -> Reached | None:
    """Builds or completes the approximate index, and stores the settings that reach a recall with it.

    Args:
        engine: The index.
        wanted: Recall@10 against exact search, in (0, 1].
        queries: Embeddings of queries to measure it with; by default rows of the index.

    Returns:
        What was reached, which may be less; None for fewer than two rows, which leave nothing to measure.

    Raises:
        ValueError: Queries of another model, or a recall outside its range.
    """
    if not 0 < wanted <= 1:
        raise ValueError(f"recall must be above 0 and at most 1, got {wanted}.")
    if queries is not None:
        check_origin(engine, queries.model, queries.dim)
    stamp = engine.required_stamp()
    engine.prepare()
    reached = tune(engine, wanted, queries) if len(engine) > 1 else None
    engine.restamp(replace(stamp, settings=reached.settings, recall=reached.recall) if reached else stamp)
    engine.commit()
    return reached
