"""Adapters and checkpoints of others, fused: equal to PEFT's merged weights in a plain weighted sum."""

from dataclasses import replace

import pytest
import torch
import yaml
from foreign import HEAD, TABLE, assert_sums, dense, write_adapter
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from upstream import write_qwen3_vl

from lightning_conan.cli.main import main
from lightning_conan.embedder import ProcessorConfig, Provenance, graft_folder, load_folder, load_processor, save_folder
from lightning_conan.embedder.processor import OWN_TOKENS
from lightning_conan.fusion import Recipe, Ties, fuse_folders, read_mergekit
from lightning_conan.fusion.write import specialist_model

KINDS = {
    "plain": {},
    "all linear": {"target_modules": "all-linear"},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 3, r"layers\.1\..*down_proj": 2},
        "alpha_pattern": {r"layers\.[01]\..*q_proj": 5, "down_proj": 7},
    },
    "patterns rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"down_proj": 7}},
    "dora": {"use_dora": True, "target_modules": ["q_proj", "down_proj", "qkv", "linear_fc1"]},
    "conv": {"target_modules": ["patch_embed.proj", "o_proj"]},
    "conv dora": {"target_modules": ["patch_embed.proj"], "use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding dora": {"target_modules": ["embed_tokens"], "use_dora": True},
    "modules to save": {"modules_to_save": ["merger.linear_fc1", "layers.2.mlp.up_proj", "norm"]},
    "embedding to save": {"modules_to_save": ["embed_tokens"]},
    "tied to save": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "token rows": {"trainable_token_indices": [3, 50, 11]},
    "token rows by name": {"trainable_token_indices": {"embed_tokens": [7, 2]}},
    "bias of targets": {"bias": "lora_only", "target_modules": ["qkv", "linear_fc2", "q_proj"]},
    "bias of all": {"bias": "all", "target_modules": ["qkv", "q_proj"]},
    "bias of LoRA": {"lora_bias": True, "use_rslora": True, "target_modules": ["qkv", "linear_fc1"]},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "gaussian": {"init_lora_weights": "gaussian"},
}
UNTIED = {
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "head dora": {"target_modules": ["lm_head"], "use_dora": True},
    "head to save": {"modules_to_save": ["lm_head", "embed_tokens"]},
}
CASES = [("tied", name) for name in KINDS] + [("untied", name) for name in (*UNTIED, "embedding", "token rows by name")]


def fused(out, recipe, **changes):
    report = fuse_folders(replace(recipe, **changes), out)
    return load_file(out / "model.safetensors"), report


@pytest.mark.parametrize(("tie", "kind"), CASES, ids=lambda value: value)
def test_an_adapter_fuses_as_peft_merges_it(published, bases, tmp_path, tie, kind):
    merged = write_adapter(published / tie, tmp_path / "adapter", **{**KINDS, **UNTIED}[kind])
    recipe = Recipe(bases[tie], {"image": tmp_path / "adapter"}, {"image": 0.7}, owner="image")
    found, report = fused(tmp_path / "out", recipe)
    start = dense(published / tie)
    assert_sums(
        found,
        {name: tensor for name, tensor in start.items() if name in found},
        {"image": merged},
        {"image": 0.7},
        load_processor(bases[tie]),
    )
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    told = report.foreign["image"]
    assert told.mapped.keys() | told.ignored.keys() == keys
    assert not told.refused
    base = load_file(bases[tie] / "model.safetensors")
    others = [name for name in found if name.startswith(("audio_", "backbone.")) and name not in told.mapped.values()]
    assert others
    for name in (TABLE, HEAD):
        if name in found:
            vocabulary = load_processor(bases[tie]).tokenizer.get_vocab()
            own = [vocabulary[token] for token in OWN_TOKENS]
            torch.testing.assert_close(found[name][own], base[name][own], atol=1e-6, rtol=0)
    assert all(torch.equal(found[name], base[name]) for name in others)


def test_several_kinds_and_ours_in_one_folder(published, bases, tmp_path):
    """Three adapters of others, and our audio specialist, whose projector is copied."""
    model, processor, provenance = load_folder(bases["tied"])
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    audio = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_folder(tmp_path / "audio", model, processor, Provenance("specialist", "audio", {"base": provenance.fingerprint}))
    kinds = {"image": "dora", "video": "embedding", "document": "modules to save"}
    models = {
        name: write_adapter(published / "tied", tmp_path / name, seed=seed, **KINDS[kind])
        for seed, (name, kind) in enumerate(kinds.items())
    }
    alphas = {"image": 0.3, "video": 0.4, "document": 0.2, "audio": 0.5}
    recipe = Recipe(bases["tied"], {name: tmp_path / name for name in alphas}, alphas)
    found, report = fused(tmp_path / "out", recipe)
    backbone = {name: tensor for name, tensor in base.items() if name.startswith("backbone.")}
    assert_sums(found, backbone, {**models, "audio": audio}, alphas, processor)
    assert all(torch.equal(found[name], audio[name]) for name in found if name.startswith("audio_"))
    assert report.foreign.keys() == kinds.keys()
    loaded, _, provenance = load_folder(tmp_path / "out", verify=False)
    assert torch.isfinite(loaded.embed([processor.tokenizer and processor(_text())])).all()
    assert provenance.notes["foreign"]["image"]["kind"] == "LoRA + DoRA"
    assert set(provenance.parents) == {"base", *alphas}


