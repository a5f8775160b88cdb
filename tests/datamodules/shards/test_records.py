"""Records: what is written comes back, and nothing else is read."""

import json

import pytest

from datamodules.shards.records import decode_pair, encode_pair
from lightning_conan.items import Item, Media, Pair

SOUND = Media("audio", b"sound", "a.flac", start=1.5, end=2.0)
PAIR = Pair(
    "k",
    "t",
    "document",
    Item(("find é", Media("document", b"%PDF", "a.pdf", page=3), Media("document", b"page", "b.png")), "Look."),
    Item((SOUND,)),
    (Item(("no",)), Item((SOUND, "nor this"))),
    "Let me see.",
)


def test_a_pair_comes_back():
    members = encode_pair(PAIR)
    assert members.pop("__key__") == "k"
    found = decode_pair(members)
    assert (found.key, found.task, found.modality, found.reasoning) == ("k", "t", "document", "Let me see.")
    assert [(side, item.content_hash()) for side, item in found.sides()] == [(side, i.content_hash()) for side, i in PAIR.sides()]
    assert [media.name for media in found.query.media] == ["query.document.pdf", "query.document1.png"]
    assert json.loads(members["json"])["query"]["parts"][1] == {
        "member": "query.document.pdf",
        "modality": "document",
        "page": 3,
    }
    assert list(members) == [
        "query.document.pdf",
        "query.document1.png",
        "target.audio.flac",
        "negative1.audio.flac",
        "json",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "smell"}, "modality must be among text, image, .*, got 'smell'"),
        ({"key": 7}, "Expected `str`, got `int`"),
        ({"negatives": {"parts": []}}, "Expected `array`, got `object`"),
        ({"more": 1}, "unknown field `more`"),
        ({"target": {"parts": [{"member": "a", "modality": "smell"}]}}, "must be among image, .*, got 'smell'"),
        ({"target": {"parts": [{"member": "a", "modality": "text"}]}}, "must be among image, .*, got 'text'"),
        ({"target": {"parts": [{"member": "a", "modality": "image", "text": "b"}]}}, "unknown field `text`"),
        ({"target": {"parts": [{"start": 1.0}]}}, "missing required field `member`"),
        ({"target": {"parts": []}}, "An item must hold text or media"),
        ({"target": {"parts": [" "]}}, "An item must hold text or media"),
        ({"target": {"parts": [{"member": "target.image.png", "modality": "image"}]}}, r"member 'target\.image\.png' is missing"),
        ({"target": {"parts": [{"member": "a", "modality": "audio", "page": 1.5}]}}, "Expected `int | null`, got `float`"),
    ],
)
def test_a_record_that_is_not_one_of_ours_is_refused(change, message):
    members = {name: data for name, data in encode_pair(PAIR).items() if name != "__key__"}
    members["json"] = json.dumps(json.loads(members["json"]) | change).encode()
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        decode_pair(members)
