import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_conan.items import Item, Media, check_text
from lightning_conan.parsing import parse_pair, parse_side

LINE = {"key": "k", "task": "t", "modality": "audio", "query": {"audio": "a.flac"}, "target": {"text": "a dog barks"}}


def test_parts_keep_their_order(tmp_path):
    pair = parse_pair({**LINE, "query": {"image": ["a.png", "b.png"], "text": "make it blue"}}, tmp_path)
    assert [part if isinstance(part, str) else part.name for part in pair.query.parts] == ["a.png", "b.png", "make it blue"]


def test_spans_and_pages_are_read(tmp_path):
    query = {"video": {"path": "a.mp4", "start": 1.0, "end": 9.0}, "document": "r.pdf#page=3", "instruction": "Find it."}
    video, page = parse_pair({**LINE, "query": query}, tmp_path).query.parts
    assert (video.start, video.end, page.page, page.name) == (1.0, 9.0, 3, "r.pdf")


def test_what_is_asked_of_a_medium_may_stand_at_its_limits(tmp_path):
    (sound,) = parse_pair({**LINE, "query": {"audio": {"path": "a.flac", "start": 0, "end": 1e300}}}, tmp_path).query.parts
    assert (sound.start, sound.end) == (0.0, 1e300)
    (page,) = parse_pair({**LINE, "query": {"document": "REPORT.PDF#PAGE=12"}}, tmp_path).query.parts
    assert (page.name, page.page, page.suffix) == ("REPORT.PDF", 12, "pdf")
    (image,) = parse_pair({**LINE, "query": {"image": "a.png#page=3"}}, tmp_path).query.parts
    assert (image.name, image.page) == ("a.png#page=3", None)


