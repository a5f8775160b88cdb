"""Training data of ms-swift for embedding models, as JSONL."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.sources.layout import Layout, Line, plain
from datamodules.sources.manifest import Fault, json_lines
from lightning_conan.items import Item, Media, Medium
from lightning_conan.parsing import parse_media

TAG = re.compile(r"<(image|video|audio)>")
Row = Mapping[str, Any]


def read(source: Path, how: Layout) -> Iterator[Line]:
    """Reads ``messages`` with ``positive_messages`` and ``negative_messages``, or ``query``, ``response``, ``rejected_response``.

    ``<image>``, ``<video>`` and ``<audio>`` stand for the files of ``images``, ``positive_images`` and so on, in their order; a
    system message is the item's instruction. Each positive makes a pair.

    Args:
        source: JSONL file.
        how: Options of reading.
    """
    for number, (where, row) in enumerate(json_lines(source)):
        key = f"{number:08d}"
        if "label" in row:
            raise ValueError(
                f"{where} has 'label': pairs with scores are not pairs to contrast. Keep the right ones, without it."
            )
        try:
            query, positives, negatives = sides(row, source.parent / how.media)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield where, Fault(where, key, "sample", f"it must have messages and positive_messages: {error}")
            continue
        for place, target in enumerate(positives):
            media = [*query.media, *target.media]
            line = {"key": key if len(positives) == 1 else f"{key}-{place}", "task": how.task or plain(source.stem)}
            line |= {"modality": media[0].modality if media else "text"}
            yield where, line | {"query": query, "target": target, "negatives": negatives}


def sides(row: Row, root: Path) -> tuple[Item, list[Item], list[Item]]:
    """The query, its positives and its negatives.

    Args:
        row: A line of the file.
        root: Folder that paths are relative to.

    Raises:
        ValueError: It has none, or other turns than one of the user.
    """
    if "messages" not in row or "positive_messages" not in row:
        files = {kind: iter(row.get(f"{kind}s") or []) for kind in ("image", "video", "audio")}
        texts = [row["query"], row["response"], *(row.get("rejected_response") or [])]
        query, target, *wrong = [made([{"role": "user", "content": text}], files, root) for text in texts]
        return query, [target], wrong
    return several(row, "", root)[0], several(row, "positive_", root), several(row, "negative_", root)


def several(row: Row, prefix: str, root: Path) -> list[Item]:
    """The items of one side.

    Args:
        row: A line of the file.
        prefix: Of its fields.
        root: Folder that paths are relative to.
    """
    entries, kinds = row.get(f"{prefix}messages") or [], ("image", "video", "audio")
    files = {kind: row.get(f"{prefix}{kind}s") or [] for kind in kinds}
    if not prefix:
        entries, files = [entries], {kind: [found] for kind, found in files.items()}
    if odd := [kind for kind in kinds if files[kind] and len(files[kind]) != len(entries)]:
        raise ValueError(f"{prefix}{odd[0]}s must be a list for each of {len(entries)} messages, got {len(files[odd[0]])}")
    return [made(turns, {k: iter(files[k][n] if files[k] else []) for k in kinds}, root) for n, turns in enumerate(entries)]


def made(turns: Sequence[Row], files: Mapping[str, Iterator[Any]], root: Path) -> Item:
    """Makes an item of messages.

    Args:
        turns: A system message or none, and one of the user.
        files: The files of each modality that are not taken yet.
        root: Folder that paths are relative to.

    Raises:
        ValueError: There are other turns, or less or more files than places for them.
    """
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    users = [turn["content"] for turn in turns if turn["role"] != "system"]
    if len(users) != 1 or len(system) > 1 or not isinstance(users[0], str):
        raise ValueError(f"an item must be one message of text, and a system message at most, got {len(turns)}")
    parts: list[str | Media] = []
    for place, part in enumerate(TAG.split(users[0])):
        if place % 2 == 0:
            parts += [part.strip()] if part.strip() else []
        elif (path := next(files[part], None)) is None:
            raise ValueError(f"<{part}> must have a file, and {part}s has no more")
        else:
            kind: Medium = part  # type: ignore[assignment]  # one of the pattern's
            parts.append(parse_media(kind, path, root))
    return Item(tuple(parts), system[0] if system else None)
