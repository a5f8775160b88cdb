"""MMEB-V2 and V3 in miniature: prompts and pools as spelled out by hand, scores as a plain loop over upstream's definitions."""

import json
import math
import re
from collections import Counter

import mmeb_world
import pytest
import torch

from lightning_conan.boards.mmeb import V2, V3, read_mmeb
from lightning_conan.cli.main import main
from lightning_conan.embedder import load_folder
from lightning_conan.items import Frames, Item, Media

SPECS = {"mmeb-v2": V2, "mmeb-v3": V3}
BUILDERS = {
    "mmeb-v2": (mmeb_world.images, mmeb_world.videos, mmeb_world.questions, mmeb_world.documents),
    "mmeb-v3": (mmeb_world.audios, mmeb_world.texts, mmeb_world.omniset),
}


@pytest.fixture(scope="module", params=SPECS)
def world(request, tmp_path_factory):
    """Name of a board, the folder of its data, and its tasks as they must be."""
    root = tmp_path_factory.mktemp(request.param)
    expected = {}
    for build in BUILDERS[request.param]:
        expected |= build(root)
    return request.param, root, expected


def media_of(root, part):
    """A medium of the miniature as the core has it."""
    kind, *rest = part
    if kind == "bytes":
        return rest[0]
    path = root / rest[0]
    if kind == "video":
        return Frames("video", path, rest[0], files=tuple(path / name for name in rest[1]))
    return Media(kind, path, rest[0], *rest[1:])


def check(root, item, parts):
    """An item has the parts that are spelled out; of one inside a Parquet file, the bytes count."""
    assert len(item.parts) == len(parts), (item, parts)
    for found, part in zip(item.parts, parts, strict=True):
        expected = part if isinstance(part, str) else media_of(root, part)
        assert (found.source if isinstance(expected, bytes) else found) == expected


def test_the_boards_have_upstreams_tasks():
    assert Counter(spec.group for spec in V2) == {
        **{"image/I-CLS": 10, "image/I-QA": 10, "image/I-RET": 12, "image/I-VG": 4},
        **{"video/V-CLS": 5, "video/V-QA": 5, "video/V-RET": 5, "video/V-MR": 3},
        **{"visdoc/VD-Vidore-V1": 10, "visdoc/VD-Vidore-V2": 4, "visdoc/VD-VisRAG": 6, "visdoc/VD-OOD": 4},
    }
    assert Counter(spec.folder for spec in V3) == {"audio": 11, "text": 53, "omniset": 12}
    for specs in SPECS.values():
        assert len({spec.name for spec in specs}) == len(specs)
    assert {spec.measures[0] for spec in V2 if spec.folder == "visdoc"} == {"ndcg@5"}
    assert {spec.measures[0] for spec in (*V2, *V3) if spec.folder != "visdoc"} == {"hit@1"}


def test_prompts_pools_and_labels_are_upstreams(world):
    board, root, expected = world
    for task in read_mmeb(root, SPECS[board], list(expected)):
        wanted = expected[task.name]
        labels = {name for _, found, _ in wanted.queries for name in found}
        assert set(task.names) == wanted.candidates.keys() | labels, task.name
        for number, name in enumerate(task.names[: len(task.corpus)]):
            check(root, task.corpus.item(number), wanted.candidates[name])
        assert len(task.corpus) == len(wanted.candidates)
        assert len(task.queries) == len(wanted.queries) == len(task.qrels)
        for number, (parts, found, pool) in enumerate(wanted.queries):
            check(root, task.queries.item(number), parts)
            grades = {task.names[int(entry)]: grade for entry, grade in task.qrels[str(number)].items()}
            assert grades == (found if isinstance(found, dict) else dict.fromkeys(found, 1)), task.name
            got = None if task.candidates is None else [task.names[int(entry)] for entry in task.candidates[str(number)]]
            assert got == pool or (pool is not None and sorted(got) == sorted(pool)), task.name


