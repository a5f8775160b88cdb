"""Every further family through the line: graft, stages, fusion, TRACE, exports, adapters, memory, embedding, search."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from backbones import FAMILIES, audio_of, ours, write_backbone
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from upstream import write_qwen3_omni

from datamodules.shards.read import ShardSet
from datamodules.shards.write import write_shards
from lightning_conan.cli.main import main
from lightning_conan.embedder import ProcessorConfig, graft_folder, load_folder
from lightning_conan.embedder.backbones import backbone_of
from lightning_conan.embedder.backbones.registry import FAMILIES as KNOWN
from lightning_conan.embedder.published import published_config
from lightning_conan.items import Item, Media
from lightning_conan.media.audio import decode_audio
from lightning_conan.media.video import decode_video
from samples import CONFIGS, EVERY_FRAME, flac, mp4, png

SMALL = ("--data.init_args.batch_size", "4", "--data.init_args.num_workers", "0", "--trainer.max_steps", "1")
ON_A_CPU = ("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.precision", "32-true")
LORA = ("--model.init_args.lora.rank", "4")


def configs_of(name: str) -> str:
    """Folder of a family's configs: its own, or that of the first family, which fit any."""
    return name if (CONFIGS / name).is_dir() else KNOWN[0]


def limits(name: str) -> list[str]:
    """Options of `conan graft` that set the limits of the tiny checkpoint."""
    settings = FAMILIES[name].settings
    bounds = ("min_pixels", "max_pixels", "video_min_pixels", "video_max_pixels")
    return [word for field in bounds for word in (f"--processor.{field}", str(getattr(settings, field)))]


def audio_words(root: Path, name: str) -> list[str]:
    """Options of `conan graft` that name an audio encoder's checkpoint; none for a family that hears."""
    source = audio_of(root / "audio_source", name)
    return ["--audio", source] if source else []


@pytest.fixture(scope="module", params=KNOWN[1:])
def line(request, world, tmp_path_factory) -> Any:
    """Every stage for a step, from a checkpoint in upstream layout."""
    name, root = request.param, tmp_path_factory.mktemp(request.param)
    write_backbone(root / "backbone", name)
    words = ["graft", "--backbone", str(root / "backbone"), *audio_words(root, name), "--out", str(root / "base")]
    own = CONFIGS / name / "graft.yaml"
    words += ["--config", str(own)] if own.is_file() else []
    assert main([*words, "--projector_hidden_size", "32", *limits(name)]) == 0

    def fit(out: str, config: str, folder: str, train: Any, *more: str) -> None:
        room = name if (CONFIGS / name / f"{config}.yaml").is_file() else KNOWN[0]
        words = ["fit", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / room / f"{config}.yaml")]
        words += [word for size in (CONFIGS / configs_of(name)).glob("7b.yaml") for word in ("--config", str(size))]
        words += ["--trainer.default_root_dir", str(root / "work" / out), "--trainer.callbacks.out", str(root / out)]
        sets = train if isinstance(train, str) else json.dumps(train)
        words += ["--model.init_args.folder", str(root / folder), "--data.init_args.train", sets]
        assert main([*words, *SMALL, *ON_A_CPU, *more]) == 0

    audio, picture = str(world / "audio"), str(world / "image")
    fit("image", "specialist", "base", picture, *LORA)
    fit("audio", "audio", "base", audio, "--model.init_args.alone_steps", "0", *LORA)
    folders = json.dumps({modality: str(root / modality) for modality in ("image", "audio")})
    words = ["fuse", "--recipe.base", str(root / "base"), "--recipe.specialists", folders]
    assert main([*words, "--out", str(root / "fused")]) == 0
    fit("recovered", "recovery", "fused", audio, "--data.init_args.val", json.dumps({"audio": audio}))
    fit("final", "rehearsal", "recovered", {"image": picture, "audio": audio}, *LORA)
    shards = ShardSet(world / "image")
    taught = [msgspec.structs.replace(shards.read(number), reasoning="it is red") for number in range(8)]
    write_shards(taught, root / "composed.cot")
    fit("trace", "trace", "base", {"composed": str(root / "composed.cot")})
    return SimpleNamespace(name=name, root=root, base=load_folder(root / "base"))


def moved(line, before: str, after: str) -> set[str]:
    """Names of the tensors that differ between two folders."""
    one, other = (load_folder(line.root / name)[0].state_dict() for name in (before, after))
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_every_folder_holds_its_state(line):
    states = {"image": "specialist", "audio": "specialist", "fused": "fused", "recovered": "recovered"}
    for name, state in (states | {"final": "rehearsed", "trace": "reasoning"}).items():
        model, processor, provenance = load_folder(line.root / name, verify=name != "fused")
        assert provenance.state == state
        assert processor.config.family == line.name == model.family.name


