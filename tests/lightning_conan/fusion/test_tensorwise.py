import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from lightning_conan.embedder import Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.embedder.checkpoint import file_hash, write_shards
from lightning_conan.fusion import Dare, Recipe, TaskArithmetic, TsvM, dry_run, fuse_folders, tensorwise, write
from lightning_conan.fusion.geometry import by_group

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
    ids = load_folder(tmp_path / "fused")[1].ids
    rows = [ids[name] for name in ("audio", "audio_start", "audio_end", "audio_pad")]
    assert {config.audio_token_id, config.audio_start_token_id, config.audio_end_token_id} < set(rows)
    assert torch.equal(found[rows], owner[rows])
    others = [row for row in range(len(found)) if row not in rows]
    image = tensors(recipe.specialists["image"])[name]
    wanted = base + 0.5 * (owner - base) + 0.3 * (image - base)
    assert torch.allclose(found[others], wanted[others], atol=1e-6)


def test_geometry_equals_the_flat_vectors(recipe, tmp_path):
    report = fuse_folders(recipe, tmp_path / "fused")
    base = tensors(recipe.base)
    flat = {
        name: torch.cat([(tensors(folder)[key] - base[key]).double().flatten() for key in report.fused])
        for name, folder in recipe.specialists.items()
    }
    assert report.norms == pytest.approx({name: vector.norm().item() for name, vector in flat.items()}, rel=1e-6)
    cosine = torch.nn.functional.cosine_similarity(flat["audio"], flat["image"], dim=0).item()
    assert report.cosines == pytest.approx({"audio-image": cosine}, abs=1e-7)
    assert json.loads((tmp_path / "fused" / "fusion.json").read_text())["alphas"] == ALPHAS


def test_fused_folder_loads_and_names_its_parents(recipe, tmp_path):
    fuse_folders(recipe, tmp_path / "fused")
    provenance = load_folder(tmp_path / "fused", ("fused",))[2]
    assert set(provenance.parents) == {"base", "image", "audio"}
    assert provenance.notes["alphas"] == ALPHAS


