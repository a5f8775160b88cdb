"""README's commands work as they stand there, in a folder that looks like a user's."""

import csv
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from upstream import write_qwen3_omni, write_qwen3_vl

from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_composed
from datamodules.toy_world.write import write_composed
from lightning_conan.cli.main import main
from lightning_conan.embedder import OmniProcessor, Provenance, read_provenance, save_folder, tiny_embedder
from samples import CONFIGS, flac, png

ROOT = Path(__file__).parents[1]
README, GUIDE = (ROOT / "README.md").read_text(), (ROOT / "docs" / "guide.md").read_text()


def commands(page: str = README) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
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


OWN_DATA, DRIFT = ["pack", "pack", "fit", "test"], ["drift"]
USE, REASON, REAL = ["embed", "search", "export", "doctor"], ["cot", "test"], ["memory", "graft", "fit", "fit"]


def test_commands_for_ones_own_data(home, capsys):
    found = commands()
    assert [command.split()[1] for command in found] == [*OWN_DATA, *DRIFT, *USE, *REASON, *REAL]
    for command in found[: len(OWN_DATA)]:
        short = ["--trainer.max_steps", "2", "--model.init_args.alone_steps", "1"] if command.startswith("conan fit") else []
        assert main([*shlex.split(command)[1:], *short]) == 0, capsys.readouterr().err
    assert "digits" in capsys.readouterr().out
    assert "digits" in json.loads((home / "runs" / "digits" / "scores.json").read_text())


