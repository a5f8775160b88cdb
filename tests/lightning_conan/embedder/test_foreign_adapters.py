"""Adapters of others on a base: layouts of their keys, what is ignored, and what is refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from foreign import TABLE, write_adapter
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM
from upstream import write_qwen3_vl

from lightning_conan.embedder.checkpoint import open_foreign, open_tensors
from lightning_conan.embedder.checkpoint.foreign import KnownBase, is_foreign, resolve

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TARGETS = ["q_proj", "down_proj", "qkv"]
START = "base_model.model."
LAYER = "backbone.language_model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def adapter(upstream, tmp_path_factory):
    """A plain adapter of the head class, with a module that was trained fully."""
    out = tmp_path_factory.mktemp("adapters") / "head"
    write_adapter(upstream / "qwen3_vl", out, target_modules=TARGETS, modules_to_save=["merger.linear_fc1"])
    return out


@pytest.fixture
def copy(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "copy")


def opened(folder, base, **options):
    return open_foreign(Path(folder), base, open_tensors(base), **options)


def renamed(folder, rename):
    tensors = load_file(folder / WEIGHTS)
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)
    return folder


def configure(folder, **changes):
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


LAYOUTS = {
    "head class": lambda name: name,
    "base class": lambda name: name.replace(f"{START}model.", START),
    "transformers 4.x": lambda name: name.replace("model.language_model.", "model.").replace("model.visual.", "visual."),
    "lightning-conan": lambda name: name.replace(f"{START}model.", f"{START}backbone."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_tensors(adapter, copy, grafted, layout):
    """Each key has its place, whatever class wrote it; the factors are those of the head class's."""
    wanted, found = opened(adapter, grafted), opened(renamed(copy, LAYOUTS[layout]), grafted)
    assert found.report.layout == layout
    assert len(found.report.mapped) == len(load_file(adapter / WEIGHTS))
    assert found.parts.keys() == wanted.parts.keys()
    for name in found.parts:
        assert torch.equal(found[name], wanted[name])


def test_the_base_class_writes_that_layout(upstream, adapter, grafted, tmp_path):
    write_adapter(upstream / "qwen3_vl", tmp_path, "base", target_modules=TARGETS, modules_to_save=["merger.linear_fc1"])
    found, wanted = opened(tmp_path, grafted), opened(adapter, grafted)
    assert found.report.layout == "base class"
    assert found.parts.keys() == wanted.parts.keys()


