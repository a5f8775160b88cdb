"""Training data of other libraries, as pairs: tar files, datasets' folders, JSONL of sentence-transformers and ms-swift."""

import json
import tarfile

import pytest
import webdataset as wds

from datamodules.shards.read import ShardSet
from datamodules.sources.layout import Layout, read_source
from datamodules.sources.manifest import Fault
from lightning_conan.cli.main import main
from samples import flac, png


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def read(source, **how):
    return list(read_source(source, Layout(**how)))


def sides(pair):
    """Each side as texts and the bytes of media."""
    return [[part if isinstance(part, str) else part.read() for part in item.parts] for _, item in pair.sides()]


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shards(root, suffix="tar", rows=3):
    """Two shards with the same keys."""
    root.mkdir()
    for shard in range(2):
        with wds.TarWriter(str(root / f"{shard:05d}.{suffix}"), compress=suffix.endswith("gz")) as writer:
            for row in range(rows):
                texts = [f"{shard}{row}{n}" for n in range(2)]
                writer.write({"__key__": f"v1.0/{row}", "png": png(), "txt": f"t{shard}{row}", "json": {"captions": texts}})
    return root


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_tar_files_of_samples(tmp_path, suffix):
    source = shards(tmp_path / "set", suffix) / f"{{00000..00001}}.{suffix}"
    found = read(source, layout="webdataset")
    assert [pair.key for pair in found] == [f"0000{shard}-v1-0-{row}" for shard in range(2) for row in range(3)]
    assert [sides(pair) for pair in found] == [[[png()], [f"t{shard}{row}"]] for shard in range(2) for row in range(3)]
    every = read(source, layout="webdataset", target={"text": "json:captions[*]"}, task="t")
    assert [pair.target.parts[0] for pair in every] == [f"{s}{r}{n}" for s in range(2) for r in range(3) for n in range(2)]
    assert every[3].key == "00000-v1-0-1-1"


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_cut_tar_file_is_a_fault(tmp_path, suffix):
    source = shards(tmp_path / "set", suffix, 90) / f"00000.{suffix}"
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 9 // 10])
    *found, last = read(source, layout="webdataset")
    assert isinstance(last, Fault)
    assert "the shard" in last.reason
    assert 10 < len(found) < 90


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_negative_that_no_sample_has_is_refused(tmp_path, suffix):
    source = shards(tmp_path / "set", suffix) / f"{{00000..00001}}.{suffix}"
    for name in ("wrong.txt", "json:wrong", "json:captions[2]"):
        with pytest.raises(ValueError, match=r"negatives must name members that some sample has, got .* none of the 6 samples"):
            read(source, layout="webdataset", negatives=[{"text": "json:captions[0]"}, {"text": name}])
    found = read(source, layout="webdataset", negatives=[{"text": "json:captions[*]"}])
    assert [len(pair.negatives) for pair in found] == [2] * 6


