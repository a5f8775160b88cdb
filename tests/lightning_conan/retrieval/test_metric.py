import copy
import hashlib
import pickle

import pytest
import torch
from torchmetrics import MetricCollection

from lightning_conan.retrieval.metric import RetrievalMetric, hash_ids


def digest(*names):
    return [hashlib.sha256(str(name).encode()).hexdigest() for name in names]


def test_perfect_embeddings_score_100_both_ways():
    metric, eye = RetrievalMetric(), torch.eye(12)
    metric.update(eye[:5], eye[:5], digest(*range(5)), digest(*"abcde"))
    metric.update(eye[5:], eye[5:], digest(*range(5, 12)), digest(*"fghijkl"))
    assert {value.item() for value in metric.compute().values()} == {100.0}


def test_equal_targets_are_one_target():
    """Ten sentences for a hundred clips are ten entries, and each finds all its clips."""
    metric = RetrievalMetric()
    sentences = torch.eye(10)[torch.arange(100) % 10]
    metric.update(sentences, sentences, digest(*range(100)), digest(*(f"s{row % 10}" for row in range(100))))
    scores = metric.compute()
    assert [scores[name].item() for name in ("forth/recall@1", "back/recall@1", "back/ndcg@10")] == pytest.approx([100] * 3)


def test_mean_of_both_directions():
    metric = RetrievalMetric()
    metric.update(torch.eye(3), torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.9, 0, 0.1]]), digest(1, 2, 3), digest(4, 5, 6))
    scores = metric.compute()
    assert scores["recall@1"] == (scores["forth/recall@1"] + scores["back/recall@1"]) / 2
    assert scores["forth/recall@1"].item() == pytest.approx(100)
    assert scores["back/recall@1"].item() == pytest.approx(200 / 3)  # the third target is more like the first query


def test_identities_of_many_contents_differ():
    """Sixty bits of a hash: with thirty, a set of this size would hold items that are taken for one."""
    hashes = [hashlib.sha256(number.to_bytes(4, "big")).hexdigest() for number in range(200_000)]
    assert len(hash_ids(hashes).unique()) == len(hashes)
    assert hash_ids(["0" * 14 + "1" + "0" * 49, "0" * 64]).tolist() == [1, 0]


def test_nothing_is_no_score():
    with pytest.raises(ValueError, match="at least 1 pair, got 0"):
        RetrievalMetric().compute()


def test_scores_are_the_same_once_gathered():
    """After torchmetrics has gathered them, list states are one tensor each."""
    plain, gathered = RetrievalMetric(sync_on_compute=False), RetrievalMetric(sync_on_compute=False)
    vectors = torch.eye(4)
    for metric in (plain, gathered):
        metric.update(vectors, vectors.flip(0), ["1", "2", "3", "4"], ["5", "6", "7", "8"])
    for name in ("query", "target", "query_ids", "target_ids"):
        setattr(gathered, name, torch.cat(getattr(gathered, name)))
    assert {name: float(value) for name, value in gathered.compute().items()} == pytest.approx(
        {name: float(value) for name, value in plain.compute().items()}
    )


def test_is_a_metric_as_others_are():
    """Copied, pickled, collected under a prefix, and empty again after a reset."""
    metric = RetrievalMetric()
    collection = MetricCollection({"one": metric}).clone(prefix="val/")
    vectors, hashes = torch.eye(3), digest(1, 2, 3)
    for each in (metric, collection):
        each.update(vectors, vectors.roll(1, 0), hashes, digest(4, 5, 6))
    found = collection.compute()
    assert {name.removeprefix("val/"): float(value) for name, value in found.items()} == {
        name: float(value) for name, value in metric.compute().items()
    }
    again = pickle.loads(pickle.dumps(metric))
    assert {name: float(value) for name, value in again.compute().items()} == {
        name: float(value) for name, value in metric.compute().items()
    }
    metric.reset()
    with pytest.raises(ValueError, match="at least 1 pair, got 0"):
        metric.compute()
    assert len(again.query) == 1


def test_is_a_child_of_its_module():
    """Moved and copied with it, and no part of what is saved."""
    module = torch.nn.ModuleList([RetrievalMetric()])
    module[0].update(torch.eye(2), torch.eye(2), digest(1, 2), digest(3, 4))
    assert module.state_dict() == {}
    other = copy.deepcopy(module)
    module[0].reset()
    assert float(other[0].compute()["recall@1"]) == 100
