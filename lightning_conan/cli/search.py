"""`conan search`: the nearest embeddings of a query, exactly. Imports no Lightning: that would double the start-up."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_conan.cli.common import daemon
from lightning_conan.parsing import parse_side
from lightning_conan.terminal import printable

Asked = tuple[str | None, dict[str, Any], str]
"""A query's key, the item or pair, and the folder that its paths are relative to."""


@dataclass(frozen=True)
class Query:
    """One query; several fields make one mixed query, such as an image and "make it blue".

    Args:
        image: The query's image.
        video: The query's video.
        document: The query's page image or PDF.
        audio: The query's audio file.
        text: The query's text.
        instruction: Overrides the folder's system instruction.
    """

    image: Path | None = None
    video: Path | None = None
    document: Path | None = None
    audio: Path | None = None
    text: str | None = None
    instruction: str | None = None

    def fields(self) -> dict[str, str]:
        """The query as an item of a manifest."""
        fields = {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return {name: value for name, value in fields.items() if value is not None}


def read_queries(path: Path) -> list[Asked]:
    """The queries of a JSONL file of items, or of pairs, whose query is taken.

    Raises:
        ValueError: No line, or one that is no object.
    """
    asked: list[Asked] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"Each query must be an object such as {{'text': 'a bell'}}, got {line[:80]!r} in {path}:{number}.")
        asked.append((str(value.get("key", number)), value, str(path.resolve().parent)))
    if not asked:
        raise ValueError(f"{path} must hold at least 1 query, got 0.")
    return asked


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
        from lightning_conan.cli.common.logging import quiet_libraries
        from lightning_conan.embedder import OmniConfig, load_folder
        from lightning_conan.embedder.checkpoint import embeds_as, stored_dtype
        from lightning_conan.retrieval.store import EmbeddingStore

        quiet_libraries()
        self.store = EmbeddingStore(index)
        dtype = stored_dtype(OmniConfig.from_pretrained(folder))  # as `conan embed` does, wherever it runs
        self.model, self.processor, provenance = load_folder(folder, dtype=dtype, device=device)
        if embeds_as(provenance, self.processor) != self.store.origin["model"]:
            raise ValueError(f"{index} was made with another model than {folder}: vectors of two models cannot be compared.")

    def __call__(self, asked: Sequence[Asked], k: int) -> list[dict[str, Any]]:
        """The best ``k`` entries of each query."""
        import torch

        from lightning_conan.retrieval.search import top_k
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
        scores, rows = top_k(shorten(vectors.cpu(), self.store.dim), self.store.blocks(), k)
        return [
            {"query": key, "hits": [self.hit(score, row) for score, row in zip(values, found, strict=True)]}
            | ({"reasoning": text} if text else {})
            for (key, _, _), values, found, text in zip(asked, scores.tolist(), rows.tolist(), texts, strict=True)
        ]

    def hit(self, score: float, row: int) -> dict[str, Any]:
        """Describes an entry of the index: key, modality and score.

        Args:
            score: Cosine to the query; rounded to six digits.
            row: The entry's row in the index.
        """
        key, modality = self.store.entry(row)
        return {"key": key, "modality": modality, "score": round(score, 6)}


def open_searcher(folder: Path, index: Path, device: str, keep: float) -> Callable[[list[Asked], int], list[dict[str, Any]]]:
    """Returns a function from queries and ``k`` to hits, which asks a helper process if one listens and loads the model if not.

    Args:
        folder: The checkpoint folder.
        index: Folder of embeddings that were made with it.
        device: Device to embed queries on.
        keep: Minutes without a query after which a helper ends; one is started unless it is 0.
    """
    place = daemon.address([folder, index], device)
    if keep and not daemon.listens(place):
        daemon.start(place, __name__, str(folder), str(index), device, str(place), str(keep * 60))
    here: Searcher | None = None

    def find(asked: list[Asked], k: int) -> list[dict[str, Any]]:
        nonlocal here
        found = daemon.ask(place, {"asked": asked, "k": k}) if here is None else None
        if found is None:  # no helper, or it has just left
            here = here or Searcher(folder, index, device)
            found = here(asked, k)
        return found  # type: ignore[no-any-return]  # JSON

    return find


def table(titles: list[str], hits: list[dict[str, Any]]) -> str:
    """Formats hits as lines of rank, cosine, modality and key.

    Args:
        titles: Lines above them: the query, and the reasoning if there is one.
        hits: From ``Searcher``, the best first.
    """
    width = max((len(hit["modality"]) for hit in hits), default=0)
    lines = [f"{rank:>4}  {hit['score']:.4f}  {hit['modality']:<{width}}  {hit['key']}" for rank, hit in enumerate(hits, start=1)]
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


def search(
    folder: Path,
    index: Path,
    query: Query = Query(),  # frozen
    queries: Path | None = None,
    k: int = 10,
    format: Literal["table", "jsonl"] = "table",
    device: str = "cpu",
    keep: float = 0.0,
) -> None:
    """Finds the nearest entries of an index, exactly, with the largest cosine first.

    --text, --image and so on are short for --query.text, --query.image. Without a query it reads one text a line from the
    standard input. Loading takes seconds and a search milliseconds: with
    --keep a helper process stays behind, and the next calls answer at once.

    Args:
        folder: The checkpoint folder that the index was made with.
        index: The index, a folder that `conan embed` wrote.
        query: What to find.
        queries: Instead, a JSONL file of items with a key, or of pairs, whose query is taken.
        k: Number of entries to find.
        format: A table, or a JSON line for each query.
        device: Device to embed the queries on.
        keep: Minutes without a query after which the helper that keeps model and index loaded ends; 0 starts none.
    """
    one = query.fields()
    if one and queries:
        raise ValueError(f"search needs one query or --queries, got both: {one} and {queries}.")
    check_numbers(k, keep)
    find = open_searcher(folder, index, device, keep)

    def answer(asked: list[Asked]) -> None:
        for found in find(asked, k):
            titles = [text for text in (found["query"], found.get("reasoning")) if text]
            print(json.dumps(found) if format == "jsonl" else table(titles, found["hits"]), flush=True)

    if queries:
        answer(read_queries(queries))
    elif one:
        answer([(None, one, "/")])
    else:
        if sys.stdin.isatty():
            print("one text a line, Ctrl-D to end", file=sys.stderr)
        for line in sys.stdin:
            if line.strip():
                answer([(line.strip(), {"text": line.strip()}, "/")])


def run(args: Sequence[str]) -> None:
    """Parses the options and searches; the fields of a query are options of their own."""
    from jsonargparse import auto_cli

    fields = {f"--{name}" for name in Query.__dataclass_fields__}
    words = [f"--query.{word[2:]}" if word.split("=")[0] in fields else word for word in args]
    auto_cli(search, args=words, prog="conan search", as_positional=False, exit_on_error=False)


def main(folder: str, index: str, device: str, place: str, idle: str) -> None:
    """Runs the helper process; all arguments are words of its command line.

    Args:
        folder: The checkpoint folder.
        index: Folder of embeddings that were made with it.
        device: Device to embed queries on.
        place: Socket to listen at.
        idle: Seconds without a query after which it ends.
    """
    searcher = Searcher(Path(folder), Path(index), device)
    daemon.serve(Path(place), lambda request: searcher(request["asked"], request["k"]), float(idle))


if __name__ == "__main__":
    main(*sys.argv[1:])
