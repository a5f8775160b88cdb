"""Progress of embedding counts items of all ranks, skipped ones included, and ends with the run."""

from types import SimpleNamespace

import pytest

from lightning_conan import progress
from lightning_conan.boards.progress import ItemLines


@pytest.mark.parametrize("items", [20, lambda: 20], ids=["number", "function"])
def test_items_of_all_ranks_are_counted_until_the_end(monkeypatch, capsys, items):
    monkeypatch.setattr(progress, "FIRST", 0.0)
    trainer, lines = SimpleNamespace(is_global_zero=True, world_size=2), ItemLines(items)
    lines.on_predict_start(trainer, None)
    for sound, broken in ((4, 1), (7, 0)):  # the last batch of the other rank is smaller
        batch = SimpleNamespace(keys=["key"] * sound, faults=["fault"] * broken)
        lines.on_predict_batch_end(trainer, None, None, batch, 0)
    assert lines.work.done == 20
    lines.on_predict_end(trainer, None)
    assert "embedding: 20 of 20 items, done in" in capsys.readouterr().err
    assert progress.ACTIVE == []


def test_a_run_that_fails_ends_the_line(monkeypatch):
    lines = ItemLines(3)
    lines.on_predict_start(SimpleNamespace(is_global_zero=True, world_size=1), None)
    lines.on_exception(None, None, ValueError())
    lines.on_predict_end(None, None)
    assert progress.ACTIVE == []


def test_other_ranks_show_nothing():
    lines = ItemLines(3)
    lines.on_predict_start(SimpleNamespace(is_global_zero=False, world_size=2), None)
    assert lines.work is None
