import json

import pytest
from disk import files_of

from lightning_conan import drift as package
from lightning_conan.cli import drift
from lightning_conan.cli.common import pair_sets
from lightning_conan.drift import Verdict
from lightning_conan.fusion import coefficient_plots as plots


@pytest.fixture
def measured(monkeypatch):
    """A report that need not be measured."""
    report = package.DriftReport({"image": Verdict("image", 90.0, 60.0, 88.0, 61.0)}, {"image": {"fused": [1.0, 0.5]}})
    monkeypatch.setattr(package, "measure_drift", lambda *_: report)
    monkeypatch.setattr(pair_sets, "read_sets", lambda *_: {})
    monkeypatch.setattr(plots, "draw", lambda *_: b"\x89PNG" + b"x" * 1996)


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
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert sizes.keys() == {"drift.json", "drift.png", "report.html"}
    assert sizes["drift.png"] == 2000
    assert json.loads((tmp_path / "out" / "drift.json").read_text())["layers"] == {"image": {"fused": [1.0, 0.5]}}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "image: 33% lost (90.0 -&gt; 60.0)" in page
    assert "data-value='0.5'" in page


def test_neither_is_written_where_the_plot_fails(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_neither_is_written_where_the_disk_is_full(measured, tmp_path):
    with files_of(1000), pytest.raises(OSError, match=r"drift\.png could not be written"):
        run(tmp_path)
    assert not list((tmp_path / "out").iterdir())
