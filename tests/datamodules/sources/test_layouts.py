"""Miniatures in the publishers' layouts, with real media."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.shards.read import ShardSet
from datamodules.shards.write import write_shards
from datamodules.sources.layout import LAYOUTS, Layout, plain, read_source
from datamodules.sources.manifest import Fault
from lightning_conan.cli.main import main
from samples import flac, mp4, png


def write_csv(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def sides(pair):
    """Each side as text and names of media."""
    return [[part if isinstance(part, str) else part.name for part in item.parts] for _, item in pair.sides()]


def read(source, **how):
    found = list(read_source(source, Layout(**how)))
    assert not [entry for entry in found if isinstance(entry, Fault)]
    return found


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_a_table_of_paths(tmp_path, suffix, delimiter):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png())
    path = tmp_path / f"my data{suffix}"
    write_csv(path, [{"id": "x/1.b", "words": "a, cat", "file": "a.png", "split": s} for s in ("train", "test")], delimiter)
    columns = {"query": {"text": "words"}, "target": {"image": "file"}, "key": "id", "media": "pictures"}
    (pair,) = read(path, layout="table", split="train", **columns)
    assert (pair.key, pair.task, pair.modality) == ("x-1-b", "my-data", "image")
    assert sides(pair) == [["a, cat"], ["pictures/a.png"]]
    assert pair.target.media[0].read() == png()


def test_a_table_with_bytes_as_hugging_face_has_it(tmp_path):
    rows = [{"audio": {"bytes": flac(), "path": "a.flac"}, "caption": text} for text in ("a tone", None, "another")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "clips.parquet")
    how = Layout("table", query={"audio": "audio"}, target={"text": "caption"})
    first, fault, last = read_source(tmp_path / "clips.parquet", how)
    assert first.modality == last.modality == "audio"
    assert first.query.media[0].read() == flac()
    assert isinstance(fault, Fault)  # no text is no target, and nothing takes its place
    assert fault.where.endswith("clips.parquet:2")
    write_shards([first, fault, last], tmp_path / "packed")
    assert ShardSet(tmp_path / "packed").read(0).query.media[0].suffix == "flac"


def test_captions_below_a_closed_subfolder_are_a_fault(tmp_path, monkeypatch):
    """Neither what it holds nor what a dangling link or an odd name leads to vanishes."""
    for name in ("closed/a.png", "caf\udce9.png", "clip.mp4/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        (tmp_path / name).with_suffix(".txt").write_text("a bell")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "gone.txt").write_text("a bell")
    (tmp_path / "sub").symlink_to(tmp_path / "closed")
    real = os.scandir

    def denied(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    found = {entry.key: getattr(entry, "reason", "") for entry in read_source(tmp_path, Layout("captions"))}
    assert found == {
        "closed": "'closed' cannot be listed: Permission denied",
        "sub": "'sub' is a link to a folder, which is not followed",
        **dict.fromkeys(["caf", "clip-mp4-0", "gone"], ""),
    }


def test_media_with_captions_beside_them(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(png())
    (tmp_path / "sub" / "a.txt").write_text("noise\n")
    (tmp_path / "b.mp4").write_bytes(mp4())
    video, image = read_source(tmp_path, Layout("captions", task="mine"))
    assert isinstance(video, Fault)  # no caption
    assert (image.key, image.task, sides(image)) == ("sub-a", "mine", [["noise"], ["sub/a.png"]])


def test_clotho(tmp_path):
    (tmp_path / "development").mkdir()
    (tmp_path / "development" / "rain on roof.wav").write_bytes(flac())
    captions = {f"caption_{n}": f"rain {n}" for n in range(1, 6)}
    write_csv(tmp_path / "clotho_captions_development.csv", [{"file_name": "rain on roof.wav"} | captions])
    pairs = read(tmp_path / "clotho_captions_development.csv", layout="clotho", media="development")
    assert [pair.key for pair in pairs] == [f"rain-on-roof-wav-{n}" for n in range(1, 6)]
    assert sides(pairs[4]) == [["development/rain on roof.wav"], ["rain 5"]]


def test_audiocaps(tmp_path):
    write_csv(tmp_path / "train.csv", [{"audiocap_id": "91139", "youtube_id": "r1n", "start_time": "130", "caption": "a bell"}])
    (pair,) = read(tmp_path / "train.csv", layout="audiocaps", media="wav/{youtube_id}_{start_time}.wav")
    assert (pair.key, pair.modality, sides(pair)) == ("91139", "audio", [["wav/r1n_130.wav"], ["a bell"]])


def test_msrvtt(tmp_path):
    videos = [{"video_id": "video0", "split": "train"}, {"video_id": "video1", "split": "validate"}]
    sentences = [{"sen_id": n, "video_id": f"video{n % 2}", "caption": f"scene {n}"} for n in range(4)]
    path = tmp_path / "train_val_videodatainfo.json"
    path.write_text(json.dumps({"info": {}, "videos": videos, "sentences": sentences}))
    pairs = read(path, layout="msrvtt", split="train", media="TrainValVideo")
    assert [(pair.key, sides(pair)) for pair in pairs] == [
        ("0", [["scene 0"], ["TrainValVideo/video0.mp4"]]),
        ("2", [["scene 2"], ["TrainValVideo/video0.mp4"]]),
    ]


def test_vidore(tmp_path):
    image = {"bytes": png(), "path": None}
    rows = [{"query": query, "image": image, "image_filename": "report_3.jpg", "page": "3"} for query in ("how much?", None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-00000.parquet")
    (pair,) = read(tmp_path / "test-00000.parquet", layout="vidore", task="docvqa")
    assert (pair.modality, pair.task, sides(pair)) == ("document", "docvqa", [["how much?"], ["report_3.jpg"]])


def test_mmeb(tmp_path):
    row = {"qry": "<|image_1|>\nRepresent the picture.", "qry_image_path": "a.jpg", "pos_text": "a dog", "pos_image_path": ""}
    rows = [row | {"neg_text": "a cat", "neg_image_path": ""}, row | {"neg_text": "", "neg_image_path": ""}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ImageNet_1K.parquet")
    first, second = read(tmp_path / "ImageNet_1K.parquet", layout="mmeb", media="images")
    assert sides(first) == [["images/a.jpg", "Represent the picture."], ["a dog"], ["a cat"]]
    assert sides(second) == [["images/a.jpg", "Represent the picture."], ["a dog"]]
    assert first.task == "ImageNet_1K"


def test_mbeir(tmp_path):
    query = {"qid": "9:1", "query_txt": "make it blue", "query_img_path": "cirr/a.jpg", "query_modality": "image,text"}
    query |= {"query_src_content": None, "pos_cand_list": ["9:10", "9:99"], "neg_cand_list": ["9:11", "9:98"]}
    pool = [
        {"did": f"9:{n}", "txt": None, "img_path": f"cirr/{n}.jpg", "modality": "image", "src_content": None} for n in (10, 11)
    ]
    (tmp_path / "mbeir_cirr_task7_train.jsonl").write_text(json.dumps(query) + "\n")
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in pool))
    prompt = {
        "dataset_id": "9",
        "query_modality": "image,text",
        "cand_modality": "image",
        "prompt_1": "Find the change.",
    }
    write_csv(tmp_path / "query_instructions.tsv", [prompt], "\t")
    how = {"candidates": tmp_path / "pool.jsonl", "instructions": tmp_path / "query_instructions.tsv", "media": "mbeir_images"}
    *faults, pair = read_source(tmp_path / "mbeir_cirr_task7_train.jsonl", Layout("mbeir", **how))
    images = [f"mbeir_images/cirr/{name}.jpg" for name in ("a", "10", "11")]
    assert sides(pair) == [[images[0], "make it blue"], [images[1]], [images[2]]]
    assert (pair.key, pair.modality, pair.query.instruction) == ("9-1-9-10", "image", "Find the change.")
    assert [fault.key for fault in faults] == ["9-1-9-99", "9-1-9-98"]  # the positive and the negative that are in no pool
    assert faults[0].reason == f"9:99 is not in {tmp_path / 'pool.jsonl'}"


def test_paths_stay_below_the_source(tmp_path):
    write_csv(tmp_path / "t.csv", [{"words": "x", "file": "../../etc/passwd"}])
    (fault,) = read_source(tmp_path / "t.csv", Layout("table", query={"text": "words"}, target={"document": "file"}))
    assert "must stay inside" in fault.reason


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"layout": "laion"}, "layout must be among"),
        ({"layout": "table"}, "needs columns for both sides"),
        ({"layout": "table", "query": {"smell": "a"}, "target": {"text": "b"}}, "hold one of"),
    ],
)
def test_layouts_that_do_not_exist_are_refused(how, reason):
    with pytest.raises(ValueError, match=reason):
        Layout(**how)


def test_a_missing_column_is_named(tmp_path):
    write_csv(tmp_path / "t.csv", [{"words": "x"}])
    with pytest.raises(ValueError, match="'file' is asked for"):
        list(read_source(tmp_path / "t.csv", Layout("table", query={"text": "words"}, target={"image": "file"})))


def test_every_layout_is_tested():
    elsewhere = {"webdataset", "datasets", "sentence_transformers", "swift"}  # test_trainers.py
    assert set(LAYOUTS) - elsewhere == {"table", "captions", "audiocaps", "clotho", "msrvtt", "vidore", "mmeb", "mbeir"}


def test_a_table_packs_from_the_command_line(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png())
    write_csv(tmp_path / "t.csv", [{"words": "noise", "file": "a.png"}])
    words = ["--read.layout", "table", "--read.query", '{"text": "words"}', "--read.target", '{"image": "file"}']
    assert main(["pack", str(tmp_path / "t.csv"), "--out", str(tmp_path / "packed"), *words, "--validate", "true"]) == 0
    assert "1 pair (t 1), 0 quarantined" in capsys.readouterr().out


def test_a_source_of_another_layout_is_one_error(tmp_path):
    write_csv(tmp_path / "t.csv", [{"words": "noise", "file": "a.wav"}])
    for layout, missing in {"audiocaps": "youtube_id", "clotho": "caption_1", "mmeb": "qry"}.items():
        with pytest.raises(ValueError, match=f"must be of the layout {layout}, but has no '{missing}'"):
            read(tmp_path / "t.csv", layout=layout)


@pytest.mark.parametrize("layout", ["captions", "audiocaps", "clotho", "vidore", "mmeb", "mbeir"])
def test_a_split_that_a_layout_does_not_tell_is_refused(layout):
    with pytest.raises(ValueError, match=f"which {layout} has none of, got 'train'"):
        Layout(layout, split="train")


def test_a_caption_that_is_no_text_is_listed(tmp_path):
    for name, words in {"a": b"a bell", "b": b"caf\xe9"}.items():
        (tmp_path / f"{name}.png").write_bytes(png())
        (tmp_path / f"{name}.txt").write_bytes(words)
    good, bad = read_source(tmp_path, Layout("captions"))
    assert good.query.parts == ("a bell",)
    assert isinstance(bad, Fault)
    assert "b.txt is not UTF-8" in bad.reason
    assert bad.key == "b"


def test_only_a_line_feed_ends_a_line_of_json(tmp_path):
    """Unicode knows other ends of lines, and JSON may hold them."""
    pool = {"did": "9:10", "txt": "one\u2028two\x85three", "img_path": None, "modality": "text", "src_content": None}
    query = {"qid": "9:1", "query_txt": "first\u2028second", "query_img_path": None, "query_modality": "text"}
    query |= {"query_src_content": None, "pos_cand_list": ["9:10"], "neg_cand_list": []}
    (tmp_path / "pool.jsonl").write_text(json.dumps(pool, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / "q.jsonl").write_text(json.dumps(query, ensure_ascii=False) + "\n", encoding="utf-8")
    (pair,) = read(tmp_path / "q.jsonl", layout="mbeir", candidates=tmp_path / "pool.jsonl")
    assert pair.target.parts == ("one\u2028two\x85three",)


def test_a_path_in_a_struct_lies_below_media_too(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png())
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "a.png"}], "text": ["a"]}), tmp_path / "t.parquet")
    (pair,) = read(tmp_path / "t.parquet", layout="table", query={"text": "text"}, target={"image": "image"}, media="pictures")
    assert pair.target.media[0].read() == png()


def test_a_page_without_bytes_is_one_fault(tmp_path):
    rows = {"query": ["a", "b"], "image": [None, {"bytes": png(), "path": "b.png"}], "image_filename": ["a.png", "b.png"]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    fault, pair = read_source(tmp_path / "t.parquet", Layout("vidore"))
    assert (fault.key, fault.reason, pair.key) == ("00000000", "image holds no bytes", "00000001")


def test_a_broken_line_of_mbeir_is_named(tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"did": "1:1"}\n{"did": \n')
    (tmp_path / "q.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"pool\.jsonl:2 must be JSON"):
        list(read_source(tmp_path / "q.jsonl", Layout("mbeir", candidates=tmp_path / "pool.jsonl")))


def test_a_ragged_table_is_told(tmp_path):
    (tmp_path / "t.csv").write_text("text,image\na,b,c\n")
    with pytest.raises(ValueError, match="'caption' is asked for"):
        list(read_source(tmp_path / "t.csv", Layout("table", query={"text": "caption"}, target={"image": "image"})))


def test_a_folder_may_be_packed_into_itself(tmp_path, monkeypatch):
    """A call reads nothing that it wrote itself."""
    from lightning_conan.cli.pack import state_of

    (tmp_path / "a.png").write_bytes(png())
    before = state_of(tmp_path)
    (tmp_path / ".packed.partial").mkdir()
    (tmp_path / ".packed.partial" / "000000.tar").write_bytes(b"x")
    assert state_of(tmp_path) == before


def test_a_cell_may_be_a_book(tmp_path):
    """csv's own limit is 131,072 characters."""
    write_csv(tmp_path / "t.csv", [{"q": "word " * 40_000, "t": "a"}])
    (pair,) = read(tmp_path / "t.csv", layout="table", query={"text": "q"}, target={"text": "t"})
    assert len(pair.query.parts[0]) >= 199_999


