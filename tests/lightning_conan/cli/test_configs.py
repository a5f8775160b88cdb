"""Packaged YAML files: listed, copied, and named by `conan:` wherever a verb reads one."""

import json
import subprocess
import sys

import pytest
import yaml

from lightning_conan.cli.configs import config_folder, find_config, resolve
from lightning_conan.cli.main import main
from samples import CONFIGS


def test_all_are_listed_with_what_they_say(capsys):
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {
        f"conan:{path.relative_to(CONFIGS).as_posix()}" for path in CONFIGS.rglob("*.*")
    }
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


def test_one_is_printed_or_copied_and_nothing_is_replaced(tmp_path, capsys):
    assert main(["configs", "conan:tiny/base.yaml"]) == 0
    text = (CONFIGS / "tiny" / "base.yaml").read_text()
    assert capsys.readouterr().out == text
    out = tmp_path / "new" / "mine.yaml"
    assert main(["configs", "tiny/base", "--out", str(out)]) == 0
    assert out.read_text() == text
    out.write_text("years of work")
    assert main(["configs", "tiny/base.yaml", "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "years of work"
    assert main(["configs", "slurm/embed.sbatch", "--out", str(out.with_name("job.sbatch"))]) == 0
    assert out.with_name("job.sbatch").read_text() == (CONFIGS / "slurm" / "embed.sbatch").read_text()
    assert main(["configs", "--out", str(out)]) == 1
    assert "needs the name of a config" in capsys.readouterr().err


def test_a_name_that_is_none_names_a_near_one(capsys):
    assert main(["fit", "--config", "conan:tiny/recovry.yaml"]) == 1
    assert "tiny/recovery.yaml" in capsys.readouterr().err
    with pytest.raises(ValueError, match="packaged config must be"):
        find_config("conan:../setup.cfg")


def test_only_the_values_of_config_are_resolved():
    """A text to search may begin with the prefix."""
    path = str(config_folder() / "base.yaml")
    assert resolve(["--config", "conan:base.yaml", "--config=conan:base"]) == ["--config", path, f"--config={path}"]
    assert resolve(["--text", "conan:base.yaml", "conan:base.yaml"]) == ["--text", "conan:base.yaml", "conan:base.yaml"]


def test_a_verb_reads_them(capsys):
    assert main(["fit", "--config", "conan:base.yaml", "--config", "conan:tiny/base.yaml", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"][-1]["class_path"] == "callbacks.FolderCheckpoint"


SHORT = """
import sys
from lightning_conan.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--model", "Rehearsal", "--data", "TraceData", "--trainer.callbacks+", "DataMonitor", "--print_config"],
        ["fuse", "--recipe.method", "IsoC", "--print_config"],
    ],
    ids=lambda words: words[0],
)
def test_public_classes_are_known_by_their_names(words):
    """Although packages import lazily; in a process of its own, since here all are imported."""
    done = subprocess.run([sys.executable, "-c", SHORT, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = done.stdout
    paths = ("lightning_conan.stages.Rehearsal", "datamodules.TraceData", "callbacks.DataMonitor")
    assert all(path in found for path in (paths if words[0] == "fit" else ("lightning_conan.fusion.IsoC",)))


def test_packing_needs_neither_torch_nor_lightning(tmp_path):
    """A verb's imports are its start-up (benchmarks/startup.py)."""
    line = {"key": "a", "task": "t", "modality": "text", "query": {"text": "a"}, "target": {"text": "b"}}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line))
    words = ["pack", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "packed")]
    code = "import sys\nfrom lightning_conan.cli.main import main\nassert main(sys.argv[1:]) == 0\n"
    code += "print([name for name in ('torch', 'lightning', 'transformers', 'av') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
