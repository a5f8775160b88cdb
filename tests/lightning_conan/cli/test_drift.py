import json
from types import SimpleNamespace

import pytest
from disk import files_of

from lightning_conan import drift as package
from lightning_conan.cli import drift
from lightning_conan.cli.common import pair_sets
from lightning_conan.fusion import coefficient_plots as plots


@pytest.fixture
def measured(monkeypatch):
    """A report that need not be measured."""
    report = SimpleNamespace(to_json=lambda: json.dumps({"verdicts": {}}), layers={}, verdicts={})
    monkeypatch.setattr(package, "measure_drift", lambda *_: report)
    monkeypatch.setattr(pair_sets, "read_sets", lambda *_: {})
    monkeypatch.setattr(plots, "draw", lambda *_: b"x" * 2000)


def run(tmp_path):
    drift.run(
        [
            "--specialists",
            '{"image": "a"}',
            "--states",
            '{"fused": "b"}',
            "--diagnostic",
            '{"image": "c"}',
            "--out",
            str(tmp_path / "out"),
        ]
    )


def test_report_and_plot_are_written(measured, tmp_path):
    run(tmp_path)
    assert {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()} == {"drift.json": 16, "drift.png": 2000}


def test_neither_is_written_where_the_plot_fails(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_neither_is_written_where_the_disk_is_full(measured, tmp_path):
    with files_of(1000), pytest.raises(OSError, match=r"drift\.png could not be written"):
        run(tmp_path)
    assert not list((tmp_path / "out").iterdir())
