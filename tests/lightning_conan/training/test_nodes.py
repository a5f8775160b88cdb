"""Two nodes are one larger process: a torchrun on each, as configs/trainer/nodes.yaml says, here with one CPU process a node."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from lightning_conan.cli.main import main
from lightning_conan.embedder import read_provenance
from samples import CONFIGS

LOSSES, OUT, SAVED = "logs/lightning_logs/version_0/metrics.csv", "runs/demo/image", "runs/demo/work/image/checkpoints/last.ckpt"
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.precision", "32-true"]


def fit(base, world, steps, *configs):
    """The words of a run that writes into the folder where it is called."""
    words = ["fit", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "tiny" / "specialist.yaml"), *configs, *CPU]
    words += ["--model.init_args.folder", str(base), "--data.init_args.train", str(world / "image")]
    words += ["--data.init_args.batch_size", "6", "--trainer.max_steps", str(steps), "--trainer.log_every_n_steps", "1"]
    words += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "logs"]
    return [*words, "--trainer.logger.flush_logs_every_n_steps", "1"]


def losses(root):
    return [float(row["train/loss"]) for row in csv.DictReader((root / LOSSES).open())]


@pytest.fixture
def start(base, world, tmp_path):
    """Starts both nodes, each in a folder of its own, and leaves none behind."""
    nodes = []

    def launch(steps, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        words = fit(base, world, steps, "--config", str(CONFIGS / "trainer" / "nodes.yaml"), "--trainer.num_nodes", "2")
        words += options
        settings = os.environ | {"PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}
        for rank in range(2):
            root = tmp_path / f"node{rank}"
            root.mkdir()
            node = [*command, "--node-rank", str(rank), "-m", "lightning_conan.cli.main", *words]
            with (root / "printed").open("w") as printed:
                nodes.append(subprocess.Popen(node, cwd=root, env=settings, stdout=printed, stderr=printed))
        return nodes

    yield launch
    for node in nodes:
        node.terminate()
        node.wait(60)


def test_two_nodes_train_as_one_process_does(base, world, tmp_path, start, monkeypatch):
    """Same losses; the first node alone writes the folder and the checkpoint."""
    assert [node.wait(120) for node in start(8)] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "node1").iterdir()) == ["printed"]
    assert (tmp_path / "node0" / SAVED).exists()
    assert read_provenance(tmp_path / "node0" / OUT).notes["steps"] == 8
    alone = tmp_path / "alone"
    alone.mkdir()
    monkeypatch.chdir(alone)
    assert main(fit(base, world, 8)) == 0
    assert losses(tmp_path / "node0") == pytest.approx(losses(alone), rel=1e-4)


def test_a_signal_to_one_node_saves_and_ends_both(tmp_path, start):
    """Torchrun passes it on to the processes that decode as well, of which the step that runs still needs batches."""
    root, nodes = tmp_path / "node0", start(100_000, "--data.init_args.num_workers", "2")
    while not ((root / LOSSES).exists() and (root / LOSSES).stat().st_size):
        assert all(node.poll() is None for node in nodes), (root / "printed").read_text()
        time.sleep(0.05)
    nodes[1].send_signal(signal.SIGTERM)
    assert all(node.wait(60) for node in nodes)
    assert torch.load(root / SAVED, weights_only=True)["global_step"] > 0
    assert not (root / OUT).exists()
    assert "exitcode  : 143" in (root / "printed").read_text()
