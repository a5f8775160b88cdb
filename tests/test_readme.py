"""The commands and the code of README and docs/ work as they stand there, in a folder that looks like a user's."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
import webdataset as wds
from backbones import write_backbone
from served import serving
from upstream import write_qwen3_omni, write_qwen3_vl

from datamodules.shards.read import ShardSet
from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_composed
from datamodules.toy_world.write import write_composed
from lightning_conan.cli.main import main
from lightning_conan.embedder import OmniProcessor, Provenance, read_provenance, save_folder, tiny_embedder
from samples import CONFIGS, flac, png

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
VERBS = {
    "README.md": ["pack", "pack", "fit", "test"],
    "foreign.md": ["graft", "fit", "fuse"],
    "backbones.md": ["graft", "fit", "graft", "graft", "fit"],
    "boards.md": ["evaluate"] * 4,
    "embed.md": ["embed", "search", "export", "doctor"],
    "mteb.md": ["evaluate", "evaluate"],  # run where mteb is imported, in test_mteb.py
    "planning.md": ["embed", "embed"],
    "engines.md": ["index", "search"],
    "reasoning.md": ["cot", "test"],
    "serving.md": ["serve", "serve"],
    "scale.md": ["memory", "graft", "fit", "fit", "fuse"],
    "stages.md": ["fit", "alphas", "drift"],
    "training.md": ["fit"] * 4,
    "wandb.md": ["fit", "report", "report", "configs"],
    "webdataset.md": ["graft", "fit", "pack"],
}
"""Commands in the blocks of each page: one that is added needs a test below."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)


def commands(page: str) -> list[str]:
    return [line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("conan ")]


def run(command: str, capsys, *short: str) -> None:
    """Runs a page's command, with options that shorten it."""
    assert main([*shlex.split(command)[1:], *short]) == 0, capsys.readouterr().err


def test_every_command_is_run_below():
    found = {page: [command.split()[1] for command in commands(page)] for page in PAGES}
    assert {page: verbs for page, verbs in found.items() if verbs} == VERBS


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
    for command in commands("README.md"):
        short = ["--trainer.max_steps", "2", "--model.init_args.alone_steps", "1"] if command.startswith("conan fit") else []
        run(command, capsys, *short)
    assert "digits" in capsys.readouterr().out
    assert "digits" in json.loads((home / "runs" / "digits" / "scores.json").read_text())


@pytest.fixture
def specialists(home, world):
    """Folders of the demo: specialists, fused and recovered models that moved at random, and their data."""
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
    return demo


def test_commands_for_coefficients_and_drift(specialists, capsys):
    learned, searched, drift = commands("stages.md")
    run(learned, capsys, "--trainer.max_steps", "1")
    run(searched, capsys, "--search.trials", "2")
    run(drift, capsys)
    assert (specialists / "learned" / "conan.json").is_file()
    assert (specialists.parent / "searched" / "alphas.png").is_file()
    assert (specialists / "drift" / "drift.png").is_file()


def test_commands_for_using_a_model(home, capsys):
    shutil.copytree(home / "runs" / "demo" / "base", home / "runs" / "demo" / "final")
    (home / "photos").mkdir()
    (home / "photos" / "a.jpg").write_bytes(png(format="JPEG"))
    for command in commands("embed.md"):
        run(command, capsys)
    assert "a.jpg" in capsys.readouterr().out
    assert (home / "exported" / "modules.json").is_file()


def test_commands_and_python_for_serving(home, capsys, monkeypatch):
    """In this process, at a free port in the place of 8000."""
    shutil.copytree(home / "runs" / "demo" / "base", home / "runs" / "demo" / "final")
    (home / "photo.jpg").write_bytes(png(format="JPEG"))
    run(f"{commands('embed.md')[0].replace('photos', '.')} --accelerator cpu", capsys)
    scope: dict = {}

    def ask(service, host, port):
        with serving(service) as server:
            for block in blocks("serving.md", "python"):
                exec(block.replace("http://127.0.0.1:8000", server.url), scope)

    monkeypatch.setattr("lightning_conan.serving.server.run_server", ask)
    serve, page = commands("serving.md")
    run(serve, capsys, "--engine.num_workers", "0")
    said = capsys.readouterr().out
    assert "2 128 " in said
    assert "'photo.jpg'" in said
    assert len(scope["mixed"]["data"][0]["embedding"]) == 128
    shown: list = []
    monkeypatch.setattr("lightning_conan.serving.server.run_server", lambda service, *_: shown.append(service.page.describe(0)))
    run(page.replace("photos", "."), capsys, "--engine.num_workers", "0")
    assert shown[0]["parts"][0]["type"] in shown[0]["modality"]