def test_each_stage_moves_its_own_parameters(line):
    """Recovery the projector, TRACE the language model, mergers and rows of the token; the vision tower stays."""
    assert all(name.startswith("audio_projector.") for name in moved(line, "fused", "recovered"))
    image, trace = moved(line, "base", "image"), moved(line, "base", "trace")
    parts = ("backbone.visual.blocks.", "backbone.language_model.layers.")
    assert all(any(name.startswith(part) for name in image) for part in parts)
    assert not any(name.startswith("audio_") for name in image)
    assert any(name.startswith("backbone.visual.merger.") for name in trace)
    assert not any(name.startswith(("backbone.visual.blocks.", "backbone.visual.patch_embed.")) for name in trace)
    adapter = load_file(line.root / "image" / "adapter_model.safetensors")
    assert sum(".lora_A." in name for name in adapter) == sum(".lora_B." in name for name in adapter) > 10


def test_fusion_copies_what_audio_owns_and_adds_the_rest(line):
    fused, audio = (load_folder(line.root / name)[0].state_dict() for name in ("fused", "audio"))
    for name, tensor in fused.items():
        if name.startswith(("audio_encoder.", "audio_projector.")):
            assert torch.equal(tensor, audio[name])
    assert moved(line, "base", "fused") & moved(line, "base", "image")


def test_the_base_holds_the_checkpoints_tensors(line):
    """Whatever the names on disk; those of the plain class in memory are ours."""
    plain = FAMILIES[line.name].head.from_pretrained(line.root / "backbone").model.state_dict()
    held, rows = line.base[0].state_dict(), "language_model.embed_tokens.weight"
    parts = ("backbone.", "audio_") if FAMILIES[line.name].hears else ("backbone.",)
    assert {ours(name) for name in plain} == {name for name in held if name.startswith(parts)}
    assert all(torch.equal(held[ours(name)], tensor) for name, tensor in plain.items() if name != rows)


@pytest.mark.parametrize("kind", ["head", "base"])
def test_an_adapter_of_plain_peft_is_merged_as_peft_merges_it(line, tmp_path, kind):
    head = FAMILIES[line.name].head.from_pretrained(line.root / "backbone")
    settings = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "o_proj", "qkv"], init_lora_weights=False)
    peft = get_peft_model(head if kind == "head" else head.model, settings)
    peft.save_pretrained(tmp_path / "adapter")
    merged = peft.merge_and_unload()
    wanted = (merged.model if kind == "head" else merged).state_dict()
    words = ["graft", "--backbone", f"{line.root / 'backbone'}+{tmp_path / 'adapter'}", "--golden", "false"]
    assert main([*words, *audio_words(tmp_path, line.name), "--out", str(tmp_path / "base"), *limits(line.name)]) == 0
    found, before = load_folder(tmp_path / "base")[0].state_dict(), line.base[0].state_dict()
    changed = 0
    for name, tensor in wanted.items():
        if "embed_tokens" not in name:
            torch.testing.assert_close(found[ours(name)], tensor, atol=1e-6, rtol=0)
            changed += not torch.equal(tensor, before[ours(name)])
    assert changed == 2 * 3 + 2 + 2 * FAMILIES[line.name].hears  # q_proj of an audio encoder's layers, too


@pytest.mark.parametrize("stock", [False, True])
def test_exports_give_the_folders_vectors(line, tmp_path, stock):
    out = tmp_path / "out"
    assert main(["export", str(line.root / "base"), str(out), "--stock", str(stock).lower()]) == 0
    exported = SentenceTransformer(str(out), trust_remote_code=not stock, device="cpu")
    (tmp_path / "a.png").write_bytes(png(90, 140))
    items = [Item(("a small red circle",)), Item((Media("image", png(90, 140), "a.png"), "make it blue"))]
    inputs = ["a small red circle", {"image": str(tmp_path / "a.png"), "text": "make it blue"}]
    model, processor, _ = line.base
    with torch.no_grad():
        wanted = model.embed([processor(item) for item in items])
    torch.testing.assert_close(exported.encode(inputs, convert_to_tensor=True), wanted, atol=1e-5, rtol=0)


def test_a_stock_export_keeps_an_audio_encoder_of_its_own(line, tmp_path):
    """With it, videos: plain transformers' processor, which takes their size and rate from each call."""
    if not FAMILIES[line.name].hears:
        pytest.skip("its audio encoder is grafted, and dropped")
    assert main(["export", str(line.root / "base"), str(tmp_path / "out"), "--stock", "true"]) == 0
    exported = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    sound, clip = Media("audio", flac(2.4), "a.flac"), Media("video", mp4(9, 100), "a.mp4")
    frames = {"array": decode_video(clip, EVERY_FRAME).frames.numpy(), "video_metadata": {"total_num_frames": 9, "fps": 4.0}}
    wave = {"array": decode_audio(sound).numpy(), "sampling_rate": 16_000}
    model, processor, _ = line.base
    for item, given in ((Item((sound, "louder")), {"audio": wave, "text": "louder"}), (Item((clip,)), {"video": frames})):
        with torch.no_grad():
            wanted = model.embed([processor(item)])
        torch.testing.assert_close(exported.encode([given], convert_to_tensor=True), wanted, atol=1e-5, rtol=0)


