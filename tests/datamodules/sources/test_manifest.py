import json

import pytest

from datamodules.sources.manifest import Fault, json_lines, read_manifest

LINE = {"key": "k", "task": "t", "modality": "audio", "query": {"audio": "a.flac"}, "target": {"text": "a dog"}}


def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def test_keeps_order_and_split(tmp_path):
    lines = [{**LINE, "key": f"k{row}", "split": "train" if row % 2 else "test"} for row in range(6)]
    lines.append({**LINE, "key": "k6"})  # of no split
    manifest = write(tmp_path / "m.jsonl", *lines)
    assert [pair.key for pair in read_manifest(manifest)] == [f"k{row}" for row in range(7)]
    assert [pair.key for pair in read_manifest(manifest, "train")] == ["k1", "k3", "k5"]


@pytest.mark.parametrize("name", ["data:image/png;base64," + "A" * 5000, "loop/a.flac"])
def test_a_path_that_no_file_can_have_is_a_fault(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    manifest = write(tmp_path / "m.jsonl", LINE | {"query": {"audio": name}}, LINE)
    fault, good = read_manifest(manifest)
    assert good.key == "k"
    assert isinstance(fault, Fault)


def test_a_broken_line_is_a_fault_that_names_its_line(tmp_path):
    manifest = write(
        tmp_path / "m.jsonl", LINE, b"{", b"\xff\xfe{\x00", {**LINE, "key": "x", "modality": "smell"}, LINE, b"[1]", b'"text"'
    )
    good, *faults = read_manifest(manifest)
    assert good.key == "k"
    assert [fault.where.rsplit(":")[-1] for fault in faults if isinstance(fault, Fault)] == ["2", "3", "4", "5", "6", "7"]
    assert "modality must be among" in faults[2].reason
    assert "must be unique" in faults[3].reason


def test_a_byte_order_mark_costs_no_pair(tmp_path):
    line = {"key": "a", "task": "t", "modality": "text", "query": {"text": "x"}, "target": {"text": "y"}}
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(line).encode() + b"\n")
    assert [pair.key for pair in read_manifest(tmp_path / "a.jsonl")] == ["a"]


def test_a_missing_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        next(read_manifest(tmp_path / "nowhere.jsonl"))
    with pytest.raises(ValueError, match=r"is a folder\. Name the file, or what else the source is by --read\.layout"):
        next(read_manifest(tmp_path))


def test_lines_of_json_are_read_whatever_wrote_them(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n[2]')
    assert list(json_lines(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:3", [2])]
    path.write_bytes(b'{"a": 1}\n{"a": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2 must be JSON"):
        list(json_lines(path))


def test_a_line_with_a_number_beyond_all_is_a_fault(tmp_path):
    line = {"key": "a", "task": "t", "modality": "audio", "target": {"text": "y"}}
    line["query"] = {"audio": {"path": "a.wav", "start": 10**400}}
    write(tmp_path / "a.jsonl", line, line | {"key": "b", "query": {"text": "x", "instruction": ["Find it."]}})
    first, second = read_manifest(tmp_path / "a.jsonl")
    assert "must be seconds" in first.reason
    assert "An instruction must be a string, got ['Find it.']" in second.reason
