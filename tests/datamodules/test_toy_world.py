import pytest

from datamodules.sources.manifest import read_manifest
from datamodules.toy_world import DRAW, draw_composed, draw_pairs, write_world
from datamodules.toy_world.write import COMPOSED_EDITS, COMPOSED_HELD_OUT
from lightning_conan.demo.trace import DEPTHS, TASKS
from lightning_conan.items import Media, Pair
from lightning_conan.media import decode_media


@pytest.mark.parametrize("task", list(DRAW))
def test_files_are_real_and_the_same_for_the_same_seed(task):
    pairs = draw_pairs(task, 6, 3)
    assert [pair.query.content_hash() for pair in pairs] == [pair.query.content_hash() for pair in draw_pairs(task, 6, 3)]
    assert [pair.query.content_hash() for pair in pairs] != [pair.query.content_hash() for pair in draw_pairs(task, 6, 4)]
    for pair in pairs:
        decode_media(pair.query.media[0])


@pytest.mark.parametrize("task", list(DRAW))
def test_enough_variety_for_256_different_held_out_pairs(task):
    pairs = draw_pairs(task, 256, 0)
    assert len({pair.target.content_hash() for pair in pairs}) == 256


def test_manifests_can_be_packed_and_test_captions_are_new(tmp_path):
    write_world(tmp_path / "world", pairs=8)

    def captions(name):
        pairs = list(read_manifest(tmp_path / "world" / f"{name}.jsonl"))
        assert all(isinstance(pair, Pair) and pair.query.media[0].read() for pair in pairs)
        return {pair.target.parts[0] for pair in pairs}

    for task in DRAW:
        test, train, diagnostic = (captions(f"{task}.{name}") for name in ("test", "train", "diagnostic"))
        assert len(test) == len(train) == len(diagnostic) == 8
        assert not test & train
        assert not diagnostic & (test | train)
        if task != "audio":
            assert not test & captions(f"{task}.base")


@pytest.mark.parametrize("task", TASKS)
def test_a_source_has_more_held_out_targets_than_recall_looks_at(task):
    """Else a query that finds its source alone would be right."""
    assert 2 * max(DEPTHS) < COMPOSED_EDITS
    assert COMPOSED_HELD_OUT % COMPOSED_EDITS == 0
    _, truths = draw_composed(task, 2 * COMPOSED_EDITS, "0 test", edits=COMPOSED_EDITS)
    assert len({truth.answer for truth in truths.values()}) == 2 * COMPOSED_EDITS
    things = [answer.split(", ") for answer in (truth.answer for truth in truths.values())]
    halves = things[:COMPOSED_EDITS], things[COMPOSED_EDITS:]
    for half in halves:
        usual = [max({thing[place] for thing in half}, key=[thing[place] for thing in half].count) for place in range(4)]
        changed = [sum(thing[place] != usual[place] for place in range(4)) for thing in half]
        assert sum(changed) / len(half) < 3  # near misses of one scene, which 64 unrelated ones are not


def test_too_few_captions_are_refused(monkeypatch):
    monkeypatch.setitem(DRAW, "audio", ("audio", lambda rng, key: ("always the same", Media("audio", b"x", "x.flac"))))
    with pytest.raises(ValueError, match="audio has too few different captions: 1 found, 2 asked for"):
        draw_pairs("audio", 2, 0)