def test_a_table_is_no_manifest(tmp_path):
    (tmp_path / "a.csv").write_text("key,query\n")
    with pytest.raises(ValueError, match=r"a\.csv is a table\. Read it by --read\.layout table"):
        list(read_source(tmp_path / "a.csv", Layout()))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_is_told(tmp_path, encoding):
    (tmp_path / "a.csv").write_text("caption,other\ncafé,x\n", encoding=encoding)
    with pytest.raises(ValueError, match=r"a\.csv must be UTF-8"):
        list(read_source(tmp_path / "a.csv", Layout("table", query={"text": "caption"}, target={"text": "other"})))


def test_a_row_is_named_by_its_line(tmp_path):
    (tmp_path / "a.csv").write_text('id,words,other\n1,"two\nlines",x\n2,,y\n')
    how = Layout("table", query={"text": "words"}, target={"text": "other"}, key="id")
    _, fault = read_source(tmp_path / "a.csv", how)
    assert fault.where.endswith("a.csv:4")
    (tmp_path / "b.csv").write_text('id,words,other\n1,x,y\n2,"two\nlines",\n3,,y\n')
    assert [fault.where.rpartition(":")[2] for fault in list(read_source(tmp_path / "b.csv", how))[1:]] == ["3", "5"]
    with pytest.raises(ValueError, match="'no' is asked for"):
        list(read_source(tmp_path / "a.csv", replace(how, key="no")))


