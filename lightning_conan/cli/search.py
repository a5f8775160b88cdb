"""`conan search`: the nearest embeddings of a query, exactly. Imports no Lightning: that would double the start-up."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_conan.items import Item, parse_item, parse_side


@dataclass(frozen=True)
class Query:
    """One query; several fields make one mixed query, such as an image and "make it blue".

    Args:
        image: The query's image.
        video: The query's video.
        document: The query's page image or PDF.
        audio: The query's sound.
        text: The query's text.
        instruction: Overrides the folder's system instruction.
    """

    image: Path | None = None
    video: Path | None = None
    document: Path | None = None
    audio: Path | None = None
    text: str | None = None
    instruction: str | None = None

    def item(self) -> Item | None:
        """The item that was asked for, if any."""
        fields = {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in vars(self).items()}
        given = {name: value for name, value in fields.items() if value is not None}
        return parse_item(given, Path("/")) if given else None


def read_queries(path: Path) -> Iterator[tuple[str, Item]]:
    """Keys and items of a JSONL file of items, or of pairs, whose query is taken."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            value = json.loads(line)
            yield str(value.get("key", number)), parse_side(value, "query", path.parent)


class Searcher:
    """An index with the model that made it.

    Args:
        folder: The checkpoint folder.
        index: What `conan embed` wrote with it.
        device: Where to embed queries.

    Raises:
        ValueError: The index is incomplete, or was made with another model.
    """

    def __init__(self, folder: Path, index: Path, device: str) -> None:
        from lightning_conan.embedder import load_folder
        from lightning_conan.retrieval.store import EmbeddingStore

        self.store = EmbeddingStore(index)
        self.model, self.processor, provenance = load_folder(folder, device=device)
        if provenance.fingerprint != self.store.origin["model"]:
            raise ValueError(f"{index} was made with another model than {folder}: vectors of two models cannot be compared.")

    def __call__(self, items: Sequence[Item], k: int) -> list[list[dict[str, Any]]]:
        """The best ``k`` entries of each query."""
        import torch

        from lightning_conan.retrieval.search import top_k
        from lightning_conan.retrieval.store import shorten

        with torch.inference_mode():
            vectors = shorten(self.model.embed([self.processor(item) for item in items]).cpu(), self.store.dim)
        scores, rows = top_k(vectors, self.store.blocks(), k)
        return [
            [
                {"key": key, "modality": modality, "score": round(score, 6)}
                for score, (key, modality) in zip(values, map(self.store.entry, found), strict=True)
            ]
            for values, found in zip(scores.tolist(), rows.tolist(), strict=True)
        ]


def table(title: str | None, hits: list[dict[str, Any]]) -> str:
    """Ranks, cosines, modalities and keys in columns."""
    width = max((len(hit["modality"]) for hit in hits), default=0)
    lines = [f"{rank:>4}  {hit['score']:.4f}  {hit['modality']:<{width}}  {hit['key']}" for rank, hit in enumerate(hits, start=1)]
    return "\n".join([*([title] if title else []), *lines])


def search(
    folder: Path,
    index: Path,
    query: Query = Query(),  # frozen
    queries: Path | None = None,
    k: int = 10,
    format: Literal["table", "jsonl"] = "table",
    device: str = "cpu",
) -> None:
    """Finds the nearest entries of an index, exactly, with the largest cosine first.

    Without a query it reads one text a line from the standard input, so that start-up is paid once.

    Args:
        folder: The checkpoint folder that the index was made with.
        index: What `conan embed` wrote.
        query: What to find.
        queries: Instead, a JSONL file of items with a key, or of pairs, whose query is taken.
        k: How many to find.
        format: A table, or a JSON line for each query.
        device: Where to embed the queries.
    """
    one = query.item()
    if one and queries:
        raise ValueError(f"search needs one query or --queries, got both: {one} and {queries}.")
    if k < 1:
        raise ValueError(f"k must be positive, got {k}.")
    from lightning_conan.cli.quiet import quiet_libraries

    quiet_libraries()
    searcher = Searcher(folder, index, device)

    def answer(named: list[tuple[str | None, Item]]) -> None:
        for (key, _), hits in zip(named, searcher([item for _, item in named], k), strict=True):
            print(json.dumps({"query": key, "hits": hits}) if format == "jsonl" else table(key, hits), flush=True)

    if queries:
        answer(list(read_queries(queries)))
    elif one:
        answer([(None, one)])
    else:
        if sys.stdin.isatty():
            print(f"{len(searcher.store)} entries; one text a line, Ctrl-D to end", file=sys.stderr)
        for line in sys.stdin:
            if line.strip():
                answer([(line.strip(), Item((line.strip(),)))])


def run(args: Sequence[str]) -> None:
    """Parses the options and searches; the fields of a query are options of their own."""
    from jsonargparse import auto_cli

    fields = {f"--{name}" for name in Query.__dataclass_fields__}
    words = [f"--query.{word[2:]}" if word.split("=")[0] in fields else word for word in args]
    auto_cli(search, args=words, prog="conan search", as_positional=False)
