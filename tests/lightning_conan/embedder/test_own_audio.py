"""Backbones that hear: grafted whole, or with another audio encoder, from whichever layout; what is left out is told."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from backbones import FAMILIES, ours, write_backbone
from safetensors.torch import load_file, save_file
from upstream import write_qwen3_omni, write_whisper

from lightning_conan.cli.main import main
from lightning_conan.embedder import graft_folder, load_folder
from lightning_conan.embedder.backbones import backbone_of
from lightning_conan.embedder.checkpoint import compare_golden
from lightning_conan.embedder.checkpoint.upstream import read_json, write_json
from lightning_conan.items import Item, Media
from samples import flac, mp4

NAME = next(name for name, family in FAMILIES.items() if family.hears)
SETTINGS = FAMILIES[NAME].settings


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """``whole``, a checkpoint that hears and speaks, and ``base``, grafted from it alone."""
    folder = tmp_path_factory.mktemp("own_audio")
    write_backbone(folder / "whole", NAME)
    graft_folder(str(folder / "whole"), None, folder / "base", SETTINGS)
    return folder


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_folder(folder)[0].state_dict()


def told(folder: Path):
    return json.loads((folder / "graft.json").read_text())


def test_nothing_but_the_row_of_the_embedding_token_is_drawn(root):
    """Tensor by tensor what transformers' class holds; rows of all tokens that the checkpoint knows."""
    plain = FAMILIES[NAME].head.from_pretrained(root / "whole").state_dict()
    plain = {name.removeprefix("model."): tensor for name, tensor in plain.items()}
    held, processor = state(root / "base"), load_folder(root / "base")[1]
    emb = processor.ids["emb"]
    for name, tensor in plain.items():
        found = held[name if name == "lm_head.weight" else ours(name)]
        kept = (
            torch.arange(len(tensor)) != emb if name in ("lm_head.weight", "language_model.embed_tokens.weight") else slice(None)
        )
        assert torch.equal(found[kept], tensor[kept]), name
    assert len(plain) == len(held)
    assert told(root / "base")["fresh"] == ["row of <|emb|>"]
    assert (
        processor.ids["audio"]
        == processor.ids["audio_pad"]
        == read_json(root / "whole" / "config.json")["thinker_config"]["audio_token_id"]
    )


def test_what_speaks_is_left_out_counted_and_listed(root, tmp_path, capsys):
    names = read_json(root / "whole" / "model.safetensors.index.json")["weight_map"]
    spoken = sorted(name for name in names if name.startswith(("talker.", "code2wav.")))
    assert sorted(told(root / "base")["left_out"]) == spoken
    assert main(["graft", "--backbone", str(root / "whole"), "--out", str(tmp_path / "base"), "--golden", "false"]) == 0
    said = capsys.readouterr().out
    assert f"{sum(name.startswith('talker.') for name in spoken)} tensors left out, listed in" in said
    assert "fresh" not in said


def test_naming_the_backbones_folder_is_naming_none(root, tmp_path):
    graft_folder(str(root / "whole"), f"{root}/./whole", tmp_path / "base", SETTINGS, golden=False)
    one, other = state(root / "base"), state(tmp_path / "base")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_thinker_alone_in_one_file_makes_the_same_base(root, tmp_path):
    """As its classes save it, with a head and without."""
    head = FAMILIES[NAME].head.from_pretrained(root / "whole")
    for kind, model in (("head", head), ("base", head.model)):
        shutil.copytree(root / "whole", tmp_path / kind, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
        model.save_pretrained(tmp_path / kind)
        out = tmp_path / f"{kind}.base"
        graft_folder(str(tmp_path / kind), None, out, SETTINGS, golden=False)
        one, other = state(root / "base"), state(out)
        assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
        assert one.keys() - other.keys() == ({"lm_head.weight"} if kind == "base" else set())


@pytest.mark.parametrize("write", [write_qwen3_omni, write_whisper])
def test_another_audio_encoder_is_grafted_with_a_fresh_projector(root, tmp_path, write):
    write(tmp_path / "audio")
    graft_folder(str(root / "whole"), str(tmp_path / "audio"), tmp_path / "base", SETTINGS, hidden=32)
    model, processor, _ = load_folder(tmp_path / "base")
    assert not model.config.native_projector
    report = told(tmp_path / "base")
    assert "audio_projector.linear_1.weight" in report["fresh"]
    assert any(".audio_tower." in name for name in report["left_out"])
    kept = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("backbone.")}
    del kept["backbone.language_model.embed_tokens.weight"]  # its one new row is drawn after the projector
    one = state(root / "base")
    assert all(torch.equal(one[name], tensor) for name, tensor in kept.items())
    with torch.no_grad():
        assert model.embed([processor(Item((Media("audio", flac(1.3), "a.flac"),)))]).isfinite().all()


