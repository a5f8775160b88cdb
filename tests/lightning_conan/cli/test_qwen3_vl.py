"""Graft, all stages, fusion, scores, embedding and search on checkpoints in upstream layout, by configs/qwen3_vl."""

import json

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from upstream import write_qwen3_omni, write_qwen3_vl

from datamodules.shards.read import ShardSet
from datamodules.shards.write import write_shards
from lightning_conan.cli.main import main
from lightning_conan.embedder import load_folder, read_provenance
from lightning_conan.fusion import Recipe
from lightning_conan.fusion.tensorwise import Fusion
from samples import CONFIGS

MODALITIES = ("image", "video", "document", "audio")
SMALL = ("--data.init_args.batch_size", "4", "--data.init_args.num_workers", "0")
ON_A_CPU = ("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.precision", "32-true")


@pytest.fixture(scope="module")
def line(world, tmp_path_factory):
    """Every stage for two steps, from a bfloat16 base; commands as the README gives them."""
    root = tmp_path_factory.mktemp("qwen3_vl")
    write_qwen3_vl(root / "eyes", dtype=torch.bfloat16)
    write_qwen3_omni(root / "ears", dtype=torch.bfloat16)
    limits = {"max_pixels": 64 * 1024, "video_max_pixels": 64 * 1024, "video_min_pixels": 4096}
    options = [word for name, value in limits.items() for word in (f"--processor.{name}", str(value))]
    words = ["graft", "--backbone", str(root / "eyes"), "--audio", str(root / "ears"), "--out", str(root / "base")]
    assert main([*words, "--projector_hidden_size", "32", *options]) == 0

    def fit(name, config, folder, train, *more, size="2b"):
        files = ["base.yaml", f"qwen3_vl/{config}.yaml"]
        files += ["trainer/ddp.yaml" if name == "final" else "trainer/gpu.yaml", f"qwen3_vl/{size}.yaml"]
        words = ["fit", *(word for file in files for word in ("--config", str(CONFIGS / file)))]
        words += ["--trainer.default_root_dir", str(root / "work" / name), "--trainer.callbacks.out", str(root / name)]
        words += ["--model.init_args.folder", str(root / folder), "--data.init_args.train", train, "--trainer.max_steps", "2"]
        assert main([*words, *SMALL, *ON_A_CPU, *more]) == 0

    for modality in MODALITIES:
        config = "audio" if modality == "audio" else "specialist"
        more = ["--model.init_args.alone_steps", "1"] if modality == "audio" else []
        fit(modality, config, "base", str(world / modality), "--model.init_args.modality", modality, *more, size="8b")
    folders = json.dumps({modality: str(root / modality) for modality in MODALITIES})
    words = ["fuse", "--config", str(CONFIGS / "qwen3_vl/fuse.yaml"), "--recipe.base", str(root / "base")]
    assert main([*words, "--recipe.specialists", folders, "--out", str(root / "fused")]) == 0
    fit(
        "recovered",
        "recovery",
        "fused",
        str(world / "audio"),
        "--data.init_args.val",
        json.dumps({"audio": str(world / "audio")}),
    )
    fit("final", "rehearsal", "recovered", json.dumps({modality: str(world / modality) for modality in MODALITIES}))
    fit("joint", "joint", "base", json.dumps({modality: str(world / modality) for modality in MODALITIES}))
    shards = ShardSet(world / "image")
    write_shards(
        [msgspec.structs.replace(shards.read(number), reasoning="it is red") for number in range(8)], root / "composed.cot"
    )
    taught = json.dumps({"composed": str(root / "composed.cot")})
    fit("trace", "trace", "final", taught, "--trainer.precision", "bf16-mixed")
    yield root
    torch.distributed.destroy_process_group()  # ddp's, which Lightning leaves


