import itertools
import math
from dataclasses import replace

import pytest
import torch
from lightning import Callback, Trainer

from datamodules import RehearsalData, SpecialistData
from lightning_conan.objectives import info_nce, symmetric
from lightning_conan.stages import Lora, Rehearsal, Specialist, Stage, Training, memory
from lightning_conan.stages.settings import LEAST_TEMPERATURE
from runs import QUICK, Record, Stop, data, trainer
from samples import png


def test_lora_reaches_every_linear_of_its_towers(base, world, tmp_path):
    module = Specialist(base, "image", QUICK)
    trainer(tmp_path, 1).fit(module, data(world))
    names = {name.split(".lora_")[0] for name in module.trained()}
    linears = {
        f"embedder.{name}"
        for name, child in module.embedder.named_modules()
        if hasattr(child, "lora_A") and hasattr(child, "base_layer")
    }
    assert names == linears
    assert any("visual.blocks" in name for name in names)
    assert any("merger" in name for name in names)
    assert not any("audio" in name for name in names)


def test_an_audio_specialist_trains_its_projector_fully(base, world, tmp_path):
    module = Specialist(base, "audio", QUICK)
    trainer(tmp_path, 1).fit(module, data(world, "audio"))
    names = set(module.trained())
    assert "embedder.audio_projector.linear_1.weight" in names
    assert any("audio_encoder" in name and "lora_" in name for name in names)
    assert not any("visual" in name for name in names)


def test_stage_1a_trains_the_new_parts_alone(base, world, tmp_path):
    module = Specialist(base, "audio", QUICK, train_fully=("audio_projector.",), alone_steps=2)
    trainer(tmp_path / "a", 2).fit(module, data(world, "audio"))
    assert all(tensor.abs().sum() == 0 for name, tensor in module.trained().items() if "lora_B" in name)
    joined = Specialist(base, "audio", QUICK, train_fully=("audio_projector.",), alone_steps=2)
    trainer(tmp_path / "b", 4).fit(joined, data(world, "audio"))
    assert any(tensor.abs().sum() > 0 for name, tensor in joined.trained().items() if "lora_B" in name)


def test_merged_folder_equals_the_adapted_model(base, world, tmp_path, encoded):
    module = Specialist(base, "image", QUICK)
    trainer(tmp_path, 3).fit(module, data(world))
    items = list(encoded.values())
    with torch.no_grad():
        adapted = module.embed(items)
        module.write_folder(tmp_path / "out")
        again = Stage(tmp_path / "out")
        Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", devices=1).test(
            again, SpecialistData(test={"a": world / "image"})
        )
        assert torch.allclose(again.embed(items), adapted, atol=1e-5)


def test_training_lowers_the_loss(base, world, tmp_path):
    record = Record()
    trainer(tmp_path, 24, record).fit(Specialist(base, "image", Training(lr=2e-3, warmup_steps=2, temperature=0.05)), data(world))
    assert sum(record.losses[-4:]) < 0.8 * sum(record.losses[:4])


def test_rehearsal_sees_all_modalities_equally(recovered, world, tmp_path):
    names = ("image", "video", "document", "audio")
    record, module = Record(), Rehearsal(recovered, QUICK)
    mix = RehearsalData({name: world / name for name in names}, batch_size=5, num_workers=0)
    trainer(tmp_path, 8, record).fit(module, mix)
    assert [keys[0].split("-")[0] for keys in record.keys] == [*names, *names]
    assert not any("audio" in name for name in module.trained())
    assert "embedder.audio_projector.linear_1.weight" in prepared(
        Rehearsal(recovered, QUICK, train_projector=True), mix, tmp_path
    )


def prepared(module, mix, tmp_path) -> set[str]:
    trainer(tmp_path / "prepared", 1).fit(module, mix)
    return set(module.trained())


