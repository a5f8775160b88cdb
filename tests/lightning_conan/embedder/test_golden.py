import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from lightning_conan.embedder import load_folder
from lightning_conan.embedder.checkpoint import compare_golden, golden
from lightning_conan.embedder.checkpoint.golden import draw_files


def test_a_folder_comes_out_as_it_was_written(base):
    model, processor, _ = load_folder(base, verify=True)
    off, allowed = compare_golden(base, model, processor)
    assert set(off) == {"text", "image", "video", "document", "audio", "mixture"}
    assert max(off.values()) <= 1e-6 < allowed


def test_files_are_the_same_every_time(tiny):
    assert draw_files(tiny[0].config) == draw_files(tiny[0].config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda settings: settings.update(max_pixels=32 * 32), "golden (image|document|mixture)"),
        (lambda settings: settings.update(instruction="Find it."), "golden"),
        (lambda settings: settings["sampling"].update(max_frames=2), "golden video"),
    ],
)
def test_inputs_that_are_read_differently_are_noticed(base, tmp_path, change, message):
    """The weights are untouched and every hash fits: only the vectors tell."""
    copy = shutil.copytree(base, tmp_path / "copy")
    settings = json.loads((copy / "omni_processor.json").read_text())
    change(settings)
    (copy / "omni_processor.json").write_text(json.dumps(settings))
    record = json.loads((copy / "conan.json").read_text())
    del record["files"]["omni_processor.json"]
    (copy / "conan.json").write_text(json.dumps(record))
    load_folder(copy)
    with pytest.raises(ValueError, match=f"{message} .* No package changed since"):
        load_folder(copy, verify=True)


def test_distances_are_of_whole_vectors(base, monkeypatch):
    model, processor, _ = load_folder(base)
    there = load_file(base / "golden" / "vectors.safetensors")
    nudge = torch.zeros_like(there["text"])
    nudge[:3] = torch.tensor([0.3, -0.4, 0.1])
    monkeypatch.setattr(golden, "embed_golden", lambda *_: {name: vector + nudge for name, vector in there.items()})
    off, _ = compare_golden(base, model, processor)
    assert set(off) == set(there)
    assert all(value == pytest.approx(0.26**0.5, abs=1e-5) for value in off.values())


@pytest.mark.parametrize("training", [True, False])
def test_a_model_in_training_stays_so(fresh, processor, training):
    golden.embed_golden(fresh.train(training), processor, draw_files(fresh.config))
    assert fresh.training is training


def test_no_number_is_not_taken_for_a_small_one(base, monkeypatch):
    model, processor, _ = load_folder(base)
    monkeypatch.setattr(golden, "compare_golden", lambda *_: ({"audio": 0.0, "image": math.nan, "text": 0.0}, 1e-3))
    with pytest.raises(ValueError, match="golden image"):
        golden.check_golden(base, model, processor)


def test_half_precision_is_within_its_tolerance(base):
    model, processor, _ = load_folder(base, dtype=torch.bfloat16, verify=True)
    assert model.dtype == torch.bfloat16
    assert model.backbone.language_model.rotary_emb.inv_freq.dtype == torch.float32
    off, _ = compare_golden(base, model, processor)
    assert max(off.values()) > 1e-5


def test_a_folder_without_is_told_how(base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    shutil.rmtree(copy / "golden")
    model, processor, _ = load_folder(base)
    with pytest.raises(ValueError, match=r"conan doctor .* --record true"):
        compare_golden(copy, model, processor)
