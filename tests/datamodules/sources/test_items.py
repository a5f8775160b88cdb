import json
import os
import re
import socket
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import pypdfium2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.embed import EmbedData, ItemEncoder
from datamodules.loading.plan import Slot
from datamodules.sources.items import ItemList, unicode_key
from lightning_conan.items import Item
from samples import png


def reasons(items: ItemList) -> dict[str, str]:
    """Items that cannot be embedded, by key."""
    found = {}
    for number in range(len(items)):
        try:
            items.item(number)
        except ValueError as error:
            found[items.key(number)] = str(error)
    return found


def test_what_is_called_like_a_medium_and_is_no_file_is_listed(tmp_path):
    """Each with its reason, and nothing of it is opened: a pipe would wait for ever."""
    (tmp_path / "plain.txt").write_text("a bell")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    os.mkfifo(tmp_path / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "door.mp4"))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.pdf").mkdir()
    (tmp_path / "notes.pdf" / "readme.md").write_text("x")
    (tmp_path / "clip.mp4").mkdir()
    (tmp_path / "clip.mp4" / "0001.png").write_bytes(png())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "album").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "deep" / "gone").mkdir(parents=True)
    (tmp_path / "deep" / "gone" / "a.flac").symlink_to(tmp_path / "nothing.flac")
    items = ItemList(tmp_path)
    found = reasons(items)
    assert {key for key, _ in items.entries} - set(found) == {"plain.txt", "clip.mp4/0001.png"}
    assert {key: re.sub(r"^'.*?' ", "", reason) for key, reason in found.items()} == {
        "gone.png": "cannot be read: No such file or directory, it is a link to 'nowhere.png'",
        "circle.jpg": "cannot be read: Too many levels of symbolic links, it is a link to 'circle.jpg'",
        "deep/gone/a.flac": f"cannot be read: No such file or directory, it is a link to '{tmp_path / 'nothing.flac'}'",
        "album": "is a link to a folder, which is not followed",
        **dict.fromkeys(["pipe.wav", "door.mp4", "folder.png", "notes.pdf"], "is no file, as media must be"),
    }
    assert all(reason.startswith(repr(key)) for key, reason in found.items())
    items.fingerprint()


def test_what_appears_or_goes_changes_the_fingerprint(tmp_path):
    """Also what cannot be read: it has a place among the rows, which a run that resumes must find as it was."""
    (tmp_path / "a.txt").write_text("x")
    seen = [ItemList(tmp_path).fingerprint()]
    (tmp_path / "b.png").symlink_to("nowhere.png")
    seen.append(ItemList(tmp_path).fingerprint())
    (tmp_path / "b.png").unlink()
    (tmp_path / "c.png").symlink_to("nowhere.png")
    seen.append(ItemList(tmp_path).fingerprint())
    (tmp_path / "c.png").unlink()
    assert ItemList(tmp_path).fingerprint() == seen[0]
    assert len(set(seen)) == 3


def test_a_link_to_a_file_is_that_file(tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "media" / "b.png").symlink_to(tmp_path / "a.png")
    items = ItemList(tmp_path / "media")
    assert items.item(0).media[0].read() == png()


def denied(function, *paths):
    """A function that may not touch some paths, as for a user who lacks the right to."""

    def called(path, *args, **options):
        if str(path) in map(str, paths):
            raise PermissionError(13, "Permission denied", str(path))
        return function(path, *args, **options)

    return called


def test_a_subfolder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a.png").write_bytes(png())
    (tmp_path / "b.txt").write_text("x")
    monkeypatch.setattr(os, "scandir", denied(os.scandir, tmp_path / "closed"))
    items = ItemList(tmp_path)
    assert [key for key, _ in items.entries] == ["b.txt", "closed"]
    assert reasons(items) == {"closed": "'closed' cannot be listed: Permission denied"}
    monkeypatch.setattr(os, "scandir", denied(os.scandir, tmp_path))
    with pytest.raises(ValueError, match="must be a folder that can be listed, got: Permission denied"):
        ItemList(tmp_path)


def test_files_that_may_not_be_read_are_listed_with_their_names(tmp_path, processor, monkeypatch):
    """Both in a folder that may be listed and not entered, and as files that alone are closed."""
    for name in ("a.png", "b.png", "c.pdf", "d.txt", "e.txt"):
        (tmp_path / name).write_bytes(png() if name.endswith("png") else b"words")
    monkeypatch.setattr(Path, "stat", denied(Path.stat, tmp_path / "a.png"))
    monkeypatch.setattr(Path, "open", denied(Path.open, *(tmp_path / name for name in ("b.png", "c.pdf", "d.txt"))))
    items = ItemList(tmp_path)
    items.fingerprint()
    batch = ItemEncoder(items, processor)(Slot("0", tuple(range(len(items)))))
    assert batch.keys == ["e.txt"]
    faults = [re.search(r'"key": "(.*?)".*Permission denied', fault)[1] for fault in batch.faults]
    assert faults == ["a.png", "b.png", "c.pdf#page=1", "d.txt"]


def test_a_file_that_goes_while_its_folder_is_read_is_listed(tmp_path, processor):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    items = ItemList(tmp_path)
    (tmp_path / "a.txt").unlink()
    items.fingerprint()
    batch = ItemEncoder(items, processor)(Slot("0", (0, 1)))
    assert batch.keys == ["b.txt"]
    assert "a.txt" in batch.faults[0]


NAME = st.binary(min_size=1, max_size=9).filter(lambda name: not set(name) & set(b"/\0\\") and not name.startswith(b"."))
SUFFIX = st.sampled_from([b".png", b".TXT", b".doc", b""])


