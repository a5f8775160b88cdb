import hashlib
import json
import pickle
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.loading.plan import Slot
from datamodules.loading.stream import Encoder
from datamodules.shards.index import SCHEMA, Index, IndexedShard, Sample, Samples, content_hash, write_samples
from datamodules.shards.indexed import opened_files
from datamodules.shards.read import ShardSet
from datamodules.shards.records import decode_pair
from datamodules.shards.remote import UnreachableError
from datamodules.shards.write import write_shards
from datamodules.sources.manifest import Fault
from lightning_conan.items import Item, Media, Pair
from samples import mp4, png


def pairs(count: int = 5) -> list[Pair]:
    found = []
    for row in range(count):
        image, other = Media("image", png(seed=row), "a.PNG"), Media("image", png(seed=row + 100), "b.jpg")
        video = Media("video", mp4(), "v.mp4", start=0.5, end=1.5)
        query = Item((image, "then", other, video), "Find it.")
        negatives = tuple(Item((f"negative {row} {number}",)) for number in range(row % 3))
        found.append(Pair(f"key-{row}", f"task{row % 2}", "image", query, Item((f"caption {row}",)), negatives))
    return found


def same(one: Pair, other: Pair) -> bool:
    sides = zip(one.sides(), other.sides(), strict=True)
    return (one.key, one.task, one.modality) == (other.key, other.task, other.modality) and all(
        a == b and x.content_hash() == y.content_hash() and x.instruction == y.instruction for (a, x), (b, y) in sides
    )


def test_pairs_come_back_whole(tmp_path):
    summary = write_shards(pairs(), tmp_path / "set", pairs_per_shard=2)
    shards = ShardSet(tmp_path / "set")
    assert len(list((tmp_path / "set").glob("*.tar"))) == 3
    assert all(same(shards.read(row), pair) for row, pair in enumerate(pairs()))
    assert summary["tasks"] == {"task0": 3, "task1": 2}
    assert {name: list(numbers) for name, numbers in shards.tasks.items()} == {"image/task0": [0, 2, 4], "image/task1": [1, 3]}


def test_webdataset_reads_the_same(tmp_path):
    """The index is a shortcut: plain WebDataset sees the same samples."""
    write_shards(pairs(), tmp_path / "set", pairs_per_shard=2)
    urls = [str(path) for path in sorted((tmp_path / "set").glob("*.tar"))]
    samples = wds.WebDataset(urls, shardshuffle=False)
    found = [decode_pair({name: data for name, data in sample.items() if not name.startswith("__")}) for sample in samples]
    assert all(same(*both) for both in zip(found, pairs(), strict=True))


def test_the_same_pairs_give_the_same_bytes(tmp_path):
    one, other = (write_shards(pairs(), tmp_path / name)["content_hash"] for name in "ab")
    assert one == other
    assert write_shards(pairs(4), tmp_path / "c")["content_hash"] != one


def test_a_missing_file_is_quarantined_and_listed(tmp_path):
    lost = Pair("lost", "t", "image", Item((Media("image", tmp_path / "no.png", "no.png"),)), Item(("x",)))
    summary = write_shards([*pairs(2), lost, Fault("m:9", "k", "sample", "bad line")], tmp_path / "set")
    assert (summary["pairs"], summary["quarantined"]) == (2, 2)
    listed = [json.loads(line) for line in (tmp_path / "set" / "quarantine.jsonl").read_text().splitlines()]
    assert {entry["key"] for entry in listed} == {"lost", "k"}


