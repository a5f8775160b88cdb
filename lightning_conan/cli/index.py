"""`conan index`: embeddings on disk into a vector engine, with its recall measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_conan.cli.common.closing import close
from lightning_conan.files import read_utf8
from lightning_conan.retrieval.engines import (
    Engine,
    EngineName,
    PartStream,
    Place,
    Reached,
    build_index,
    delete_keys,
    open_engine,
    upsert,
)
from lightning_conan.terminal import plural, waiting
from lightning_conan.web import place_of


@dataclass(frozen=True)
class IndexOptions:
    """Hands embeddings that `conan embed` wrote to a vector engine, and measures recall@10 of its search against exact search.

    New keys are added and known ones replaced; other rows stay, so that several folders of one model make one index. The same
    command again resumes where a killed one stopped. The settings of the engine's search are raised until the recall is reached.

    Args:
        embeddings: The folder of Parquet parts, or its URL, such as s3://bucket/index.
        engine: lancedb (embedded, the default), qdrant, milvus or faiss.
        at: Path of the index, or URL of a Qdrant or Milvus server (QDRANT_API_KEY and MILVUS_TOKEN are read from the
            environment); by default beside the folder, such as EMBEDDINGS.lancedb.
        name: Table or collection there.
        recall: Recall@10 to reach, in (0, 1].
        queries: Embeddings of queries, such as `conan embed --side query` writes, to measure the recall with; by default 200
            entries of the index are searched for.
        index_from: Rows from which on LanceDB and faiss get an approximate index; fewer are searched exhaustively.
        delete: Instead of all this, delete the keys that stand in this file, one a line.
    """

    embeddings: str | Path
    engine: EngineName = "lancedb"
    at: str | None = None
    name: str = "embeddings"
    recall: float = 0.95
    queries: str | Path | None = None
    index_from: int = 20_000
    delete: Path | None = None


def index(options: IndexOptions) -> None:
    """Brings the index in line with the embeddings.

    Raises:
        ValueError: The index holds other vectors, or does not reach the recall.
    """
    embeddings = place_of(options.embeddings)
    place = replace(Place.beside(embeddings, options.engine, options.at, options.name), index_from=options.index_from)
    if not 0 < options.recall <= 1:
        raise ValueError(f"recall must be above 0 and at most 1, got {options.recall}.")
    if options.delete:
        place.check_there()
        keys = [line for line in read_utf8(options.delete).split("\n") if line]
        with open_engine(place) as engine:
            deleted = delete_keys(engine, keys)
            print(f"{place}: {deleted} of {len(keys)} {plural(len(keys), 'key')} deleted, {len(engine)} left")
        return
    place.check_free()
    source = PartStream(embeddings)
    queries = PartStream(place_of(options.queries)) if options.queries else None
    with open_engine(place) as engine:
        line = upsert_all(engine, source)
        with waiting("building the index and measuring its recall"):
            reached = build_index(engine, options.recall, queries)
        report(engine, line, reached, options.recall)
    close("index", [str(place)], place.at, folder=options.embeddings, engine=options.engine)


def upsert_all(engine: Engine, source: PartStream) -> str:
    """Writes the embeddings to the index, and returns a line about them.

    Args:
        engine: The index.
        source: The embeddings.
    """
    counts = upsert(engine, source)
    total = len(engine)
    return (
        f"{engine.place}: {total} {plural(total, 'embedding')} of {source.dim} entries, "
        f"{counts.new} new, {counts.replaced} replaced, {counts.unchanged} unchanged"
    )


def report(engine: Engine, line: str, reached: Reached | None, wanted: float) -> None:
    """Prints what an index holds and finds.

    Args:
        engine: The index.
        line: About its rows.
        reached: Its recall.
        wanted: Recall that was asked for.

    Raises:
        ValueError: The recall is less.
    """
    print(line, flush=True)
    if reached is None:
        return
    print(reached, flush=True)
    if reached.recall < wanted:
        raise ValueError(
            f"recall must reach {wanted}, the best of {len(engine.ladder())} settings is {reached.recall:.4f}. The rows are "
            "stored and can be searched. Ask for less (--recall), or take another engine."
        )


def run(args: Sequence[str]) -> None:
    """Parses the options and hands over."""
    from jsonargparse import auto_cli

    from lightning_conan.cli.common.logging import quiet_libraries

    quiet_libraries()
    index(auto_cli(IndexOptions, args=list(args), prog="conan index", exit_on_error=False))