@given(st.dictionaries(st.lists(NAME, min_size=1, max_size=3).map(b"/".join), SUFFIX, max_size=6))
@settings(max_examples=40)
def test_every_file_that_find_finds_is_an_entry_under_its_own_name(names):
    """Whatever bytes it is called by; the bytes can be had back from the key."""
    with tempfile.TemporaryDirectory() as root:
        for name, suffix in {**names, b"caf\xe9": b".png", b"a\nb\tc\x1b": b".txt"}.items():
            path = Path(root, os.fsdecode(name + suffix))
            if not path.is_dir() and not any(folder.is_file() for folder in path.parents):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
        command = ["find", root, "-type", "f", "(", "-iname", "*.png", "-o", "-iname", "*.txt", ")", "-printf", "%P\\0"]
        found = subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")[:-1]
        items = ItemList(Path(root))
        keys = [key for key, value in items.entries if isinstance(value, Path | Item)]
        back = [re.sub(rb"\\x([0-9a-f]{2})", lambda byte: bytes([int(byte[1], 16)]), key.encode()) for key in keys]
        assert Counter(back) == Counter(found)
        assert len(items.fingerprint()) == 64


def test_halves_of_characters_in_keys_are_escaped(tmp_path):
    assert unicode_key("a\udce9b\ud83d漢\n") == "a\\xe9b\\ud83d漢\n"
    (tmp_path / "m.jsonl").write_text('{"key": "a\\udce9", "text": "x"}\n{"key": "b\\ud83d", "text": "y"}\n')
    assert [key for key, _ in ItemList(tmp_path / "m.jsonl").entries] == ["a\\xe9", "b\\ud83d"]


def test_two_names_of_one_key_are_refused_by_name(tmp_path):
    (tmp_path / "caf\udce9.png").write_bytes(png())
    (tmp_path / "caf\\xe9.png").write_bytes(png())
    with pytest.raises(ValueError, match=r"Keys must be unique, 'caf.*' stands twice"):
        ItemList(tmp_path)


def test_suffixes_of_other_files_do_not_steer_the_terminal(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.p\x1b[2Jdf").write_text("x")
    ItemList(tmp_path)
    assert "1 .p\\x1b[2jdf" in caplog.text


@pytest.fixture
def ten(tmp_path):
    """Ten texts, and pairs whose sides differ in length."""
    pair = {"task": "t", "modality": "text"}
    lines = [pair | {"key": f"k{n}", "query": {"text": "q" * (n + 1)}, "target": {"text": "t" * (20 - n)}} for n in range(10)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "m.jsonl"


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_part_that_is_left_is_one_ranks(ten, world):
    data = EmbedData(ten, rows_per_part=3, batch_size=2)
    data.setup("predict")
    data.skip = {1}
    slots = [slot for rank in range(world) for slot in data.slots(rank, world)]
    assert sorted(number for slot in slots for number in slot.numbers) == [0, 1, 2, 6, 7, 8, 9]
    assert all(set(slot.numbers) <= set(data.numbers(int(slot.source))) and len(slot.numbers) <= 2 for slot in slots)
    ranks = [{slot.source for slot in data.slots(rank, world)} for rank in range(world)]
    assert sum(map(len, ranks)) == len(set().union(*ranks)) == 3


def test_items_of_like_size_share_a_batch(ten):
    """By the side that is embedded: of one the first items are the shortest, of the other the last."""
    for side, first in (("query", (0, 1)), ("target", (9, 8))):
        data = EmbedData(ten, side, rows_per_part=10, batch_size=2)
        data.setup("predict")
        assert data.slots(0, 1)[0].numbers == first


def test_the_fingerprint_is_of_side_size_and_time(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    path, seen = tmp_path / "a.txt", set()
    for text, time in (("one", 1), ("one", 2), ("more", 2)):
        path.write_text(text)
        os.utime(path, ns=(time, time))
        seen |= {ItemList(tmp_path, side).fingerprint() for side in ("query", "target")}
    assert len(seen) == 6


def test_each_page_of_a_pdf_is_an_item(tmp_path):
    pdf = pypdfium2.PdfDocument.new()
    for _ in range(3):
        pdf.new_page(50, 50)
    pdf.save(tmp_path / "caf\udce9.PDF")
    items = ItemList(tmp_path)
    assert [key for key, _ in items.entries] == [f"caf\\xe9.PDF#page={page}" for page in (1, 2, 3)]
    assert [items.item(number).media[0].page for number in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("side", ["query", "target"])
def test_the_processor_is_told_the_side_and_rows_their_kinds(tmp_path, processor, monkeypatch, side):
    (tmp_path / "a.png").write_bytes(png())
    lines = ['{"key": "a", "text": "x", "image": ["a.png", "a.png"]}', '{"key": "b"}']
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    told = []
    monkeypatch.setattr(type(processor), "__call__", lambda self, item, role: told.append(role) or item)
    batch = ItemEncoder(ItemList(tmp_path / "m.jsonl", side), processor)(Slot("7", (0, 1)))
    assert (told, batch.side, batch.part) == ([side], side, 7)
    assert (batch.keys, batch.rows, batch.modalities) == (["a"], [0], ["text+image"])
    assert json.loads(batch.faults[0])["key"] == "b"


@pytest.mark.parametrize("odd", [{"rows_per_part": 0}, {"batch_size": 0}, {"num_workers": -1}])
def test_numbers_that_make_no_sense_are_refused(tmp_path, odd):
    with pytest.raises(ValueError, match="must be positive and num_workers not negative"):
        EmbedData(tmp_path, **odd)
