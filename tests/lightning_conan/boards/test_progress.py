"""Progress of embedding: items of all ranks, until the run ends or fails."""

import pytest

from lightning_conan import terminal as progress
from lightning_conan.boards.progress import ItemLines


@pytest.mark.parametrize("items", [20, lambda: 20], ids=["number", "function"])
def test_items_of_all_ranks_are_counted_until_the_end(monkeypatch, capsys, items):
    monkeypatch.setattr(progress, "FIRST", 0.0)
    lines = ItemLines(items)
    lines.count(5)  # another rank: nothing is shown
    lines.begin()
    for size in (10, 14):  # the last batch of the other rank is smaller
        lines.count(size)
    assert lines.work.done == 20
    lines.close(None)
    lines.close(ValueError)  # once
    assert "embedding: 20 of 20 items, done in" in capsys.readouterr().err
    assert progress.ACTIVE == []


def test_a_run_that_fails_ends_the_line(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST", 0.0)
    lines = ItemLines(3)
    lines.begin()
    lines.close(ValueError)
    assert capsys.readouterr().err.endswith("stopped\n")
    assert progress.ACTIVE == []
