"""Diagnostics against plain loops over random embeddings, with duplicates, several modalities and several relevant entries."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from lightning_conan.boards import EmbeddingCache
from lightning_conan.boards.diagnostics import diagnosed, dims_of, effort_of
from lightning_conan.boards.diagnostics_plot import write_plots
from lightning_conan.boards.diagnostics_table import diagnostics_lines
from lightning_conan.boards.embedding import Hashed, modalities_of
from lightning_conan.boards.tasks import Collection, RetrievalTask, TaskSettings
from lightning_conan.cli.main import main
from lightning_conan.embedder import OmniProcessor, Provenance, save_folder, tiny_embedder
from lightning_conan.items import Item, Media
from lightning_conan.training import Stage
from samples import png

DIM, QUERIES, ENTRIES = 16, 30, 60
KINDS = ("text", "image", "text+image")


def make(tmp_path, pools=False, measure="ndcg@5"):
    """A task, its contents and a cache: modalities lie apart, and every seventh entry doubles the one before."""
    draw = np.random.default_rng(0)
    asked = [KINDS[n % 2] for n in range(QUERIES)]
    there = [KINDS[n % 3] for n in range(ENTRIES)]
    offsets = {kind: 0.8 * draw.normal(size=DIM) for kind in KINDS}
    queries = [f"q{n}" for n in range(QUERIES)]
    entries = [f"e{n}" for n in range(ENTRIES)]
    qrels = {
        query: {f"e{(5 * n + more) % ENTRIES}": grade for more, grade in ((0, 2), (n % 3, 1), (7, 0), (3, n % 2))}
        for n, query in enumerate(queries)
    }
    vectors = {
        f"c{key}": draw.normal(size=DIM) + offsets[kind] for key, kind in zip(queries + entries, asked + there, strict=True)
    }
    for n in range(7, ENTRIES, 7):
        vectors[f"ce{n}"] = vectors[f"ce{n - 1}"]
    cache = EmbeddingCache(tmp_path, "m")
    names = list(vectors)
    for start in range(0, len(names), 40):  # in parts, of which the second holds some of both sides
        some = names[start : start + 40]
        cache.add(some, normalize(torch.tensor(np.array([vectors[name] for name in some])), dim=1).float())
    chosen = {q: [f"e{k}" for k in range(ENTRIES) if (k + n) % 2 or qrels[q].get(f"e{k}")] for n, q in enumerate(queries)}
    task = RetrievalTask(
        "t",
        Collection(Path("queries"), [(key, {"text": key}) for key in queries]),
        Collection(Path("corpus"), [(key, {"text": key}) for key in entries]),
        qrels,
        TaskSettings((measure, "hit@3")),
        {query: pool[:25] + [e for e in qrels[query] if e not in pool[:25]] for query, pool in chosen.items()} if pools else None,
    )
    sides = (
        Hashed(task.queries, "query", [f"c{key}" for key in queries], asked),
        Hashed(task.corpus, "target", [f"c{key}" for key in entries], there),
    )
    rows = {name: cache.vectors([name])[0].double().numpy() for name in names}
    return task, sides, cache, rows, dict(zip(queries, asked, strict=True)), dict(zip(entries, there, strict=True))


def ranking(task, rows, query, dim=DIM):
    """Scores of all entries that may be found, best first, the earlier row first among equal ones."""
    cut = {name: row[:dim] / np.linalg.norm(row[:dim]) for name, row in rows.items()}
    pool = list(dict.fromkeys(task.candidates[query])) if task.candidates else [f"e{n}" for n in range(ENTRIES)]
    scores = {entry: round(float(cut[f"c{query}"] @ cut[f"c{entry}"]), 6) for entry in pool}
    return sorted(scores.items(), key=lambda found: -found[1])


def ndcg(found, grades, k=5):
    """Linear gain; the lower grade first among equal scores."""
    order = sorted(found, key=lambda each: (-each[1], grades.get(each[0], 0)))
    gains = [[grades.get(entry, 0) for entry, _ in order], sorted(grades.values(), reverse=True)]
    got, best = (sum(gain / math.log2(place + 2) for place, gain in enumerate(each[:k])) for each in gains)
    return got / best


@pytest.mark.parametrize("pools", [False, True], ids=["whole corpus", "pools"])
def test_diagnostics_equal_plain_loops(tmp_path, pools, monkeypatch):
    for place in ("scoring", "diagnostics"):
        monkeypatch.setattr(f"lightning_conan.boards.{place}.BLOCK", 13)  # several blocks
    monkeypatch.setattr("lightning_conan.boards.scoring.ROWS", 8)
    task, sides, cache, rows, asked, there = make(tmp_path, pools)
    found = diagnosed(task, *sides, cache, [4, 8]).diagnostics
    orders = {query: ranking(task, rows, query) for query in task.qrels}

    wrong = 0
    for query, order in orders.items():
        right = {there[entry] for entry, grade in task.qrels[query].items() if grade > 0}
        wrong += any(there[entry] not in right for entry, score in order if score == order[0][1])
    assert found["wrong_modality"] == pytest.approx(100 * wrong / QUERIES)
    assert 0 < wrong < QUERIES

    cells = {}
    for query, order in orders.items():
        grades = task.qrels[query]
        for kind in {there[entry] for entry, grade in grades.items() if grade > 0}:
            others = {entry for entry, grade in grades.items() if grade > 0 and there[entry] != kind}
            kept = {entry: grade for entry, grade in grades.items() if entry not in others}
            value = ndcg([each for each in order if each[0] not in others], kept)
            cells.setdefault((asked[query], kind), []).append(value)
    flat = {(query, kind): cell for query, row in found["by_modality"].items() for kind, cell in row.items()}
    assert {key: cell["queries"] for key, cell in flat.items()} == {key: len(values) for key, values in cells.items()}
    for key, values in cells.items():
        assert flat[key]["score"] == pytest.approx(100 * sum(values) / len(values), abs=1e-6), key
    assert sum(map(len, cells.values())) > QUERIES  # some have relevant entries of two modalities

    for dim in (4, 8, 16):
        values = [ndcg(ranking(task, rows, query, dim), task.qrels[query]) for query in task.qrels]
        assert found["by_dim"][str(dim)] == pytest.approx(100 * sum(values) / QUERIES, abs=1e-6)
    assert list(found["by_dim"]) == ["4", "8", "16"]

    counts = dict.fromkeys((entry for order in orders.values() for entry, _ in order), 0)
    for order in orders.values():
        for entry, _ in order[:10]:
            counts[entry] += 1
    mean = sum(counts.values()) / len(counts)
    second, third = (sum((n - mean) ** power for n in counts.values()) / len(counts) for power in (2, 3))
    assert found["hubness"] == pytest.approx(third / second**1.5)

    groups = {f"query {kind}": [rows[f"c{key}"] for key in asked if asked[key] == kind] for kind in KINDS[:2]}
    groups |= {f"target {kind}": [rows[f"c{key}"] for key in there if there[key] == kind] for kind in KINDS}
    gaps = {(one, other): value for one, row in found["modality_gap"].items() for other, value in row.items()}
    assert len(gaps) == 10
    for (one, other), value in gaps.items():
        centre = [sum(groups[name]) / len(groups[name]) for name in (one, other)]
        assert value == pytest.approx(math.dist(*centre), abs=1e-6), (one, other)
    assert found["reasoned"] is found["tokens"] is None


def test_a_constant_model_finds_the_wrong_modality(tmp_path):
    """Ties count against the model, and no entry is a hub: the first ten are the same for all."""
    task, sides, _, _, _, _ = make(tmp_path / "a")
    cache = EmbeddingCache(tmp_path / "b", "m")
    cache.add([content for side in sides for content in side.contents], normalize(torch.ones(QUERIES + ENTRIES, DIM), dim=1))
    found = diagnosed(task, *sides, cache, []).diagnostics
    assert found["wrong_modality"] == 100
    assert set(found["by_dim"].values()) == {0.0}
    assert max(gap for row in found["modality_gap"].values() for gap in row.values()) < 1e-6
    assert found["hubness"] == pytest.approx((1 - 2 / 6) / math.sqrt(1 / 6 * 5 / 6))  # of a coin that shows 1 in 6


def test_tokens_survive_in_the_cache(tmp_path):
    """By content, through a second process; queries of unknown route are not guessed."""
    cache = EmbeddingCache(tmp_path, "m")
    cache.add(["a", "b", "c"], torch.eye(3), [0, 7, 5])
    cache.add(["d"], torch.eye(3)[:1])
    again = EmbeddingCache(tmp_path, "m")
    for each in (cache, again):
        assert effort_of(["a", "b", "b", "c"], each) == {"reasoned": 75.0, "tokens": 19 / 4}
        assert effort_of(["a", "d"], each) == {"reasoned": None, "tokens": None}
    assert again.vectors(["c", "a"]).tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("args", "dims"),
    [
        ((128,), [32, 64]),
        ((100,), [32, 64]),
        ((16,), []),
        ((128, [128, 16, 64]), [16, 64]),
        ((128, [64], [100, 8, 128]), [8, 100]),
        ((128, [64], []), []),
    ],
)
def test_dims_are_the_users_or_the_folders_or_powers_of_two(args, dims):
    assert dims_of(*args) == dims


@pytest.mark.parametrize("wanted", [[0], [64, 129]])
def test_dims_that_no_embedding_has_are_refused(wanted):
    with pytest.raises(ValueError, match="dims must be 1 to 128"):
        dims_of(128, None, wanted)


def test_modalities_are_named_in_one_order():
    image, sound = Media("image", b"", "a.png"), Media("audio", b"", "a.flac")
    assert modalities_of(Item((image, "blue", image))) == modalities_of(Item(("blue", image))) == "text+image"
    assert modalities_of(Item((sound, image))) == "image+audio"
    assert modalities_of(Item(("a",))) == "text"


def test_plots_and_tables_take_few_tasks_and_many(tmp_path):
    task, sides, cache, *_ = make(tmp_path / "cache")
    found = diagnosed(task, *sides, cache, [4])
    one = {"group": "g", "headline": "ndcg@5", "scores": found.means, "ties": 0.0, "diagnostics": found.diagnostics}
    old = {**one, "diagnostics": {}}
    for name, tasks in (("few", {"a": one, "old": old}), ("many", {f"t{n}": {**one, "group": f"g{n % 2}"} for n in range(9)})):
        (tmp_path / name).mkdir()
        write_plots(tmp_path / name, tasks)
        assert (tmp_path / name / "diagnostics.png").read_bytes()[:4] == b"\x89PNG"
        drawn = (tmp_path / name / "diagnostics.svg").read_text()
        assert drawn.count("</svg>") == 1
    lines = diagnostics_lines({"a": one, "old": old})
    assert f"| a | text | image | ndcg@5 | {found.diagnostics['by_modality']['text']['image']['score']:.2f} |" in "\n".join(lines)
    assert not [line for line in lines if "old" in line]
    assert diagnostics_lines({"old": old}) == []
    with pytest.raises(ValueError, match="must hold a task with diagnostics"):
        write_plots(tmp_path, {"old": old})


ASKED = ("find shape 0", "blue", "what is this")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A task of three texts as queries, and of three images and three texts as corpus."""
    root = tmp_path_factory.mktemp("tasks") / "shapes"
    root.mkdir()
    for seed in range(3):
        (root / f"{seed}.png").write_bytes(png(seed=seed))
    corpus = [{"key": f"i{n}", "image": f"{n}.png"} for n in range(3)] + [
        {"key": f"t{n}", "text": f"shape {n}"} for n in range(3)
    ]
    for name, entries in (("queries", [{"key": f"q{n}", "text": text} for n, text in enumerate(ASKED)]), ("corpus", corpus)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (root / "qrels.txt").write_text("".join(f"q{n} 0 i{n} 1\n" for n in range(3)))
    return root


def evaluate(folder, task, out, *options):
    words = ["evaluate", "--folder", str(folder), "--tasks", json.dumps([str(task)]), "--out", str(out), "--accelerator", "cpu"]
    assert main([*words, *options]) == 0
    return json.loads((out / "scores.json").read_text())["tasks"][task.name]["diagnostics"]


def test_evaluate_reports_route_and_tokens_also_when_it_resumes(shapes, tmp_path, capsys):
    """The same as the stage reports without a board; the second run reads from the cache what the first one wrote."""
    model, processor = tiny_embedder(0)
    config = replace(processor.config, ends=False, reasons=True, query_hint="Think.", target_hint="Do not.")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(4)  # which bypasses some
        model.get_input_embeddings().weight[model.config.emb_token_id] = 0.3 * torch.randn(128, generator=generator)
    folder = save_folder(tmp_path / "model", model, OmniProcessor(processor.tokenizer, config), Provenance("reasoning"))
    stage = Stage(folder)
    stage.embed(ASKED, "query")
    tokens = [len(each) for each in stage.reason(stage.collate.items(ASKED, "query").items).tokens]
    assert 0 < sum(map(bool, tokens)) < 3
    first = evaluate(folder, shapes, tmp_path / "out", "--plot", "true")
    assert first["tokens"] == pytest.approx(sum(tokens) / 3)
    assert first["reasoned"] == pytest.approx(100 * sum(map(bool, tokens)) / 3)
    assert (tmp_path / "out" / "diagnostics.svg").is_file()
    (tmp_path / "out" / "scores.json").unlink()
    assert evaluate(folder, shapes, tmp_path / "out") == first
    assert "embedded 0 items" in capsys.readouterr().err