def test_a_side_is_that_of_a_pair_or_the_item_beside_its_key(tmp_path):
    pair = {**LINE, "query": {"text": "asked"}, "target": {"text": "found"}}
    assert [parse_side(pair, side, tmp_path).parts for side in ("query", "target")] == [("asked",), ("found",)]
    alone = {"key": "k", "split": "test", "task": "t", "modality": "text", "text": "alone"}
    assert [parse_side(alone, side, tmp_path).parts for side in ("query", "target")] == [("alone",)] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "smell"}, "modality must be among.*smell"),
        ({"querry": {}}, "may have.*querry"),
        ({"query": {"sound": "a.flac"}}, "fields must be among.*sound"),
        ({"query": {"text": " "}}, "must hold text or media"),
        ({"query": {}}, "must hold text or media"),
        ({"query": {"image": "../../etc/passwd"}}, "stay inside"),
        ({"query": {"image": "/etc/passwd"}}, "stay inside"),
        ({"query": {"image": {"path": "a.png", "start": 1}}}, "must be a path or a mapping"),
        ({"query": {"audio": {"path": "a.flac", "start": -0.1}}}, "must be seconds"),
        ({"query": {"audio": {"path": "a.flac", "start": None}}}, "must be seconds"),
        ({"query": {"audio": {"path": "a.flac", "start": 2, "end": 1}}}, "must be seconds"),
        ({"query": {"audio": {"path": "a.flac", "start": 2, "end": 2}}}, "must be seconds"),
        ({"query": {"audio": {"path": "a.flac", "end": float("inf")}}}, "must be seconds"),
        ({"negatives": None}, "must be a list"),
        ({"negatives": 5}, "must be a list"),
        ({"reasoning": 5}, "reasoning must be a string"),
        ({"key": "a\0b"}, "key must be a string"),
        ({"key": "a\ud800b"}, "key must be a string"),
        ({"key": "a.b"}, "key must be a string of printable characters without dots"),
        ({"target": {"text": 3}}, "Text must be a string, got 3"),
    ],
)
def test_refuses(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse_pair({**LINE, **change}, tmp_path)


def test_hash_tells_contents_apart_and_places_not(tmp_path):
    (tmp_path / "x.png").write_bytes(b"123")
    here, there = Media("image", b"123", "a.png"), Media("image", tmp_path / "x.png", "x.png")
    assert Item((here,)).content_hash() == Item((there,)).content_hash()
    others = [Item((here, "t")), Item((here,), "i"), Item((Media("document", b"123", "a.png"),)), Item(("123",))]
    assert len({item.content_hash() for item in [Item((here,)), *others]}) == 5


def test_a_part_cannot_pass_for_two():
    for text in ("a|text:1:{}:b", "a|text:{}:b", "a|b", "ab"):
        assert Item((text,)).content_hash() != Item(("a", "b")).content_hash()
    assert Item(("a",), "b").content_hash() != Item(("a",), "c").content_hash() != Item(("a",)).content_hash()


def test_a_whole_file_has_no_span():
    assert Media("audio", b"", "a.flac").span == {}
    assert Media("audio", b"", "a.flac", 0.0, 2.0).span == {"end": 2.0}
    assert Media("video", b"", "a.mp4", 1.0).span == {"start": 1.0}
    assert Media("document", b"", "a.pdf", page=1).span == {"page": 1}


def test_links_and_pipes_are_no_way_out(tmp_path):
    """A link below the manifest to a file elsewhere, and something that would never end to be read."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    root = tmp_path / "data"
    root.mkdir()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(root / "pipe.png")
    for name, message in (("link.png", "stay inside"), ("pipe.png", "must be files")):
        with pytest.raises(ValueError, match=message):
            parse_pair({**LINE, "query": {"image": name}}, root)


def test_a_suffix_is_that_of_the_file_and_not_of_its_folder():
    assert Media("image", b"", "photos.v2/cat").suffix == ""
    assert Media("image", b"", "photos.v2/cat.JPG").suffix == "jpg"


def test_pages_and_spans_of_one_file_are_contents_of_their_own():
    """Else they would not be each other's negatives, and one entry of a corpus."""
    spans = [{}, {"page": 1}, {"page": 2}, {"start": 1.0}, {"end": 1.0}, {"start": 1.0, "end": 2.0}]
    assert len({Item((Media("document", b"%PDF", "a.pdf", **span),)).content_hash() for span in spans}) == len(spans)


HALVES = [json.loads(text) for text in ('"cut \\ud83d here"', '"\\ude00"', '"\\ude00\\ud83d"', '"a\\udcff"')]


@pytest.mark.parametrize("text", HALVES)
def test_half_a_character_is_refused_wherever_text_enters(text, tmp_path):
    for change in (
        {"query": {"text": text}},
        {"query": {"text": ["whole", text]}},
        {"query": {"text": "whole", "instruction": text}},
        {"negatives": [{"text": text}]},
        {"reasoning": text},
    ):
        with pytest.raises(ValueError, match=r"must be whole characters, got half of one .* at \d"):
            parse_pair({**LINE, **change}, tmp_path)
    with pytest.raises(ValueError, match="must be whole characters"):
        parse_side({"key": "k", "text": text}, "query", tmp_path)
    with pytest.raises(ValueError, match="must be whole characters"):
        Item(("whole",), text)


def test_the_place_of_half_a_character_is_told_and_the_remedy_works():
    text = "x" * 500 + "\ud83d" + "y" * 500
    with pytest.raises(ValueError, match=rf"at 500: '{'x' * 20}\\ud83d{'y' * 19}'\. Cut texts") as told:
        check_text(text)
    assert 'drop it: text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore").' in str(told.value)
    assert text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore") == "x" * 500 + "y" * 500
    assert "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16", "ignore") == "\U0001f600"


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Cs", "Cc"))))
def test_a_text_is_taken_exactly_if_utf_8_can_hold_it(text):
    whole = not any("\ud800" <= character <= "\udfff" for character in text)
    if not text.strip():
        return
    if whole:
        assert Item((text,)).content_hash() != Item((text + "x",)).content_hash()
    else:
        with pytest.raises(ValueError, match="whole characters"):
            Item((text,))


@pytest.mark.parametrize("part", [None, 3, b"bytes", ["a"]])
def test_a_part_is_text_or_a_medium(part):
    with pytest.raises(ValueError, match="parts must be strings or Media, got"):
        Item(("words", part))
