"""Measures and TREC files against trec_eval, and by plain loops."""

import math

import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from lightning_conan.retrieval.measures import Measure, evaluate, means
from lightning_conan.retrieval.trec import read_qrels, read_run, write_qrels, write_run

TREC = {
    "hit@1": "success_1",
    "hit@10": "success_10",
    "recall@5": "recall_5",
    "ndcg@5": "ndcg_cut_5",
    "ndcg@10": "ndcg_cut_10",
    "ndcg": "ndcg",
    "map@5": "map_cut_5",
    "map": "map",
    "mrr": "recip_rank",
}
DOCUMENTS = st.sampled_from([f"d{n}" for n in range(12)])
GRADES = st.dictionaries(DOCUMENTS, st.integers(-1, 3), min_size=1)
JUDGED = st.dictionaries(DOCUMENTS, st.integers(0, 3), min_size=1)
ORDERS = st.permutations([f"d{n}" for n in range(16)])


@given(queries=st.lists(st.tuples(JUDGED, ORDERS, st.integers(1, 16)), min_size=1, max_size=4))
def test_equals_trec_eval_where_nothing_ties(queries):
    qrels = {f"q{number}": grades for number, (grades, _, _) in enumerate(queries)}
    run = {
        f"q{number}": {document: -rank / 7 for rank, document in enumerate(order[:depth])}
        for number, (_, order, depth) in enumerate(queries)
    }
    found = evaluate(run, qrels, list(TREC))
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"success", "recall", "ndcg_cut", "ndcg", "map", "map_cut", "recip_rank"})
    for query, values in theirs.evaluate(run).items():
        for ours, name in TREC.items():
            assert found[ours][query] == pytest.approx(values[name], abs=1e-6), (query, ours)


def exponential(order, grades, k):
    """By a plain loop."""
    gains = [sum((2 ** max(0, grade) - 1) / math.log2(place + 2) for place, grade in enumerate(each[:k])) for each in order]
    return gains[0] / gains[1] if gains[1] else 0.0


@given(grades=GRADES, order=ORDERS, k=st.integers(1, 12))
def test_exponential_gain_equals_a_plain_loop(grades, order, k):
    run = {"q": {document: -float(rank) for rank, document in enumerate(order)}}
    found = evaluate(run, {"q": grades}, [f"ndcg_exp@{k}"])[f"ndcg_exp@{k}"]["q"]
    lists = [grades.get(document, 0) for document in order], sorted(grades.values(), reverse=True)
    assert found == pytest.approx(exponential(lists, grades, k))


@given(grades=GRADES, scores=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=12, max_size=12))
def test_of_all_orders_of_equal_scores_the_worst_counts(grades, scores):
    """No order that the scores allow gives less."""
    documents = [f"d{n}" for n in range(12)]
    names = ["hit@1", "mrr", "ndcg@5", "map", "recall@3"]
    given = evaluate({"q": dict(zip(documents, scores, strict=True))}, {"q": grades}, names)
    for rule in (1, -1):  # lower grades first, which is the worst, and higher ones first
        order = sorted(zip(documents, scores, strict=True), key=lambda entry: (-entry[1], rule * grades.get(entry[0], 0)))
        other = evaluate({"q": {name: -float(rank) for rank, (name, _) in enumerate(order)}}, {"q": grades}, names)
        for name in names:
            assert given[name]["q"] <= other[name]["q"] + 1e-12
            assert rule == -1 or given[name]["q"] == pytest.approx(other[name]["q"])


def test_a_model_that_scores_all_alike_finds_nothing():
    run = {"q": {f"d{n}": 1.0 for n in range(100)}}
    assert means(evaluate(run, {"q": {"d0": 1}}, ["hit@10", "ndcg@10"])) == {"hit@10": 0.0, "ndcg@10": 0.0}


@pytest.mark.parametrize("name", ["hit", "recall", "ndcg@0", "accuracy@1", "ndcg@", "ndcg@5x", "hit@-1"])
def test_unknown_measures_are_refused(name):
    with pytest.raises(ValueError, match="must be one of hit, recall"):
        Measure(name)


