import json
import shutil
from pathlib import Path

import pytest
import torch
from foreign import TABLE, shared_rows, write_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModel, WhisperFeatureExtractor, WhisperForConditionalGeneration
from upstream import write_qwen3_vl, write_whisper

from lightning_conan.cli.main import main
from lightning_conan.embedder import OmniConfig, graft_folder, load_folder
from lightning_conan.embedder.checkpoint import TensorFiles, file_hash
from lightning_conan.embedder.checkpoint.graft import OWN_TOKENS, Graft
from lightning_conan.embedder.checkpoint.tensors import tensor_paths
from lightning_conan.embedder.projector import Projector
from lightning_conan.items import Item, Media
from lightning_conan.media import decode_audio, encode_audio
from samples import flac


def tensors(folder: Path) -> TensorFiles:
    return TensorFiles(tensor_paths(folder))


def graft(upstream, out, **options):
    from lightning_conan.embedder import ProcessorConfig

    sources = {"backbone": str(upstream / "qwen3_vl"), "audio": str(upstream / "qwen3_omni"), **options}
    return graft_folder(out=out, settings=ProcessorConfig(), hidden=32, **sources)


def test_every_tensor_is_where_it_came_from(upstream, grafted):
    base, eyes, ears = tensors(grafted), tensors(upstream / "qwen3_vl"), tensors(upstream / "qwen3_omni")
    for name in base.specs:
        part, _, rest = name.partition(".")
        if part == "backbone" and not name.endswith("embed_tokens.weight"):
            assert torch.equal(base[name], eyes[f"model.{rest}"]), name
        elif part == "audio_encoder":
            assert torch.equal(base[name], ears[f"thinker.audio_tower.{rest}"]), name
    assert sum(name.startswith("audio_encoder.") for name in base.specs) == sum(".audio_tower." in name for name in ears.specs)


def test_audio_tokens_get_rows_of_their_own(upstream, grafted):
    model, processor, _ = load_folder(grafted)
    rows = [processor.tokenizer.convert_tokens_to_ids(token) for token in OWN_TOKENS]
    before = tensors(upstream / "qwen3_vl")["model.language_model.embed_tokens.weight"]
    after = model.get_input_embeddings().weight
    others = [row for row in range(len(before)) if row not in rows]
    assert torch.equal(after[others], before[others])
    assert not torch.equal(after[rows], before[rows])
    assert len({tuple(after[row].tolist()) for row in rows}) == len(OWN_TOKENS)
    assert 0.5 < after[rows].std() / before.std() < 2


def test_a_vocabulary_without_room_grows(upstream, tmp_path):
    full = write_qwen3_vl(tmp_path / "full", tied=False, spare_rows=1)
    graft(upstream, tmp_path / "base", backbone=str(full))
    model, processor, _ = load_folder(tmp_path / "base")
    before = tensors(full)["model.language_model.embed_tokens.weight"]
    assert model.lm_head.weight.shape == model.get_input_embeddings().weight.shape == (len(before) + 4, 64)
    assert max(processor.ids.values()) == len(before) + 3
    drawn = []
    for rows in (model.get_input_embeddings().weight.detach(), model.lm_head.weight.detach()):
        known = rows[: len(before)].float()
        drawn.append((rows[-4:].float() - known.mean(dim=0)) / known.std(dim=0))
    assert not torch.allclose(*drawn, atol=0.1), "input and output rows share their random numbers"


def test_the_same_seed_gives_the_same_folder(upstream, tmp_path):
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        graft(upstream, tmp_path / name, seed=seed)
    assert file_hash(tmp_path / "a" / "model.safetensors") == file_hash(tmp_path / "b" / "model.safetensors")
    assert file_hash(tmp_path / "a" / "model.safetensors") != file_hash(tmp_path / "c" / "model.safetensors")


def test_projector_of_the_paper_has_its_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in Projector(2048, 3072, 4096).parameters()) == 18_881_536