def by_hand(root, expected, base):
    """Upstream's measures of each task: every item embedded alone, every score computed by itself."""
    model, processor, _ = load_folder(base)
    known = {}

    def vector(parts, side):
        key = repr(parts), side
        if key not in known:
            made = []
            for part in parts:
                one = part if isinstance(part, str) else media_of(root, part)
                kind = "audio" if isinstance(one, bytes) and one[:4] == b"RIFF" else "image"
                made.append(Media(kind, one, "x") if isinstance(one, bytes) else one)
            with torch.no_grad():
                known[key] = model.embed([processor(Item(tuple(made)), side)])[0].double()
        return known[key]

    found = {}
    for name, task in expected.items():
        candidates = {entry: vector(parts, "target") for entry, parts in task.candidates.items()}
        rows = []
        for parts, labels, pool in task.queries:
            grades = labels if isinstance(labels, dict) else dict.fromkeys(labels, 1)
            query = vector(parts, "query")
            scores = {entry: round(float(query @ other), 5) for entry, other in candidates.items()}
            ranked = sorted(pool or candidates, key=lambda entry: (-scores[entry], grades.get(entry, 0), entry))
            rows.append(measures(ranked, grades))
        found[name] = {measure: sum(row[measure] for row in rows) / len(rows) for measure in rows[0]}
    return found


def measures(ranked, grades):
    """VLM2Vec's metrics of one ranking, in which a candidate may stand twice."""
    out = {"mrr": next((1 / place for place, entry in enumerate(ranked, 1) if entry in grades), 0.0)}
    for k in (1, 5, 10):
        top, ideal = ranked[:k], sorted(grades.values(), reverse=True)[:k]
        good = len(set(top) & set(grades))
        out[f"hit@{k}"] = float(good > 0)
        out[f"precision@{k}"], out[f"recall@{k}"] = good / k, good / len(grades) if grades else 0.0
        both = out[f"precision@{k}"] + out[f"recall@{k}"]
        out[f"f1@{k}"] = 2 * out[f"precision@{k}"] * out[f"recall@{k}"] / both if both else 0.0
        hits = total = 0
        for place, entry in enumerate(top, 1):
            if entry in grades:
                hits += 1
                total += hits / place
        out[f"map@{k}"] = total / min(len(grades), k) if hits else 0.0
        for form, gain in (("linear", lambda grade: grade), ("exponential", lambda grade: 2**grade - 1)):
            best = sum(gain(grade) / math.log2(place + 1) for place, grade in enumerate(ideal, 1))
            dcg = sum(gain(grades.get(entry, 0)) / math.log2(place + 1) for place, entry in enumerate(top, 1))
            out[f"ndcg_{form}@{k}"] = dcg / best if best else 0.0
    return out


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(world, base, tmp_path_factory):
    board, root, expected = world
    out = tmp_path_factory.mktemp("out")
    words = ["evaluate", "--folder", str(base), "--board", board, "--data", str(root), "--out", str(out)]
    assert main([*words, "--cells", json.dumps(list(expected)), "--accelerator", "cpu"]) == 0
    return out


def test_scores_equal_a_plain_loop_over_upstreams_definitions(world, base, evaluated):
    board, root, expected = world
    folders = {spec.name: spec.folder for spec in SPECS[board]}
    report = json.loads((evaluated / "scores.json").read_text())
    for name, wanted in by_hand(root, expected, base).items():
        queries = len(expected[name].queries)
        score = json.loads((evaluated / folders[name] / f"{name}_score.json").read_text())
        assert score == pytest.approx(wanted | {"num_pred": queries, "num_data": queries}, abs=1e-6), name
        ours = report["tasks"][name]["scores"]
        assert ours["hit@1"] == pytest.approx(100 * wanted["hit@1"], abs=1e-4)
        assert ours["ndcg@5"] == pytest.approx(100 * wanted["ndcg_linear@5"], abs=1e-4) if "ndcg@5" in ours else True
        assert report["tasks"][name]["contract"]["board"]["upstream"].startswith("VLM2Vec")