@pytest.mark.parametrize("head", [True, False], ids=["text only", "text only, base class"])
def test_an_adapter_of_a_text_model_is_one_of_the_language_model(upstream, grafted, tmp_path, head):
    """As a Qwen3 of the same size writes it, with and without its head."""
    text = json.loads((upstream / "qwen3_vl" / "config.json").read_text())["text_config"]
    fields = {name: text[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")}
    fields |= {name: text[name] for name in ("num_attention_heads", "num_key_value_heads")}
    model = Qwen3ForCausalLM(Qwen3Config(**fields))
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft = get_peft_model(model if head else model.model, config)
    peft.save_pretrained(tmp_path)
    found = opened(tmp_path, grafted)
    assert found.report.layout == ("text only" if head else "text only, base class")
    assert len(found.parts) == 2 * text["num_hidden_layers"]
    assert len(found.report.mapped) == 2 * len(found.parts)


def test_names_of_two_layouts_at_once_are_a_leftover():
    known = {"backbone.visual.a.weight", "backbone.language_model.a.weight"}
    found = resolve(["model.visual.a.weight", "language_model.a.weight"], known)
    assert len(found.unknown) == 1


def test_a_sentence_transformers_folder_needs_no_config(adapter, grafted, tmp_path):
    """Its modules lie beside the adapter, or the adapter in its first module's folder."""
    modules = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    for name, inner in {"top": "", "inner": "0_Transformer"}.items():
        modules[0]["path"] = inner
        shutil.copytree(adapter, tmp_path / name / inner)
        (tmp_path / name / "1_Pooling").mkdir()
        (tmp_path / name / "modules.json").write_text(json.dumps(modules))
        (tmp_path / name / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
        assert is_foreign(tmp_path / name)
        found = opened(tmp_path / name, grafted)
        assert torch.equal(found[LAYER], opened(adapter, grafted)[LAYER])
        assert "another pooling than the last token's" in found.report.notes[0]
    modules.append({"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "top" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"it has sentence_transformers\.models\.Dense: vectors would lack"):
        opened(tmp_path / "top", grafted)


def test_an_adapter_comes_from_the_hub(upstream, adapter, grafted, hub):
    """Its own two files and the small ones alone."""
    hub.root = adapter.parent
    found = opened("owner/head", grafted)
    assert torch.equal(found[LAYER], opened(adapter, grafted)[LAYER])
    assert [name for name in hub.asked if name.endswith(".safetensors")] == [WEIGHTS]


REFUSED = {
    "ADALORA": ({"peft_type": "ADALORA"}, "peft_type in .* must be 'LORA', got 'ADALORA': AdaLoRA's lora_A and lora_B look like"),
    "LOHA": ({"peft_type": "LOHA"}, "peft_type in .* must be 'LORA', got 'LOHA'"),
    "VERA": ({"peft_type": "VERA"}, "peft_type in .* must be 'LORA', got 'VERA'"),
    **{
        start: ({"init_lora_weights": start}, f"init_lora_weights in .* must be one of .*, got '{start}'")
        for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "eva", "lora_ga", "mica")
    },
    "alora": (
        {"alora_invocation_tokens": [1, 2]},
        "alora_invocation_tokens in .* must be empty, got .*: aLoRA acts on some tokens",
    ),
    "replicated": ({"layer_replication": [[0, 2]]}, "layer_replication in .* must be empty, got .*: its model has more layers"),
    "qalora": ({"use_qalora": True}, "use_qalora in .* must be empty, got True: QA-LoRA pools"),
    "bdlora": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora in .* must be empty"),
    "arrow": ({"arrow_config": {"top_k": 2}}, "arrow_config in .* must be empty"),
    "kasa": ({"kasa_config": {"beta": 1}}, "kasa_config in .* must be empty"),
    "velora": ({"velora_config": {"rank": 1}}, "velora_config in .* must be empty"),
    "monteclora": ({"monteclora_config": {"num_samples": 8}}, "monteclora_config in .* must be empty"),
    "loftq config": ({"loftq_config": {"bits": 4}}, "loftq_config in .* must be empty, got .*: its base was quantised"),
    "experts": (
        {"target_parameters": ["experts.down_proj"]},
        "target_parameters in .* must be empty, got .*: the keys of stacked",
    ),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out in .* must be empty, got True"),
    "unknown": ({"use_tomorrows": 3}, r"has the setting 'use_tomorrows' \(3\), which is not known here"),
    "DoRA without lengths": ({"use_dora": True}, "has no lora_magnitude_vector, and use_dora is True"),
    "no rank": ({"r": None}, "must have the number r, got None"),
    "other rank": ({"rank_pattern": {"q_proj": 3}}, "must have the rank 3 of adapter_config.json, its lora_A has 4 rows"),
}


NOTHING = {
    "scaled by 0": ({"lora_alpha": 0}, "lora_alpha is 0"),
    "not trained": ({"size": 0.0}, "its lora_B are 0"),
    "DoRA, not trained": ({"size": 0.0, "use_dora": True}, "its lora_B are 0"),
    "embedding, not trained": ({"size": 0.0, "target_modules": ["embed_tokens"]}, "its lora_B are 0"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_an_adapter_that_changes_nothing_is_refused_and_listed(upstream, grafted, tmp_path, case):
    """PEFT merges it without a word, and a specialist would be missing from the fused model."""
    change, why = NOTHING[case]
    write_adapter(upstream / "qwen3_vl", tmp_path, **change)
    with pytest.raises(ValueError, match=f"must change a tensor, but its task vector is 0: {why}"):
        opened(tmp_path, grafted)
    (note,) = [note for note in opened(tmp_path, grafted, strict=False).report.notes if "task vector" in note]
    assert why in note


@pytest.mark.parametrize(
    "change", [{"use_dora": True}, {"modules_to_save": ["merger.linear_fc1"]}, {"alpha_pattern": {"q_proj": 2}}]
)
def test_an_adapter_scaled_by_0_may_change_something_else(upstream, grafted, tmp_path, change):
    write_adapter(upstream / "qwen3_vl", tmp_path, lora_alpha=0, **change)
    assert opened(tmp_path, grafted).parts


@pytest.mark.parametrize("case", REFUSED)
def test_what_looks_like_lora_and_is_not_is_refused_by_name(copy, grafted, case):
    change, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        opened(configure(copy, **change), grafted)


Q = "model.language_model.layers.0.self_attn.q_proj"
MISFITS = {
    "unknown module": (
        lambda tensors: tensors.update({f"{START}model.language_model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 64)}),
        r"but 1 do not, such as '.*layers\.9\.mlp\.up_proj\.lora_A\.weight', which names no tensor of the base",
    ),
    "an adapter's name": (
        lambda tensors: tensors.update({f"{START}{Q}.lora_A.default.weight": torch.ones(4, 64)}),
        r"lora_A\.default\.weight', which names no tensor",
    ),
    "a shard": (
        lambda tensors: tensors.update({f"{START}{Q}.lora_B.weight": torch.ones(0)}),
        r"has factors of the shapes \[0\] and \[4, 64\] for a tensor",
    ),
    "twice": (
        lambda tensors: tensors.update({f"{Q}.lora_B.weight": torch.ones(64, 4)}),
        r"q_proj\.lora_B\.weight', which stands for the same as '",
    ),
    "lengths without DoRA": (
        lambda tensors: tensors.update({f"{START}{Q}.lora_magnitude_vector": torch.ones(64)}),
        r"has lora_magnitude_vector, and use_dora is False",
    ),
    "half": (lambda tensors: tensors.pop(f"{START}{Q}.lora_B.weight"), r"as down alone: factors need their other half"),
    "whole too": (
        lambda tensors: tensors.update({f"{START}{Q}.weight": torch.ones(64, 64)}),
        r"as down, up, whole alone: factors need their other half, whole tensors none",
    ),
    "shape": (
        lambda tensors: tensors.update({f"{START}{Q}.lora_B.weight": torch.ones(65, 4)}),
        r"has factors of the shapes \[65, 4\] and \[4, 64\] for a tensor of \[64, 64\]",
    ),
    "AdaLoRA's third factor": (
        lambda tensors: tensors.update({f"{START}{Q}.lora_E": torch.ones(4, 1)}),
        r"lora_E', which names no tensor of the base",
    ),
    "experts": (
        lambda tensors: tensors.update(
            {f"{START}model.language_model.layers.0.mlp.experts.base_layer.lora_A.weight": torch.ones(4, 64)}
        ),
        r"experts\.base_layer\.lora_A\.weight', which names no tensor",
    ),
    "bias without a matrix": (
        lambda tensors: tensors.update({f"{START}model.visual.merger.linear_fc2.lora_B.bias": torch.ones(64)}),
        r"must have .*linear_fc2\.lora_A\.weight beside it",
    ),
    "whole of another shape": (
        lambda tensors: tensors.update({f"{START}model.visual.merger.linear_fc1.bias": torch.ones(3)}),
        r"has the shape \[3\] for a tensor of \[128\]",
    ),
    "more rows": (
        lambda tensors: tensors.update({f"{START}model.language_model.embed_tokens.weight": torch.ones(400, 64)}),
        r"has 400 rows where the base has 338, and no tokenizer beside it",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_key_without_a_place_is_refused_by_name(copy, grafted, case):
    change, message = MISFITS[case]
    tensors = load_file(copy / WEIGHTS)
    change(tensors)
    save_file(tensors, copy / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        opened(copy, grafted)
    report = opened(copy, grafted, strict=False).report
    assert report.refused
    assert len(report.refused) + len(report.mapped) + len(report.ignored) == len(tensors)
    assert any("is refused: it" in line for line in report.lines())


HEADS = {
    "LoRA": {"target_modules": ["lm_head", "q_proj"]},
    "whole": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_change_of_a_tied_head_alone_is_refused(upstream, grafted, tmp_path, kind):
    write_adapter(upstream / "qwen3_vl", tmp_path, **HEADS[kind])
    with pytest.raises(
        ValueError, match=r"lm_head\..*', which changes the output head, which shares the base's token embeddings"
    ):
        opened(tmp_path, grafted)


def test_copies_of_a_tied_table_are_ignored_and_told(upstream, grafted, tmp_path):
    write_adapter(upstream / "qwen3_vl", tmp_path, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    report = opened(tmp_path, grafted).report
    assert report.ignored == {f"{START}lm_head.weight": "equals the token embeddings, which the base's output head shares"}
    assert "It changes the token embeddings, which the base's output head shares." in report.notes


def test_weights_that_peft_would_not_read_are_refused(copy, grafted):
    """As ms-swift writes a tower that it trained fully."""
    save_file({"visual.a": torch.ones(1)}, copy / "vit.safetensors")
    with pytest.raises(ValueError, match=r"holds vit\.safetensors beside adapter_config\.json"):
        opened(copy, grafted)


def test_pickles_are_refused_unopened(copy, grafted):
    (copy / WEIGHTS).unlink()
    (copy / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    with pytest.raises(ValueError, match=r"it holds adapter_model\.bin, and a pickle can run code"):
        opened(copy, grafted)


def test_an_adapter_of_another_base_is_refused_by_distance_or_trusted(upstream, grafted, tmp_path):
    other = write_qwen3_vl(tmp_path / "other", seed=1)
    write_adapter(other, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"its base's language model has the distance 1\.4\d to it"):
        opened(tmp_path / "adapter", grafted)
    report = opened(tmp_path / "adapter", grafted, trust=True).report
    assert report.trusted
    assert any(f"Its base {other} differs from" in note for note in report.notes)


def test_the_same_base_elsewhere_is_known_by_its_tensors(upstream, grafted, tmp_path):
    copy = shutil.copytree(upstream / "qwen3_vl", tmp_path / "mirror")
    write_adapter(copy, tmp_path / "adapter")
    report = opened(tmp_path / "adapter", grafted).report
    assert report.distances == {"base's language model": 0.0, "base's vision tower": 0.0}
    assert not report.notes


def test_whole_tensors_of_another_base_are_refused(copy, upstream, grafted, tmp_path):
    """The tensors that it holds whole are measured if the base that it names is not here."""
    other = write_qwen3_vl(tmp_path / "other", seed=1)
    write_adapter(other, tmp_path / "adapter", modules_to_save=["merger.linear_fc1"])
    shutil.rmtree(other)
    with pytest.raises(ValueError, match=r"its whole tensors has the distance 1\.\d\d to it"):
        opened(tmp_path / "adapter", grafted)


def test_an_embedding_of_another_base_is_refused_by_its_copy(upstream, grafted, tmp_path):
    other = write_qwen3_vl(tmp_path / "other", seed=1)
    write_adapter(other, tmp_path / "adapter", target_modules=["embed_tokens"])
    shutil.rmtree(other)
    with pytest.raises(ValueError, match=rf"its copy of {TABLE} has the distance 1\.\d\d to it"):
        opened(tmp_path / "adapter", grafted)


def test_another_recorded_name_is_told(copy, grafted):
    report = opened(configure(copy, base_model_name_or_path="somebody/qwen3-vl"), grafted).report
    assert report.base == "somebody/qwen3-vl"
    assert "names the base 'somebody/qwen3-vl', and this one is" in report.notes[0]
    report = opened(configure(copy, base_model_name_or_path=None), grafted).report
    assert "names no base, and this one is" in report.notes[0]


def test_a_recorded_base_that_cannot_be_read_is_told(copy, upstream, grafted, tmp_path):
    shutil.copytree(upstream / "qwen3_vl", tmp_path / "cut", ignore=shutil.ignore_patterns("*.safetensors*"))
    report = opened(configure(copy, base_model_name_or_path=str(tmp_path / "cut")), grafted).report
    assert "they were not compared" in report.notes[0]
    assert "there is no safetensors file" in report.notes[0]
    write_qwen3_vl(tmp_path / "wide", hidden_size=32)
    (tmp_path / "wide" / "model.safetensors.index.json").unlink()
    for path in (tmp_path / "wide").glob("*.safetensors"):
        save_file({name: tensor for name, tensor in load_file(path).items() if "language_model" in name}, path)
    report = opened(configure(copy, base_model_name_or_path=str(tmp_path / "wide")), grafted).report
    assert "base's language model" not in report.distances
    assert "they were not compared (their matrices have other shapes)" in report.notes[0]


def test_an_adapter_of_our_own_folder_is_known_by_its_hash(copy, grafted):
    report = opened(configure(copy, base_model_name_or_path=str(grafted)), grafted).report
    assert report.notes == [f"Its base {grafted} has the weights of {grafted}."]
    assert "language model" not in str(report.distances)


def test_rows_are_matched_by_token(upstream, grafted, tmp_path):
    """A tokenizer beside an adapter that says the same tokens in another order."""
    from lightning_conan.embedder import load_processor
    from lightning_conan.embedder.checkpoint.foreign.rows import match_rows

    vocabulary = load_processor(grafted).tokenizer.get_vocab()
    turned = {token: len(vocabulary) - 1 - row for token, row in vocabulary.items()} | {"unheard": len(vocabulary)}
    rows = match_rows(vocabulary, turned, 338, 330)
    table = torch.arange(330.0)[:, None]
    moved = rows.spread(table, torch.full((338, 1), -1.0))[:, 0]
    for token, row in vocabulary.items():
        assert moved[row] == turned[token]
    assert rows.dropped == ("unheard",)
    assert rows.place(turned["<|im_end|>"]) == vocabulary["<|im_end|>"]
    with pytest.raises(ValueError, match="Each token must have a row, but 'b' is token 1 of a table of 1 rows"):
        match_rows({"a": 0}, {"a": 0, "b": 1}, 1, 1)


def test_rows_of_our_own_tokens_are_kept(upstream, grafted, tmp_path):
    """An adapter knows the backbone's spare rows there; ours are other tokens."""
    write_adapter(upstream / "qwen3_vl", tmp_path, modules_to_save=["embed_tokens"])
    found, base = opened(tmp_path, grafted), open_tensors(grafted)
    known = KnownBase.from_folder(grafted, base)
    rows = [known.vocabulary[token] for token in known.own]
    assert torch.equal(found[TABLE][rows], base[TABLE][rows])
    others = [row for row in range(338) if row not in rows]
    assert not torch.isclose(found[TABLE][others], base[TABLE][others]).all(dim=1).any()


def test_a_trained_row_that_is_a_token_of_ours_is_refused(upstream, grafted, tmp_path):
    base = open_tensors(grafted)
    row = KnownBase.from_folder(grafted, base).vocabulary["<|AUDIO|>"]
    write_adapter(upstream / "qwen3_vl", tmp_path, trainable_token_indices=[3, row])
    with pytest.raises(ValueError, match=f"has row {row}, whose token the base does not know or has as its own"):
        opened(tmp_path, grafted)
