import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from lightning_conan.embedder import Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.embedder.checkpoint import write_shards
from lightning_conan.fusion import Recipe, engine, fuse_folders, task_arithmetic

ALPHAS = {"image": 0.3, "audio": 0.5}


@pytest.fixture(scope="module")
def specialists(base, tmp_path_factory):
    """Folders of two specialists whose every tensor moved a little."""
    root, parent = tmp_path_factory.mktemp("specialists"), load_folder(base)[2].fingerprint
    for seed, name in enumerate(ALPHAS):
        model, processor = tiny_embedder(0)
        generator = torch.Generator().manual_seed(seed + 7)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        save_folder(root / name, model, processor, Provenance("specialist", name, {"base": parent}))
    return {name: root / name for name in ALPHAS}


@pytest.fixture
def recipe(base, specialists):
    return Recipe(base, dict(specialists), dict(ALPHAS))


def tensors(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_equals_a_plain_loop_over_state_dicts(recipe, tmp_path):
    report = fuse_folders(recipe, tmp_path / "fused")
    found, base = tensors(tmp_path / "fused"), tensors(recipe.base)
    parts = {name: tensors(folder) for name, folder in recipe.specialists.items()}
    for name in base:
        if name.startswith(("audio_encoder.", "audio_projector.")):
            assert torch.equal(found[name], parts["audio"][name]), name
        elif not name.endswith("embed_tokens.weight"):
            expected = base[name] + sum(alpha * (parts[key][name] - base[name]) for key, alpha in ALPHAS.items())
            assert torch.allclose(found[name], expected, atol=1e-6), name
    assert len(report.fused) + len(report.copied) == len(base)


def test_audio_token_rows_are_the_owners(recipe, tmp_path):
    fuse_folders(recipe, tmp_path / "fused")
    config = load_folder(tmp_path / "fused")[0].config
    name = "backbone.language_model.embed_tokens.weight"
    found, owner, base = (tensors(folder)[name] for folder in (tmp_path / "fused", recipe.specialists["audio"], recipe.base))
    rows = [config.audio_token_id, config.audio_start_token_id, config.audio_end_token_id]
    assert torch.equal(found[rows], owner[rows])
    others = [row for row in range(len(found)) if row not in rows]
    image = tensors(recipe.specialists["image"])[name]
    assert torch.equal(found[others], task_arithmetic(base, {"image": image, "audio": owner}, ALPHAS)[others])


def test_geometry_equals_the_flat_vectors(recipe, tmp_path):
    report = fuse_folders(recipe, tmp_path / "fused")
    base = tensors(recipe.base)
    flat = {
        name: torch.cat([(tensors(folder)[key] - base[key]).double().flatten() for key in report.fused])
        for name, folder in recipe.specialists.items()
    }
    assert report.norms == pytest.approx({name: vector.norm().item() for name, vector in flat.items()}, rel=1e-6)
    cosine = torch.nn.functional.cosine_similarity(flat["audio"], flat["image"], dim=0).item()
    assert report.cosines == pytest.approx({"audio-image": cosine}, rel=1e-6)
    assert json.loads((tmp_path / "fused" / "fusion.json").read_text())["alphas"] == ALPHAS


def test_fused_folder_loads_and_names_its_parents(recipe, tmp_path):
    fuse_folders(recipe, tmp_path / "fused")
    provenance = load_folder(tmp_path / "fused", ("fused",))[2]
    assert set(provenance.parents) == {"base", "image", "audio"}
    assert provenance.notes["alphas"] == ALPHAS


def test_many_shards_equal_one(recipe, tmp_path, monkeypatch):
    fuse_folders(recipe, tmp_path / "one")
    monkeypatch.setattr(engine, "write_shards", partial(write_shards, shard_bytes=400_000))
    fuse_folders(recipe, tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = load_folder(tmp_path / "one")[0].state_dict(), load_folder(tmp_path / "many")[0].state_dict()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_refusals_name_the_rule(recipe, base, specialists, tmp_path):
    def refused(message, **change):
        with pytest.raises(ValueError, match=message):
            fuse_folders(Recipe(**{**recipe.__dict__, **change}), tmp_path / "out")
        assert not list(tmp_path.iterdir())

    refused("alphas must name the specialists", alphas={"image": 1.0})
    refused("alphas must be finite", alphas={"image": float("nan"), "audio": 0.5})
    refused("owner must be among", owner="video")
    refused("holds a specialist model, and a base one", base=specialists["image"])
    refused(
        "must be the audio specialist, but it is that of image",
        specialists={"image": base.parent, "audio": specialists["image"]} | {"image": specialists["image"]},
    )


def test_a_specialist_of_another_base_is_refused(recipe, tmp_path):
    other = save_folder(tmp_path / "other", *tiny_embedder(1), Provenance("base"))
    with pytest.raises(ValueError, match=r"was not trained from .*other"):
        fuse_folders(Recipe(other, recipe.specialists, ALPHAS), tmp_path / "out")


def test_nan_is_refused_by_tensor_and_model(recipe, tmp_path):
    model, processor, provenance = load_folder(recipe.specialists["image"])
    with torch.no_grad():
        model.audio_projector.linear_1.bias[0] = float("nan")
    broken = save_folder(tmp_path / "broken", model, processor, provenance)
    with pytest.raises(ValueError, match=r"'audio_projector\.linear_1\.bias' of image must be finite"):
        fuse_folders(Recipe(recipe.base, {**recipe.specialists, "image": broken}, ALPHAS), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_an_interrupted_fusion_leaves_nothing(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "task_arithmetic", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fuse_folders(recipe, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    shutil.rmtree(tmp_path)
