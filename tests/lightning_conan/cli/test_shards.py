"""Bulk embedding: shards of one folder, under kills and SLURM; sources and outputs behind URLs."""

import json
import os
import re
import stat
import subprocess
import sys
from collections import Counter

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ranks import warm_context
from scenarios import conan, killed_after_a_part

from datamodules.shards import remote
from datamodules.shards.write import write_shards
from lightning_conan.cli.common.shards import device_number, read_shard
from lightning_conan.cli.main import main
from lightning_conan.items import Item, Media, Pair
from lightning_conan.retrieval import EmbeddingStore
from lightning_conan.retrieval.remote_parts import RemoteParts
from lightning_conan.writer_lock import only_writer
from samples import CONFIGS, png

ROWS = 3


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = tmp_path_factory.mktemp("bulk") / "items.jsonl"
    path.write_text("".join(json.dumps({"key": f"k{n}", "text": f"{n} apples " * (n % 9 + 1)}) + "\n" for n in range(160)))
    return path


@pytest.fixture(scope="module")
def words(base, manifest):
    return ["embed", "--folder", str(base), "--source", str(manifest), "--rows_per_part", str(ROWS), "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """Embeddings of one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main([*words, "--out", str(out)]) == 0
    return EmbeddingStore(out)


def same(out, whole) -> None:
    found = EmbeddingStore(out)
    assert max(Counter(found.keys()).values()) == 1
    assert found.keys() == whole.keys()
    assert torch.equal(torch.cat(list(found.blocks())), torch.cat(list(whole.blocks())))


def test_four_shards_of_which_two_are_killed_and_restarted_equal_one_process(words, whole, tmp_path):
    """Each is killed after its first part, in the middle of its work; nothing of a neighbour is touched by the restart."""
    out, context = tmp_path / "out", warm_context()

    def start(number, run=conan):
        process = context.Process(target=run, args=([*words, "--out", str(out), "--shard", f"{number}/4"],))
        process.start()
        return process

    started = [start(number, killed_after_a_part if number in (1, 2) else conan) for number in range(4)]
    for number in (1, 2):
        started[number].join(120)
        assert started[number].exitcode == -9
        assert (out / f"part-{number:05d}.parquet").exists()
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert len(there) < len(whole.paths)
    again = [start(number) for number in (1, 2)]
    for process in (started[0], started[3], *again):
        process.join(120)
        assert process.exitcode == 0
    same(out, whole)
    assert {name: (out / name).stat().st_mtime_ns for name in there} == there
    assert sorted(path.suffix for path in out.iterdir()) == [".parquet"] * len(whole.paths)
    assert not list(tmp_path.glob(".out*"))


def test_shards_of_any_number_add_up_and_say_what_is_missing(words, whole, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*words, "--out", str(out), "--shard", "1/3"]) == 0
    assert "shard 1 of 3: 18 of 54 parts, 54 embeddings new; other shards write the rest" in capsys.readouterr().out
    assert main([*words, "--out", str(out), "--shard", "0/2"]) == 0
    (out / ".part-00003.parquet.other-1.partial").write_bytes(b"of a live neighbour")
    assert main([*words, "--out", str(out), "--shard", "0/2"]) == 0
    assert (out / ".part-00003.parquet.other-1.partial").exists()
    assert main([*words, "--out", str(out)]) == 0
    same(out, whole)
    with only_writer(out, "0-of-2"):
        assert main([*words, "--out", str(out), "--shard", "1/2"]) == 0
        assert main([*words, "--out", str(out), "--shard", "1/3"]) == 1
        assert "must have one writer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "shard", "device"),
    [
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8), 1),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "3"}, (3, 4), 3),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}, (2, 4), 0),
        (
            {"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_STEP": "4", "SLURM_PROCID": "0"},
            (2, 3),
            0,
        ),
        (
            {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"},
            (7, 8),
            0,
        ),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "RANK": "9", "WORLD_SIZE": "16"}, (9, 16), 0),
    ],
)
def test_launchers_tell_a_process_its_shard(environment, shard, device):
    assert read_shard("auto", environment) == shard
    assert device_number(environment) == device


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [
        ("auto", {}, "needs torchrun"),
        ("auto", {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "needs torchrun"),  # a batch script's own, of one process
        ("auto", {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3"}, "without gaps"),
        ("4/4", {}, "below the count"),
        ("1of4", {}, "NUMBER/COUNT"),
    ],
)
def test_what_tells_no_shard_is_refused(text, environment, said):
    with pytest.raises(ValueError, match=said):
        read_shard(text, environment)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("slurm/*.sbatch")), ids=lambda path: path.name)
