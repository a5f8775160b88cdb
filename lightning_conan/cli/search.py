"""`conan search`: the nearest embeddings of a query, exactly or by an engine; without Lightning, which is slow to import."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_conan.cli.common import daemon
from lightning_conan.cli.common.queries import Asked, Query, read_queries
from lightning_conan.parsing import parse_side
from lightning_conan.retrieval.engines.place import EngineName, Place
from lightning_conan.retrieval.payload import described
from lightning_conan.terminal import printable, waiting
from lightning_conan.web import place_of

if TYPE_CHECKING:
    from lightning_conan.cli.common.hits import SearchHits


@dataclass(frozen=True)
class Approximate:
    """An index that `conan index` wrote, to search instead of the embeddings themselves.

    Args:
        engine: lancedb, qdrant, milvus or faiss; by default the embeddings are searched exactly.
        at: Path of the engine's index, or URL of its server; by default beside the embeddings.
        name: Table or collection there.
    """

    engine: EngineName | None = None
    at: str | None = None
    name: str = "embeddings"

    def place(self, index: Path | str) -> Place | None:
        """Place of the index; None for exact search.

        Raises:
            ValueError: A place without an engine.
        """
        if self.engine is None:
            if self.at is not None:
                raise ValueError(f"at is the place of an engine's index, got {self.at} without --engine.")
            return None
        return Place.beside(index, self.engine, self.at, self.name)


class Searcher:
    """An index with the model that made it.

    Args:
        folder: The checkpoint folder.
        index: What `conan embed` wrote with it, or its URL.
        device: Where to embed queries.
        approximate: An engine's index instead.
        source: The manifest or folder of media that was embedded, so that notebooks show hits with their media.

    Raises:
        ValueError: The index is incomplete, or was made with another model.
    """

    def __init__(
        self,
        folder: Path,
        index: Path | str,
        device: str,
        approximate: Approximate = Approximate(),  # frozen
        source: Path | None = None,
    ) -> None:
        from lightning_conan.cli.common.hits import items_by_key, unknown
        from lightning_conan.cli.common.logging import quiet_libraries
        from lightning_conan.embedder import load_folder
        from lightning_conan.embedder.checkpoint import embeds_as, read_config, stored_dtype
        from lightning_conan.retrieval.engines.searching import EngineIndex, ExactIndex, SearchIndex

        quiet_libraries()
        self.item_of = items_by_key(source) if source else unknown
        place = approximate.place(index)
        self.index: SearchIndex = EngineIndex(place) if place else ExactIndex(index)
        dtype = stored_dtype(read_config(folder))  # as `conan embed` does, wherever it runs
        with waiting(f"loading {folder}"):
            self.model, self.processor, provenance = load_folder(folder, dtype=dtype, device=device)
        if embeds_as(provenance, self.processor) != self.index.model:
            raise ValueError(
                f"{self.index.name} was made with another model than {folder}: vectors of two models cannot be compared."
            )

    def __call__(self, asked: Sequence[Asked], k: int) -> "SearchHits":
        """Finds the best ``k`` entries of each query."""
        import torch

        from lightning_conan.cli.common.hits import SearchHits
        from lightning_conan.retrieval.store import shorten

        items = [parse_side(value, "query", Path(root)) for _, value, root in asked]
        texts = [""] * len(items)
        with torch.inference_mode():
            if self.processor.config.reasons:
                from lightning_conan.reasoning import Reasoner

                reasoner = Reasoner(self.model, self.processor)
                written = reasoner.encode_queries(items)
                vectors, texts = written.embeddings, reasoner.texts(written)
            else:
                vectors = self.model.embed([self.processor(item) for item in items])
        found = self.index.find(shorten(vectors.cpu(), self.index.dim), k)
        told = (
            {"query": key, "hits": hits} | ({"reasoning": text} if text else {})
            for (key, _, _), hits, text in zip(asked, found, texts, strict=True)
        )
        return SearchHits(told, items, self.item_of)


def open_searcher(options: "SearchOptions") -> Callable[[list[Asked], int], list[dict[str, Any]]]:
    """Returns a function from queries and ``k`` to hits, which asks a helper process if one listens and loads the model if not.

    Raises:
        ValueError: A helper would keep an index that is for one process at a time.
    """
    folder, index, device, other = options.folder, place_of(options.index), options.device, options.approximate
    there, words = other.place(index), [other.engine or "", other.at or "", other.name]
    if options.keep and there and there.exclusive:
        raise ValueError(f"keep must be 0 with {there}, which is for one process at a time, got {options.keep}.")
    place = daemon.address(*observed(folder, index, there), device, *(words if there else []))
    if options.keep and not daemon.listens(place):
        daemon.start(place, __name__, str(folder), str(index), device, *words, str(place), str(options.keep * 60))
    here: Searcher | None = None

    def find(asked: list[Asked], k: int) -> list[dict[str, Any]]:
        nonlocal here
        found = daemon.ask(place, {"asked": asked, "k": k}) if here is None else None
        if found is None:  # no helper, or it has just left
            here = here or Searcher(folder, index, device, other)
            found = here(asked, k)
        return found  # type: ignore[no-any-return]  # JSON

    return find


def observed(folder: Path, index: Path | str, there: Place | None) -> tuple[list[Path], str]:
    """Folders whose files a helper process keeps loaded, and the state of an index behind a URL.

    Args:
        folder: The checkpoint folder.
        index: The embeddings, or their URL.
        there: An engine's index instead; a server is asked anew for each query.
    """
    if there is None and isinstance(index, str):
        from lightning_conan.retrieval.remote_folder import RemoteFolder

        return [folder], RemoteFolder(index).state()
    kept = Path(index) if there is None else None if there.remote else Path(there.at)
    return [folder, *([kept] if kept else [])], ""


def table(titles: list[str], hits: list[dict[str, Any]]) -> str:
    """Formats hits as lines of rank, cosine, modality, key and, where they are known, source, page and seconds.

    Args:
        titles: Lines above them: the query, and the reasoning if there is one.
        hits: From ``Searcher``, the best first.
    """
    width = max((len(hit["modality"]) for hit in hits), default=0)
    names = min(40, max((len(hit["key"]) for hit in hits), default=0))
    lines = [
        f"{rank:>4}  {hit['score']:.4f}  {hit['modality']:<{width}}  {hit['key']:<{names}}  {described(hit)}".rstrip()
        for rank, hit in enumerate(hits, start=1)
    ]
    return "\n".join(map(printable, [*titles, *lines]))


def check_numbers(k: int, keep: float) -> None:
    """Refuses settings outside their range.

    Args:
        k: Number of entries to find.
        keep: Minutes that a helper waits for a query.

    Raises:
        ValueError: ``k`` is below 1, or ``keep`` negative.
    """
    if k < 1:
        raise ValueError(f"k must be positive, got {k}.")
    if keep < 0:
        raise ValueError(f"keep must not be negative, got {keep}.")


@dataclass(frozen=True)
class SearchOptions:
    """Finds the nearest entries of an index, exactly or by a vector engine, with the largest cosine first.

    --text, --image and so on are short for --query.text, --query.image, and --engine, --at and --name for --approximate.engine
    and so on. Without a query it reads one text a line from the standard input. Loading takes seconds and a search
    milliseconds: with --keep a helper process stays behind, and the next calls answer at once.

    Args:
        folder: The checkpoint folder that the index was made with.
        index: The index, a folder that `conan embed` wrote, or its URL, such as s3://bucket/index.
        query: What to find.
        queries: Instead, a JSONL file of items with a key, or of pairs, whose query is taken.
        k: Number of entries to find.
        format: A table, or a JSON line for each query.
        device: Device to embed the queries on.
        keep: Minutes without a query after which the helper that keeps model and index loaded ends; 0 starts none.
        approximate: An index that `conan index` wrote from it, to search instead.
    """

    folder: Path
    index: str | Path
    query: Query = field(default_factory=Query)
    queries: Path | None = None
    k: int = 10
    format: Literal["table", "jsonl"] = "table"
    device: str = "cpu"
    keep: float = 0.0
    approximate: Approximate = Approximate()  # frozen


def search(options: SearchOptions) -> None:
    """Prints the nearest entries of each query.

    Raises:
        ValueError: A number out of its range, or two ways to ask at once.
    """
    one = options.query.fields()
    if one and options.queries:
        raise ValueError(f"search needs one query or --queries, got both: {one} and {options.queries}.")
    check_numbers(options.k, options.keep)
    find = open_searcher(options)

    def answer(asked: list[Asked]) -> None:
        for found in find(asked, options.k):
            titles = [text for text in (found["query"], found.get("reasoning")) if text]
            print(json.dumps(found) if options.format == "jsonl" else table(titles, found["hits"]), flush=True)

    if options.queries:
        answer(read_queries(options.queries))
    elif one:
        answer([(None, one, "/")])
    else:
        if sys.stdin.isatty():
            print("one text a line, Ctrl-D to end", file=sys.stderr)
        for line in sys.stdin:
            if line.strip():
                answer([(line.strip(), {"text": line.strip()}, "/")])


def run(args: Sequence[str]) -> None:
    """Parses the options and searches; the fields of a query and of an engine's index are options of their own."""
    from jsonargparse import auto_cli

    groups = {"query": fields(Query), "approximate": fields(Approximate)}
    long = {f"--{field.name}": f"--{group}.{field.name}" for group, found in groups.items() for field in found}
    cut = [word.partition("=") for word in args]
    words = [long.get(option, option) + equals + value for option, equals, value in cut]
    search(auto_cli(SearchOptions, args=words, prog="conan search", as_positional=False, exit_on_error=False))


def main(folder: str, index: str, device: str, engine: Any, at: str, name: str, place: str, idle: str) -> None:
    """Runs the helper process; all arguments are words of its command line.

    Args:
        folder: The checkpoint folder.
        index: Folder of embeddings that were made with it.
        device: Device to embed queries on.
        engine: The vector engine, or nothing for exact search.
        at: Place of its index, or nothing for the default.
        name: Table there.
        place: Socket to listen at.
        idle: Seconds without a query after which it ends.
    """
    searcher = Searcher(Path(folder), place_of(index), device, Approximate(engine or None, at or None, name))
    daemon.serve(Path(place), lambda request: searcher(request["asked"], request["k"]), float(idle))


if __name__ == "__main__":
    main(*sys.argv[1:])
