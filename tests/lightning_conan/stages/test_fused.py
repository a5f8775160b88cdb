import json
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from callbacks import FolderCheckpoint
from datamodules import SpecialistData
from lightning_conan.cli.main import main
from lightning_conan.embedder import ChunkOutput, load_folder, read_provenance, save_folder
from lightning_conan.fusion import Ties, fuse_folders
from lightning_conan.stages import Fused
from lightning_conan.training import Stage, Training
from runs import Record, Stop, data, noisy_recipe, trainer
from samples import CONFIGS

TRAINING = Training(lr=0.05, warmup_steps=1, token_budget=500)


@pytest.fixture(scope="module")
def recipe(base, tmp_path_factory):
    return noisy_recipe(base, tmp_path_factory.mktemp("specialists"))


def test_in_memory_scores_as_its_folder(recipe, world, tmp_path):
    """`Fused` and `conan fuse` are one thing: to try coefficients, nothing has to be written."""
    fuse_folders(recipe, tmp_path / "fused")
    found = []
    for module in (Fused(recipe), Stage(tmp_path / "fused")):
        runner = trainer(tmp_path, 1)
        runner.test(module, SpecialistData(test={"a": world / "image", "b": world / "audio"}, num_workers=0), verbose=False)
        found.append({name: float(value) for name, value in runner.callback_metrics.items()})
    assert found[0] == found[1]


