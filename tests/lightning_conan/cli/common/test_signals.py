import json
import os
import signal
import threading
import time
from multiprocessing import active_children, get_context

import pytest

from callbacks import EmbeddingParts
from datamodules.shards import reencode, write
from datamodules.shards.reencode import in_order
from lightning_conan.cli.common.signals import ended_by_sigterm
from lightning_conan.cli.main import main
from lightning_conan.embedder.checkpoint import atomic
from lightning_conan.retrieval.store import EmbeddingStore
from lightning_conan.training import Stage
from samples import CONFIGS


def terminate(*_, **__):
    """The signal, from within."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers():
    """A verb leaves the handlers as they were: here the system's, whatever another library has set in this process."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for row in range(6):
        (folder / f"{row}.txt").write_text(f"number {row}")
    return folder


@pytest.fixture
def manifest(tmp_path):
    line = '{{"key": "k{0}", "task": "t", "modality": "text", "query": {{"text": "{0}"}}, "target": {{"text": "no {0}"}}}}\n'
    (tmp_path / "m.jsonl").write_text("".join(line.format(row) for row in range(5)))
    return tmp_path / "m.jsonl"


def after(calls, function, then=terminate):
    """A function that is interrupted at the end of one of its calls."""
    count = iter(range(calls))

    def called(*args, **options):
        result = function(*args, **options)
        if next(count, None) is None:
            then()
        return result

    return called


@pytest.mark.parametrize("place", ["write", "on_predict_batch_end", "setup"])
def test_embed_ends_with_143_and_resumes(base, texts, tmp_path, monkeypatch, capsys, place):
    """While it loads, while it embeds, and once a part is written."""
    out = tmp_path / "out"
    words = [
        "embed",
        "--folder",
        str(base),
        "--source",
        str(texts),
        "--out",
        str(out),
        "--rows_per_part",
        "2",
        "--accelerator",
        "cpu",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingParts, place, after(0 if place == "setup" else 1, getattr(EmbeddingParts, place)))
        assert main(words) == 143
    left = sorted(path.name for path in out.iterdir())
    assert left == [f"part-0000{number}.parquet" for number in range({"write": 2, "on_predict_batch_end": 2, "setup": 0}[place])]
    capsys.readouterr()
    assert main(words) == 0
    assert f"{6 - 2 * len(left)} of them new" in capsys.readouterr().out
    assert EmbeddingStore(out).keys() == [f"{row}.txt" for row in range(6)]


def test_a_part_that_is_being_written_leaves_nothing(base, texts, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_conan.retrieval.store.pq.write_table", terminate)
    assert (
        main(["embed", "--folder", str(base), "--source", str(texts), "--out", str(tmp_path / "out"), "--accelerator", "cpu"])
        == 143
    )
    assert not list((tmp_path / "out").iterdir())


def test_pack_ends_with_143_and_goes_on_behind_its_last_shard(manifest, tmp_path, monkeypatch, caplog):
    out = tmp_path / "out"
    words = ["pack", str(manifest), "--out", str(out), "--pairs_per_shard", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(write, "write_shard", after(1, write.write_shard))
        assert main(words) == 143
    assert not out.exists()
    assert "1 shards of" in caplog.text
    assert not (tmp_path / ".out.lock").exists()
    first = (tmp_path / ".out.partial" / "000000.tar").stat().st_mtime_ns
    assert main(words) == 0
    assert (out / "000000.tar").stat().st_mtime_ns == first
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_workers_do_not_finish_what_nobody_waits_for(monkeypatch):
    """A video that is being written anew may take a minute."""
    monkeypatch.setattr(reencode, "get_context", lambda _: get_context("fork"))  # others take seconds to start
    before, start = active_children(), time.monotonic()
    made = in_order(time.sleep, [0.0, *[300.0] * 9], 1)
    next(made)
    with pytest.raises(SystemExit):
        made.throw(SystemExit(143))
    while set(active_children()) - set(before) and time.monotonic() - start < 100:
        time.sleep(0.01)
    assert set(active_children()) <= set(before)


def test_mine_and_search_end_with_143(base, manifest, texts, tmp_path, monkeypatch):
    mined = [
        "mine",
        "--manifest",
        str(manifest),
        "--folder",
        str(base),
        "--out",
        str(tmp_path / "mined.jsonl"),
        "--accelerator",
        "cpu",
    ]
    with monkeypatch.context() as patch:
        patch.setattr("lightning_conan.cli.mine.mine", terminate)
        assert main(mined) == 143
    assert not (tmp_path / "mined.jsonl").exists()
    assert main(mined) == 0
    with monkeypatch.context() as patch:
        patch.setattr("lightning_conan.retrieval.engines.searching.top_k", terminate)
        index = tmp_path / "mined.jsonl.mining" / "target"
        assert main(["search", "--folder", str(base), "--index", str(index), "--text", "x"]) == 143


@pytest.mark.parametrize("verb", ["graft", "export"])
def test_no_scratch_folder_is_left(base, tmp_path, monkeypatch, verb):
    monkeypatch.setattr(atomic, "sync", terminate)  # all is written, nothing is in its place
    words = {"graft": ["--tiny", "true", "--out", str(tmp_path / "out")], "export": [str(base), str(tmp_path / "out")]}
    assert main([verb, *words[verb]]) == 143
    assert not list(tmp_path.iterdir())


def test_a_test_of_a_stage_ends_at_once(base, world, tmp_path, monkeypatch):
    """Lightning's handler would let it run to its end."""
    steps = []
    monkeypatch.setattr(Stage, "test_step", lambda *_: (steps.append(1), terminate()))
    words = ["test", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "tiny" / "test.yaml")]
    words += ["--trainer.default_root_dir", str(tmp_path), "--trainer.callbacks.path", str(tmp_path / "scores.json")]
    words += ["--model.init_args.folder", str(base), "--data.init_args.test", json.dumps({"a": str(world / "image")})]
    words += ["--data.init_args.batch_size", "4"]
    assert main(words) == 143
    assert len(steps) == 1


def test_a_handler_of_somebody_elses_stays():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with ended_by_sigterm():
            terminate()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
    assert seen == [1]


def test_outside_of_the_main_thread_nothing_is_handled():
    found = []

    def inside():
        with ended_by_sigterm():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_the_demo_ends_with_the_verb_that_a_signal_ended(tmp_path, monkeypatch):
    from lightning_conan.demo.line import Demo

    monkeypatch.setattr("lightning_conan.demo.line.main", lambda words: 143)
    with pytest.raises(SystemExit) as stop:
        Demo(tmp_path, tmp_path, 0, 1.0, 1).conan("fit")
    assert stop.value.code == 143
