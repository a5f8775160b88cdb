"""Task vectors of LoRA specialists from their factors, against the same specialists merged into the base."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_conan.embedder import Provenance, load_folder, read_provenance, save_folder
from lightning_conan.embedder.checkpoint import Adapter, Tensors, file_hash, open_tensors
from lightning_conan.embedder.checkpoint.adapter import AdapterTensors
from lightning_conan.embedder.checkpoint.folder import replace_provenance
from lightning_conan.embedder.checkpoint.task_vector import LowRank, Replaced
from lightning_conan.fusion import (
    CompactIsoC,
    Dare,
    Della,
    Fisher,
    IsoC,
    Recipe,
    RegMean,
    TaskArithmetic,
    Ties,
    TsvM,
    fuse_folders,
)
from lightning_conan.fusion.geometry import gram_of, low_rank_gram
from lightning_conan.fusion.tensorwise import Fusion

ALPHAS = {"image": 0.3, "document": 0.4, "audio": 0.5}
LAYER = "backbone.language_model.layers.0."
FACTORED = [f"{LAYER}self_attn.q_proj.weight", f"{LAYER}mlp.down_proj.weight", "backbone.visual.blocks.0.attn.qkv.weight"]
TABLE = "backbone.language_model.embed_tokens.weight"
WHOLE = {"image": "backbone.visual.merger", "document": TABLE.removesuffix(".weight"), "audio": "audio_projector"}
MERGER = "backbone.visual.merger.linear_fc1.weight"
NORM = f"{LAYER}input_layernorm.weight"
METHODS = [TaskArithmetic(), Ties(0.4), Dare(0.3), Dare(0.3, elect=True), Della(), TsvM(), IsoC(), CompactIsoC()]


def adapter_folder(base: Path, out: Path, name: str, rank: int) -> Path:
    """A specialist of random factors, scale 1.5, and one module trained whole."""
    generator, tensors = torch.Generator().manual_seed(list(ALPHAS).index(name)), open_tensors(base)
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors"))
    factors = {}
    for target in FACTORED:
        rows, columns = tensors.specs[target].shape
        stem = target.removesuffix(".weight")
        factors[f"{stem}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) / 8
        factors[f"{stem}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) / 8
    whole = {key: tensors[key].float() for key in tensors.specs if key.startswith(WHOLE[name] + ".")}
    whole = {key: value + 0.05 * torch.randn(value.shape, generator=generator) for key, value in whole.items()}
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 1.5 * rank, "base_model_name_or_path": str(base)}
    Adapter(factors, whole, [WHOLE[name]], config).save(out)
    files = {
        file: file_hash(out / file) for file in (*read_provenance(out).files, "adapter_config.json") if (out / file).is_file()
    }
    files["adapter_model.safetensors"] = file_hash(out / "adapter_model.safetensors")
    replace_provenance(out, Provenance("specialist", name, {"base": read_provenance(base).fingerprint}, files=files))
    return out


class Merged(Tensors):
    """The slow way: the merged tensors of an adapter as a dense model's, from which the base is subtracted."""

    def __init__(self, adapter: Tensors) -> None:
        self.adapter, self.specs = adapter, adapter.specs

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.adapter[name]


@pytest.fixture(scope="module", params=[1, 8, 32])
def recipe(request, base, tmp_path_factory):
    root = tmp_path_factory.mktemp(f"rank{request.param}")
    return Recipe(base, {name: adapter_folder(base, root / name, name, request.param) for name in ALPHAS}, ALPHAS)


@pytest.fixture(scope="module")
def coarse(base, tmp_path_factory):
    """Adapters of rank 8 on a base in bfloat16."""
    root = tmp_path_factory.mktemp("coarse")
    model, processor, _ = load_folder(base, dtype=torch.bfloat16)
    below = save_folder(root / "base", model, processor, Provenance("base"))
    return Recipe(below, {name: adapter_folder(below, root / name, name, 8) for name in ALPHAS}, ALPHAS, dtype="float32")


def merged(recipe, exact=True):
    """A fusion of the same specialists merged densely, in float32 or rounded to the base's dtype."""
    fusion = Fusion(recipe)
    for name, folder in recipe.specialists.items():
        fusion.models[name] = Merged(AdapterTensors(folder, fusion.base, exact))
    return fusion


