"""Recipes that do not fit, line by line, and what a full disk or a killed run leaves."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_conan.embedder import Provenance, load_folder, read_provenance, save_folder, tiny_embedder
from lightning_conan.embedder.checkpoint import file_hash
from lightning_conan.fusion import Recipe, fuse_folders

WEIGHTS = "model.safetensors"
BIAS = "backbone.visual.merger.linear_fc1.bias"
TOKENS = "backbone.language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def specialists(base, tmp_path_factory):
    root, parent = tmp_path_factory.mktemp("specialists"), load_folder(base)[2].fingerprint
    for seed, name in enumerate(("image", "video", "audio")):
        model, processor = tiny_embedder(0)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        save_folder(root / name, model, processor, Provenance("specialist", name, {"base": parent}))
    return {name: root / name for name in ("image", "video", "audio")}


@pytest.fixture
def recipe(base, specialists):
    return Recipe(base, dict(specialists), {"image": 0.3, "video": 0.3, "audio": 0.5})


def altered(folder, out, change):
    """A copy whose tensors were changed, with hashes that fit: only the tensors themselves can give it away."""
    shutil.copytree(folder, out)
    tensors = load_file(out / WEIGHTS)
    change(tensors)
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    provenance = json.loads((out / "conan.json").read_text())
    provenance["files"][WEIGHTS] = file_hash(out / WEIGHTS)
    (out / "conan.json").write_text(json.dumps(provenance))
    return out


def put(name, value):
    return lambda tensors: tensors.update({name: value(tensors.get(name))})


CHANGES = {
    "shape mismatch": (put(BIAS, lambda old: old[:-1].clone()), f"1 of another shape, such as '{BIAS}'"),
    "missing tensor": (lambda tensors: tensors.pop(BIAS), f"1 missing, such as '{BIAS}'"),
    "extra tensor": (put("backbone.extra", lambda _: torch.zeros(2)), "1 unexpected, such as 'backbone.extra'"),
    "tied weights, untied": (
        lambda tensors: tensors.update({"lm_head.weight": tensors[TOKENS].clone()}),
        "1 unexpected, such as 'lm_head.weight'",
    ),
    "other tokenizer size": (
        put(TOKENS, lambda old: torch.cat([old, old[:8]])),
        f"1 of another shape, such as '{TOKENS}'",
    ),
    "NaN": (put(BIAS, lambda old: old.clone().fill_(float("nan"))), f"'{BIAS}' of image must be finite"),
    "coarser dtype": (put(BIAS, lambda old: old.bfloat16()), f"'{BIAS}' in .*image.* must be at least as precise"),
    "quantised": (put(BIAS, lambda old: old.to(torch.int8)), f"'{BIAS}' in .*image.* must be at least as precise"),
}


@pytest.mark.parametrize("fault", CHANGES)
def test_is_refused_by_tensor_and_model_and_leaves_nothing(recipe, tmp_path, fault):
    change, message = CHANGES[fault]
    odd = altered(recipe.specialists["image"], tmp_path / "image", change)
    with pytest.raises(ValueError, match=message) as caught:
        fuse_folders(replace(recipe, specialists={**recipe.specialists, "image": odd}), tmp_path / "out")
    assert "image" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_a_more_precise_specialist_is_welcome(recipe, base, tmp_path):
    model, processor, provenance = load_folder(base)
    half = save_folder(tmp_path / "base", model.bfloat16(), processor, provenance)
    fingerprint = read_provenance(half).fingerprint
    model = load_folder(base)[0]
    for name in recipe.specialists:
        save_folder(tmp_path / name, model, processor, Provenance("specialist", name, {"base": fingerprint}))
    fuse_folders(Recipe(half, {name: tmp_path / name for name in recipe.specialists}, recipe.alphas), tmp_path / "out")
    assert load_folder(tmp_path / "out")[0].dtype == torch.bfloat16


def test_weight_0_is_left_out_bit_for_bit(recipe, tmp_path):
    fuse_folders(replace(recipe, alphas={**recipe.alphas, "video": 0.0}), tmp_path / "zero")
    without = {name: folder for name, folder in recipe.specialists.items() if name != "video"}
    fuse_folders(Recipe(recipe.base, without, {"image": 0.3, "audio": 0.5}), tmp_path / "without")
    assert (tmp_path / "zero" / WEIGHTS).read_bytes() == (tmp_path / "without" / WEIGHTS).read_bytes()


def test_specialists_that_are_the_base_give_the_base(recipe, base, tmp_path):
    model, processor, provenance = load_folder(base)
    for name in recipe.specialists:
        save_folder(tmp_path / name, model, processor, Provenance("specialist", name, {"base": provenance.fingerprint}))
    fuse_folders(replace(recipe, specialists={name: tmp_path / name for name in recipe.specialists}), tmp_path / "out")
    expected, found = load_file(base / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_flipped_byte_or_a_missing_shard_is_refused(recipe, tmp_path):
    odd = shutil.copytree(recipe.specialists["image"], tmp_path / "image")
    content = bytearray((odd / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (odd / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match=r"image/model\.safetensors differs from its hash"):
        fuse_folders(replace(recipe, specialists={**recipe.specialists, "image": odd}), tmp_path / "out")
    (odd / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"image is incomplete: model\.safetensors is missing"):
        fuse_folders(replace(recipe, specialists={**recipe.specialists, "image": odd}), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_a_full_disk_is_one_error_and_leaves_what_was_there(recipe, tmp_path):
    """Files may grow to 300 kB, as on a disk that is nearly full."""
    fuse_folders(recipe, tmp_path / "out")
    before = (tmp_path / "out" / WEIGHTS).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(OSError, match=r"out could not be written .* what was there before is untouched"):
            fuse_folders(replace(recipe, alphas=dict.fromkeys(recipe.alphas, 1.0)), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from lightning_conan.fusion import Recipe, fuse_folders, write as module

def die(*args, **options):
    write(*args, **options)
    os.kill(os.getpid(), signal.SIGKILL)

write, module.write_shards = module.write_shards, die
base, out, *folders = map(Path, sys.argv[1:])
fuse_folders(Recipe(base, {folder.name: folder for folder in folders}, {folder.name: 0.3 for folder in folders}), out)
"""


def test_a_killed_fusion_never_loads_and_the_next_one_cleans_up(recipe, tmp_path):
    folders = [str(recipe.base), str(tmp_path / "out"), *map(str, recipe.specialists.values())]
    done = subprocess.run([sys.executable, "-c", KILLED, *folders], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = set(tmp_path.iterdir()) - {tmp_path / ".out.lock"}
    assert (left / WEIGHTS).is_file()
    with pytest.raises(ValueError, match="is not a checkpoint folder"):
        load_folder(left)
    fuse_folders(recipe, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
