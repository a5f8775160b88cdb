import pytest
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import registry
from mergekit.sparsify import RescaleNorm, bernoulli

from lightning_conan.cli.main import main
from lightning_conan.embedder import Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.fusion import Dare, Della, IsoC, Recipe, TaskArithmetic, Ties, read_mergekit
from lightning_conan.fusion.mergekit import mergekit_config


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    """The base and two specialists of it."""
    root, parent = tmp_path_factory.mktemp("merge"), load_folder(base)[2].fingerprint
    for seed, name in enumerate(("image", "audio"), start=1):
        model, processor = tiny_embedder(0)
        for parameter in model.parameters():
            parameter.data += 0.01 * seed
        save_folder(root / name, model, processor, Provenance("specialist", name, {"base": parent}))
    return {"base": base, "image": root / "image", "audio": root / "audio"}


def config(folders, method="ties", **parameters):
    weights = {"image": 0.3, "audio": 0.5}
    models = [{"model": str(folders[name]), "parameters": {"weight": alpha, **parameters}} for name, alpha in weights.items()]
    return {"merge_method": method, "base_model": str(folders["base"]), "models": models, "parameters": {}}


def write(tmp_path, content):
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_mergekit_yaml_becomes_a_recipe(folders, tmp_path):
    found = read_mergekit(write(tmp_path, config(folders, density=0.4) | {"dtype": "float32"}))
    specialists = {name: folders[name] for name in ("image", "audio")}
    assert found == Recipe(folders["base"], specialists, {"image": 0.3, "audio": 0.5}, Ties(0.4), dtype="float32")


@pytest.mark.parametrize("method", [TaskArithmetic(), Ties(0.3, 0.7)], ids=repr)
def test_what_is_written_is_read_back_and_is_valid_for_mergekit(folders, tmp_path, method):
    recipe = Recipe(folders["base"], {name: folders[name] for name in ("image", "audio")}, {"image": 0.3, "audio": 0.5}, method)
    written = mergekit_config(recipe)
    MergeConfiguration.model_validate(written)
    assert read_mergekit(write(tmp_path, written)) == recipe


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_what_is_left_out_is_as_mergekit_has_it(folders, tmp_path, name):
    defaults = {spec.name: spec.default for spec in registry.get(name).spec.parameters if spec.name in ("normalize", "rescale")}
    assert len(defaults) == 2

    def read(parameters):
        try:
            return read_mergekit(write(tmp_path, config(folders, name) | {"parameters": parameters})).method
        except ValueError as error:
            return type(error)

    assert read({}) == read(defaults)


@pytest.mark.parametrize("method", [Dare(0.4), Dare(0.4, elect=True), Della(), IsoC()], ids=repr)
def test_methods_that_mean_something_else_there_write_none(folders, method):
    assert mergekit_config(Recipe(folders["base"], {"audio": folders["audio"]}, {"audio": 1.0}, method)) is None


def test_dare_is_another_rule_there():
    """Entries that it keeps grow until the tensor's L1 norm is what it was, which for a few outliers is not 1 / (1 - drop)."""
    delta = torch.tensor([100.0, *[1.0] * 63])
    torch.manual_seed(0)
    kept = bernoulli(delta, 0.5, RescaleNorm.l1)
    assert abs(float((kept[kept != 0] / delta[kept != 0]).mean()) - 2) > 0.3


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_methods_of_the_same_name_and_another_rule_are_refused(folders, tmp_path, name):
    with pytest.raises(ValueError, match=f"got '{name}'. It rescales to each tensor's L1 norm .* Name a recipe.method instead"):
        read_mergekit(write(tmp_path, config(folders, name, density=0.4)))


def test_a_model_without_a_weight_is_refused_as_mergekit_does(folders, tmp_path):
    unweighted = config(folders)
    del unweighted["models"][0]["parameters"]["weight"]
    with pytest.raises(ValueError, match=r"weight in .* must be one number, got None"):
        read_mergekit(write(tmp_path, unweighted))
    spec = {each.name: each for each in registry.get("ties").spec.parameters}
    assert spec["weight"].required
    assert read_mergekit(write(tmp_path, unweighted | {"parameters": {"weight": 0.2}})).alphas == {"image": 0.2, "audio": 0.5}


def test_settings_of_all_models_that_stand_at_one_are_refused(folders, tmp_path):
    """mergekit would not read them there."""
    with pytest.raises(ValueError, match=r"those of a model \['density', 'weight'\], got 'normalize'"):
        read_mergekit(write(tmp_path, config(folders, normalize=False)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "slerp"}, "merge_method in .* must be one of"),
        ({"slices": []}, "must have merge_method, base_model and models"),
        ({"parameters": {"normalize": False}}, "ties in .* must say normalize: True"),
        ({"parameters": {"rescale": True}}, "rescale: False"),
        ({"parameters": {"densitty": 0.5}}, "may have .*'density'.*, got 'densitty'"),
        ({"merge_method": "task_arithmetic", "parameters": {"normalize": True}}, "normalize: False"),
        ({"merge_method": "task_arithmetic", "parameters": {"lambda": 0.5}}, "lambda: 1 but for ties"),
        ({"parameters": {"lambda": [0.5, 1]}}, "lambda in .* must be one number"),
        ({"dtype": "torch.bfloat16"}, "dtype in .* must be one of"),
        ({"models": [{"weight": 1}]}, "must have a model, the folder"),
    ],
)
def test_what_means_something_else_is_refused(folders, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_mergekit(write(tmp_path, config(folders) | change))


def test_what_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "merge.yml").write_text("models: [")
    with pytest.raises(ValueError, match=r"merge\.yml must be YAML"):
        read_mergekit(tmp_path / "merge.yml")


def test_gradients_and_unequal_densities_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match=r"weight in .* must be one number"):
        read_mergekit(write(tmp_path, config(folders, weight=[0.1, 0.5])))
    uneven = config(folders, density=0.4)
    uneven["models"][0]["parameters"]["density"] = 0.2
    with pytest.raises(ValueError, match="density must be the same"):
        read_mergekit(write(tmp_path, uneven))


def test_the_verb_takes_it(folders, tmp_path, capsys):
    path = write(tmp_path, config(folders, "task_arithmetic"))
    assert main(["fuse", "--mergekit", str(path), "--out", str(tmp_path / "fused")]) == 0
    assert "audio 0.5, image 0.3" in capsys.readouterr().out
    again = read_mergekit(tmp_path / "fused" / "mergekit_config.yml")
    assert again.alphas == {"image": 0.3, "audio": 0.5}
    assert main(["fuse", "--mergekit", str(path), "--out", str(tmp_path / "dry"), "--dry", "true"]) == 0
    assert "copied" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()
    assert main(["fuse", "--mergekit", str(path), "--out", str(tmp_path / "x"), "--recipe.base", "y"]) == 2