NAMES = [*FACTORED, TABLE, MERGER, NORM, "audio_projector.linear_1.weight"]


def assert_equal_but_for_ties(one, other, method):
    """To 1e-6; where a method chooses among entries, the order of two that differ by rounding may turn."""
    off = (one - other).abs() > 1e-6 + 5e-6 * isinstance(method, TsvM | IsoC)  # merged weights are rounded to float32
    assert off.float().mean() <= (0.003 if isinstance(method, Ties | Dare | Della) else 0)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_factors_fuse_as_merged_weights_do(recipe, method):
    found, slow = Fusion(replace(recipe, method=method)), merged(replace(recipe, method=method))
    for name in NAMES:
        one, other = found.fuse(name), slow.fuse(name)
        assert_equal_but_for_ties(one.tensor, other.tensor, method)
        if found.action(name) == "fused":
            torch.testing.assert_close(one.gram, other.gram, rtol=1e-5, atol=1e-5)
            assert one.change == pytest.approx(other.change, rel=1e-2)


@pytest.mark.parametrize("kind", [Fisher, RegMean])
def test_factors_fuse_as_merged_weights_do_with_statistics(recipe, tmp_path, kind):
    fusion, files = Fusion(recipe), {}
    for seed, name in enumerate(ALPHAS):
        generator, values = torch.Generator().manual_seed(seed), {}
        for target in NAMES:
            shape = fusion.specs[target].shape
            inputs = torch.randn(2 * shape[-1], shape[-1], generator=generator)
            values[target] = torch.rand(shape, generator=generator) + 0.1 if kind is Fisher else inputs.T @ inputs / len(inputs)
        save_file(values, files.setdefault(name, tmp_path / f"{name}.safetensors"))
    weighted = replace(recipe, method=kind(files))
    found, slow = Fusion(weighted), merged(weighted)
    for name in NAMES:
        torch.testing.assert_close(found.fuse(name).tensor, slow.fuse(name).tensor, atol=2e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_on_a_bfloat16_base_nothing_is_rounded_before_it_is_fused(coarse, method):
    found, slow = Fusion(replace(coarse, method=method)), merged(replace(coarse, method=method))
    for name in NAMES:
        assert_equal_but_for_ties(found.fuse(name).tensor, slow.fuse(name).tensor, method)


def test_merged_in_bfloat16_differs_by_that_rounding_and_is_further_from_the_sum(coarse):
    """Each merged weight is off by half a step of bfloat16, a 256th of it; the exact sum is what the factors give."""
    found, slow = Fusion(coarse), merged(coarse, exact=False)
    for name in FACTORED:
        parts = {model: tensors[name].double() for model, tensors in found.models.items()}
        start = found.base[name].double()
        exact = start + sum(alpha * (parts[model] - start) for model, alpha in ALPHAS.items())
        one, other = (fusion.fuse(name).tensor.double() for fusion in (found, slow))
        bound = sum(alpha * parts[model].abs() for model, alpha in ALPHAS.items()) / 2**8
        assert ((one - other).abs() <= bound + 1e-6).all()
        assert (one - exact).norm() < 1e-3 * (other - exact).norm()


def test_folders_of_adapters_fuse_like_dense_folders(recipe, tmp_path):
    """Files written by both, tensor by tensor; the owner's modules are copied bit for bit."""
    dense = {}
    for name, folder in recipe.specialists.items():
        model, processor, provenance = load_folder(folder)
        dense[name] = save_folder(tmp_path / "dense" / name, model, processor, replace(provenance, files={}))
    reports = [
        fuse_folders(replace(recipe, specialists=folders), tmp_path / out)
        for out, folders in {"one": recipe.specialists, "other": dense}.items()
    ]
    one, other = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "other"))
    assert all(torch.allclose(one[name], other[name], atol=1e-6, rtol=0) for name in other)
    assert torch.equal(one["audio_projector.linear_1.weight"], other["audio_projector.linear_1.weight"])
    for field in ("norms", "cosines"):
        assert getattr(reports[0], field) == pytest.approx(getattr(reports[1], field), rel=1e-4, abs=1e-5)
    assert reports[0].layers.keys() == reports[1].layers.keys()