def test_one_reason_is_told_once(tmp_path, capsys, caplog):
    source = shards(tmp_path / "set")
    arguments = ["pack", str(source), "--read.layout", "webdataset", "--out", str(tmp_path / "packed")]
    assert main([*arguments, "--read.target", '{"text": "json:none"}']) == 1
    told = capsys.readouterr().err
    assert "got 0 and 6 invalid ones. " in told
    assert told.count("has no 'none' (6 times).") == told.count("has no 'none'") == 1
    with tarfile.open(source / "00001.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("alone.txt"))
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "1 quarantined" in out
    assert "quarantine.jsonl" in err
    assert (out + err + caplog.text).count("member 'jpg'") == 0  # it stands in the quarantine


def test_shards_are_packed_from_the_command_line(tmp_path, capsys):
    shards(tmp_path / "set")
    with tarfile.open(tmp_path / "set" / "00001.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("alone.txt"))
    arguments = ["--read.layout", "webdataset", "--out", str(tmp_path / "packed")]
    assert main(["pack", str(tmp_path / "set"), *arguments]) == 0
    packed = ShardSet(tmp_path / "packed")
    assert len(packed) == 6
    assert (packed.read(4).target.parts, packed.read(4).query.media[0].suffix) == (("t11",), "png")
    assert "1 quarantined" in capsys.readouterr().out
    assert main(["pack", str(tmp_path / "{0..1}.tar"), *arguments[:3], str(tmp_path / "other")]) != 0
    assert "0.tar is none" in capsys.readouterr().err


ROWS = {"picture": [png(), png(20, 20)], "captions": [["a", "b"], ["c"]], "title": ["one", "two"], "number": [5, 6]}


def hugging_face(kind, root):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        picture=datasets.Image(), captions=datasets.List(datasets.Value("string")), title=datasets.Value("string"),
        number=datasets.Value("int64"),
    )  # fmt: skip
    rows = ROWS | {"picture": [{"bytes": data, "path": "a.png"} for data in ROWS["picture"]]}
    made = datasets.Dataset.from_dict(rows, features=features)
    if kind == "folder":
        made.save_to_disk(str(root), num_shards=2)
    elif kind == "splits":
        datasets.DatasetDict(train=made, test=made.select([1])).save_to_disk(str(root))
    else:
        (root / "data").mkdir(parents=True)
        for name, part in (("train-00000-of-00002", [0]), ("train-00001-of-00002", [1]), ("test-00000-of-00001", [1])):
            made.select(part).to_parquet(root / "data" / f"{name}.parquet")
    return root


COLUMNS = {"layout": "datasets", "query": {"image": "picture"}, "target": {"text": "captions[*]"}}


@pytest.mark.parametrize("kind", ["folder", "splits", "parquet"])
def test_what_the_datasets_library_wrote(tmp_path, kind):
    root = hugging_face(kind, tmp_path / "set")
    split = {} if kind == "folder" else {"split": "train"}
    found = read(root, **COLUMNS, negatives=[{"text": "title"}], **split)
    assert [pair.key for pair in found] == ["00000000-0", "00000000-1", "00000001-0"]
    first, second = ROWS["picture"]
    assert [sides(pair) for pair in found] == [
        [[first], ["a"], ["one"]],
        [[first], ["b"], ["one"]],
        [[second], ["c"], ["two"]],
    ]
    if split:
        with pytest.raises(ValueError, match=r"splits \['train', 'test'\]|Parquet of one split, got \['test', 'train'\]"):
            read(root, **COLUMNS)


def test_a_data_set_without_a_column_or_of_another_kind_is_refused(tmp_path):
    root = hugging_face("folder", tmp_path / "set")
    with pytest.raises(ValueError, match="'caption' is asked for"):
        read(root, layout="datasets", query={"image": "picture"}, target={"text": "caption"})
    with pytest.raises(ValueError, match="must hold lists"):
        read(root, layout="datasets", query={"image": "picture"}, target={"text": "title[*]"})
    with pytest.raises(ValueError, match="needs columns for both sides"):
        Layout("datasets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold Arrow of save_to_disk"):
        read(tmp_path / "empty", **COLUMNS)


def test_sound_of_the_datasets_library(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"audio": {"bytes": flac(), "path": "a.flac"}, "caption": "a tone"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000-of-00001.parquet")
    (pair,) = read(tmp_path, layout="datasets", query={"audio": "audio"}, target={"text": "caption"})
    assert (pair.modality, pair.query.media[0].suffix, sides(pair)) == ("audio", "flac", [[flac()], ["a tone"]])


def test_columns_of_sentence_transformers(tmp_path):
    (tmp_path / "a b.png").write_bytes(png())
    path = jsonl(
        tmp_path / "my pairs.jsonl",
        {"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": "m"},
        ["q", "p"],
        {"text": "what is e.g. a logo.png like?", "picture": "a b.png"},
        {"id": 7, "query": {"text": "blue", "image": "a b.png"}, "answer": "yes"},
    )
    triple, plain, picture, mixed = read(path, layout="sentence_transformers")
    assert sides(triple) == [["q"], ["p"], ["n"], ["m"]]
    assert sides(plain) == [["q"], ["p"]]
    assert (picture.modality, sides(picture)) == ("image", [["what is e.g. a logo.png like?"], [png()]])
    assert (mixed.key, mixed.task, sides(mixed)) == ("00000003", "my-pairs", [["blue", png()], ["yes"]])


def test_rows_of_flag_embedding(tmp_path):
    row = {"pos": ["p", "r"], "neg": ["n", "m"], "query": "q", "prompt": "Find it.", "pos_scores": [1, 2], "type": "x"}
    found = read(jsonl(tmp_path / "a.jsonl", row, {"query": "q", "pos": []}), layout="sentence_transformers")
    assert [pair.key for pair in found] == ["00000000-0", "00000000-1"]
    assert [sides(pair) for pair in found] == [[["q"], [target], ["n"], ["m"]] for target in "pr"]
    assert found[0].query.instruction == "Find it."


@pytest.mark.parametrize("layout", ["sentence_transformers", "swift"])
def test_pairs_with_scores_are_refused(tmp_path, layout):
    row = {"sentence1": "a", "sentence2": "b", "label": 0.5}
    with pytest.raises(ValueError, match=r"a\.jsonl:1 has 'label'"):
        read(jsonl(tmp_path / "a.jsonl", row), layout=layout)


def test_a_row_without_a_positive_is_a_fault(tmp_path):
    one, other = read(
        jsonl(tmp_path / "a.jsonl", {"anchor": "q"}, {"anchor": "q", "positive": None}), layout="sentence_transformers"
    )
    assert "needs an anchor and a positive" in one.reason
    assert "must hold text" in other.reason


def user(text):
    return [{"role": "user", "content": text}]


def test_messages_of_swift(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png(20 if name == "a" else 30))
    a, b = (tmp_path / f"{name}.png" for name in "ab")
    path = jsonl(
        tmp_path / "a.jsonl",
        {
            "messages": [{"role": "system", "content": "Find it."}, *user("before <image> after")],
            "images": ["a.png"],
            "positive_messages": [user("<image>"), user("red")],
            "positive_images": [["b.png"], []],
            "negative_messages": [user("<image>x"), user("y")],
            "negative_images": [["a.png"], []],
        },
        {"query": "<image>q", "response": "r", "rejected_response": ["<image>", "s"], "images": ["a.png", "b.png"]},
    )
    first, second, third = read(path, layout="swift")
    wrong = [[a.read_bytes(), "x"], ["y"]]
    assert sides(first) == [["before", a.read_bytes(), "after"], [b.read_bytes()], *wrong]
    assert sides(second) == [["before", a.read_bytes(), "after"], ["red"], *wrong]
    assert (first.query.instruction, first.modality, first.key) == ("Find it.", "image", "00000000-0")
    assert sides(third) == [[a.read_bytes(), "q"], ["r"], [b.read_bytes()], ["s"]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": user("<image>"), "positive_messages": [user("x")]}, "images has no more"),
        ({"messages": [*user("a"), *user("b")], "positive_messages": [user("x")]}, "one message of text"),
        ({"messages": user("a"), "positive_messages": [user("x")], "positive_images": [[], []]}, "a list for each of 1"),
        ({"messages": user("a"), "positive_messages": [user("<image>")], "positive_images": [["../x.png"]]}, "stay inside"),
        ({"messages": user("a")}, "must have messages and positive_messages"),
    ],
)
def test_messages_that_are_no_pair_are_faults(tmp_path, row, reason):
    (fault,) = read(jsonl(tmp_path / "a.jsonl", row), layout="swift")
    assert isinstance(fault, Fault)
    assert reason in fault.reason