def test_nan_loss_stops_with_the_samples(base, world, tmp_path):
    class Poison(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                with torch.no_grad():
                    next(iter(pl_module.trained().values())).fill_(float("nan"))

    with pytest.raises(ValueError, match=r"The loss must be finite, got nan at step 2 of task 'image'.*image-0-"):
        trainer(tmp_path, 5, Poison()).fit(Specialist(base, "image", QUICK), data(world))
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(bool(tensor.isfinite().all()) for tensor in saved["state_dict"].values())


def test_too_many_broken_samples_stop_the_run(base, tmp_path):
    from datamodules.toy_world import draw_pairs
    from datamodules.writing import write_shards
    from lightning_conan.items import Item, Media, Pair

    pairs = draw_pairs("image", 90, 0)
    pairs += [Pair(f"bad{row}", "image", "image", Item((Media("image", b"x", "x.png"),)), Item(("x",))) for row in range(30)]
    write_shards(pairs, tmp_path / "set")
    module, few = Specialist(base, "image", QUICK), SpecialistData(tmp_path / "set", batch_size=40, num_workers=0)
    with pytest.raises(ValueError, match=r"At most 5\.0% of the samples may be broken, got \d+ of \d+"):
        trainer(tmp_path / "run", 8).fit(module, few)


def test_scoring_takes_any_state_and_training_none_but_its_own(base, fused, world, tmp_path):
    with pytest.raises(ValueError, match="holds a fused model, and a base one is needed"):
        trainer(tmp_path, 1).fit(Specialist(fused, "image", QUICK), data(world))
    with pytest.raises(ValueError, match="Stage trains nothing"):
        trainer(tmp_path, 1).fit(Stage(base), data(world))
    module = Stage(fused)
    runner = trainer(tmp_path, 1)
    runner.test(module, SpecialistData(test={"a": world / "image", "b": world / "audio"}, batch_size=7), verbose=False)
    assert {"test/a/recall@1", "test/b/ndcg@10", "test/a/forth/mrr"} <= set(runner.callback_metrics)


def test_validation_runs_in_fit(base, world, tmp_path):
    runner = trainer(tmp_path, 4, val_check_interval=2)
    runner.fit(Specialist(base, "image", QUICK), data(world, val={"held_out": world / "document"}))
    assert "val/held_out/recall@1" in runner.callback_metrics


def test_settings_are_checked():
    for wrong in ({"lr": 0.0}, {"lr": float("nan")}, {"temperature": -1.0}, {"token_budget": 0}):
        with pytest.raises(ValueError, match="must be positive and finite, got"):
            Training(**wrong)
    with pytest.raises(ValueError, match=r"lora\.rank and lora\.alpha must be positive"):
        Lora(rank=0)


def test_warm_up_then_cosine():
    settings = Training(warmup_steps=4)
    scales = [settings.scale(step, 12) for step in range(13)]
    assert scales[:4] == [0.25, 0.5, 0.75, 1.0]
    assert scales[4] == 1.0
    assert scales[12] == pytest.approx(0.0)
    assert all(one >= other for one, other in itertools.pairwise(scales[4:]))


@pytest.mark.parametrize("budget", [60, 100_000])
def test_a_learned_temperature_gets_the_gradient_of_the_loss(base, world, tmp_path, budget):
    """Against the loss's difference, cached and in one pass."""
    settings = replace(
        QUICK, learn_temperature=True, temperature=0.1, temperatures={"image": 0.07}, token_budget=budget, clip_norm=1e6
    )
    record = {}

    class Keep(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            record.setdefault("gradient", float(pl_module.log_temperatures["image"].grad))

    def loss_at(temperature):
        losses = Record()
        plain = replace(QUICK, temperature=temperature, token_budget=100_000)
        trainer(tmp_path / str(temperature), 1, losses).fit(Specialist(base, "image", plain), data(world))
        return losses.losses[0]

    module = Specialist(base, "image", settings)
    trainer(tmp_path / "run", 1, Keep()).fit(module, data(world))
    slope = (loss_at(0.07 * 1.01) - loss_at(0.07 / 1.01)) / (2 * math.log(1.01))
    assert record["gradient"] == pytest.approx(slope, rel=1e-2)
    assert float(module.temperature("image").detach()) != pytest.approx(0.07, rel=1e-6)
    assert set(module.notes()["temperatures"]) == {"text", "image", "video", "document", "audio"}


def test_a_learned_temperature_stays_in_bounds_and_is_never_stuck(base, world, tmp_path):
    settings = replace(QUICK, lr=0.5, warmup_steps=0, learn_temperature=True, temperature=LEAST_TEMPERATURE)
    found = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradient = pl_module.log_temperatures["image"].grad
            found.append(float(gradient))
            gradient.fill_(1.0)  # downwards

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert float(pl_module.temperature("image").detach()) >= LEAST_TEMPERATURE * (1 - 1e-6)

    trainer(tmp_path, 3, Look()).fit(Specialist(base, "image", settings), data(world))
    assert all(found)
    for wrong in ({"temperature": 0.005}, {"temperatures": {"audio": 0.009}}):
        with pytest.raises(ValueError, match=r"must start at 0\.01 or above to be learned"):
            Training(learn_temperature=True, **wrong)


def test_dimensions_that_the_embedding_lacks_are_refused(base, world, tmp_path):
    settings = replace(QUICK, matryoshka_dims=(16, 100_000))
    with pytest.raises(ValueError, match="matryoshka_dims must be at most the embedding's"):
        trainer(tmp_path, 1).fit(Specialist(base, "image", settings), data(world))


def test_the_loss_is_float32_under_bfloat16(base, world, tmp_path, monkeypatch):
    """Scores of two or three digits over a temperature of 0.02 are off by tenths."""
    seen = []

    def watched(*args, **named):
        seen.append((args[0] @ args[1].T).dtype)
        return info_nce(*args, **named)

    monkeypatch.setattr(symmetric, "info_nce", watched)
    trainer(tmp_path, 1, precision="bf16-mixed").fit(Specialist(base, "image", QUICK), data(world))
    assert seen
    assert set(seen) == {torch.float32}


def test_nothing_but_broken_samples_is_an_error(base, tmp_path):
    from datamodules.writing import write_shards
    from lightning_conan.items import Item, Media, Pair

    cut = Item((Media("image", png()[:100], "cut.png"),))
    write_shards([Pair(f"k{n}", "t", "image", cut, Item(("x",))) for n in range(10)], tmp_path / "sets" / "image")
    with pytest.raises(ValueError, match=r"needs usable samples, got none in 2 batches.*cannot be decoded"):
        trainer(tmp_path, 3).fit(Specialist(base, "image", QUICK), data(tmp_path / "sets"))


class SpoilGradient(Callback):
    """Makes the second step's gradient infinite."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        parameter = next(iter(pl_module.trained().values()))
        if trainer.global_step == 1:
            self.handle = parameter.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
        elif trainer.global_step == 2:
            self.handle.remove()


def test_a_step_without_a_finite_gradient_is_left_out_and_counted(base, world, tmp_path):
    """Fault 9."""
    allowed = trainer(tmp_path / "a", 4, SpoilGradient())
    module = Specialist(base, "image", replace(QUICK, max_skipped_steps=1))
    allowed.fit(module, data(world))
    assert float(allowed.callback_metrics["train/skipped_steps"]) == 1
    assert all(bool(tensor.isfinite().all()) for tensor in module.trained().values())
    with pytest.raises(ValueError, match="The gradient must be finite, got inf at step 1 of task"):
        trainer(tmp_path / "b", 4, SpoilGradient()).fit(Specialist(base, "image", QUICK), data(world))


def test_a_budget_is_found_once_and_kept_in_the_checkpoint(base, world, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 200_000_000)
    auto = replace(QUICK, token_budget="auto")
    module, straight = Specialist(base, "image", auto), Record()
    trainer(tmp_path / "a", 4, straight).fit(module, data(world))
    assert set(module.budgets) == {"image"}
    assert 256 <= module.budgets["image"] <= 2**17
    trainer(tmp_path / "b", 4, Stop(2)).fit(Specialist(base, "image", auto), data(world))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1)  # what is free now does not matter
    again, resumed = Specialist(base, "image", auto), Record()
    trainer(tmp_path / "b", 4, resumed).fit(again, data(world), ckpt_path="last")
    assert again.budgets == module.budgets
    assert resumed.losses == straight.losses[2:]


def test_compiled_layers_train_alike(base, world, tmp_path):
    plain, compiled = Record(), Record()
    trainer(tmp_path / "a", 2, plain).fit(Specialist(base, "image", QUICK), data(world))
    trainer(tmp_path / "b", 2, compiled).fit(Specialist(base, "image", replace(QUICK, compile="eager")), data(world))
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"compile": "fastest"}, "compile must be one of"),
        ({"attention": "flash_attention_2"}, "needs an NVIDIA GPU"),
    ],
)
def test_switches_that_cannot_be_had_are_refused(base, world, tmp_path, setting, reason):
    with pytest.raises(ValueError, match=reason):
        trainer(tmp_path, 1).fit(Specialist(base, "image", replace(QUICK, **setting)), data(world))


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true"])
def test_precisions_that_cast_weights_are_refused(base, world, tmp_path, precision):
    with pytest.raises(ValueError, match=f"precision must be 32-true or bf16-mixed, got {precision}"):
        trainer(tmp_path, 1, precision=precision).fit(Specialist(base, "image", QUICK), data(world))
    sets = SpecialistData(test={"image": world / "image"}, batch_size=4, num_workers=0)
    with pytest.raises(ValueError, match="precision must be"):
        trainer(tmp_path, 1, precision=precision).test(Stage(base), sets, verbose=False)