def test_of_equal_scores_the_wrong_one_comes_first(world, evaluated):
    """Two paths hold the same image: the right one is second."""
    if world[0] == "mmeb-v2":
        report = json.loads((evaluated / "scores.json").read_text())["tasks"]["VisDial"]
        for made in lines(evaluated / "image/VisDial_pred.jsonl"):
            first, second = (made["prediction"].index(name) for name in ("a/twin.png", "a/1.png"))
            assert second == first + 1
            assert made["prediction_scores"][first] == made["prediction_scores"][second]
        assert report["scores"]["hit@1"] == 0


def test_means_are_named_as_the_board_names_them(world, evaluated):
    report = json.loads((evaluated / "scores.json").read_text())
    heads = {name: (task["group"], task["scores"][task["headline"]]) for name, task in report["tasks"].items()}
    named = {part for found, _ in heads.values() for part in (found, found.partition("/")[0])}
    for group in {"all", *named}:
        inside = [value for found, value in heads.values() if group == "all" or f"{found}/".startswith(f"{group}/")]
        assert report["means"][group] == pytest.approx(sum(inside) / len(inside))
    assert {"image", "image/I-CLS", "visdoc/VD-VisRAG"} <= set(report["means"]) or {"audio", "text/BRIGHT"} <= set(
        report["means"]
    )


def test_rankings_stand_under_the_boards_names(world, evaluated):
    board, _, expected = world
    folders = {spec.name: spec.folder for spec in SPECS[board]}
    for name, task in expected.items():
        place = evaluated / folders[name]
        for (_, labels, pool), made, told in zip(
            task.queries, lines(place / f"{name}_pred.jsonl"), lines(place / f"{name}_info.jsonl"), strict=True
        ):
            assert sorted(made["prediction"], key=str) == sorted(pool or task.candidates, key=str), name
            assert made["prediction_scores"] == sorted(made["prediction_scores"], reverse=True)
            assert made["label"] == list(labels)
            single = folders[name] not in ("visdoc", "text") and len(labels) == 1
            assert told["label_name"] == (next(iter(labels)) if single else list(labels))
            assert sorted(told["cand_names"], key=str) == sorted(pool or labels, key=str)


def test_all_that_is_missing_is_named_at_once(tmp_path, base, capsys):
    for board, specs in SPECS.items():
        words = ["evaluate", "--folder", str(base), "--board", board, "--data", str(tmp_path), "--out", str(tmp_path / "out")]
        assert main(words) == 1
        said = capsys.readouterr().err
        assert f"lacks files of {len(specs)} of {len(specs)} tasks" in said
        assert not [spec.name for spec in specs if not re.search(rf"{re.escape(spec.name)} \(\d+: ", said)]
    assert "needle (3: text-tasks/LongEmbed/needle/queries.jsonl, text-tasks/LongEmbed/needle/corpus.jsonl, text-tasks" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"Tasks of this board are .*, got 'imagenet'"):
        read_mmeb(tmp_path, V2, ["imagenet"])


def test_missing_media_are_named_before_anything_is_embedded(tmp_path):
    mmeb_world.images(tmp_path)
    mmeb_world.videos(tmp_path)
    (tmp_path / "image-tasks/MMEB/a/2.png").unlink()
    for frame in (tmp_path / "video-tasks/frames/video_cls/SSv2/7").glob("*.jpg"):
        frame.unlink()
    for frame in (tmp_path / "video-tasks/frames/video_mret/QVHighlight/long/positive_1").iterdir():
        frame.unlink()
    (tmp_path / "video-tasks/frames/video_mret/QVHighlight/long/positive_1").rmdir()
    told = (
        r"lacks files of 3 of 4 tasks: ImageNet-1K \(1: image-tasks/MMEB/a/2.png\); "
        r"SmthSmthV2 \(1: video-tasks/frames/video_cls/SSv2/7\); "
        r"QVHighlight \(1: video-tasks/frames/video_mret/QVHighlight/long/positive\*\)\. Download"
    )
    with pytest.raises(ValueError, match=told):
        read_mmeb(tmp_path, V2, ["ImageNet-1K", "SmthSmthV2", "QVHighlight", "MSR-VTT"])