def test_the_command_for_drift(home, world, capsys):
    """On specialists that moved at random."""
    demo = home / "runs" / "demo"
    (demo / "packed").mkdir()
    parent = read_provenance(demo / "base").fingerprint
    for seed, name in enumerate(("image", "video", "document", "audio", "fused", "recovered")):
        model, processor = tiny_embedder(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        state = Provenance(name) if seed > 3 else Provenance("specialist", name, {"base": parent})
        save_folder(demo / name, model, processor, state)
        if seed < 4:
            (demo / "packed" / f"{name}.diagnostic").symlink_to(world / name)
    (command,) = [command for command in commands() if " drift " in command]
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert (demo / "drift" / "drift.png").is_file()


def test_commands_for_using_a_model(home, capsys):
    shutil.copytree(home / "runs" / "demo" / "base", home / "runs" / "demo" / "final")
    (home / "photos").mkdir()
    (home / "photos" / "a.jpg").write_bytes(png(format="JPEG"))
    for command in commands()[len(OWN_DATA) + 1 : -len(REASON + REAL)]:
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert "a.jpg" in capsys.readouterr().out
    assert (home / "exported" / "modules.json").is_file()


def test_commands_for_real_checkpoints(home, world, capsys):
    """On small checkpoints in the same layout, in the place of the hub's, and without a GPU."""
    write_qwen3_vl(home / "Qwen" / "Qwen3-VL-2B-Instruct")
    write_qwen3_omni(home / "Qwen" / "Qwen3-Omni-30B-A3B-Instruct")
    (home / "packed").mkdir()
    for name in ("image", "audio"):
        (home / "packed" / f"{name}.train").symlink_to(world / name)
    for command in commands()[-len(REAL) :]:
        command = command.replace("--model qwen3-vl-2b", "--folder runs/demo/base")
        options = ["--trainer.max_steps", "1", "--data.init_args.batch_size", "4", "--data.init_args.num_workers", "0"]
        options += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
        options += ["--model.init_args.alone_steps", "0"] if "audio.yaml" in command else []
        assert main([*shlex.split(command)[1:], *(options if " fit " in command else [])]) == 0, capsys.readouterr().err
    for name in ("image", "audio"):
        assert (home / "runs" / "qwen3_vl" / name / "adapter_model.safetensors").is_file()


def test_files_that_it_names_exist():
    names = re.findall(r"(?:configs|docs|notebooks)/[\w./-]+\.(?:yaml|md|ipynb)", README + GUIDE)
    packaged = re.findall(r"conan:([\w/]+\.yaml)", README + GUIDE)
    assert names
    assert packaged
    names += [f"configs/{name}" for name in packaged]
    assert not [name for name in names if not (ROOT / name).is_file()]


def test_nothing_names_a_file_that_only_its_authors_have():
    """Specifications and notes that lie beside the checkout."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    odd = re.compile(r"\b(?:PAPERS|DESIGN|FIELD|FAULTS|SPEED|STYLE)\.md")
    pages = {
        name: (ROOT / name).read_text(errors="ignore")
        for name in listed
        if (ROOT / name).is_file() and name != "tests/test_readme.py"
    }
    assert not [name for name, text in pages.items() if odd.search(text)]


def test_its_manifest_line_is_valid(tmp_path):
    from lightning_conan.items import parse_pair

    for page in (README, (ROOT / "docs" / "manifest.md").read_text()):
        for line in re.findall(r'^\{"key".*\}$', page, flags=re.MULTILINE):
            assert parse_pair(json.loads(line), tmp_path).modality == "audio"


@pytest.fixture
def reasoning(home, tiny):
    """What the demo leaves of TRACE, untrained."""
    demo = home / "runs" / "demo"
    model, processor = tiny
    processor = OmniProcessor(processor.tokenizer, replace(processor.config, ends=False, reasons=True))
    save_folder(demo / "trace", model, processor, Provenance("reasoning"))
    write_composed("composed", demo / "world" / "trace", 4, 0)
    write_shards(draw_composed("composed", 4, 0)[0], demo / "packed" / "trace" / "composed.test")


def test_commands_for_reasoning(home, reasoning, capsys):
    short = {"test": ["--model.init_args.decoding.max_new_tokens", "2"]}
    for command in commands()[-len(REASON + REAL) : -len(REAL)]:
        words = shlex.split(command)[1:]
        assert main([*words, *short.get(words[0], [])]) == 0, capsys.readouterr().err
    assert "reasoned about" in capsys.readouterr().out


def test_its_python_works(home, reasoning):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    code = "\n".join(blocks).replace("runs/demo/final", "runs/demo/base")
    (home / "photo.jpg").write_bytes(png(format="JPEG"))
    scope: dict = {}
    exec(code, scope)
    assert scope["vectors"].shape == (2, 128)


def test_a_run_is_watched_as_the_guide_says(home, capsys):
    for command in commands()[:2]:
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    (home / "watch.yaml").write_text("".join(re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.DOTALL)))
    (command,) = commands(GUIDE)
    short = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1"]
    short += ["--model.init_args.alone_steps", "2"]
    assert main([*shlex.split(command)[1:], *short]) == 0, capsys.readouterr().err
    assert (home / "runs" / "digits" / "watched" / "conan.json").is_file()
    rows = csv.DictReader((home / "runs/digits/lightning_logs/version_0/metrics.csv").open())
    names = {name for row in rows for name, value in row.items() if value}
    assert {"train/loss", "train/loss/audio", "train/gradient_norm", "seen/audio/digits", "val/digits/recall@1"} <= names
    assert {"val/digits/forth/recall@50", "val/digits/back/ndcg@5"} <= names


def test_the_guides_python_works(home, capsys):
    shutil.copytree(home / "runs" / "demo" / "base", home / "runs" / "demo" / "final")
    (home / "photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        (home / name).write_bytes(png(seed=len(name), format="JPEG"))
    (home / "clip.flac").write_bytes(flac())
    embed, _, export, _ = commands()[len(OWN_DATA) + 1 : -len(REASON + REAL)]
    for command in (embed, export):
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    added = []
    scope: dict = {"stand_in": SimpleNamespace(IndexFlatIP=lambda dim: SimpleNamespace(add=added.append))}
    code = "\n".join(re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL))
    exec(code.replace("import faiss", "faiss = stand_in"), scope)
    assert scope["keys"] == ["a.jpg", "b.jpg"]
    assert [rows.shape for rows in added] == [(2, 128)]
    assert scope["vectors"].shape == (3, 128)
    assert main(["fuse", "--recipe.method.help", "lightning_conan.fusion.Ties"]) == 0