def test_commands_for_planning(home, capsys, monkeypatch):
    """Ray is a stand-in with two batches: the class is what is tried; with Ray itself in test_column_embedder.py."""
    shutil.copytree(home / "runs" / "demo" / "base", home / "runs" / "demo" / "final")
    (home / "items.jsonl").write_text("".join(f'{{"key": "{n}", "text": "no {n}"}}\n' for n in range(5)))
    for command in commands("planning.md"):
        run(command, capsys, "--rows_per_part", "2")
    assert len(list((home / "index").glob("*.parquet"))) == 3
    found = []

    class Rows:
        def map_batches(self, kind, fn_constructor_args, **options):
            embed = kind(*fn_constructor_args)
            found.extend(embed({"key": [key], "text": [f"no {key}"]}) for key in ("a", "b"))
            return self

        def write_parquet(self, folder):
            assert folder == "embedded"

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(data=SimpleNamespace(read_parquet=lambda path: Rows())))
    exec(blocks("planning.md", "python")[0])
    assert [batch["embedding"].shape for batch in found] == [(1, 128)] * 2


def test_commands_and_python_for_engines(home, capsys):
    """Behind the commands that make the index's folder, and with what the page shows."""
    pytest.importorskip("lancedb")
    shutil.copytree(home / "runs" / "demo" / "base", home / "runs" / "demo" / "final")
    exec(blocks("embed.md", "python")[0], {})
    run(commands("embed.md")[0], capsys)
    index, search = commands("engines.md")
    capsys.readouterr()
    run(index, capsys)
    shown = re.search(r"```\n(index\.lancedb.*?)```", PAGES["engines.md"], flags=re.DOTALL)[1]
    assert capsys.readouterr().out == f"{home}/{shown}"
    run(search, capsys)
    assert "blue.jpg" in capsys.readouterr().out
    (code,) = blocks("engines.md", "python")
    exec(code, {})
    assert "unchanged=2" in capsys.readouterr().out


def test_commands_for_boards(home, capsys):
    """A task of three shapes; and boards whose data is not there, which is said."""
    shutil.copytree(home / "runs" / "demo" / "base", home / "runs" / "demo" / "final")
    task = home / "tasks" / "shapes"
    task.mkdir(parents=True)
    for seed in range(3):
        (task / f"{seed}.png").write_bytes(png(seed=seed))
    (task / "queries.jsonl").write_text('{"key": "q1", "text": "a red circle"}\n')
    (task / "corpus.jsonl").write_text("".join(f'{{"key": "{n}", "image": "{n}.png"}}\n' for n in range(3)))
    (task / "qrels.txt").write_text("q1 0 2 1\n")
    own, m_beir, mmeb, table = commands("boards.md")
    run(own, capsys)
    assert "| shapes |" in (home / "scores" / "scores.md").read_text()
    missing = [(m_beir, "lacks 8 of M-BEIR's files"), (mmeb, "lacks files of 3 of 3 tasks: ImageNet-1K (1: ")]
    for board, said in [*missing, (table, "lacks files of 78 of 78 tasks: ImageNet-1K (1: ")]:
        assert main(shlex.split(board)[1:]) == 1
        assert said in capsys.readouterr().err
    for name in ("run.txt", "qrels.txt"):
        shutil.copy(home / "scores" / "shapes" / name, home / name)
    exec(blocks("boards.md", "python")[0])
    assert "ndcg@10" in capsys.readouterr().out
    (home / "my.yaml").write_text(blocks("boards.md", "yaml")[0])
    run(table.replace("conan:boards/conan_v3.yaml", "my.yaml"), capsys)
    assert (home / "table" / "table.md").read_text().startswith("|  | image | paper | shapes |")


