"""`conan search`: the nearest embeddings of a query, exactly."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal


def search(
    folder: Path,
    index: Path,
    text: str | None = None,
    image: Path | None = None,
    video: Path | None = None,
    document: Path | None = None,
    audio: Path | None = None,
    instruction: str | None = None,
    queries: Path | None = None,
    k: int = 10,
    format: Literal["table", "jsonl"] = "table",
    device: str = "cpu",
) -> None:
    """Finds the nearest entries of an index, exactly, with the largest cosine first.

    Several of text, image, video, document and audio make one query: an image and "make it blue".

    Args:
        folder: The checkpoint folder that the index was made with.
        index: What `conan embed` wrote.
        text: The query's text.
        image: The query's image.
        video: The query's video.
        document: The query's page image or PDF.
        audio: The query's sound.
        instruction: Overrides the folder's system instruction.
        queries: Instead, a JSONL file of items with a key, or of pairs, whose query is taken.
        k: How many to find.
        format: A table, or a JSON line for each query.
        device: Where to embed the queries.
    """
    named = ask(instruction, text=text, image=image, video=video, document=document, audio=audio)
    if bool(named) == bool(queries):
        raise ValueError("search needs a query (--text, --image, --video, --document or --audio) or --queries, and not both.")
    if k < 1:
        raise ValueError(f"k must be positive, got {k}.")
    import torch

    from datamodules.items import ItemList
    from lightning_conan.cli.quiet import quiet_libraries
    from lightning_conan.embedder import load_folder
    from lightning_conan.items import parse_item
    from lightning_conan.retrieval.search import top_k
    from lightning_conan.retrieval.store import EmbeddingStore, shorten

    quiet_libraries()
    store = EmbeddingStore(index)
    model, processor, provenance = load_folder(folder, device=device)
    if provenance.fingerprint != store.origin["model"]:
        raise ValueError(f"{index} was made with another model than {folder}: vectors of two models cannot be compared.")
    if queries:
        listed = ItemList(queries, "query")
        items = {listed.key(number): listed.item(number) for number in range(len(listed))}
    else:
        items = {"query": parse_item(named, Path("/"))}
    with torch.inference_mode():
        vectors = shorten(model.embed([processor(item) for item in items.values()]).cpu(), store.dim)
    scores, rows = top_k(vectors, store.blocks(), k)
    for key, values, found in zip(items, scores.tolist(), rows.tolist(), strict=True):
        hits = [
            dict(zip(("key", "modality"), store.entry(row), strict=True)) | {"score": round(value, 6)}
            for value, row in zip(values, found, strict=True)
        ]
        print(json.dumps({"query": key, "hits": hits}) if format == "jsonl" else table(key if queries else None, hits))


def ask(instruction: str | None, **fields: Any) -> dict[str, Any]:
    """The query as a manifest writes it, paths made absolute."""
    given = {name: value for name, value in fields.items() if value is not None}
    # Media come before text, as in a manifest of edits: "image, then what to change".
    item = {name: str(value.resolve()) for name, value in given.items() if isinstance(value, Path)}
    item |= {name: value for name, value in given.items() if not isinstance(value, Path)}
    return item | ({"instruction": instruction} if item and instruction is not None else {})


def table(title: str | None, hits: list[dict[str, Any]]) -> str:
    """Ranks, cosines, modalities and keys in columns."""
    width = max((len(hit["modality"]) for hit in hits), default=0)
    lines = [f"{rank:>4}  {hit['score']:.4f}  {hit['modality']:<{width}}  {hit['key']}" for rank, hit in enumerate(hits, start=1)]
    return "\n".join([*([title] if title else []), *lines])


def run(args: Sequence[str]) -> None:
    """Parses the options and searches."""
    from jsonargparse import auto_cli

    auto_cli(search, args=list(args), prog="conan search", as_positional=False)
