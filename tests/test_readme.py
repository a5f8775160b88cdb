"""README's commands work as they stand there, in a folder that looks like a user's."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from lightning_conan.cli.main import main
from samples import CONFIGS, flac

README = (Path(__file__).parents[1] / "README.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("conan ")]


@pytest.fixture
def home(base, tmp_path, monkeypatch):
    """A checkout after `make demo`, with a user's data in `data/`."""
    (tmp_path / "data" / "audio").mkdir(parents=True)
    lines = []
    for row in range(12):
        (tmp_path / "data" / "audio" / f"{row}.wav").write_bytes(flac(0.4 + row / 20, 8000, "wav"))
        sides = {"query": {"audio": f"audio/{row}.wav"}, "target": {"text": f"a voice says {row % 4}"}}
        line = {"key": f"clip-{row}", "task": "digits", "modality": "audio", "split": "test" if row % 3 == 0 else "train"}
        lines.append(json.dumps(line | sides))
    (tmp_path / "data" / "manifest.jsonl").write_text("\n".join(lines))
    (tmp_path / "configs").symlink_to(CONFIGS)
    shutil.copytree(base, tmp_path / "runs" / "demo" / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_for_ones_own_data(home, capsys):
    found = commands()
    assert [command.split()[1] for command in found] == ["pack", "pack", "fit", "test"]
    for command in found:
        short = ["--trainer.max_steps", "2"] if command.startswith("conan fit") else []
        assert main([*shlex.split(command)[1:], *short]) == 0, capsys.readouterr().err
    assert "digits" in capsys.readouterr().out
    assert "digits" in json.loads((home / "runs" / "digits" / "scores.json").read_text())


def test_files_that_it_names_exist():
    root = Path(__file__).parents[1]
    names = re.findall(r"(?:configs|docs|notebooks)/[\w./-]+\.(?:yaml|md|ipynb)", README)
    assert names
    assert not [name for name in names if not (root / name).is_file()]


def test_its_manifest_line_is_valid(tmp_path):
    from lightning_conan.items import parse_pair

    for page in (README, (Path(__file__).parents[1] / "docs" / "manifest.md").read_text()):
        for line in re.findall(r'^\{"key".*\}$', page, flags=re.MULTILINE):
            assert parse_pair(json.loads(line), tmp_path).modality == "audio"


def test_its_python_works(home, base):
    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1].replace("runs/demo/final", "runs/demo/base")
    from samples import png

    (home / "photo.jpg").write_bytes(png(format="JPEG"))
    scope: dict = {}
    exec(code, scope)
    assert scope["vectors"].shape == (2, 128)
