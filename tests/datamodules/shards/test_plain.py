"""Plain WebDataset shards by an index: the samples that the webdataset library reads, whatever wrote the tar file."""

import io
import os
import tarfile
from pathlib import Path

import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from datamodules import WebDataset
from datamodules.shards import negatives, scanned
from datamodules.shards.plain import PlainReader, open_pairs
from datamodules.shards.remote import ShardCache
from datamodules.shards.scan import FAULT, Header, scan
from samples import flac, png

LONG = "folder/" * 20 + "x" * 120
MEMBERS = [("a.png", b"A"), ("a.txt", b"first"), ("b.png", b"B" * 600), ("b.txt", b"second")]
TARS = {
    "ustar": (tarfile.USTAR_FORMAT, MEMBERS),
    "GNU long names": (tarfile.GNU_FORMAT, [(f"{LONG}{name}", data) for name, data in MEMBERS]),
    "PAX long names": (tarfile.PAX_FORMAT, [(f"{LONG}{name}", data) for name, data in MEMBERS]),
    "PAX of letters": (tarfile.PAX_FORMAT, [(f"été/{name}", data) for name, data in MEMBERS]),
    "prefix of ustar": (tarfile.USTAR_FORMAT, [(f"{'folder/' * 20}{name}", data) for name, data in MEMBERS]),
    "upper-case suffixes": (tarfile.PAX_FORMAT, [(name.replace("png", "PNG"), data) for name, data in MEMBERS]),
    "dotted suffixes": (tarfile.PAX_FORMAT, [(name.replace(".", ".Query."), data) for name, data in MEMBERS]),
    "folders with dots": (tarfile.PAX_FORMAT, [(f"./v1.0/{name}", data) for name, data in MEMBERS]),
    "empty members": (tarfile.PAX_FORMAT, [*MEMBERS, ("c.png", b""), ("c.txt", b"")]),
    "notes and hidden files": (
        tarfile.PAX_FORMAT,
        [("__meta__", b"x"), ("__info__/a.txt", b"x"), ("README", b"x"), (".hidden", b"x"), ("._a.png", b"x"), *MEMBERS],
    ),
}


