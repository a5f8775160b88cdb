import json
import os
from pathlib import Path

import pytest
from disk import files_of

from datamodules.shards import tar
from datamodules.shards.read import ShardSet
from datamodules.shards.write import PROGRESS, write_resumable, write_shards
from lightning_conan.items import Item, Media, Pair
from lightning_conan.writer_lock import only_writer
from samples import png


def pairs(count=6):
    """Each about 7 kB in its shard."""
    return [Pair(f"k{n}", "t", "image", Item((Media("image", png(seed=n), "a.png"),)), Item((f"no {n}",))) for n in range(count)]


@pytest.mark.parametrize(("size", "name"), [(5000, "000000.tar"), (20, PROGRESS)])
def test_a_full_disk_names_what_could_not_be_written(tmp_path, size, name):
    said = rf"\.out\.partial/{name} could not be written .*too large"
    with only_writer(tmp_path / "out"), files_of(size), pytest.raises(OSError, match=said):
        write_resumable(lambda _: pairs(), tmp_path / "out", "what this is made of")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["index.parquet", "index.json", "quarantine.jsonl", PROGRESS])
def test_every_file_of_a_set_is_named_and_what_is_whole_is_kept(tmp_path, monkeypatch, name):
    """Whichever is the first that no longer fits."""

    def failing(file):
        if name in Path(f"/proc/self/fd/{file}").readlink().name:
            raise OSError(28, "No space left on device")

    twice = [*pairs(), pairs()[0]]
    with monkeypatch.context() as patch, pytest.raises(OSError, match=rf"{name} could not be written .*No space left on device"):
        write_resumable(lambda done: filling_up(patch, failing, twice[done:]), tmp_path / "out", "what", 2)
    assert (tmp_path / "out").exists() is False
    write_resumable(lambda done: twice[done:], tmp_path / "out", "what", 2)
    assert [sample.key for sample in ShardSet(tmp_path / "out").samples] == [f"k{n}" for n in range(6)]
    assert json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())["key"] == "k0"
    assert not list((tmp_path / "out").glob(".*"))


def filling_up(patch, failing, found):
    """Pairs, after the third of which the disk is full."""
    for number, pair in enumerate(found):
        if number == 3:
            patch.setattr(os, "fsync", failing)
        yield pair


def test_a_file_that_cannot_be_read_to_its_end_is_named(tmp_path, monkeypatch):
    """As on a disk that fails, whose error names none."""
    real = tar.encode_pair

    def failing(pair):
        if pair.key == "k1":
            raise OSError(5, "Input/output error")
        return real(pair)

    monkeypatch.setattr(tar, "encode_pair", failing)
    assert write_shards(pairs(3), tmp_path / "out")["quarantined"] == 1
    fault = json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())
    assert (fault["key"], fault["reason"]) == ("k1", "[Errno 5] Input/output error")