def test_batch_files_are_bash_with_options_before_commands(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text().splitlines()
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    commands = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    assert options
    assert max(options) < min(commands), "SLURM reads none behind the first command"


def fake(folder, name, script) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(stat.S_IRWXU)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for SLURM's commands: two nodes, which are this machine, with a process each."""
    place = tmp_path / "bin"
    place.mkdir()
    fake(place, "scontrol", 'test "$*" = "show hostnames localhost,there" && printf "localhost\\nthere\\n"')
    fake(
        place,
        "srun",
        """while [[ "$1" == --* ]]; do shift; done
export SLURM_STEP_NUM_TASKS=2 pids=""
for n in 0 1; do SLURM_NODEID=$n SLURM_PROCID=$n SLURM_LOCALID=0 "$@" & pids="$pids $!"; done
for pid in $pids; do wait $pid || exit 1; done""",
    )
    fake(place, "conan", f'exec {sys.executable} -m lightning_conan.cli.main "$@"')
    fake(place, "torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"')
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost,there",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }
    for name, value in (job | {"PATH": f"{place}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    return CONFIGS / "slurm"


def test_the_batch_file_for_embedding_makes_one_index(words, whole, slurm, tmp_path):
    done = subprocess.run(
        ["bash", str(slurm / "embed.sbatch"), *words[1:], "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    same(tmp_path / "out", whole)
    assert len(re.findall(r"shard \d of 2|160 embeddings", done.stdout)) >= 2


def test_the_batch_file_for_training_meets_at_the_first_host(slurm, tmp_path, monkeypatch):
    """All machines meet at one place, which the first serves."""
    fake(tmp_path / "bin", "torchrun", f'printf "%s|" "$@" > {tmp_path}/node$SLURM_NODEID')
    subprocess.run(["bash", str(slurm / "train.sbatch"), "--config", "a b.yaml"], check=True, timeout=60)
    found = [(tmp_path / f"node{number}").read_text().split("|") for number in (0, 1)]
    for number, words in enumerate(found):
        assert words[words.index("--rdzv-conf") + 1].startswith(f"is_host={1 - number},")
        assert words[words.index("--rdzv-endpoint") + 1] == f"localhost:{20_000 + os.getpid() % 20_000}"
        assert words[words.index("--no-python") :][:5] == ["--no-python", "conan", "fit", "--config", "a b.yaml"]
        assert words[words.index("--trainer.num_nodes") + 1] == "2"


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(remote, "PROTOCOLS", (*remote.PROTOCOLS, "memory"))
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/", recursive=True)
    store.store.clear()


def vectors(tables) -> dict[str, list[float]]:
    rows = pa.concat_tables(tables).to_pylist()
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row["embedding"] for row in rows}


def test_a_manifest_and_an_index_behind_urls_equal_local_ones(base, tmp_path, memory, capsys):
    """Media below the manifest; one is missing, one leads elsewhere: skipped and listed, also behind the URL."""
    names = {"a": "m/a.png", "b": "m/b.png", "gone": "m/none.png", "out": "../secret.png"}
    lines = "".join(json.dumps({"key": key, "image": name, "text": key}) + "\n" for key, name in names.items())
    (tmp_path / "set" / "m").mkdir(parents=True)
    for seed, name in enumerate(("m/a.png", "m/b.png")):
        (tmp_path / "set" / name).write_bytes(png(seed=seed))
        memory.pipe(f"/set/{name}", png(seed=seed))
    memory.pipe("/secret.png", png())
    (tmp_path / "set" / "items.jsonl").write_text(lines)
    memory.pipe("/set/items.jsonl", lines.encode())
    words = ["embed", "--folder", str(base), "--accelerator", "cpu", "--rows_per_part", "2"]
    assert main([*words, "--source", str(tmp_path / "set" / "items.jsonl"), "--out", f"file://{tmp_path}/local"]) == 0
    for new in (2, 0):
        assert main([*words, "--source", "memory://set/items.jsonl", "--out", "memory://bucket/index"]) == 0
        assert f"memory://bucket/index: 2 of 2 parts, {new} embeddings new" in capsys.readouterr().out
    found = [pq.read_table(memory.open(path)) for path in memory.ls("/bucket/index", detail=False)]
    wanted = [pq.read_table(path) for path in sorted((tmp_path / "local").iterdir())]
    assert vectors(found) == vectors(wanted)
    assert found[0]["source"].to_pylist() == ["memory://set/m/a.png", "memory://set/m/b.png"]
    listed = memory.cat_file("/bucket/index.quarantine/part-00001.jsonl").decode()
    assert [json.loads(line)["key"] for line in listed.splitlines()] == ["gone", "out"]
    assert main([*words, "--source", "memory://set/items.jsonl", "--out", "memory://bucket/index", "--precision", "int8"]) == 1
    assert "was made with precision float16" in capsys.readouterr().err


def test_a_packed_set_here_or_behind_a_url_is_embedded_as_its_manifest(base, tmp_path, memory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pairs = [Pair(f"k{n}", "t", "image", Item((Media("image", png(seed=n), "a.png"),)), Item((f"no {n}",))) for n in range(7)]
    write_shards(pairs, tmp_path / "packed", pairs_per_shard=3)
    memory.put(str(tmp_path / "packed"), "/packed", recursive=True)
    words = ["embed", "--folder", str(base), "--accelerator", "cpu", "--precision", "float32", "--rows_per_part", "3"]
    found = {}
    for side in ("query", "target"):
        for name, source in {"here": tmp_path / "packed", "there": "memory://packed"}.items():
            out = tmp_path / f"{name}-{side}"
            assert main([*words, "--source", str(source), "--out", str(out), "--side", side]) == 0
            found[name, side] = EmbeddingStore(out)
        here, there = found["here", side], found["there", side]
        assert here.keys() == there.keys() == [pair.key for pair in pairs]
        assert torch.equal(torch.cat(list(here.blocks())), torch.cat(list(there.blocks())))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"key": f"k{n}", "text": f"no {n}"}) + "\n" for n in range(7)))
    assert main([*words, "--source", str(tmp_path / "texts.jsonl"), "--out", str(tmp_path / "texts")]) == 0
    wanted = torch.cat(list(EmbeddingStore(tmp_path / "texts").blocks()))
    torch.testing.assert_close(torch.cat(list(found["here", "target"].blocks())), wanted, atol=1e-6, rtol=0)


def test_an_upload_has_its_name_only_once_it_is_whole(tmp_path, memory, monkeypatch):
    parts = RemoteParts("memory://bucket/index")
    (tmp_path / "part-00000.parquet").write_bytes(b"whole")
    seen = []
    real = memory.mv
    monkeypatch.setattr(type(memory), "mv", lambda self, *places: (seen.append(parts.names(".parquet")), real(*places)))
    parts.take(tmp_path / "part-00000.parquet")
    assert seen == [[]]
    assert parts.names(".parquet") == ["part-00000.parquet"]
    assert not (tmp_path / "part-00000.parquet").exists()


@pytest.mark.parametrize("url", ["https://example.org/x", "simplecache::memory://x", "nosuch://x"])
def test_places_that_cannot_be_written_are_refused(words, url, capsys):
    assert main([*words, "--out", url]) == 1
    assert url.split("::")[0].split(":")[0] in capsys.readouterr().err


def test_tiles_of_shards_need_one_device_each(words, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "out"), "--shard", "0/2", "--devices", "2"]) == 1
    assert "Start a process for each device" in capsys.readouterr().err