def write_tar(path, members, format=tarfile.PAX_FORMAT, **fields):
    with tarfile.open(path, "w", format=format, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return path


def ours(path):
    """Samples as bytes, read at the places that the scan found."""
    data = path.read_bytes()
    found = scan(path, path.name)
    return {key: {name: data[at : at + size] for name, (at, size, _) in members.items()} for key, members in found.items()}


def theirs(path):
    with path.open("rb") as stream:
        samples = list(group_by_keys(tar_file_expander([{"url": path.name, "stream": stream}])))
    return {sample["__key__"]: {name: value for name, value in sample.items() if name[:2] != "__"} for sample in samples}


def reader(tmp_path, urls, **options):
    return PlainReader(WebDataset(urls, **options), ShardCache(tmp_path / "cache", 2**30))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("kind", TARS)
def test_samples_are_those_of_webdataset(tmp_path, kind):
    format, members = TARS[kind]
    path = write_tar(tmp_path / "a.tar", members, format, mtime=1.5)
    assert ours(path) == theirs(path)
    assert len(ours(path)) >= 2


@settings(max_examples=30)
@given(st.data())
def test_headers_are_those_of_tarfile(data):
    """The short way beside the whole one, on headers of any kind, sound or damaged."""
    text = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=90)
    info = tarfile.TarInfo(data.draw(text))
    info.size = data.draw(st.one_of(st.integers(0, 2**33 - 1), st.integers(2**33, 2**40)))
    info.type = data.draw(st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.XHDTYPE]))
    formats = [tarfile.GNU_FORMAT] + [tarfile.USTAR_FORMAT] * (info.size < 2**33)
    header = bytearray(info.tobuf(data.draw(st.sampled_from(formats))))
    if data.draw(st.booleans()):
        header[data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    found = []
    for kind in (Header, tarfile.TarInfo):
        try:
            made = kind.frombuf(bytes(header), "utf-8", "surrogateescape")
            found.append((made.name, made.size, made.type))
        except tarfile.HeaderError as error:
            found.append(type(error))
    assert found[0] == found[1]


def test_members_that_are_not_adjacent_are_one_sample(tmp_path):
    """WebDataset makes half samples of them."""
    mixed = write_tar(tmp_path / "mixed.tar", sorted(MEMBERS, key=lambda member: member[0][2:]))
    assert ours(mixed) == theirs(write_tar(tmp_path / "sorted.tar", MEMBERS)) != theirs(mixed)


def test_folders_and_links_are_no_members(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d.png", tarfile.DIRTYPE), ("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.png"
            tar.addfile(info)
        for name, data in MEMBERS:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert ours(path) == theirs(path)
    assert set(ours(path)) == {"a", "b"}


def faults(path):
    """Reasons by key."""
    found = {key: next(iter(members), "") for key, members in scan(path, path.name).items()}
    return {key: name.removeprefix(FAULT) for key, name in found.items() if name.startswith(FAULT)}


def test_a_member_that_stands_twice_makes_its_sample_invalid(tmp_path):
    path = write_tar(tmp_path / "a.tar", [*MEMBERS, ("a.PNG", b"other"), ("a.json", b"{}")])
    assert faults(path) == {"a": "member 'png' stands twice"}
    with pytest.raises(ValueError, match="duplicate"):
        theirs(write_tar(tmp_path / "b.tar", [*MEMBERS[:2], ("a.PNG", b"other")]))


def test_a_name_that_is_no_utf_8_is_escaped(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("caf\udce9.png", b"A"), ("caf\udce9.txt", b"B")], tarfile.GNU_FORMAT)
    assert ours(path) == {r"caf\xe9": {"png": b"A", "txt": b"B"}}
    assert reader(tmp_path, str(path), query="png").read(0).key == r"caf\xe9"


def test_a_sparse_file_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.png", "GNU.sparse.realsize": "3"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("GNUSparseFile.0/a.png")
        info.pax_headers = pax
        data = b"1\n0\n3\n".ljust(512, b"\0") + b"abc"
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    assert faults(path) == {"a": "it is a sparse file"}


@pytest.mark.parametrize(("keep", "reason"), [(0.5, "the shard is cut"), (0.62, "the shard is cut")])
def test_a_cut_shard_keeps_its_whole_samples_and_says_so(tmp_path, keep, reason):
    path = write_tar(tmp_path / "a.tar", [(f"{row:03d}.{suffix}", b"x" * 3000) for row in range(20) for suffix in ("png", "txt")])
    whole = ours(path)
    os.truncate(path, int(path.stat().st_size * keep))
    found = ours(path)
    assert reason in faults(path)["end of a.tar"]
    kept = {key: members for key, members in found.items() if key in whole}
    assert 8 <= len(kept) <= 14
    assert all(members.items() <= whole[key].items() for key, members in kept.items())


def test_a_shard_that_is_cut_anywhere_is_never_taken_for_whole(tmp_path):
    """At the end of a member, in a header, in the zeros behind: tarfile itself notices half of them."""
    path = write_tar(tmp_path / "a.tar", MEMBERS, tarfile.PAX_FORMAT, mtime=0.5)
    data = path.read_bytes()
    end = -(-len(data.rstrip(b"\0")) // 512) * 512  # of the last member, zeros behind it included
    for size in sorted({*range(1, end, 97), *range(512, end + 1, 512), end + 511}):
        path.write_bytes(data[:size])
        assert "end of a.tar" in faults(path), size


@pytest.mark.parametrize("damage", ["garbage", "another tar"])
def test_what_follows_the_end_is_reported(tmp_path, damage):
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    path.write_bytes(path.read_bytes() + (b"x" * 512 if damage == "garbage" else path.read_bytes()))
    assert "something else" in faults(path)["end of a.tar"]
    assert len(ours(path)) == 3


def test_a_damaged_header_is_reported(tmp_path):
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    data = bytearray(path.read_bytes())
    data[2 * 1024 + 20] ^= 255  # the third of four headers
    path.write_bytes(data)
    assert ours(path).keys() == {"a", "end of a.tar"}


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_shard_is_refused_with_a_remedy(tmp_path, mode):
    path = tmp_path / "a.tar"
    with tarfile.open(path, mode) as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(ValueError, match=r"must be a plain tar.*index: false"):
        reader(tmp_path, str(path))


def write_shards(root, shards=2, rows=4, **members):
    """Shards as the library's own writer makes them; the same keys in each."""
    root.mkdir(parents=True, exist_ok=True)
    with wds.ShardWriter(str(root / "%05d.tar"), maxcount=rows, verbose=0) as writer:
        for number in range(shards * rows):
            sample = {"__key__": f"{number % rows:04d}", "png": png(), "txt": f" shape {number} \n"}
            writer.write(sample | {name: made(number) for name, made in members.items()})
    return root


def test_pairs_are_made_of_the_members_that_are_named(tmp_path):
    record = lambda n: {"caption": f"c{n}", "meta": {"all": [f"m{n}", "x"]}}  # noqa: E731
    root = write_shards(tmp_path / "set", json=record, cls=lambda n: n)
    urls = f"{root}/{{00000..00001}}.tar"
    target, negatives = {"text": "json:meta.all[0]", "image": "png"}, ["cls"]
    shards = reader(tmp_path, urls, query="jpg;png", target=target, negatives=negatives)
    pair = shards.read(5)
    assert (pair.key, pair.task, pair.modality) == ("00001/0001", "set", "image")
    assert pair.query.media[0].read() == png()
    assert pair.target.parts[0] == "m5"
    assert pair.target.parts[1].read() == png()
    assert [item.parts for item in pair.negatives] == [("5",)]
    plain = reader(tmp_path, urls, target="json:caption", instruction="Find it.", task="t").read(2)
    assert (plain.target.parts, plain.query.instruction, plain.task) == (("c2",), "Find it.", "t")
    text = reader(tmp_path, urls, query="txt", target="json:caption").read(3)
    assert (text.modality, text.query.parts) == ("text", ("shape 3",))


def test_urls_are_paths_patterns_folders_braces_and_lists(tmp_path):
    root = write_shards(tmp_path / "set")
    every = [f"{root}/00000.tar", f"{root}/00001.tar"]
    for urls in (f"{root}/{{00000..00001}}.tar", f"{root}/*.tar", str(root), every, [f"{root}/00000.tar", f"{root}/*1.tar"]):
        assert WebDataset(urls).shards() == every
    for urls, message in {
        f"{root}/{{00000..00002}}.tar": r"00002\.tar is none",
        f"{root}/*.tgz": r"\*\.tgz is none",
        str(tmp_path): r"\*\.tar is none",
        "pipe:cat a.tar": "is none",
        "file:///a.tar": "must be a URL of https",
        "pipe:curl https://a.b/c.tar": "must be a URL of https",
    }.items():
        with pytest.raises(ValueError, match=message):
            WebDataset(urls).shards()
    with pytest.raises(ValueError, match="twice"):
        WebDataset([*every, every[0]]).shards()
    with pytest.raises(ValueError, match="all here or all remote"):
        WebDataset([every[0], "https://a.b/c.tar"]).shards()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": "json:"}, "must be a suffix"),
        ({"query": "json:a[*].b"}, "must be a suffix"),
        ({"query": "bin"}, r"must tell its modality, got 'bin'. Write \{image: bin\}"),
        ({"query": "json"}, r"got 'json' \(json:caption for a text in it\)"),
        ({"query": "jpg;mp4"}, "of one modality"),
        ({"query": {"picture": "jpg"}}, "must be among"),
        ({"query": {"image": "json:url"}}, "must be a text"),
        ({"query": {}}, "must have a member"),
        ({"query": "json:a[*]", "target": "json:b[*]"}, "One part"),
        ({"task": "a.b"}, "task must be"),
        ({"target": "json:a[*]", "captions": "all", "index": False}, "needs an index"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        WebDataset("nowhere.tar", **options)


def test_keys_are_those_of_the_shards_where_they_are_unique(tmp_path):
    for name in "xy":
        (tmp_path / name).mkdir()
    paths = [str(write_tar(tmp_path / name / "a.tar", MEMBERS)) for name in "xy"]
    keys = [reader(tmp_path, urls, query="png").samples.key(0) for urls in (paths[0], paths)]
    assert keys == ["a", "x-a/a"]


def test_samples_without_a_member_are_listed_and_none_at_all_is_refused(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", [*MEMBERS, ("c.png", b"C"), ("d.txt", b" ")])
    shards = open_pairs(WebDataset(str(path), query="png"), ShardCache(tmp_path / "cache", 2**30))
    assert "2 of 4 samples" in caplog.text
    found = list(shards.each(range(4)))
    assert [getattr(pair, "key", None) for pair in found] == ["a", "b", None, None]
    assert "member 'txt' is missing, the sample has ['png']" in str(found[2])
    with pytest.raises(ValueError, match=r"at least 1 sample.*'mp4' is missing, the sample has \['png', 'txt'\]"):
        reader(tmp_path, str(path), query="mp4")


def test_a_negative_that_no_sample_has_is_refused(tmp_path):
    """In silence it would train without the negatives that were asked for."""
    record = lambda n: {"wrong": [f"w{n}"] * (n == 5), "n": n} | ({"rare": "r"} if n == 6 else {})  # noqa: E731
    root = write_shards(tmp_path / "set", json=record)
    for negative in ("other.txt", "json:other", {"image": "png", "text": "json:other"}, "bmp;gif", "json:wrong[3]"):
        with pytest.raises(
            ValueError, match=r"negatives must name members that some sample has, got .* none of the 8 samples of"
        ):
            reader(tmp_path, str(root), negatives=[negative if isinstance(negative, dict) else {"text": negative}])
    shards = reader(tmp_path, str(root), negatives=["json:wrong[*]", "json:rare", {"text": "other.txt;json:rare"}])
    found = [[item.parts[0] for item in pair.negatives] for pair in shards.each(range(8))]
    assert found == [[], [], [], [], [], ["w5"], ["r", "r"], []]
    (invalid, *_) = reader(tmp_path, str(root), negatives=["json:n"]).each([0])
    assert "json:n must be text, got 0" in str(invalid)


def test_of_many_samples_some_are_looked_at_for_a_negative_in_json(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(negatives, "LOOKED_AT", 3)
    root = write_shards(tmp_path / "set", json=lambda n: {"rare": "r"} if n == 1 else {})
    shards = reader(tmp_path, str(root), negatives=["json:rare"])
    assert "none of 3 samples of" in caplog.text
    assert "that were looked at has the negative 'json:rare'" in caplog.text
    assert len(shards.read(1).negatives) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\xff", "utf-8"),
        (b" \n", "must hold text"),
        (b'{"a": 1}', "must be text, got 1"),
        (b"{", "truncated"),
        (b"{}", "has no 'a'"),
        (b'{"a": "b"}', "json:a[*] must be a list, got 'b'"),
    ],
)
def test_a_text_that_is_none_makes_its_sample_invalid(tmp_path, text, reason):
    name = "txt" if reason in ("utf-8", "must hold text") else "json"
    path = write_tar(tmp_path / "a.tar", [("a.png", b"A"), (f"a.{name}", text)])
    target = "txt" if name == "txt" else "json:a[*]" if "[*]" in reason else "json:a"
    (found,) = reader(tmp_path, str(path), query="png", target=target).each([0])
    assert isinstance(found, ValueError)
    assert reason in str(found)


def test_a_changed_shard_is_read_again_and_is_another_data_set(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    reads = []
    monkeypatch.setattr(scanned, "scan", lambda *args: reads.append(args) or scan(*args))
    before = [reader(tmp_path, str(path), query="png") for _ in range(2)]
    assert len(reads) == 1
    assert before[0].content_hash == before[1].content_hash
    write_tar(path, [*MEMBERS[:3], ("b.txt", b"SECOND")])
    after = reader(tmp_path, str(path), query="png")
    assert len(reads) == 2
    assert after.content_hash != before[0].content_hash
    assert after.read(1).target.parts == ("SECOND",)
    found = list(before[0].each([0, 1]))
    assert found[0].key == "a"
    assert "checksum differs" in str(found[1])


def test_other_members_are_another_data_set_without_another_pass(tmp_path):
    root = write_shards(tmp_path / "set")
    one, other = reader(tmp_path, str(root)), reader(tmp_path, str(root), query="txt", target="png")
    assert one.content_hash != other.content_hash
    assert one.content_hash == reader(tmp_path, [f"{root}/00000.tar", f"{root}/00001.tar"]).content_hash


def test_a_damaged_index_is_made_again(tmp_path):
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    before = reader(tmp_path, str(path), query="png").content_hash
    (index,) = (tmp_path / ".conan-index").iterdir()
    for damaged in (b"", index.read_bytes()[:300], index.read_bytes().replace(b"version", b"versiom")):
        index.write_bytes(damaged)
        assert reader(tmp_path, str(path), query="png").content_hash == before


def test_an_index_lies_in_the_cache_where_the_folder_cannot_be_written(tmp_path, monkeypatch):
    root = write_shards(tmp_path / "set")
    mkdir = Path.mkdir

    def denied(path, *args, **kwargs):
        if path.name == ".conan-index":
            raise PermissionError(13, "Permission denied", str(path))
        return mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", denied)
    reader(tmp_path, str(root))
    assert not (root / ".conan-index").exists()
    assert len(list((tmp_path / "cache" / "index").glob("*.arrow"))) == 2
    monkeypatch.setattr(scanned, "scan", lambda *_: pytest.fail("read again"))
    assert len(reader(tmp_path, str(root))) == 8


TEXTS = [f"{number}-{n}" for number, count in enumerate((1, 3, 2, 0) * 2) for n in range(count)]


def captioned(root, counts=(1, 3, 2, 0)):
    texts = lambda number: {"captions": [f"{number}-{n}" for n in range(counts[number % 4])]}  # noqa: E731
    return write_shards(root, json=texts)


def test_all_captions_make_pairs_of_their_own(tmp_path):
    shards = reader(tmp_path, str(captioned(tmp_path / "set")), target="json:captions[*]", captions="all")
    found = list(shards.each([*shards.tasks["image/set"]]))
    keys = [f"00000/000{key}" for key in ("0-0", "1-0", "1-1", "1-2", "2-0", "2-1")]
    assert [getattr(pair, "key", None) for pair in found[:7]] == [*keys, None]
    assert [pair.target.parts[0] for pair in found if not isinstance(pair, Exception)] == TEXTS
    assert "must hold a text for each pair, got 0" in str(found[6])


def test_one_caption_is_drawn_by_seed_and_epoch(tmp_path):
    shards = reader(tmp_path, str(captioned(tmp_path / "set")), target="json:captions[*]")
    epochs = [shards.drawn(0, epoch)["image/set"] for epoch in range(40)]
    assert epochs[3] == reader(tmp_path, str(tmp_path / "set"), target="json:captions[*]").drawn(0, 3)["image/set"]
    assert len({tuple(epoch) for epoch in epochs}) > 10
    assert tuple(shards.drawn(1, 3)["image/set"]) != tuple(epochs[3])
    for numbers in epochs:
        assert [shards.samples.key(number) for number in numbers] == [f"0000{s}/000{n}" for s in range(2) for n in range(4)]
    drawn = {number for numbers in epochs for number in numbers}
    assert {pair.target.parts[0] for pair in shards.each(sorted(drawn)) if not isinstance(pair, Exception)} == set(TEXTS)
    by_shard = shards.drawn_by_shard(0, 3)
    assert [number for part in by_shard for number in part] == list(epochs[3])
    assert [len(part) for part in by_shard] == [4, 4]
    assert [shards.read(number).target.parts[0] for number in list(shards.tasks["image/set"])[:3]] == ["0-0", "1-0", "2-0"]


def test_sound_and_its_captions(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    with wds.TarWriter(str(root / "a.tar")) as writer:
        writer.write({"__key__": "rain", "flac": flac(), "json": {"captions": ["rain", "drops"]}})
    pair = reader(tmp_path, str(root), query="wav;flac", target="json:captions[1]").read(0)
    assert (pair.modality, pair.target.parts, pair.query.media[0].suffix) == ("audio", ("drops",), "flac")
