import io
import json
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from datamodules.shards.read import ShardSet
from lightning_conan.embedder import Provenance, load_folder, load_processor, save_folder, tiny_embedder
from lightning_conan.fusion import Recipe, Search, fuse_folders, fused_model, search_alphas
from lightning_conan.fusion.coefficient_plots import plot_learning, plot_trials
from lightning_conan.retrieval import PairSet


@pytest.fixture(scope="module")
def recipe(base, tmp_path_factory):
    """A good image specialist (the base itself, moved a little) and a ruinous audio one (noise)."""
    root, parent = tmp_path_factory.mktemp("specialists"), load_folder(base)[2].fingerprint
    for name, size in {"image": 0.001, "audio": 0.5}.items():
        model, processor = tiny_embedder(0)
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                parameter += size * torch.randn(parameter.shape, generator=generator)
        save_folder(root / name, model, processor, Provenance("specialist", name, {"base": parent}))
    return Recipe(base, {name: root / name for name in ("image", "audio")}, {"image": 0.3, "audio": 0.5})


@pytest.fixture(scope="module")
def sets(base, world):
    processor = load_processor(base)

    def read(name):
        shards = ShardSet(world / name)
        return PairSet.encode([shards.read(row) for row in range(len(shards))], processor)

    return {name: read(name) for name in ("image", "audio")}


def test_a_model_in_memory_is_the_folder(recipe, tmp_path):
    fuse_folders(recipe, tmp_path / "out")
    model = fused_model(replace(recipe, alphas={"image": 0.9, "audio": 0.1}))
    again = fused_model(recipe, model)
    assert again is model
    expected = load_folder(tmp_path / "out")[0].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_the_grid_tries_every_combination_and_knows_the_best(recipe, sets):
    found = search_alphas(recipe, sets, Search(sampler="grid", values=(0.0, 1.0), aim="mean"))
    assert sorted(tuple(trial.alphas.values()) for trial in found.trials) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for trial in found.trials:
        kept = found.kept(trial)
        assert trial.value == pytest.approx(sum(kept.values()) / 2)
        assert trial.value <= found.best.value
    one = next(trial for trial in found.trials if trial.alphas == {"audio": 1.0, "image": 0.0})
    assert one.scores["audio"] == found.own["audio"]  # the audio specialist itself
    json.loads(found.to_json())


def test_bayes_starts_from_the_recipe_and_repeats(recipe, sets):
    search = Search(trials=4, aim="worst")
    found = search_alphas(recipe, sets, search)
    assert found.trials[0].alphas == recipe.alphas
    assert len(found.trials) == 4
    assert all(trial.value == pytest.approx(min(found.kept(trial).values())) for trial in found.trials)
    assert [trial.alphas for trial in search_alphas(recipe, sets, search).trials] == [trial.alphas for trial in found.trials]


def test_pictures_open(recipe, sets):
    found = search_alphas(recipe, sets, Search(trials=2))
    drawn = [
        plot_trials(found, "audio"),
        plot_learning(["audio", "image"], [[0.5, 0.3], [0.4, 0.3]], {"audio": [(1, 2.0), (2, 1.5)]}),
    ]
    for png in drawn:
        assert Image.open(io.BytesIO(png)).size[0] > 800


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "search.trials must be positive"),
        ({"low": 1.0, "high": 0.5}, "search.low must be below"),
        ({"values": ()}, "values not empty"),
    ],
)
def test_impossible_searches_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Search(**options)


def test_a_specialist_without_pairs_is_refused(recipe, sets):
    with pytest.raises(ValueError, match=r"There must be a data set for each of \['audio', 'image'\], got \['image'\]"):
        search_alphas(recipe, {"image": sets["image"]}, Search(trials=1))


def test_without_optuna_the_error_says_what_to_install(recipe, sets, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"lightning-conan\[alphas\]"):
        search_alphas(recipe, sets, Search(trials=1))
