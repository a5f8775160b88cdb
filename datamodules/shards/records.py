"""Pairs as the members of a WebDataset sample, and back."""

from collections import Counter
from typing import Any

import msgspec

from lightning_conan.items import MEDIA, Item, Media, Medium, Modality, Pair, check_modality


class Part(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """Member that holds a medium, and its start and end or page."""

    member: str
    modality: Medium
    start: float = 0.0
    end: float | None = None
    page: int | None = None


class Description(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """An item as JSON: its texts, and the members of its media."""

    parts: tuple[str | Part, ...]
    instruction: str | None = None

    def restore(self, members: dict[str, bytes]) -> Item:
        """The inverse of ``describe``.

        Raises:
            ValueError: A member is missing, or the item is empty.
        """
        parts: list[str | Media] = []
        for part in self.parts:  # a loop and no calls: every sample read passes here
            if isinstance(part, str):
                parts.append(part)
            elif part.modality not in MEDIA:
                raise ValueError(f"a medium's modality must be among {', '.join(MEDIA)}, got {part.modality!r}")
            elif part.member in members:
                data = members[part.member]
                parts.append(Media(part.modality, data, part.member, part.start, part.end, part.page))
            else:
                raise ValueError(f"member {part.member!r} is missing")
        return Item(tuple(parts), self.instruction)


class Record(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """A pair as JSON."""

    key: str
    task: str
    modality: Modality
    query: Description
    target: Description
    negatives: tuple[Description, ...] = ()
    reasoning: str = ""


RECORD = msgspec.json.Decoder(Record)


def describe(item: Item, side: str) -> tuple[Description, dict[str, bytes]]:
    """Converts an item to JSON and the members that hold its media: ``query.image.png``, ``query.image1.png``, ...

    Args:
        item: The item.
        side: ``query``, ``target`` or ``negativeN``.
    """
    parts: list[str | Part] = []
    members: dict[str, bytes] = {}
    counts: Counter[str] = Counter()
    for part in item.parts:
        if isinstance(part, str):
            parts.append(part)
            continue
        number = counts[part.modality] or ""
        counts[part.modality] += 1
        name = f"{side}.{part.modality}{number}.{part.suffix or 'bin'}"
        members[name] = part.read()
        parts.append(Part(name, part.modality, **part.span))  # type: ignore[arg-type]
    return Description(tuple(parts), item.instruction), members


def encode_pair(pair: Pair) -> dict[str, Any]:
    """A pair as a WebDataset sample.

    Raises:
        OSError: A media file cannot be read.
        UnicodeEncodeError: A text holds half a character (a lone surrogate), which neither UTF-8 nor a tokenizer knows.
    """
    sample: dict[str, Any] = {"__key__": pair.key}
    described = []
    for side, item in pair.sides():
        description, members = describe(item, side)
        described.append(description)
        sample |= members
    query, target, *negatives = described
    record = Record(pair.key, pair.task, pair.modality, query, target, tuple(negatives), pair.reasoning)
    sample["json"] = msgspec.json.encode(record)
    return sample


def decode_pair(members: dict[str, bytes]) -> Pair:
    """The inverse of ``encode_pair``, from a sample's members.

    Raises:
        ValueError: A missing member or a record that is not one of ours.
    """
    record = RECORD.decode(members["json"])
    check_modality(record.modality)
    return Pair(
        record.key,
        record.task,
        record.modality,
        record.query.restore(members),
        record.target.restore(members),
        tuple([negative.restore(members) for negative in record.negatives]),
        record.reasoning,
    )