def test_the_base_is_read_once_and_hashed_once(recipe, tmp_path, monkeypatch):
    from lightning_conan.embedder.checkpoint import folder

    hashed: list[Path] = []
    monkeypatch.setattr(folder, "file_hash", lambda path: hashed.append(path) or file_hash(path))
    fuse_folders(recipe, tmp_path / "out")
    assert hashed.count(recipe.base / "model.safetensors") == 1
    fusion, read = Fusion(recipe), []
    reading = type(fusion.base).__getitem__
    monkeypatch.setattr(type(fusion.base), "__getitem__", lambda self, name: read.append((id(self), name)) or reading(self, name))
    fusion.fuse(FACTORED[0])
    assert read.count((id(fusion.base), FACTORED[0])) == 1


def test_a_tensor_that_no_adapter_changes_is_the_base_bit_for_bit(recipe):
    fusion = Fusion(recipe)
    assert torch.equal(fusion.fuse(NORM).tensor, fusion.base[NORM])
    assert fusion.fuse(NORM).change == 0


def test_a_fresh_adapter_changes_nothing():
    """LoRA's B is 0 before training."""
    assert LowRank(torch.zeros(4, 2), torch.ones(2, 3)).is_zero()
    assert LowRank.zero((4, 3, 2)).is_zero()
    assert not LowRank(torch.ones(4, 2), torch.ones(2, 3)).is_zero()


@pytest.mark.parametrize("part", ["base", "lora_B", "merger"])
def test_nan_is_refused_by_tensor_and_model(recipe, tmp_path, part):
    """A base to which nothing is added is checked, too, and so are folders of differences, where NaN would not show."""
    fusion = Fusion(recipe)
    name, model = {"base": (NORM, "base"), "lora_B": (FACTORED[0], "image"), "merger": (MERGER, "image")}[part]
    vector = fusion.base[name].clone().fill_(float("nan"))
    wrong = {name: LowRank(vector[:, :1], torch.ones(1, vector.shape[1])) if part == "lora_B" else Replaced(vector)}
    tensors = fusion.models["image"]
    if part == "base":
        read = type(fusion.base).__getitem__
        fusion.base = type("Broken", (), {"__getitem__": lambda _, key: vector if key == name else read(fusion.base, key)})()
    else:
        fusion.models["image"] = type("Broken", (), {"task_vector": lambda _, key: wrong.get(key, tensors.task_vector(key))})()
    with pytest.raises(ValueError, match=rf"{name}' of {model} must be finite"):
        fusion.fuse(name)


def test_inner_products_of_factors_are_those_of_the_dense_vectors():
    generator = torch.Generator().manual_seed(0)
    vectors = [
        LowRank(torch.randn(40, rank, generator=generator), torch.randn(rank, 30, generator=generator)) for rank in (3, 0, 7)
    ]
    found = low_rank_gram(LowRank.join(vectors), torch.tensor([3, 0, 7]))
    torch.testing.assert_close(found, gram_of(torch.stack([(v.up @ v.down).flatten() for v in vectors])), rtol=1e-5, atol=1e-4)


def test_task_vectors_in_memory_are_those_of_merged_weights(recipe):
    for name in (*FACTORED, TABLE, MERGER):
        for one, other in zip(Fusion(recipe).vectors(name), merged(recipe).vectors(name), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@dataclass(frozen=True)
class Halved(TaskArithmetic):
    """A user's rule, derived from one of ours."""

    def __call__(self, deltas, alphas, context):
        return super().__call__(deltas, alphas, context) / 2


def test_a_rule_derived_from_a_linear_one_is_asked(recipe, tmp_path):
    """By dense task vectors: what is said of its parent does not hold for it."""
    fuse_folders(replace(recipe, method=Halved()), tmp_path / "out")
    half = {name: alpha / 2 for name, alpha in recipe.alphas.items()}
    fuse_folders(replace(recipe, alphas=half), tmp_path / "due")
    out, due = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "due"))
    assert all(torch.allclose(out[name].float(), due[name].float(), atol=1e-6) for name in FACTORED)


def test_no_worker_is_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        fuse_folders(recipe, tmp_path / "out", workers=0)