def test_nothing_to_pack_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"at least 1 pair to pack, got 0 and 1 invalid.*bad line"):
        write_shards([Fault("m:1", "", "sample", "bad line")], tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_never_overwrites(tmp_path):
    write_shards(pairs(), tmp_path / "set")
    with pytest.raises(ValueError, match="exists already"):
        write_shards(pairs(), tmp_path / "set")


def test_missing_and_cut_shards_are_refused(tmp_path):
    write_shards(pairs(), tmp_path / "set", pairs_per_shard=2)
    path = tmp_path / "set" / "000001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-512])
    with pytest.raises(ValueError, match=r"000001\.tar must have \d+ bytes, got"):
        ShardSet(tmp_path / "set")
    path.unlink()
    with pytest.raises(ValueError, match=r"the shard 000001\.tar is missing"):
        ShardSet(tmp_path / "set")
    with pytest.raises(ValueError, match="is not a packed data set"):
        ShardSet(tmp_path)


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path, processor):
    """In the record, where JSON would take another letter, and in a JPEG, whose decoder would draw something."""
    many = [Pair(f"k{n}", "t", "image", Item((Media("image", png(format="JPEG"), "a.jpg"),)), Item(("red",))) for n in range(3)]
    write_shards(many, tmp_path / "set")
    path = tmp_path / "set" / "000000.tar"
    places = ShardSet(tmp_path / "set").samples[1].members
    whole = path.read_bytes()
    for name in places:
        offset, size, _ = places[name]
        place = whole.index(b"red", offset) if name == "json" else offset + size // 2
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        batch = Encoder({"a": ShardSet(tmp_path / "set")}, processor)(Slot("a", (0, 1, 2)))
        assert batch.keys == ["k0", "k2"]
        (fault,) = map(json.loads, batch.faults)
        assert fault["key"] == "k1"
        assert "its checksum differs" in fault["reason"]
    path.write_bytes(whole)
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    broken = {
        json.dumps(index | {"format": 1}): r"must have format 6, got 1\. Pack it again",
        json.dumps(index | {"shards": [{**index["shards"][0], "pairs": "7"}]}): r"Expected `int`, got `str` .*pairs",
        json.dumps(
            index | {"shards": [{**index["shards"][0], "pairs": 4}]}
        ): r"index\.parquet must be .*4 samples are in its shards, got 3",
        json.dumps(index | {"samples_sha256": "0" * 64}): r"index\.parquet is not what was packed",
        json.dumps(index)[:-40]: r"index\.json must be an index as `conan pack` writes it: Input data was truncated",
    }
    for text, message in broken.items():
        (tmp_path / "set" / "index.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            ShardSet(tmp_path / "set")
    (tmp_path / "set" / "index.json").write_text(json.dumps(index))
    ShardSet(tmp_path / "set")
    (tmp_path / "set" / "index.parquet").unlink()
    with pytest.raises(ValueError, match=r"incomplete: index\.parquet is missing"):
        ShardSet(tmp_path / "set")


def listed(table: pa.Table, path: Path) -> bytes:
    pq.write_table(table, path)
    return path.read_bytes()


def test_a_list_of_samples_that_its_shards_do_not_bear_out_is_refused(tmp_path):
    """Such as an offset or a size that a reader would take memory for."""
    write_shards(pairs(3), tmp_path / "set")
    table = pq.read_table(tmp_path / "set" / "index.parquet")
    (entry,) = msgspec.json.decode((tmp_path / "set" / "index.json").read_bytes(), type=Index).shards
    assert len(Samples(listed(table, tmp_path / "t"), [entry])) == 3
    for column, value in (("size", entry.bytes), ("size", 2**62), ("size", -1), ("offset", -1), ("offset", entry.bytes + 1)):
        odd = table.set_column(table.schema.get_field_index(column), SCHEMA.field(column), [changed(table[column], value)])
        with pytest.raises(ValueError, match="members lie within their shard"):
            Samples(listed(odd, tmp_path / "t"), [entry])
    less = pa.array([row.as_py()[1:] for row in table["checksum"]], SCHEMA.field("checksum").type)
    short = table.set_column(SCHEMA.get_field_index("checksum"), SCHEMA.field("checksum"), less)
    more = pa.array([f"{row}/more" for row in table["members"].to_pylist()], pa.string()).dictionary_encode()
    for odd, message in (
        (short, "an offset, a size and a checksum"),
        (
            table.set_column(table.schema.get_field_index("members"), SCHEMA.field("members"), more),
            "an offset, a size and a checksum",
        ),
        (table.drop_columns(["size"]), "the columns are .*'size'.*, got"),
        (table.slice(1), "3 samples are in its shards, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Samples(listed(odd, tmp_path / "t"), [entry])
    with pytest.raises(ValueError, match="magic bytes"):
        Samples(b"no Parquet at all", [entry])


def changed(column: pa.ChunkedArray, value: int) -> pa.Array:
    """The last number of its second row replaced."""
    rows = column.to_pylist()
    rows[1][-1] = value
    return pa.array(rows, column.type)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(1, 9))
@settings(max_examples=40)
def test_samples_come_back_from_their_columns(counts, group):
    """Whatever they hold, and however many shards, also of none, are written together."""
    rng = random.Random(f"{counts} {group}")
    shards, expected = [], []
    for number, count in enumerate(counts):
        samples = []
        for row in range(count):
            names = ["json", "query.image.jpg", "negative0.video.mp4"][: rng.randint(1, 3)]
            members = {name: (rng.randrange(1000), rng.randrange(1000), rng.randrange(2**64)) for name in names}
            task, modality = rng.choice("abc"), rng.choice(["image", "audio"])
            samples.append({"key": f"ü{number}-{row}", "task": task, "modality": modality, "members": members})
        shards.append((f"{number:06d}.tar", samples))
        expected += [Sample(shard=f"{number:06d}.tar", **sample) for sample in samples]
    entries = [IndexedShard(name, 2000, "0" * 64, len(samples)) for name, samples in shards]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodules.shards.index.GROUP", group)
        path = Path(folder) / "index.parquet"
        digest = write_samples(path, shards)
        data = path.read_bytes()
    assert digest == hashlib.sha256(data).hexdigest()
    if not expected:
        return  # such a set is not written
    found = Samples(data, entries)
    assert list(found) == expected
    tasks: dict[str, list[int]] = {}
    for number, sample in enumerate(expected):
        tasks.setdefault(f"{sample.modality}/{sample.task}", []).append(number)
    assert [(name, list(numbers)) for name, numbers in found.tasks().items()] == list(tasks.items())


def test_an_index_in_memory_is_small(tmp_path):
    """Ten million samples must fit into each rank."""
    members = {"json": (2**40, 500, 2**64 - 1), "query.image.jpg": (2**41, 10**6, 2**63)}
    rows = [{"key": f"sample-{row:08d}", "task": "t", "modality": "image", "members": members} for row in range(20_000)]
    write_samples(tmp_path / "index.parquet", [("000000.tar", rows)])
    data = (tmp_path / "index.parquet").read_bytes()
    found = Samples(data, [IndexedShard("000000.tar", 2**42, "0" * 64, len(rows))])
    held = found.rows.nbytes + found.places.nbytes + found.keys.nbytes
    assert held <= 120 * len(rows)
    assert len(pickle.dumps(found)) <= 1.1 * held  # there is nothing else


def test_few_shards_are_open_at_a_time_of_all_sets_together(tmp_path, monkeypatch):
    """A process may open some hundreds of files; what it cannot open would be taken for a broken sample."""
    monkeypatch.setattr("datamodules.shards.indexed.OPEN_FILES", 5)
    opened_files.clear()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in "abc":
        write_shards(pairs(8), tmp_path / name, pairs_per_shard=1)
    sets = [ShardSet(tmp_path / name) for name in "abc"]
    for _ in range(2):
        assert [shards.read(number).key for shards in sets for number in range(8)] == [pair.key for pair in pairs(8)] * 3
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 5
    kept = ShardSet(tmp_path / "a")
    kept.read(0)
    first = opened_files[kept.mark, "000000.tar"]
    for number in range(1, 8):
        kept.read(number)
        kept.read(0)
    assert opened_files[kept.mark, "000000.tar"] is first  # the one that is used most stays
    assert pickle.loads(pickle.dumps(kept)).read(3).key == pairs(8)[3].key


def test_python_ends_in_silence_with_shards_open(tmp_path):
    write_shards(pairs(1), tmp_path / "set")
    code = f"""import builtins
from pathlib import Path
from datamodules.shards import read
read.ShardSet(Path({str(tmp_path / "set")!r})).read(0)
builtins.kept = read.ShardSet  # what a library keeps outlives the names of this module, `os` among them"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Exception ignored" not in ended.stderr


def test_names_inside_a_shard_are_labels(tmp_path):
    write_shards(pairs(1), tmp_path / "set")
    with tarfile.open(tmp_path / "set" / "000000.tar") as tar:
        assert all(Path(name).name == name for name in tar.getnames())


def test_a_key_that_comes_twice_is_listed_and_never_lost(tmp_path):
    three = pairs(3)
    summary = write_shards([*three, three[1]], tmp_path / "set")
    assert (summary["pairs"], summary["quarantined"]) == (3, 1)
    assert "must be unique" in (tmp_path / "set" / "quarantine.jsonl").read_text()


def test_an_index_names_each_shard_once(tmp_path):
    write_shards(pairs(2), tmp_path / "set")
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    index["shards"] *= 2
    (tmp_path / "set" / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"must name each shard once, got 000000\.tar twice"):
        ShardSet(tmp_path / "set")


def test_an_index_names_shards_of_its_own_folder_only(tmp_path):
    write_shards(pairs(2), tmp_path / "set")
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    index["shards"][0]["file"] = "../secret.tar"
    (tmp_path / "set" / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="shards in its own folder"):
        ShardSet(tmp_path / "set")


def test_a_shard_that_cannot_be_opened_stops_the_run(tmp_path):
    """Its samples are not broken: without them the run would be another."""
    write_shards(pairs(4), tmp_path / "set", pairs_per_shard=2)
    shards = ShardSet(tmp_path / "set")
    (tmp_path / "set" / "000001.tar").rename(tmp_path / "away.tar")
    with pytest.raises(UnreachableError, match=r"000001\.tar cannot be opened \(No such file"):
        list(shards.each(range(4)))


def test_a_flipped_bit_of_an_index_is_told(tmp_path):
    """Wherever: what a run may go on with hangs on it."""
    write_shards(pairs(2), tmp_path / "set")
    path = tmp_path / "set" / "index.json"
    data = path.read_bytes()
    start = data.index(b"content_hash") + len(b'content_hash": "')
    for place, flip in ((start, 1), (start, 128), (data.index(b"sha256") + 10, 128)):
        path.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
        with pytest.raises(ValueError, match=r"index\.json .*(Copy or pack it|Pack it) again"):
            ShardSet(tmp_path / "set")


def test_a_set_is_told_by_its_shards_in_their_order():
    digests = ["a" * 64, "b" * 64]
    assert content_hash(digests) == hashlib.sha256("".join(digests).encode()).hexdigest() != content_hash(digests[::-1])


def test_a_list_of_samples_inflates_to_no_more_than_its_shards_bear_out(tmp_path):
    """Parquet of a few kilobytes may hold a key of 50 MB, or a list of a million places."""
    write_shards(pairs(3), tmp_path / "set")
    table = pq.read_table(tmp_path / "set" / "index.parquet")
    (entry,) = msgspec.json.decode((tmp_path / "set" / "index.json").read_bytes(), type=Index).shards
    blanks = pa.array([" " * 5 * 10**7, "b", "c"], SCHEMA.field("key").type)
    large = table.set_column(0, SCHEMA.field("key"), blanks)
    places = [pa.array([[0] * 10**6, [0], [0]], SCHEMA.field(name).type) for name in ("offset", "size", "checksum")]
    long = table
    for name, column in zip(("offset", "size", "checksum"), places, strict=True):
        long = long.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
    for odd, reason in ((large, "once inflated"), (long, "have room for")):
        pq.write_table(odd, tmp_path / "t", compression="zstd")
        data = (tmp_path / "t").read_bytes()
        assert len(data) < 50_000
        with pytest.raises(ValueError, match=reason):
            Samples(data, [entry])


@pytest.mark.parametrize("field", ["bytes", "pairs"])
@pytest.mark.parametrize("number", [-1, 2**63, 2**64])
def test_an_index_of_impossible_numbers_is_refused(tmp_path, field, number):
    write_shards(pairs(3), tmp_path / "set")
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    index["shards"][0][field] = number
    (tmp_path / "set" / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="must be an index as `conan pack` writes it"):
        ShardSet(tmp_path / "set")


def test_the_shard_that_was_unused_for_longest_is_closed_first(tmp_path, monkeypatch):
    write_shards(pairs(3), tmp_path / "set", 1)
    monkeypatch.setattr("datamodules.shards.indexed.OPEN_FILES", 2)
    opened_files.clear()
    shards = ShardSet(tmp_path / "set")
    for number in (0, 1, 0, 2):
        shards.read(number)
    assert [name for _, name in opened_files] == ["000000.tar", "000002.tar"]