def test_refuses_what_cannot_be_measured():
    with pytest.raises(ValueError, match="1 are not, such as 'b'"):
        evaluate({"a": {}}, {"a": {"d": 1}, "b": {"d": 1}}, ["mrr"])
    with pytest.raises(ValueError, match="Scores must be finite"):
        evaluate({"a": {"d": math.nan}}, {"a": {"d": 1}}, ["mrr"])
    with pytest.raises(ValueError, match="at least 1 judged query"):
        means(evaluate({"a": {}}, {}, ["mrr"]))


def test_what_is_not_found_counts_and_what_is_not_judged_does_not():
    found = evaluate({"q": {"a": 1.0}, "other": {"a": 1.0}}, {"q": {"a": 1, "b": 1}}, ["recall@5"])
    assert found == {"recall@5": {"q": 0.5}}


@given(
    run=st.dictionaries(
        st.from_regex(r"[a-z:0-9]+", fullmatch=True),
        st.dictionaries(st.from_regex(r"[a-z:0-9]+", fullmatch=True), st.floats(-1, 1, width=32), min_size=1),
        min_size=1,
    )
)
def test_runs_come_back(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.txt"
    write_run(path, run)
    found = read_run(path)
    assert found.keys() == run.keys()
    for query, scores in run.items():
        assert found[query] == pytest.approx(scores, rel=1e-7)


def test_qrels_come_back_and_three_layouts_say_the_same(tmp_path):
    qrels = {"0:1": {"d:1": 1, "d:2": 0}, "0:2": {"d:1": 2}}
    write_qrels(tmp_path / "trec.txt", qrels)
    lines = [f"{query} 0 {document} {grade} 3" for query, found in qrels.items() for document, grade in found.items()]
    (tmp_path / "mbeir.txt").write_text("\n".join(lines) + "\n")
    beir = ["query-id\tcorpus-id\tscore", "0:1\td:1\t1", "0:1\td:2\t0", "0:2\td:1\t2"]
    (tmp_path / "beir.tsv").write_text("\r\n".join(beir))
    assert read_qrels(tmp_path / "trec.txt") == read_qrels(tmp_path / "mbeir.txt") == read_qrels(tmp_path / "beir.tsv") == qrels


def test_ids_with_spaces_are_kept_by_tabs_and_refused_in_files_of_ours(tmp_path):
    (tmp_path / "beir.tsv").write_text("query-id\tcorpus-id\tscore\nq one\td\t1\n")
    assert read_qrels(tmp_path / "beir.tsv") == {"q one": {"d": 1}}
    with pytest.raises(ValueError, match="must not be empty or hold white space, got 'q one'"):
        write_qrels(tmp_path / "out.txt", {"q one": {"d": 1}})
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q 0 d\n", r"must be qid 0 did grade .* got 'q 0 d' in .*:1"),
        ("q 0 d 0.5\n", "must be a whole number, got '0.5'"),
        ("q 0 d 1\nq 0 d 2\n", "'d' has 1 and 2 for 'q'"),
        ("\n", "at least 1 judgement"),
        ("query-id\tcorpus-id\tscore\nq\t0\td\t1\n", "must be query-id, corpus-id and score"),
    ],
)
def test_broken_qrels_are_refused(tmp_path, text, said):
    (tmp_path / "qrels").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_qrels(tmp_path / "qrels")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q Q0 d 1 0.5\n", "qid Q0 did rank score tag"),
        ("q Q0 d 1 nan tag\n", "must be a finite number, got 'nan'"),
        ("q Q0 d 1 x tag\n", "must be a finite number"),
        ("q Q0 d 1 1.0 tag\nq Q0 d 2 0.5 tag\n", "'d' stands twice for 'q'"),
        ("", "at least 1 line"),
    ],
)
def test_broken_runs_are_refused(tmp_path, text, said):
    (tmp_path / "run").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_run(tmp_path / "run")