def test_a_column_of_bytes_holds_media(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"file": png(), "text": "a"}]), tmp_path / "a.parquet")
    (pair,) = read(tmp_path / "a.parquet", layout="table", query={"text": "text"}, target={"image": "file"})
    assert pair.target.media[0].read() == png()


@pytest.mark.parametrize(
    ("layout", "name", "data", "reason"),
    [
        ("msrvtt", "a.json", b"[1]", "must be of the layout msrvtt, but is not"),
        ("mbeir", "a.jsonl", b"[1]\n", "must be of the layout mbeir, but is not"),
        ("vidore", "a.parquet", b"PAR1 and no more", r"a\.parquet must be Parquet"),
    ],
)
def test_a_source_of_another_kind_names_its_file(tmp_path, layout, name, data, reason):
    (tmp_path / name).write_bytes(data)
    (tmp_path / "pool.jsonl").write_text("")
    with pytest.raises(ValueError, match=reason):
        list(read_source(tmp_path / name, Layout(layout, candidates=tmp_path / "pool.jsonl")))


def test_a_folder_may_be_named_by_a_dot_and_its_files_in_any_script(tmp_path, monkeypatch):
    (tmp_path / "a\u200cb.png").write_bytes(png())
    (tmp_path / "a\u200cb.txt").write_text("a caption")
    monkeypatch.chdir(tmp_path)
    (pair,) = read(Path(), layout="captions")
    assert pair.task == plain(tmp_path.name)


def test_media_stand_before_the_text_whatever_they_are(tmp_path):
    """As in the papers' composed queries; of two modalities the target's says whose pair it is."""
    (tmp_path / "t.csv").write_text("clip,words,sound\na.mp4,slower,b.flac\n")
    how = Layout("table", query={"text": "words", "video": "clip"}, target={"audio": "sound"})
    (pair,) = read_source(tmp_path / "t.csv", how)
    assert [part if isinstance(part, str) else part.modality for part in pair.query.parts] == ["video", "slower"]
    assert pair.modality == "audio"


def test_every_negative_of_mbeir_is_one(tmp_path):
    pool = [{"did": f"9:{n}", "txt": f"text {n}", "img_path": None, "modality": "text"} for n in range(4)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in pool))
    query = {"qid": "9:1", "query_txt": "q", "query_img_path": None, "query_modality": "text"}
    query |= {"pos_cand_list": ["9:0"], "neg_cand_list": ["9:2", "9:1", "9:3"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(query) + "\n")
    (pair,) = read_source(tmp_path / "q.jsonl", Layout("mbeir", candidates=tmp_path / "pool.jsonl"))
    assert [item.parts for item in pair.negatives] == [("text 2",), ("text 1",), ("text 3",)]