class Gradients(Record):
    """Notes the coefficients' first gradient and the batch that it came from."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradient = pl_module.alphas.grad.clone()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch


@pytest.mark.parametrize("by_layer", [False, True])
def test_gradients_are_those_of_the_plain_graph(recipe, world, tmp_path, by_layer):
    """Against differentiating through base + sum of alpha times task vector, in one piece."""
    module, seen = Fused(recipe, replace(TRAINING, clip_norm=1e9), by_layer), Gradients()
    trainer(tmp_path, 1, seen).fit(module, data(world, "image"))
    alphas = torch.tensor([[recipe.alphas[name] for name in module.names]] * len(module.groups), requires_grad=True)
    weights = {}
    for name, (anchor, deltas) in module.vectors.items():
        row = alphas[module.groups.index(module.group(name))]
        weights[name] = anchor + sum(row[index] * deltas[index] for index in range(len(row)))

    class Plain(torch.nn.Module):
        def __init__(self, embedder):
            super().__init__()
            self.embedder = embedder

        def forward(self, items):
            return self.embedder.embed(items, 100_000)

    named = {f"embedder.{name}": weight for name, weight in weights.items()}
    embeddings = functional_call(Plain(module.embedder), named, (list(seen.batch.items()),))
    module.loss(seen.batch, ChunkOutput(embeddings)).backward()
    torch.testing.assert_close(seen.gradient, alphas.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by_layer", [False, True])
def test_what_was_learned_is_what_is_written(recipe, world, tmp_path, by_layer, encoded):
    module = Fused(recipe, TRAINING, by_layer)
    trainer(tmp_path, 4, FolderCheckpoint(tmp_path / "out")).fit(module, data(world, "image"))
    assert not torch.allclose(module.alphas.detach(), torch.tensor([0.5, 0.3]))
    model, _, provenance = load_folder(tmp_path / "out", ("fused",))
    items = list(encoded.values())
    with torch.no_grad():
        torch.testing.assert_close(model.embed(items), module.embed(items), atol=1e-5, rtol=0)
    report = json.loads((tmp_path / "out" / "fusion.json").read_text())
    assert bool(report["alphas_by_module"]) == by_layer
    if not by_layer:
        assert provenance.notes["alphas"] == pytest.approx(dict(zip(module.names, module.alphas[0].tolist(), strict=True)))


def test_only_coefficients_train_and_owned_modules_stay(recipe, world, tmp_path):
    module = Fused(recipe, TRAINING)
    trainer(tmp_path, 3).fit(module, data(world, "image"))
    assert set(module.trained()) == {"alphas"}
    owner = load_folder(recipe.specialists["audio"])[0].state_dict()
    state = module.embedder.state_dict()
    assert all(torch.equal(state[name], owner[name]) for name in state if name.startswith(recipe.copied))


def test_resuming_goes_on_from_the_learned_coefficients(recipe, world, tmp_path):
    straight, first, then = Record(), Record(), Record()
    whole = Fused(recipe, TRAINING)
    trainer(tmp_path / "a", 4, straight).fit(whole, data(world, "image"))
    trainer(tmp_path / "b", 4, first, Stop(after=2)).fit(Fused(recipe, TRAINING), data(world, "image"))
    again = Fused(recipe, TRAINING)
    trainer(tmp_path / "b", 4, then).fit(again, data(world, "image"), ckpt_path="last", weights_only=True)
    assert first.losses + then.losses == straight.losses
    assert torch.equal(again.alphas, whole.alphas)


def test_resuming_with_other_specialists_is_refused(recipe, world, tmp_path):
    trainer(tmp_path / "work", 2).fit(Fused(recipe, TRAINING), data(world, "image"))
    model, processor, provenance = load_folder(recipe.specialists["image"])
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.01
    save_folder(tmp_path / "image", model, processor, provenance)
    other = replace(recipe, specialists={**recipe.specialists, "image": tmp_path / "image"})
    with pytest.raises(ValueError, match="another base or other specialists"):
        trainer(tmp_path / "work", 4).fit(Fused(other, TRAINING), data(world, "image"), ckpt_path="last", weights_only=True)


def test_task_vectors_go_where_the_coefficients_are(recipe, world, tmp_path):
    module = Fused(recipe, TRAINING)
    trainer(tmp_path, 1).fit(module, data(world, "image"))
    module.alphas = torch.nn.Parameter(module.alphas.to("meta"))
    module.bring_vectors()
    assert {tensor.device.type for both in module.vectors.values() for tensor in both} == {"meta"}


@pytest.mark.parametrize("form", ["dense", "adapter"])
def test_what_could_not_be_written_is_refused_before_training(recipe, world, tmp_path, form):
    out = FolderCheckpoint(tmp_path / "out" if form == "adapter" else recipe.specialists["audio"], form)
    record = Record()
    with pytest.raises(ValueError, match="A fused folder is dense" if form == "adapter" else "out must"):
        trainer(tmp_path, 1, out, record).fit(Fused(recipe, TRAINING), data(world, "image"))
    assert not record.losses


def test_other_methods_have_nothing_to_learn(recipe, world, tmp_path):
    with pytest.raises(ValueError, match="learned for TaskArithmetic, got Ties"):
        trainer(tmp_path, 1).fit(Fused(replace(recipe, method=Ties())), data(world, "image"))


def test_settings_reach_the_model_or_are_refused(recipe, world, tmp_path):
    module = Fused(recipe, replace(TRAINING, checkpoint_activations=True))
    trainer(tmp_path, 1).fit(module, data(world, "image"))
    assert module.embedder.is_gradient_checkpointing
    with pytest.raises(ValueError, match="Coefficients are no matrix"):
        trainer(tmp_path, 1).fit(Fused(recipe, replace(TRAINING, optimizer="muon")), data(world, "image"))
    halves = replace(recipe, alphas_by_module={"mlp": {"image": 0.1, "audio": 0.2}})
    for by_layer in (False, True):
        with pytest.raises(ValueError, match=r"recipe\.alphas_by_module gives 2 of them"):
            trainer(tmp_path, 1).fit(Fused(halves, TRAINING, by_layer), data(world, "image"))
    with pytest.raises(ValueError, match="Coefficients are all that is learned"):
        trainer(tmp_path, 1).fit(Fused(recipe, replace(TRAINING, learn_temperature=True)), data(world, "image"))


def test_the_config_runs(recipe, world, tmp_path):
    words = ["fit", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "tiny" / "coefficients.yaml")]
    words += ["--trainer.default_root_dir", str(tmp_path / "work"), "--trainer.callbacks.out", str(tmp_path / "fused")]
    words += ["--model.init_args.recipe.base", str(recipe.base), "--trainer.max_steps", "2", "--data.init_args.batch_size", "4"]
    folders = {name: str(folder) for name, folder in recipe.specialists.items()}
    words += ["--model.init_args.recipe.specialists", json.dumps(folders)]
    words += ["--model.init_args.recipe.alphas", json.dumps(recipe.alphas)]
    words += ["--data.init_args.train", json.dumps({"image": str(world / "image"), "audio": str(world / "audio")})]
    assert main(words) == 0
    assert read_provenance(tmp_path / "fused").state == "fused"


def test_probing_for_a_budget_teaches_nothing(recipe, world, tmp_path):
    """Its gradients would stay on the weights, which no optimizer clears."""
    found = []
    for budget in (500, "auto"):
        seen = Gradients()
        trainer(tmp_path / str(budget), 1, seen).fit(Fused(recipe, replace(TRAINING, token_budget=budget)), data(world, "image"))
        found.append(seen.gradient)
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-5)