def test_many_shards_equal_one(recipe, tmp_path, monkeypatch):
    fuse_folders(recipe, tmp_path / "one")
    monkeypatch.setattr(write, "write_shards", partial(write_shards, shard_bytes=400_000))
    fuse_folders(recipe, tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = load_folder(tmp_path / "one")[0].state_dict(), load_folder(tmp_path / "many")[0].state_dict()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_refusals_name_the_rule(recipe, base, specialists, tmp_path):
    def refused(message, **change):
        with pytest.raises(ValueError, match=message):
            fuse_folders(Recipe(**{**recipe.__dict__, **change}), tmp_path / "out")
        assert not list(tmp_path.iterdir())

    refused("alphas must name the specialists", alphas=recipe.alphas | {"picture": 1.0})
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
    monkeypatch.setattr(tensorwise, "change_of", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fuse_folders(recipe, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    shutil.rmtree(tmp_path)


def test_all_zero_gives_the_base_bit_for_bit(recipe, tmp_path):
    """But for what only the owner has."""
    fuse_folders(replace(recipe, alphas=dict.fromkeys(ALPHAS, 0.0)), tmp_path / "out")
    found, base, owner = (tensors(folder) for folder in (tmp_path / "out", recipe.base, recipe.specialists["audio"]))
    for name, tensor in found.items():
        if name.startswith(recipe.copied):
            assert torch.equal(tensor, owner[name])
        elif not name.endswith("embed_tokens.weight"):
            assert torch.equal(tensor, base[name])


def test_one_specialist_at_full_weight_is_that_specialist(recipe, tmp_path):
    fuse_folders(replace(recipe, alphas={"image": 0.0, "audio": 1.0}), tmp_path / "out")
    found, owner = tensors(tmp_path / "out"), tensors(recipe.specialists["audio"])
    assert max(float((found[name] - owner[name]).abs().max()) for name in found) < 1e-6


@pytest.mark.parametrize("method", [TaskArithmetic(), Dare(0.5)], ids=repr)
def test_order_of_specialists_does_not_matter(recipe, tmp_path, method):
    backwards = dict(reversed(recipe.specialists.items()))
    for name, specialists in {"one": recipe.specialists, "other": backwards}.items():
        fuse_folders(replace(recipe, specialists=specialists, method=method), tmp_path / name)
    assert file_hash(tmp_path / "one" / "model.safetensors") == file_hash(tmp_path / "other" / "model.safetensors")


@pytest.mark.parametrize("workers", [1, 3])
def test_streaming_equals_in_memory(recipe, tmp_path, workers):
    drawn = replace(recipe, method=Dare(0.3, elect=True))
    fuse_folders(drawn, tmp_path / "out", workers)
    found, fusion = tensors(tmp_path / "out"), tensorwise.Fusion(drawn)
    assert all(torch.equal(found[name], fusion[name]) for name in fusion.specs)


def test_coefficients_that_are_not_named_are_the_papers(recipe):
    found = Recipe(recipe.base, recipe.specialists, {"image": 0.4})
    assert found.alphas == {"image": 0.4, "audio": 0.5}
    assert replace(found, alphas={"audio": 0.2}).alphas == {"image": 0.3, "audio": 0.2}


def test_coefficients_by_module(recipe, tmp_path):
    """The vision tower keeps the base, the last layer is the audio specialist's."""
    rules = {"visual": {"image": 0.0, "audio": 0.0}, r"layers\.3\.": {"image": 0.0, "audio": 1.0}}
    fuse_folders(replace(recipe, alphas_by_module=rules), tmp_path / "out")
    found, base, audio = (tensors(folder) for folder in (tmp_path / "out", recipe.base, recipe.specialists["audio"]))
    assert all(torch.equal(found[name], base[name]) for name in found if ".visual." in name)
    assert all(torch.allclose(found[name], audio[name], atol=1e-6) for name in found if "language_model.layers.3." in name)
    later = replace(recipe, alphas_by_module=rules | {r"layers\.3\.mlp": {"image": 0.0, "audio": 0.0}})
    assert later.alphas_of("language_model.layers.3.mlp.up_proj.weight") == {}, "of several that match the last holds"
    assert later.alphas_of("language_model.layers.3.self_attn.q_proj.weight") == {"audio": 1.0}
    with pytest.raises(ValueError, match="alphas must name the specialists"):
        fuse_folders(replace(recipe, alphas_by_module={"visual": {"image": 1.0}}), tmp_path / "other")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("visaul", "'visaul' matches none of"), ("layers.(", "must have regular expressions"), ("projector.l", "none")],
)
def test_a_pattern_that_means_nothing_is_refused(recipe, tmp_path, pattern, message):
    with pytest.raises(ValueError, match=message):
        fuse_folders(replace(recipe, alphas_by_module={pattern: {"image": 0.9, "audio": 0.9}}), tmp_path / "out")


def bfloat16_copies(recipe, root, step):
    """The same base in bfloat16, with specialists whose weights are all larger by the share ``step``."""
    model, processor, _ = load_folder(recipe.base, dtype=torch.bfloat16)
    base = save_folder(root / "base", model, processor, Provenance("base"))
    parent = load_folder(base)[2].fingerprint
    for name in ALPHAS:
        model = load_folder(base)[0]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 1 + step
        save_folder(root / name, model, processor, Provenance("specialist", name, {"base": parent}))
    return replace(recipe, base=base, specialists={name: root / name for name in ALPHAS})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_is_rounded_once(recipe, tmp_path, dtype):
    """The exact sum, in float64, to the nearest number of the output: in no step before, and in no dtype between."""
    model, processor, _ = load_folder(recipe.base, dtype=dtype)
    base = save_folder(tmp_path / "base", model, processor, Provenance("base"))
    for seed, name in enumerate(ALPHAS):
        model = load_folder(base)[0]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        found = Provenance("specialist", name, {"base": load_folder(base)[2].fingerprint})
        save_folder(tmp_path / name, model, processor, found)
    copies = replace(recipe, base=base, specialists={name: tmp_path / name for name in ALPHAS})
    fuse_folders(copies, tmp_path / "out")
    whole, parts = tensors(base), {name: tensors(tmp_path / name) for name in ALPHAS}
    wrong = count = 0
    for name, tensor in tensors(tmp_path / "out").items():
        if name.startswith(recipe.copied) or name.endswith("embed_tokens.weight"):
            continue
        start = whole[name].double()
        exact = start + sum(alpha * (parts[key][name].double() - start) for key, alpha in ALPHAS.items())
        wrong, count = wrong + int((tensor != exact.to(dtype)).sum()), count + tensor.numel()
    assert wrong / count < 1e-3  # float32's own digits: where the sum lies half-way between two numbers


def test_rounding_loss_is_reported_and_float32_avoids_it(recipe, tmp_path):
    """Specialists a step or two of bfloat16 away: 0.8 of a step cannot be written in it."""
    small = bfloat16_copies(recipe, tmp_path, 0.008)
    report, exact = fuse_folders(small, tmp_path / "half"), replace(small, dtype="float32")
    fuse_folders(exact, tmp_path / "exact")
    start, half, whole = (tensors(folder) for folder in (small.base, tmp_path / "half", tmp_path / "exact"))
    names = [name for name in report.fused if not name.endswith("embed_tokens.weight")]
    sums = [sum(float((one[name].double() - whole[name].double()).square().sum()) for name in names) for one in (half, start)]
    assert report.rounding_loss == pytest.approx((sums[0] / sums[1]) ** 0.5, rel=0.02)
    assert report.rounding_loss > 0.05
    assert fuse_folders(replace(small, dtype="float32"), tmp_path / "full").rounding_loss == 0
    assert load_folder(tmp_path / "full")[0].dtype == torch.float32
    assert load_folder(tmp_path / "half")[0].dtype == torch.bfloat16


def test_bfloat16_specialists_come_back_bit_for_bit(recipe, tmp_path):
    copies = bfloat16_copies(recipe, tmp_path, 0.05)
    fuse_folders(replace(copies, alphas={"image": 1.0, "audio": 0.0}), tmp_path / "out")
    found, image = tensors(tmp_path / "out"), tensors(copies.specialists["image"])
    names = [name for name in found if not name.startswith(recipe.copied) and not name.endswith("embed_tokens.weight")]
    assert all(torch.equal(found[name], image[name]) for name in names)


def test_a_delta_output_is_the_exact_fusion_beside_a_bfloat16_base(recipe, tmp_path):
    """The digits that rounding to bfloat16 would take stay there, at any dtype that the folder is loaded in."""
    fuse_folders(replace(recipe, dtype="float32"), tmp_path / "float32")
    report = fuse_folders(replace(recipe, dtype="delta"), tmp_path / "delta")
    assert report.rounding_loss == 0
    assert not (tmp_path / "delta" / "model.safetensors").exists()
    exact, found = (load_folder(tmp_path / name)[0].state_dict() for name in ("float32", "delta"))
    for name, tensor in exact.items():
        assert torch.equal(found[name], tensor) or name.endswith("embed_tokens.weight")
        assert torch.allclose(found[name], tensor, atol=1e-7)
    owner = tensors(recipe.specialists["audio"])
    assert all(torch.equal(found[name], owner[name]) for name in report.copied)
    assert load_folder(tmp_path / "delta", dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_what_a_delta_copies_keeps_the_owners_precision(recipe, tmp_path):
    model, processor, _ = load_folder(recipe.base, dtype=torch.bfloat16)
    base = save_folder(tmp_path / "base", model, processor, Provenance("base"))
    for name, folder in recipe.specialists.items():
        found = Provenance("specialist", name, {"base": load_folder(base)[2].fingerprint})
        save_folder(tmp_path / name, *load_folder(folder)[:2], found)
    finer = replace(recipe, base=base, specialists={name: tmp_path / name for name in ALPHAS}, dtype="delta")
    report = fuse_folders(finer, tmp_path / "delta")
    owner, found = tensors(tmp_path / "audio"), load_folder(tmp_path / "delta")[0].state_dict()
    assert owner["audio_projector.linear_1.weight"].dtype == torch.float32
    assert all(torch.equal(found[name], owner[name]) for name in report.copied)


def test_a_delta_output_without_its_base_is_refused(recipe, base, tmp_path):
    away = shutil.copytree(base, tmp_path / "away")
    fuse_folders(replace(recipe, base=away, dtype="delta"), tmp_path / "delta")
    away.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="needs its base"):
        load_folder(tmp_path / "delta")
    save_folder(away, *tiny_embedder(3), Provenance("base"))
    with pytest.raises(ValueError, match="made on another base"):
        load_folder(tmp_path / "delta")


def test_an_overflowing_dtype_is_refused(recipe, tmp_path):
    model, processor, provenance = load_folder(recipe.specialists["image"])
    with torch.no_grad():
        model.backbone.visual.merger.linear_fc1.bias[0] = 1e6
    large = save_folder(tmp_path / "large", model, processor, provenance)
    half = replace(recipe, specialists={**recipe.specialists, "image": large}, dtype="float16")
    with pytest.raises(ValueError, match=r"merger\.linear_fc1\.bias' of the result in torch\.float16 must be finite"):
        fuse_folders(half, tmp_path / "out")


def test_a_dry_run_says_what_would_become_of_each_tensor(recipe):
    actions = {name: action for name, action, _ in dry_run(recipe)}
    assert {name for name, action in actions.items() if action == "copied"} == {
        name for name in actions if name.startswith(recipe.copied)
    }
    assert set(actions) == set(tensors(recipe.base))


def test_methods_write_folders_that_load(recipe, tmp_path):
    fuse_folders(replace(recipe, method=TsvM(), alphas=dict.fromkeys(ALPHAS, 1.0)), tmp_path / "out")
    assert load_folder(tmp_path / "out")[2].notes["method"] == "TsvM(null_space=False)"


def test_a_negative_coefficient_takes_away(recipe, tmp_path):
    """Forgetting by negation: only 0 leaves a specialist out."""
    fuse_folders(replace(recipe, alphas={"image": -1.0, "audio": 0.0}), tmp_path / "out")
    found, base, image = (tensors(folder) for folder in (tmp_path / "out", recipe.base, recipe.specialists["image"]))
    name = "backbone.language_model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(found[name], 2 * base[name] - image[name], atol=1e-6)


def test_layers_are_reported_in_their_order():
    grams = {f"layers.{layer}": torch.eye(2, dtype=torch.float64) for layer in (10, 2, 9, 0)}
    assert list(by_group(["a", "b"], grams)) == ["layers.0", "layers.2", "layers.9", "layers.10"]


def test_geometry_by_layer_adds_up(recipe, tmp_path):
    report = fuse_folders(recipe, tmp_path / "out")
    assert "backbone.language_model.layers.2" in report.layers
    for name in ALPHAS:
        assert sum(layer.norms[name] ** 2 for layer in report.layers.values()) == pytest.approx(report.norms[name] ** 2, rel=1e-6)


def test_a_fusion_never_takes_the_place_of_what_it_reads(recipe):
    for folder in (recipe.base, *recipe.specialists.values()):
        with pytest.raises(ValueError, match="out must differ from the folders that are read"):
            fuse_folders(recipe, folder)
