"""`conan evaluate` against plain loops: every item embedded alone, every score computed by itself."""

import json
import math
import signal
import subprocess
import sys
import time

import pytest
import torch

from lightning_conan.boards import EmbeddingCache, read_task
from lightning_conan.cli.main import main
from lightning_conan.embedder import Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.items import Item, Media
from lightning_conan.retrieval.trec import read_qrels, read_run, write_qrels
from samples import flac, png


def lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Six queries of two kinds, twelve entries of three, two of them alike, grades from 0 to 2."""
    root = tmp_path_factory.mktemp("tasks") / "mixed"
    root.mkdir()
    for number in range(4):
        (root / f"{number}.png").write_bytes(png(seed=number))
        (root / f"{number}.flac").write_bytes(flac(0.4 + 0.1 * number))
    lines(
        root / "queries.jsonl",
        [{"key": f"q{n}", "text": f"find number {n}"} for n in range(4)]
        + [{"key": f"q{4 + n}", "image": f"{n}.png", "text": "like this"} for n in range(2)],
    )
    lines(
        root / "corpus.jsonl",
        [{"_id": f"text{n}", "title": f"Number {n}", "text": "is here"} for n in range(3)]
        + [
            {"key": "again", "text": "Number 1 is here"},
            *({"key": f"image{n}", "image": f"{n}.png"} for n in range(4)),
            *({"key": f"sound{n}", "audio": f"{n}.flac"} for n in range(4)),
        ],
    )
    grades = {f"q{n}": {f"image{n % 4}": 2, f"text{n % 3}": 1, "again": 0, f"sound{(n + 1) % 4}": 1} for n in range(6)}
    write_qrels(root / "qrels.txt", grades)
    (root / "task.yaml").write_text("measures: [ndcg@5, hit@3, mrr, recall@4]\nquery_instruction: Find it.\ngroup: mixed\n")
    return root


def evaluate(folder, tasks, out, *options) -> int:
    return main(
        [
            "evaluate",
            "--folder",
            str(folder),
            "--tasks",
            json.dumps([str(task) for task in tasks]),
            "--out",
            str(out),
            "--accelerator",
            "cpu",
            *options,
        ]
    )


def by_hand(base, task):
    """Ranking and nDCG@5 of each query by a plain loop."""
    model, processor, _ = load_folder(base)

    def vector(entry, side):
        text = f"{entry['title']} {entry['text']}" if "title" in entry else entry.get("text")
        media = [Media(kind, task / entry[kind], entry[kind]) for kind in ("image", "audio") if kind in entry]
        item = Item((*media, *([text] if text else [])), "Find it." if side == "query" else None)
        with torch.no_grad():
            return model.embed([processor(item, side)])[0].double()

    def read(name, side):
        entries = map(json.loads, (task / name).read_text().splitlines())
        return {entry.get("_id", entry.get("key")): vector(entry, side) for entry in entries}

    queries, corpus, qrels = read("queries.jsonl", "query"), read("corpus.jsonl", "target"), read_qrels(task / "qrels.txt")
    found = {}
    for query, grades in qrels.items():
        scores = {entry: float(queries[query] @ other) for entry, other in corpus.items()}
        order = sorted(scores, key=lambda entry: (-round(scores[entry], 5), grades.get(entry, 0)))
        gain = [
            sum(g / math.log2(rank + 2) for rank, g in enumerate(each[:5]))
            for each in ([grades.get(entry, 0) for entry in order], sorted(grades.values(), reverse=True))
        ]
        found[query] = scores, gain[0] / gain[1]
    return found


def test_scores_equal_a_plain_loop(base, task, tmp_path, capsys):
    assert evaluate(base, [task], tmp_path / "out") == 0
    said = capsys.readouterr()
    expected = by_hand(base, task)
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert report["tasks"]["mixed"]["scores"]["ndcg@5"] == pytest.approx(
        100 * sum(value for _, value in expected.values()) / 6, abs=1e-3
    )
    assert report["means"] == dict.fromkeys(("all", "mixed"), report["tasks"]["mixed"]["scores"]["ndcg@5"])
    run = read_run(tmp_path / "out" / "mixed" / "run.txt")
    for query, (scores, value) in expected.items():
        assert run[query] == pytest.approx(scores, abs=1e-5)
        values = json.loads((tmp_path / "out" / "mixed" / "queries.json").read_text())
        assert values["ndcg@5"][query] == pytest.approx(value, abs=1e-5)
    assert read_qrels(tmp_path / "out" / "mixed" / "qrels.txt") == read_qrels(task / "qrels.txt")
    assert "embedded 17 items" in said.err  # of 18 two are alike
    assert "| mixed | mixed | ndcg@5 |" in said.out
    assert (tmp_path / "out" / "scores.md").read_text() == said.out.removesuffix("\n")


def test_what_is_embedded_is_not_embedded_again(base, task, tmp_path, capsys):
    """By a second run, nor by another task that shares half of the corpus."""
    assert evaluate(base, [task], tmp_path / "out") == 0
    before = (tmp_path / "out" / "scores.json").read_text()
    assert evaluate(base, [task], tmp_path / "out") == 0
    assert "embedded 0 items, 17 were in" in capsys.readouterr().err
    assert (tmp_path / "out" / "scores.json").read_text() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "queries.jsonl").write_text('{"_id": "q", "text": "find a number"}\n')
    lines(other / "corpus.jsonl", [{"_id": "1", "text": "Number 1 is here"}, {"_id": "2", "text": "Number 7 is here"}])
    (other / "qrels").mkdir()
    (other / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t2\t1\n")
    assert evaluate(base, [other], tmp_path / "out") == 0
    assert "embedded 2 items, 17 were in" in capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(report["tasks"]) == ["mixed", "other"]
    assert report["means"]["all"] == pytest.approx(
        (report["tasks"]["mixed"]["scores"]["ndcg@5"] + report["tasks"]["other"]["scores"]["ndcg@10"]) / 2
    )


def test_each_query_may_have_a_pool_of_its_own(base, task, tmp_path):
    place = tmp_path / "pools"
    place.mkdir()
    for path in task.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    pools = {f"q{n}": [f"image{n % 4}", "again", "text1", f"image{(n + 1) % 4}"] for n in range(6)}
    lines(place / "candidates.jsonl", [{"query": query, "candidates": pool} for query, pool in pools.items()])
    assert evaluate(base, [place], tmp_path / "out") == 0
    run, expected = read_run(tmp_path / "out" / "pools" / "run.txt"), by_hand(base, task)
    for query, pool in pools.items():
        assert run[query] == pytest.approx({entry: expected[query][0][entry] for entry in pool}, abs=1e-5)


def test_scores_of_two_contracts_are_not_mixed(base, task, tmp_path, capsys):
    assert evaluate(base, [task], tmp_path / "out") == 0
    other = tmp_path / "mixed"
    other.mkdir()
    for path in task.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "task.yaml").write_text("measures: [ndcg@5, hit@3, mrr, recall@4]\nquery_instruction: Find one.\ngroup: mixed\n")
    assert evaluate(base, [other], tmp_path / "out") == 1
    assert "mixed was scored under another contract: queries, query_instruction differ" in capsys.readouterr().err
    model = save_folder(tmp_path / "other_model", *tiny_embedder(1), Provenance("base"))
    assert evaluate(model, [task], tmp_path / "out") == 1
    assert "holds scores of another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("qrels.txt", "q0 0 nowhere 1\n", "1 relevant entries, such as 'nowhere', are not in"),
        ("qrels.txt", "q9 0 image0 1\n", "1 judged queries, such as 'q9', are not in"),
        (
            "candidates.jsonl",
            '{"query": "q0", "candidates": ["image0"]}\n',
            "each judged query must have candidates, 'q1' has none",
        ),
        ("task.yaml", "measure: ndcg@5\n", "task.yaml may hold"),
        ("task.yaml", "measures: [ndgc@5]\n", "A measure must be one of"),
        ("corpus.jsonl", '{"text": "no id"}\n', 'must be an object with a "key" or an "_id"'),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n', "'a' stands twice"),
        ("queries.jsonl", "", "must hold at least 1 item"),
        ("0.png", "no picture", "items cannot be decoded"),
    ],
)
def test_what_would_be_another_task_is_refused(base, task, tmp_path, capsys, name, text, said):
    place = tmp_path / "bad"
    place.mkdir()
    for path in task.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    (place / name).write_text(text)
    assert evaluate(base, [place], tmp_path / "out") == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "scores.json").exists()


def test_missing_files_are_named_before_anything_is_embedded(base, task, tmp_path, capsys):
    place = tmp_path / "bad"
    place.mkdir()
    for path in task.iterdir():
        if path.name != "3.flac":
            (place / path.name).write_bytes(path.read_bytes())
    assert evaluate(base, [task, place], tmp_path / "out") == 1
    assert "1 items cannot be read" in (err := capsys.readouterr().err)
    assert "'sound3'" in err
    assert not (tmp_path / "out").exists()


def test_a_query_does_not_find_itself_if_asked(base, tmp_path):
    place = tmp_path / "same"
    place.mkdir()
    texts = [{"_id": f"{n}", "text": f"argument {n}"} for n in range(5)]
    lines(place / "queries.jsonl", texts[:2])
    lines(place / "corpus.jsonl", texts)
    (place / "qrels.txt").write_text("0 0 3 1\n1 0 4 1\n")
    (place / "task.yaml").write_text("drop_self: true\nmeasures: [hit@1]\n")
    assert evaluate(base, [place], tmp_path / "out") == 0
    run = read_run(tmp_path / "out" / "same" / "run.txt")
    assert {query: set(found) for query, found in run.items()} == {"0": set("1234"), "1": set("0234")}


def test_two_devices_score_what_one_does(base, task, tmp_path):
    assert evaluate(base, [task], tmp_path / "one") == 0
    words = ["evaluate", "--folder", str(base), "--tasks", json.dumps([str(task)]), "--out", str(tmp_path / "two")]
    command = [sys.executable, "-m", "lightning_conan.cli.main", *words, "--accelerator", "cpu", "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "embedded 17 items" in done.stderr
    one, two = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("one", "two"))
    assert one["tasks"]["mixed"]["scores"] == pytest.approx(two["tasks"]["mixed"]["scores"], abs=1e-4)


def test_a_killed_run_loses_only_what_it_had_not_written(base, tmp_path):
    """SIGKILL once some parts are there: the next run embeds the rest, and nothing twice."""
    place = tmp_path / "long"
    place.mkdir()
    lines(place / "corpus.jsonl", [{"_id": f"{n}", "text": f"entry {n} " * 30} for n in range(1500)])
    lines(place / "queries.jsonl", [{"_id": "q", "text": "entry 7"}])
    (place / "qrels.txt").write_text("q 0 7 1\n")
    words = ["evaluate", "--folder", str(base), "--tasks", json.dumps([str(place)]), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "lightning_conan.cli.main", *words, "--accelerator", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list((tmp_path / "out").rglob("part-*.parquet"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "scores.json").exists()
    (folder,) = (tmp_path / "out" / "cache").iterdir()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}
    assert evaluate(base, [place], tmp_path / "out") == 0
    cache = EmbeddingCache(tmp_path / "out" / "cache", json.loads((tmp_path / "out" / "scores.json").read_text())["model"])
    assert sum(map(len, cache.blocks)) == len(cache.places) == 1501
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}.items()


def test_read_task_reads_beirs_titles(task):
    found = read_task(task)
    assert found.corpus.item(0) == Item(("Number 0 is here",))
    assert found.queries.item(0) == Item(("find number 0",), "Find it.")