def test_a_trace_folder_embeds_and_searches(line, tmp_path, capsys):
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"key": str(n), "text": f"text {n}"}) + "\n" for n in range(5)))
    embed = ["embed", "--folder", str(line.root / "final"), "--source", str(tmp_path / "m.jsonl"), "--out"]
    assert main([*embed, str(tmp_path / "index"), "--accelerator", "cpu"]) == 0
    capsys.readouterr()
    find = ["search", "--folder", str(line.root / "final"), "--index", str(tmp_path / "index"), "--text", "text 3", "--k", "1"]
    assert main(find) == 0
    assert capsys.readouterr().out.split()[-1] == "3"


def test_memory_is_estimated(line, capsys):
    assert main(["memory", "--folder", str(line.root / "base"), "--stage", "trace", "--token_budget", "64"]) == 0
    assert "each of 1 device(s)" in capsys.readouterr().out
    sizes = {name: published_config(name).get_text_config().num_hidden_layers for name in backbone_of(line.name).sizes}
    assert sizes
    assert all(layers > 20 for layers in sizes.values())


def test_a_specialist_of_another_family_is_refused(line, tmp_path, capsys):
    other = next(name for name in KNOWN if name != line.name)
    write_backbone(Path(tmp_path / "other"), other)
    words = ["fuse", "--recipe.base", str(line.root / "base"), "--recipe.owners", "{}", "--out", str(tmp_path / "fused")]
    assert main([*words, "--recipe.specialists", json.dumps({"image": str(tmp_path / "other")})]) == 1
    assert f"must be of the family of {line.root / 'base'}, {line.name!r}, it is {other!r}" in capsys.readouterr().err


def test_experts_in_either_order_of_axes_make_the_same_base(tmp_path):
    """Published files hold them the other way round than transformers saves them today; it turns them where shapes differ."""
    name = next(name for name in KNOWN if backbone_of(name).turned)
    write_backbone(tmp_path / "backbone", name)
    write_qwen3_omni(tmp_path / "audio")
    turned = shutil.copytree(tmp_path / "backbone", tmp_path / "turned")
    count = 0
    for path in turned.glob("*.safetensors"):
        tensors = load_file(path)
        for key, tensor in tensors.items():
            if key.endswith(backbone_of(name).turned):
                tensors[key], count = tensor.transpose(1, 2).contiguous(), count + 1
        save_file(tensors, path, metadata={"format": "pt"})
    assert count == 6
    for source in ("backbone", "turned"):
        graft_folder(
            str(tmp_path / source), str(tmp_path / "audio"), tmp_path / f"{source}.base", ProcessorConfig(), golden=False
        )
    one, other = (load_folder(tmp_path / f"{source}.base")[0].state_dict() for source in ("backbone", "turned"))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_an_adapter_of_stacked_experts_is_refused_and_its_merged_folder_taken(tmp_path, capsys):
    """PEFT's ``target_parameters``: the remedy that the refusal names gives PEFT's own merged tensors."""
    name = next(name for name in KNOWN if backbone_of(name).turned)
    write_backbone(tmp_path / "backbone", name)
    write_qwen3_omni(tmp_path / "audio")
    settings = LoraConfig(
        r=4, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], lora_alpha=6
    )
    peft = get_peft_model(FAMILIES[name].head.from_pretrained(tmp_path / "backbone"), settings)
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            parameter += 0.1 * torch.ones_like(parameter) if ".lora_B." in key else 0
    peft.save_pretrained(tmp_path / "adapter")
    words = ["graft", "--audio", str(tmp_path / "audio"), "--golden", "false", *limits(name)]
    adapted = f"{tmp_path / 'backbone'}+{tmp_path / 'adapter'}"
    assert main([*words, "--backbone", adapted, "--out", str(tmp_path / "refused")]) == 1
    assert "target_parameters in" in (said := capsys.readouterr().err)
    assert "merge_and_unload, then save_pretrained" in said
    assert not (tmp_path / "refused").exists()
    dense = shutil.copytree(tmp_path / "backbone", tmp_path / "dense", ignore=shutil.ignore_patterns("*.safetensors*"))
    merged = peft.merge_and_unload()
    merged.save_pretrained(dense)
    assert main([*words, "--backbone", str(dense), "--out", str(tmp_path / "base")]) == 0
    found, before = load_folder(tmp_path / "base")[0].state_dict(), FAMILIES[name].head.from_pretrained(tmp_path / "backbone")
    changed = 0
    for key, tensor in before.model.state_dict().items():
        if ".mlp.experts." in key:
            assert torch.equal(found[f"backbone.{key}"], merged.model.state_dict()[key])
            changed += not torch.allclose(found[f"backbone.{key}"], tensor)
    assert changed == 2 * 3