def test_commands_for_real_checkpoints(home, world, capsys):
    """On small checkpoints in the same layout, in the place of the hub's, and without a GPU."""
    write_qwen3_vl(home / "Qwen" / "Qwen3-VL-2B-Instruct")
    write_qwen3_omni(home / "Qwen" / "Qwen3-Omni-30B-A3B-Instruct")
    (home / "packed").mkdir()
    for name in ("image", "video", "document", "audio"):
        (home / "packed" / f"{name}.train").symlink_to(world / name)
    memory, graft, image, audio, fuse = commands("scale.md")
    run(memory.replace("--model qwen3-vl-2b", "--folder runs/demo/base"), capsys)
    run(graft, capsys)
    short = ["--trainer.max_steps", "1", "--data.init_args.batch_size", "4", "--data.init_args.num_workers", "0"]
    short += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    (video,) = re.findall(r"`(--model\.init_args\.modality video [^`]+)`", PAGES["scale.md"])
    for own in ("", video, video.replace("video", "document")):
        run(f"{image} {own}", capsys, *short)
    run(audio, capsys, *short, "--model.init_args.alone_steps", "0")
    run(fuse, capsys)
    for name in ("image", "audio"):
        assert (home / "runs" / "qwen3_vl" / name / "adapter_model.safetensors").is_file()
    assert (home / "runs" / "qwen3_vl" / "fused" / "fusion.json").is_file()


