import json

import pytest

from lightning_conan.cli import mine
from lightning_conan.cli.main import main
from samples import png


@pytest.fixture
def manifest(tmp_path):
    """Texts that find images, and texts that find texts."""
    lines = []
    for row in range(6):
        (tmp_path / f"{row}.png").write_bytes(png(seed=row))
        image = {"image": f"{row}.png"}
        lines.append({"key": f"i{row}", "task": "t2i", "modality": "image", "query": {"text": f"picture {row}"}, "target": image})
        text = {"text": f"a sentence about {row // 2}"}
        lines.append({"key": f"t{row}", "task": "t2t", "modality": "text", "query": {"text": f"number {row}"}, "target": text})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def mined(manifest, base, name, *words):
    """Each pair's negatives."""
    out = manifest.with_name(name)
    options = ["--manifest", str(manifest), "--folder", str(base), "--out", str(out), "--relative", "10", "--accelerator", "cpu"]
    assert main(["mine", *options, "--margin", "-2", *words]) == 0
    return {pair["key"]: pair.get("negatives", []) for pair in map(json.loads, out.read_text().splitlines())}


def test_negatives_are_other_targets_of_the_task(manifest, base, capsys, monkeypatch):
    monkeypatch.setattr(mine, "QUERIES", 5)
    found = mined(manifest, base, "a.jsonl", "--count", "9")
    assert "negatives for 12 pairs" in capsys.readouterr().out
    for row in range(6):
        assert sorted(item["image"] for item in found[f"i{row}"]) == [f"{n}.png" for n in range(6) if n != row]
        others = [f"a sentence about {n}" for n in range(3) if n != row // 2]
        assert sorted(item["text"] for item in found[f"t{row}"]) == others  # each once, and not its own under another key


def test_mining_what_is_mined_already_adds_nothing(manifest, base):
    first = mined(manifest, base, "a.jsonl", "--count", "2")
    assert mined(manifest.with_name("a.jsonl"), base, "b.jsonl", "--count", "2") == first


def test_what_another_pair_gives_the_same_query_is_no_negative(manifest, base):
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines:
        if line["key"] in ("i0", "i3"):
            line["query"] = {"text": "either picture"}
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = mined(manifest, base, "a.jsonl", "--count", "9")
    assert sorted(item["image"] for item in found["i0"]) == ["1.png", "2.png", "4.png", "5.png"]
    assert len(found["i1"]) == 5


def test_a_killed_run_goes_on_and_other_settings_start_anew(manifest, base, monkeypatch):
    monkeypatch.setattr(mine, "QUERIES", 5)
    first = mined(manifest, base, "a.jsonl", "--count", "2")
    parts = sorted((manifest.parent / "a.jsonl.mining").glob("*/0*.jsonl"))
    assert len(parts) == 3
    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    assert mined(manifest, base, "a.jsonl", "--count", "2") == first
    assert parts[0].stat().st_mtime_ns == kept
    assert all(len(row) == 1 for row in mined(manifest, base, "a.jsonl", "--count", "1").values())


def test_mined_manifests_pack(manifest, base, tmp_path):
    mined(manifest, base, "a.jsonl", "--count", "2")
    assert main(["pack", str(manifest.with_name("a.jsonl")), "--out", str(tmp_path / "packed"), "--validate", "true"]) == 0
    index = json.loads((tmp_path / "packed" / "index.json").read_text())
    assert index["pairs"] == 12
    assert index["quarantined"] == 0


def test_a_manifest_elsewhere_is_refused(manifest, base, tmp_path, capsys):
    words = ["--manifest", str(manifest), "--folder", str(base), "--out", str(tmp_path / "elsewhere" / "a.jsonl")]
    assert main(["mine", *words]) == 1
    assert "must lie beside" in capsys.readouterr().err


def test_a_line_that_is_no_pair_is_told_before_anything_is_embedded(manifest, base, capsys):
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines, '{"key": "odd"}']))
    assert main(["mine", "--manifest", str(manifest), "--folder", str(base), "--out", str(manifest.with_name("m.jsonl"))]) == 1
    assert "needs pairs with key, task, query and target" in capsys.readouterr().err
    assert not manifest.with_name("m.jsonl.mining").exists()


def test_negatives_may_be_null(manifest, base):
    rows = [json.loads(line) | {"negatives": None} for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert mined(manifest, base, "null.jsonl", "--count", "2")


def test_a_fault_on_several_devices_is_one_error(manifest, tmp_path, capfd):
    words = ["--manifest", str(manifest), "--folder", str(tmp_path / "nowhere"), "--out", str(manifest.with_name("m.jsonl"))]
    assert main(["mine", *words, "--accelerator", "cpu", "--devices", "2"]) == 1
    said = capfd.readouterr().err
    assert "nowhere does not exist" in said
    assert "conan mine:" not in said  # it does not go on with what is not there
    assert "Traceback" not in said


def test_what_is_held_out_is_nobodys_negative(manifest, base):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for place, row in enumerate(rows):
        row["split"] = "test" if place % 3 == 0 else "train"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = {json.dumps(row["target"]): {other["split"] for other in rows if other["target"] == row["target"]} for row in rows}
    for key, negatives in mined(manifest, base, "split.jsonl", "--count", "9").items():
        (own,) = [row["split"] for row in rows if row["key"] == key]
        assert all(own in splits[json.dumps(negative)] for negative in negatives)
        assert negatives or key.startswith("t")
