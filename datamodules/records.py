"""Pairs as the members of a WebDataset sample, and back."""

import json
from collections import Counter
from typing import Any

import orjson

from lightning_conan.items import Item, Media, Pair


def describe(item: Item, side: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """An item as JSON and the members that hold its media: ``query.image.png``, ``query.image1.png``, ..."""
    parts: list[dict[str, Any]] = []
    members: dict[str, bytes] = {}
    counts: Counter[str] = Counter()
    for part in item.parts:
        if isinstance(part, str):
            parts.append({"text": part})
            continue
        number = counts[part.modality] or ""
        counts[part.modality] += 1
        name = f"{side}.{part.modality}{number}.{part.suffix or 'bin'}"
        members[name] = part.read()
        parts.append({part.modality: name, **part.span})
    return {"parts": parts} | ({} if item.instruction is None else {"instruction": item.instruction}), members


def restore(description: dict[str, Any], members: dict[str, bytes]) -> Item:
    """The inverse of ``describe``.

    Raises:
        ValueError: A member is missing, or the description is not one of ours.
    """
    parts: list[str | Media] = []
    for part in description["parts"]:
        if "text" in part:
            parts.append(part["text"])
            continue
        span = dict(part)
        modality = next(iter(span))
        name = span.pop(modality)
        if name not in members:
            raise ValueError(f"member {name!r} is missing")
        parts.append(Media(modality, members[name], name, **span))
    return Item(tuple(parts), description.get("instruction"))


def encode_pair(pair: Pair) -> dict[str, Any]:
    """A pair as a WebDataset sample.

    Raises:
        OSError: A media file cannot be read.
        UnicodeEncodeError: A text holds half a character (a lone surrogate), which neither UTF-8 nor a tokenizer knows.
    """
    sample: dict[str, Any] = {"__key__": pair.key}
    record: dict[str, Any] = {"key": pair.key, "task": pair.task, "modality": pair.modality}
    if pair.reasoning:
        record["reasoning"] = pair.reasoning
    for side, item in pair.sides():
        record[side], members = describe(item, side)
        sample |= members
    sample["json"] = json.dumps(record, ensure_ascii=False).encode()
    return sample


def decode_pair(members: dict[str, bytes]) -> Pair:
    """The inverse of ``encode_pair``, from a sample's members.

    Raises:
        ValueError: A missing member or a record that is not one of ours.
    """
    record = orjson.loads(members["json"])
    query, target = restore(record["query"], members), restore(record["target"], members)
    negatives: list[Item] = []
    while negative := record.get(f"negative{len(negatives)}"):
        negatives.append(restore(negative, members))
    return Pair(record["key"], record["task"], record["modality"], query, target, tuple(negatives), record.get("reasoning", ""))