def test_only_the_audio_towers_shards_are_needed(upstream, tmp_path):
    """Other files of the 30-billion-parameter checkpoint need not even be there."""
    ears = shutil.copytree(upstream / "qwen3_omni", tmp_path / "ears")
    index = json.loads((ears / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if ".audio_tower." in name}
    for path in ears.glob("*.safetensors"):
        if path.name not in needed:
            path.unlink()
    report = graft(upstream, tmp_path / "base", audio=str(ears))
    held = tensors(tmp_path / "base")
    assert report.nbytes[str(ears)] == sum(spec.nbytes for name, spec in held.specs.items() if name.startswith("audio_encoder."))
    assert len(needed) < len(set(index.values()))
    next(iter(ears.glob("*.safetensors"))).unlink()
    with pytest.raises(ValueError, match=r"is incomplete: model\.safetensors\.index\.json names"):
        graft(upstream, tmp_path / "again", audio=str(ears))


def test_whispers_ears_fit_too(upstream, tmp_path):
    """Its frames equal those of Whisper's own encoder on its own features."""
    write_whisper(tmp_path / "whisper")
    graft(upstream, tmp_path / "base", audio=str(tmp_path / "whisper"))
    model, processor, _ = load_folder(tmp_path / "base")
    item = processor(Item((Media("audio", flac(2.0), "a.flac"),)))
    encoder = WhisperForConditionalGeneration.from_pretrained(tmp_path / "whisper").model.encoder.eval()
    with torch.no_grad():
        wanted = encoder(item.inputs("audio")[0][None]).last_hidden_state[0]
        torch.testing.assert_close(model.encode_frames("audio", item.media["audio"]), wanted, atol=1e-6, rtol=0)
        sounds = [processor(Item((Media("audio", flac(seconds), "a.flac"),))) for seconds in (0.3, 2.5, 4.0)]
        alone = torch.cat([model.embed([sound]) for sound in sounds])
        torch.testing.assert_close(model.embed(sounds), alone, atol=1e-5, rtol=0)


def test_auto_model_reads_a_base(grafted):
    import lightning_conan.embedder  # noqa: F401  # registers the class

    found, wanted = AutoModel.from_pretrained(grafted).state_dict(), load_folder(grafted)[0].state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def edit(path: Path, change) -> None:
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "config.json",
            lambda fields: fields.update(model_type="qwen2"),
            "one of .*qwen3_vl.*got 'qwen2': docs/backbones",
        ),
        ("config.json", lambda fields: fields["text_config"].update(num_hidden_layers=2), "unexpected, such as 'backbone.lang"),
        ("config.json", lambda fields: fields["text_config"].update(num_hidden_layers=4), "missing, such as 'backbone.lang"),
        ("config.json", lambda fields: fields["text_config"].update(intermediate_size=32), "of another shape"),
        ("preprocessor_config.json", lambda fields: fields.update(image_mean=[0.48] * 3), "image_mean in .* must be"),
        ("video_preprocessor_config.json", lambda fields: fields.update(patch_size=14), "patch_size in .* must be 16, got 14"),
    ],
)
def test_what_does_not_fit_is_refused(upstream, tmp_path, file, change, message):
    eyes = shutil.copytree(upstream / "qwen3_vl", tmp_path / "eyes")
    edit(eyes / file, change)
    with pytest.raises(ValueError, match=message):
        graft(upstream, tmp_path / "base", backbone=str(eyes))
    assert not (tmp_path / "base").exists()


def test_another_chat_template_is_refused(upstream, tmp_path):
    eyes = shutil.copytree(upstream / "qwen3_vl", tmp_path / "eyes")
    (eyes / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.role }}]{% endfor %}")
    with pytest.raises(ValueError, match="chat template must write"):
        graft(upstream, tmp_path / "base", backbone=str(eyes))


def test_ears_must_be_ears(upstream, tmp_path):
    with pytest.raises(ValueError, match="must come from a checkpoint of"):
        graft(upstream, tmp_path / "base", audio=str(upstream / "qwen3_vl"))
    with pytest.raises(ValueError, match="no such folder"):
        graft(upstream, tmp_path / "base", audio="nowhere")