def test_a_stock_export_of_a_graft_is_refused(root, tmp_path, capsys):
    write_qwen3_omni(tmp_path / "audio")
    graft_folder(str(root / "whole"), str(tmp_path / "audio"), tmp_path / "base", SETTINGS, hidden=32, golden=False)
    assert main(["export", str(tmp_path / "base"), str(tmp_path / "out"), "--stock", "true"]) == 1
    assert "must have its own audio encoder" in capsys.readouterr().err


def changed(folder: Path, out: Path, file: str, **fields) -> Path:
    shutil.copytree(folder, out)
    found = read_json(out / file)
    part = found["thinker_config"] if file == "config.json" else found
    part.update(fields)
    write_json(out / file, found)
    return out


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"position_id_per_seconds": 25}, "position_id_per_seconds must be 13"),
        ("preprocessor_config.json", {"n_fft": 512}, "n_fft in .* must be 400, got 512"),
        ("preprocessor_config.json", {"feature_size": 80}, "feature_size in .* must be 128, got 80"),
    ],
)
def test_a_checkpoint_that_hears_otherwise_is_refused(root, tmp_path, file, fields, message):
    odd = changed(root / "whole", tmp_path / "odd", file, **fields)
    with pytest.raises(ValueError, match=message):
        graft_folder(str(odd), None, tmp_path / "base", SETTINGS, golden=False)


def test_an_own_projection_of_another_form_is_refused(root, tmp_path):
    odd = changed(root / "whole", tmp_path / "odd", "config.json")
    found = read_json(odd / "config.json")
    found["thinker_config"]["audio_config"]["activation_function"] = "relu"
    write_json(odd / "config.json", found)
    with pytest.raises(ValueError, match=r"must have one with gelu to 64, got \('relu', 64\)"):
        graft_folder(str(odd), None, tmp_path / "base", SETTINGS, golden=False)


def test_a_missing_expert_is_named(root, tmp_path):
    odd = shutil.copytree(root / "whole", tmp_path / "odd")
    gone = "thinker.model.layers.1.mlp.experts.2.up_proj.weight"
    index = read_json(odd / "model.safetensors.index.json")
    path = odd / index["weight_map"].pop(gone)
    tensors = load_file(path)
    del tensors[gone]
    save_file(tensors, path, metadata={"format": "pt"})
    write_json(odd / "model.safetensors.index.json", index)
    with pytest.raises(ValueError, match=r"missing, such as 'backbone\.language_model\.layers\.1\.mlp\.experts\.down_proj'"):
        graft_folder(str(odd), None, tmp_path / "base", SETTINGS, golden=False)


def test_a_rate_of_frames_between_whole_positions_is_refused(root):
    processor = load_folder(root / "base")[1]
    assert backbone_of(NAME).sampling(processor.config.sampling).fps == 2
    odd = type(processor.config.sampling)(fps=1.5)
    with pytest.raises(ValueError, match="must make 2 / fps a whole number"):
        backbone_of(NAME).sampling(odd)


def test_golden_vectors_hold_and_tell_a_changed_projector(root):
    assert main(["doctor", str(root / "base")]) == 0
    model, processor, _ = load_folder(root / "base")
    with torch.no_grad():
        model.audio_projector.linear_2.weight *= 1.5
    off, allowed = compare_golden(root / "base", model, processor)
    assert {name for name, value in off.items() if value > allowed} == {"audio", "mixture"}


def test_time_passes_between_frames_and_before_what_follows(root):
    """Thirteen positions a second: text stands behind the last pair of frames."""
    processor = load_folder(root / "base")[1]
    encoded = processor(Item((Media("video", mp4(16, 64), "a.mp4"), "why")))
    frames = (encoded.input_ids == processor.ids["video"]).nonzero()[:, 0]
    times = encoded.positions[0, frames].unique()
    assert times.diff().unique().tolist() == [13]
    assert encoded.positions[:, frames[-1] + 1].tolist() == [int(times[-1]) + 1] * 3