def test_every_folder_holds_its_state_in_bfloat16(line):
    states = {"base": "base", "image": "specialist", "audio": "specialist", "fused": "fused", "recovered": "recovered"}
    for name, state in (states | {"final": "rehearsed", "joint": "joint", "trace": "reasoning"}).items():
        model, _, provenance = load_folder(line / name)
        assert provenance.state == state
        assert model.dtype == torch.bfloat16
    assert read_provenance(line / "final").parents.keys() == {"base", *MODALITIES, "fused", "recovered"}
    assert read_provenance(line / "joint").parents.keys() == {"base"}


def test_specialists_are_adapters_with_float32_factors(line):
    for modality in MODALITIES:
        tensors = load_file(line / modality / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert any("audio_projector" in name for name in tensors) == (modality == "audio")


def test_what_adapters_change_is_not_rounded_before_it_is_fused(line):
    """Two small steps change no weight by as much as bfloat16 tells apart."""
    alphas = {modality: float(modality == "image") for modality in MODALITIES}
    recipe = Recipe(line / "base", {modality: line / modality for modality in MODALITIES}, alphas, dtype="float32")
    name, fusion = "backbone.language_model.layers.0.mlp.up_proj.weight", Fusion(recipe)
    factors = load_file(line / "image" / "adapter_model.safetensors")
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    change = factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"]  # alpha is the rank
    assert change.abs().max() > 0
    assert (fusion[name] - fusion.base[name].float() - change).norm() < 0.05 * change.norm()  # what float32 rounds


def test_recovery_moved_the_projector_alone(line):
    before, after = (load_folder(line / name)[0].state_dict() for name in ("fused", "recovered"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("audio_projector.") for name in moved)


@pytest.mark.parametrize("folder", ["final", "audio", "trace"])
def test_the_result_is_scored_embedded_and_searched(line, world, tmp_path, folder, capsys):
    """A dense folder, an adapter on the base, and one that reasons."""
    words = ["test", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "qwen3_vl/test.yaml"), *SMALL, *ON_A_CPU]
    words += ["--trainer.default_root_dir", str(tmp_path), "--trainer.callbacks.path", str(tmp_path / "scores.json")]
    words += ["--model.init_args.decoding.max_new_tokens", "2"] if folder == "trace" else []
    sets = json.dumps({modality: str(world / modality) for modality in MODALITIES})
    assert main([*words, "--model.init_args.folder", str(line / folder), "--data.init_args.test", sets]) == 0
    assert json.loads((tmp_path / "scores.json").read_text()).keys() == set(MODALITIES)
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"key": str(n), "text": f"text {n}"}) + "\n" for n in range(5)))
    embed = ["embed", "--folder", str(line / folder), "--source", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "index")]
    assert main([*embed, "--accelerator", "cpu"]) == 0
    capsys.readouterr()
    find = ["search", "--folder", str(line / folder), "--index", str(tmp_path / "index"), "--text", "text 3", "--k", "1"]
    assert main(find) == 0
    found = capsys.readouterr().out.split()[-1]
    assert found in "01234" if folder == "trace" else found == "3"  # what is written about a query moves it


def test_what_trains_fully_in_a_bfloat16_backbone_needs_mixed_precision(line, tmp_path, capsys):
    """Torch would only say that two matrices differ in dtype."""
    words = ["fit", *(word for name in ("base", "qwen3_vl/trace") for word in ("--config", str(CONFIGS / f"{name}.yaml")))]
    words += [
        "--model.init_args.folder",
        str(line / "final"),
        "--trainer.default_root_dir",
        str(tmp_path),
        "--trainer.max_steps",
        "1",
    ]
    words += [
        "--trainer.callbacks.out",
        str(tmp_path / "out"),
        "--data.init_args.train",
        json.dumps({"a": str(line / "composed.cot")}),
    ]
    assert main([*words, *SMALL, *ON_A_CPU]) == 1
    assert "set trainer.precision to bf16-mixed" in capsys.readouterr().err