def test_commands_for_another_family(home, world, capsys):
    """TRACE as published, on a small checkpoint in the place of the hub's, and without a GPU."""
    write_backbone(home / "Qwen" / "Qwen2.5-VL-7B-Instruct", "qwen2_5_vl")
    write_qwen3_omni(home / "Qwen" / "Qwen3-Omni-30B-A3B-Instruct")
    (home / "packed").mkdir()
    shards = ShardSet(world / "image")
    for name, written in {"composed": "it is red", "simple": ""}.items():
        pairs = [msgspec.structs.replace(shards.read(number), reasoning=written) for number in range(8)]
        write_shards(pairs, home / "packed" / f"{name}.cot")
    graft, trace, *_ = commands("backbones.md")
    run(graft, capsys)
    short = ["--data.init_args.batch_size", "4", "--data.init_args.num_workers", "0", "--trainer.limit_train_batches", "1"]
    run(trace, capsys, *short, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
    assert read_provenance(home / "runs" / "qwen2_5_vl" / "trace").state == "reasoning"


def test_commands_for_a_graft_and_none(home, world, capsys):
    """Both bases of the comparison, and the specialist of the one that hears already."""
    write_backbone(home / "Qwen" / "Qwen3-Omni-30B-A3B-Instruct", "qwen3_omni_moe_thinker")
    write_backbone(home / "Qwen" / "Qwen3-VL-30B-A3B-Instruct", "qwen3_vl_moe")
    shutil.copytree(world / "audio", home / "packed" / "audio.train")
    *_, omni, grafted, fit = commands("backbones.md")
    run(omni, capsys)
    run(grafted, capsys)
    short = ["--data.init_args.batch_size", "4", "--data.init_args.num_workers", "0", "--trainer.max_steps", "1"]
    run(
        fit,
        capsys,
        *short,
        "--trainer.accelerator",
        "cpu",
        "--trainer.precision",
        "32-true",
        "--model.init_args.alone_steps",
        "0",
    )
    assert read_provenance(home / "runs" / "omni" / "audio").state == "specialist"
    fresh = [json.loads((home / "runs" / base / "base" / "graft.json").read_text())["fresh"] for base in ("omni", "graft")]
    assert [any("projector" in name for name in names) for names in fresh] == [False, True]


def test_adapters_of_plain_peft_and_our_audio_specialist(home, world, capsys):
    """Three kinds of adapters and an audio specialist, on small checkpoints in the place of the hub's, in one folder."""
    write_qwen3_vl(home / "Qwen" / "Qwen3-VL-2B-Instruct")
    write_qwen3_omni(home / "Qwen" / "Qwen3-Omni-30B-A3B-Instruct")
    (home / "packed").mkdir()
    (home / "packed" / "audio.train").symlink_to(world / "audio")
    (home / "clip.flac").write_bytes(flac())
    script, use = blocks("foreign.md", "python")
    exec(script, {})
    graft, audio, fuse = commands("foreign.md")
    run(graft, capsys)
    short = ["--trainer.max_steps", "1", "--data.init_args.batch_size", "4", "--data.init_args.num_workers", "0"]
    short += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--model.init_args.alone_steps", "0"]
    run(audio, capsys, *short)
    run(fuse, capsys)
    told = capsys.readouterr().out
    assert "document: runs/foreign/document: LoRA + modules_to_save, head class" in told
    exec(use, scope := {})
    assert scope["vectors"].shape == (2, 64)
    assert capsys.readouterr().out == "LoRA + DoRA\n"
    report = json.loads((home / "runs" / "foreign" / "fused" / "fusion.json").read_text())
    assert report["foreign"].keys() == {"image", "video", "document"}
    assert all(report["norms"][name] > 0 for name in ("image", "video", "document", "audio"))
    (onto,) = re.findall(r"`conan graft --backbone (\S+)` merges", PAGES["foreign.md"])
    run(graft.replace("--backbone Qwen/Qwen3-VL-2B-Instruct", f"--backbone {onto}").replace("qwen3_vl/base", "merged"), capsys)
    assert (home / "runs" / "merged" / "graft.json").is_file()


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


def test_pages_of_ones_own_are_made(home):
    exec(blocks("reports.md", "python")[0], scope := {})
    page = (home / "page.html").read_text()
    assert "make it blue" in page
    assert "88.0" in page
    assert scope["html"].startswith("<div class='conan")


def test_shards_of_others_are_trained_on_and_packed(home, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    (home / "laion").mkdir()
    with wds.ShardWriter("laion/%05d.tar", maxcount=8, verbose=0) as writer:
        for row in range(24):
            writer.write({"__key__": f"{row:09d}", "jpg": png(), "txt": f"shape {row}", "json": {"caption": f"a shape {row}"}})
    (home / "laion.yaml").write_text("".join(blocks("webdataset.md", "yaml")))
    graft, fit, pack = commands("webdataset.md")
    run(graft, capsys)
    run(fit, capsys, "--trainer.max_steps", "2")
    assert (home / "runs" / "laion" / "conan.json").is_file()
    assert len(list((home / "laion" / ".conan-index").glob("*.arrow"))) == 3
    run(pack + ' --read.query \'{"image": "jpg;png"}\' --read.target \'{"text": "json:caption"}\'', capsys)
    assert "24 pairs" in capsys.readouterr().out


def test_lines_of_manifests_are_valid(tmp_path):
    from lightning_conan.parsing import parse_pair

    for page in ("README.md", "manifest.md"):
        for line in re.findall(r'^\{"key".*\}$', PAGES[page], flags=re.MULTILINE):
            assert parse_pair(json.loads(line), tmp_path).modality == "audio"


@pytest.fixture
def reasoning(home, tiny):
    """Folders that the demo leaves of TRACE, untrained."""
    demo = home / "runs" / "demo"
    model, processor = tiny
    processor = OmniProcessor(processor.tokenizer, replace(processor.config, ends=False, reasons=True))
    save_folder(demo / "trace", model, processor, Provenance("reasoning"))
    write_composed("composed", demo / "world" / "trace", 4, 0)
    write_shards(draw_composed("composed", 4, 0)[0], demo / "packed" / "trace" / "composed.test")


def test_commands_and_python_for_reasoning(home, reasoning, capsys):
    cot, test = commands("reasoning.md")
    run(cot, capsys)
    run(test, capsys, "--model.init_args.decoding.max_new_tokens", "2")
    assert "reasoned about" in capsys.readouterr().out
    scope: dict = {}
    exec("".join(blocks("reasoning.md", "python")), scope)
    assert scope["written"].embeddings.shape == (1, 128)


def test_readmes_python_prints_similarities(capsys):
    (code,) = blocks("README.md", "python")
    exec(code, scope := {})
    (shown,) = re.findall(r"```\n(tensor.*?)```", PAGES["README.md"], flags=re.DOTALL)
    expected = torch.tensor([float(number) for number in re.findall(r"\d\.\d+", shown)]).view(3, 3)
    torch.testing.assert_close(scope["vectors"] @ scope["vectors"].T, expected, rtol=0, atol=1e-3)
    assert "1.0000" in capsys.readouterr().out


def test_options_of_classes_are_explained(capsys):
    for command in [line for line in commands("training.md") if ".help" in line]:
        run(command, capsys)
        name = command.split(".")[-1]
        assert name in capsys.readouterr().out
    assert main(["fuse", "--recipe.method.help", "lightning_conan.fusion.Ties"]) == 0


def test_a_run_is_watched(home, capsys):
    for command in commands("README.md")[:2]:
        run(command, capsys)
    (home / "watch.yaml").write_text("".join(blocks("training.md", "yaml")))
    short = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1"]
    run(commands("training.md")[-1], capsys, *short, "--model.init_args.alone_steps", "2")
    assert (home / "runs" / "digits" / "watched" / "conan.json").is_file()
    rows = csv.DictReader((home / "runs/digits/lightning_logs/version_0/metrics.csv").open())
    names = {name for row in rows for name, value in row.items() if value}
    assert {"train/loss", "train/loss/audio", "train/gradient_norm", "seen/audio/digits", "val/digits/recall@1"} <= names
    assert {"val/digits/forth/recall@50", "val/digits/back/ndcg@5"} <= names


def test_commands_for_weights_and_biases(home, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(home / "data" / "wandb"))
    for command in commands("README.md")[:2]:
        run(command, capsys)
    (home / "table.yaml").write_text(blocks("wandb.md", "yaml")[0])
    fit, *others = commands("wandb.md")
    run(fit, capsys, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--model.init_args.alone_steps", "1")
    assert len(list((home / "runs" / "wandb").glob("offline-run-*"))) == 1
    capsys.readouterr()
    for command in others:
        run(command, capsys)
    assert "base: base; " in capsys.readouterr().out
    assert len(list((home / "runs" / "demo" / "wandb").glob("offline-run-*"))) == 2  # the base, and the report
    assert (home / "sweep.yaml").is_file()


def test_python_for_using_a_model(home, capsys):
    shutil.copytree(home / "runs" / "demo" / "base", home / "runs" / "demo" / "final")
    inputs, first, faiss, library = blocks("embed.md", "python")
    exec(inputs, {})
    embed, _, export, _ = commands("embed.md")
    run(embed, capsys)
    run(export, capsys)
    added = []
    scope: dict = {"stand_in": SimpleNamespace(IndexFlatIP=lambda dim: SimpleNamespace(add=added.append))}
    exec(first, scope)
    assert scope["vectors"].shape == (2, 128)
    exec(faiss.replace("import faiss", "faiss = stand_in"), scope)
    assert scope["keys"] == ["blue.jpg", "red.jpg"]
    assert [rows.shape for rows in added] == [(2, 128)]
    exec(library, scope)
    assert scope["vectors"].shape == (3, 128)


def test_a_loss_is_chosen_and_written(home, world, monkeypatch, capsys):
    pytest.importorskip("lightning_conan.objectives.objective")
    for page, language in (("stages.md", "yaml"), ("stages.md", "python")):
        (block,) = blocks(page, language)
        (home / re.search(r"# (\S+)", block)[1]).write_text(block)
    monkeypatch.syspath_prepend(home)
    demo = "conan fit --config conan:base.yaml --config conan:tiny/specialist.yaml"
    short = ["--trainer.max_steps", "1", "--data.init_args.train", str(world / "image")]
    run(f"{demo} --config sigmoid.yaml", capsys, *short)
    assert json.loads((home / "runs" / "demo" / "image" / "conan.json").read_text())
    short += ["--model.init_args.training.temperature", "0.02"]  # its default, since Hinge uses none
    run(f"{demo} --trainer.callbacks.out other --model.init_args.training.objective my_loss.Hinge", capsys, *short)
    assert (home / "other" / "conan.json").is_file()
