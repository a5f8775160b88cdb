"""Fields beside an embedding's key: modality, path of the file, page, seconds; free of torch."""

from typing import Any

from lightning_conan.items import Item

FIELDS: dict[str, type] = {"modality": str, "source": str, "page": int, "start": float, "end": float}
"""Modality, path of the file, page of a PDF from 1 on, seconds of a clip."""


def payload_of(values: dict[str, Any]) -> dict[str, Any]:
    """Keeps the fields that have a value, in the order and with the types of ``FIELDS``."""
    return {name: kind(values[name]) for name, kind in FIELDS.items() if values.get(name) is not None}


def item_payload(item: Item, source: str | None) -> dict[str, Any]:
    """Describes an item: its modalities, and page and seconds of its first medium.

    A part of a clip that has an end begins at 0 unless it says otherwise; a whole clip has neither.

    Args:
        item: The item.
        source: Path or URL of the file that it was read from; None if there is none.

    Example:
        >>> from lightning_conan.items import Media
        >>> item_payload(Item((Media("video", b"...", "a.mp4", end=2.0), "a bell")), "clips/a.mp4")
        {'modality': 'video+text', 'source': 'clips/a.mp4', 'start': 0.0, 'end': 2.0}
    """
    kinds = dict.fromkeys("text" if isinstance(part, str) else part.modality for part in item.parts)
    first = item.media[0].span if item.media else {}
    span = {"start": 0.0} | first if "end" in first else first
    return payload_of({"modality": "+".join(kinds), "source": source, **span})


def described(payload: dict[str, Any]) -> str:
    """Writes source, page and seconds of a payload as a phrase, such as ``report.pdf, page 3``; empty if it has none.

    Example:
        >>> described({"modality": "video", "source": "a.mp4", "start": 1.0, "end": 2.5})
        'a.mp4, 1 to 2.5 s'
    """
    found = [str(payload["source"])] if "source" in payload else []
    found += [f"page {payload['page']}"] if "page" in payload else []
    if "end" in payload:
        found.append(f"{payload.get('start', 0.0):g} to {payload['end']:g} s")
    elif "start" in payload:
        found.append(f"from {payload['start']:g} s")
    return ", ".join(found)