def _text():
    from lightning_conan.items import Item

    return Item(("a small red circle",))


def test_one_alone_is_the_merged_model(published, bases, tmp_path):
    """A search of coefficients scores it by that."""
    merged = write_adapter(published / "tied", tmp_path / "adapter", use_dora=True)
    recipe = Recipe(bases["tied"], {"image": tmp_path / "adapter"}, {"image": 0.1}, owner="image")
    found = specialist_model(recipe, "image").state_dict()
    name = "backbone.language_model.layers.2.mlp.down_proj.weight"
    torch.testing.assert_close(found[name], merged[name], atol=1e-6, rtol=0)
    assert not torch.allclose(dense(published / "tied")[name], merged[name], atol=1e-3)


def test_a_mergekit_yaml_may_name_them(published, bases, tmp_path, capsys):
    """By their folders; mergekit cannot repeat that merge, so that none is written."""
    write_adapter(published / "tied", tmp_path / "theirs")
    models = [{"model": str(tmp_path / "theirs"), "parameters": {"weight": 0.4}}]
    config = {"merge_method": "task_arithmetic", "base_model": str(bases["tied"]), "models": models}
    (tmp_path / "merge.yml").write_text(yaml.safe_dump(config))
    assert read_mergekit(tmp_path / "merge.yml").alphas == {"theirs": 0.4}
    assert main(["fuse", "--mergekit", str(tmp_path / "merge.yml"), "--out", str(tmp_path / "out")]) == 0
    assert "theirs: " in capsys.readouterr().out
    assert not (tmp_path / "out" / "mergekit_config.yml").exists()
    assert load_folder(tmp_path / "out")[2].notes["foreign"]["theirs"]["kind"] == "LoRA"


def test_other_methods_take_them(published, bases, tmp_path):
    """TIES of one adapter at full density is that adapter."""
    merged = write_adapter(published / "tied", tmp_path / "adapter")
    recipe = Recipe(bases["tied"], {"image": tmp_path / "adapter"}, {"image": 1.0}, owner="image", method=Ties(1.0))
    found, _ = fused(tmp_path / "out", recipe)
    name = "backbone.language_model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(found[name], merged[name], atol=1e-6, rtol=0)


def test_a_folder_that_is_neither_is_refused(bases, tmp_path):
    """A name with one slash is a hub's only where no such folder could be."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is not a checkpoint folder"):
        fused(tmp_path / "out", Recipe(bases["tied"], {"image": tmp_path / "empty"}, owner="image"))
    with pytest.raises(ValueError, match="does not exist"):
        fused(tmp_path / "out", Recipe(bases["tied"], {"image": tmp_path / "nowhere"}, owner="image"))


def test_plain_peft_on_a_base_folder_of_ours(base, tmp_path):
    """Audio parts included: as the owner, its projector is copied; the base that it names is known by its hash."""
    generator = torch.Generator().manual_seed(0)
    model = get_peft_model(
        AutoModel.from_pretrained(base),
        LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "fc1"], modules_to_save=["audio_projector"]),
    )
    with torch.no_grad():
        for parameter in filter(lambda each: each.requires_grad, model.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload().state_dict()
    recipe = Recipe(base, {"audio": tmp_path / "adapter"}, {"audio": 0.5})
    found, report = fused(tmp_path / "out", recipe)
    start = load_file(base / "model.safetensors")
    for name, tensor in start.items():
        wanted = merged[name] if name.startswith("audio_") else tensor + 0.5 * (merged[name] - tensor)
        torch.testing.assert_close(found[name], wanted, atol=1e-6, rtol=0)
    assert report.foreign["audio"].layout == "lightning-conan"
    assert "has the weights of" in report.foreign["audio"].notes[0]
    assert any(name.startswith("audio_encoder.") and not torch.equal(found[name], start[name]) for name in start)


def test_small_changes_of_a_whole_tensor_survive_a_bfloat16_base(published, tmp_path):
    """An adapter holds float32: what is below the base's own rounding is a change, not a copy."""
    write_qwen3_vl(tmp_path / "half", dtype=torch.bfloat16)
    base = tmp_path / "base"
    graft_folder(str(tmp_path / "half"), str(published / "omni"), base, ProcessorConfig(), hidden=32, golden=False)
    write_adapter(tmp_path / "half", tmp_path / "adapter", modules_to_save=["merger.linear_fc1"], size=0.0)
    path, name = tmp_path / "adapter" / "adapter_model.safetensors", "merger.linear_fc1.weight"
    tensors = {key: tensor.float() * (1 + 2**-12 * key.endswith(name)) for key, tensor in load_file(path).items()}
    save_file(tensors, path)
    found, report = fused(
        tmp_path / "out", Recipe(base, {"image": tmp_path / "adapter"}, {"image": 1.0}, owner="image"), dtype="float32"
    )
    start = load_file(base / "model.safetensors")[f"backbone.visual.{name}"].float()
    torch.testing.assert_close(found[f"backbone.visual.{name}"], start * (1 + 2**-12), atol=1e-8, rtol=0)
    assert any(key.endswith(name) for key in report.foreign["image"].mapped)