def test_pickles_are_refused_unopened(upstream, tmp_path):
    eyes = shutil.copytree(upstream / "qwen3_vl", tmp_path / "eyes")
    for path in [*eyes.glob("*.safetensors"), eyes / "model.safetensors.index.json"]:
        path.unlink()
    (eyes / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    with pytest.raises(ValueError, match=r"holds pytorch_model\.bin, and weights must be safetensors"):
        graft(upstream, tmp_path / "base", backbone=str(eyes))


def test_the_verb_reports_and_refuses(upstream, tmp_path, capsys):
    words = ["graft", "--backbone", str(upstream / "qwen3_vl"), "--out", str(tmp_path / "base")]
    assert main(words) == 1
    assert "needs both --backbone and --audio" in capsys.readouterr().err
    assert main([*words, "--audio", str(upstream / "qwen3_omni"), "--processor.max_pixels", "99999"]) == 0
    assert "fresh, seed 0" in capsys.readouterr().out
    assert load_folder(tmp_path / "base")[1].config.max_pixels == 99999
    assert OmniConfig.from_pretrained(tmp_path / "base").projector_hidden_size == 3072


def test_only_the_audio_towers_shards_are_downloaded(upstream, hub, tmp_path):
    graft(upstream, tmp_path / "base", backbone="owner/qwen3_vl", audio="owner/qwen3_omni")
    index = json.loads((upstream / "qwen3_omni" / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if ".audio_tower." in name}
    eyes = {path.name for path in (upstream / "qwen3_vl").glob("*.safetensors")}
    assert {name for name in hub.asked if name.endswith(".safetensors")} == needed | eyes
    graft(upstream, tmp_path / "local")
    assert file_hash(tmp_path / "base" / "model.safetensors") == file_hash(tmp_path / "local" / "model.safetensors")


def test_an_unknown_repository_is_one_error(upstream, hub, tmp_path):
    with pytest.raises(ValueError, match="'owner/nowhere' could not be fetched"):
        graft(upstream, tmp_path / "base", audio="owner/nowhere")


def test_an_audio_encoder_in_another_dtype_takes_the_backbones(upstream, tmp_path):
    """Whisper's large ones are float16: specialists that a stage wrote in one dtype could not be fused with such a base."""
    whisper = write_whisper(tmp_path / "whisper")
    stored = load_file(whisper / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in stored.items()}, whisper / "model.safetensors")
    save_file(stored, whisper / "model.fp32-00001-of-00001.safetensors")  # as the hub has them, side by side
    graft(upstream, tmp_path / "base", audio=str(whisper))
    base = tensors(tmp_path / "base")
    assert len({spec.dtype for spec in base.specs.values()}) == 1
    found, wanted = base["audio_encoder.layers.0.fc1.weight"], stored["model.encoder.layers.0.fc1.weight"].half()
    assert torch.equal(found, wanted.to(found.dtype))


@pytest.mark.parametrize("content", [flac(0.7), encode_audio(torch.zeros(11_200))], ids=["sound", "silence"])
def test_whispers_short_sounds_are_filled_up_as_its_own_features_are(upstream, tmp_path, content):
    """With silence, which is no 0 in its features; only the last frame, whose window reaches into it, differs a little."""
    write_whisper(tmp_path / "whisper")
    graft(upstream, tmp_path / "base", audio=str(tmp_path / "whisper"))
    model, processor, _ = load_folder(tmp_path / "base")
    media = Media("audio", content, "a.flac")
    features = WhisperFeatureExtractor(feature_size=80, chunk_length=2)(decode_audio(media).numpy(), sampling_rate=16_000)
    encoder = WhisperForConditionalGeneration.from_pretrained(tmp_path / "whisper").model.encoder.eval()
    with torch.no_grad():
        found = model.encode_frames("audio", processor(Item((media,))).media["audio"])
        wanted = encoder(torch.tensor(features["input_features"])).last_hidden_state[0][: len(found)]
    assert len(found) < 100
    torch.testing.assert_close(found[:-1], wanted[:-1], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[-1], wanted[-1], atol=0.05, rtol=0)


def test_new_rows_are_drawn_with_the_spread_of_each_dimension():
    graft = Graft.__new__(Graft)
    graft.new_rows = [3]
    rows = torch.tensor([[1.0, 900.0], [2.0, -300.0], [4.0, 500.0], [0.0, 0.0]])
    noise = torch.ones(len(OWN_TOKENS) + 1, 2)
    found = graft.with_new_rows(rows, noise)
    drawn = rows.mean(dim=0) + rows.std(dim=0)
    assert torch.equal(found[:3], rows[:3])
    torch.testing.assert_close(found[3:], drawn.expand(2, 2))


@pytest.mark.parametrize("kind", ["head", "base"])
def test_an_adapter_is_merged_into_the_backbone(upstream, tmp_path, capsys, kind):
    """As PEFT merges it; rows of tokens that only we have are fresh."""
    merged = write_adapter(
        upstream / "qwen3_vl", tmp_path / "adapter", kind, target_modules=["q_proj", "embed_tokens"], use_dora=True
    )
    words = ["graft", "--backbone", f"{upstream / 'qwen3_vl'}+{tmp_path / 'adapter'}", "--audio", str(upstream / "qwen3_omni")]
    assert main([*words, "--out", str(tmp_path / "base"), "--golden", "false"]) == 0
    assert "LoRA + DoRA" in capsys.readouterr().out
    model, processor, provenance = load_folder(tmp_path / "base")
    found = model.state_dict()
    rows = shared_rows(processor)
    for name, tensor in merged.items():
        if name in found:
            one, other = (found[name][rows], tensor[rows]) if name == TABLE else (found[name], tensor)
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert provenance.notes["backbone"].endswith("adapter")
    told = json.loads((tmp_path / "base" / "graft.json").read_text())["adapter"]
    assert not told["refused"]
    assert told["distances"] == {"base's language model": 0.0, "base's vision tower": 0.0}


def test_an_adapter_alone_is_no_backbone(upstream, tmp_path):
    write_adapter(upstream / "qwen3_vl", tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"It is an adapter: name it behind its base, as BACKBONE\+ADAPTER"):
        graft(upstream, tmp_path / "base", backbone=str(tmp_path / "adapter"))


def test_a_backbone_may_be_in_the_layout_of_transformers_4(upstream, tmp_path):
    old = shutil.copytree(upstream / "qwen3_vl", tmp_path / "old")
    for path in old.glob("*.safetensors"):
        renamed = {
            name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
            for name, tensor in load_file(path).items()
        }
        save_file(renamed, path, metadata={"format": "pt"})
    (old / "model.safetensors.index.json").unlink()
    graft(upstream, tmp_path / "one", backbone=str(old))
    graft(upstream, tmp_path / "two")
    assert file_hash(tmp_path / "one" / "model.safetensors") == file_hash(tmp_path / "two" / "model.safetensors")
