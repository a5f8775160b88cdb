import itertools
import math
from dataclasses import replace

import msgspec
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch.nn import functional as F

from callbacks import FolderCheckpoint
from datamodules import RehearsalData, SpecialistData
from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.embedder import Provenance, load_folder, pack, save_folder, tiny_embedder
from lightning_conan.items import Item, Media
from lightning_conan.objectives import Contrast, PairEmbeddings, contrastive, info_nce, symmetric_info_nce
from lightning_conan.retrieval.metric import hash_ids
from lightning_conan.stages import Joint, Rehearsal, Specialist
from lightning_conan.training import Lora, Stage, Training, probing
from lightning_conan.training.adapters import Adapters
from lightning_conan.training.settings import LEAST_TEMPERATURE
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
    trainer(tmp_path / "a", 3, Stop(2)).fit(module, data(world, "audio"))
    assert all(tensor.abs().sum() == 0 for name, tensor in module.trained().items() if "lora_B" in name)
    joined = Specialist(base, "audio", QUICK, train_fully=("audio_projector.",), alone_steps=2)
    trainer(tmp_path / "b", 3).fit(joined, data(world, "audio"))
    assert any(tensor.abs().sum() > 0 for name, tensor in joined.trained().items() if "lora_B" in name)


def test_adapters_that_would_never_join_are_refused(base, world, tmp_path):
    module = Specialist(base, "audio", QUICK, train_fully=("audio_projector.",), alone_steps=2)
    with pytest.raises(ValueError, match="join after alone_steps, 2, but the run has 2 steps"):
        trainer(tmp_path, 2).fit(module, data(world, "audio"))


def test_a_run_that_only_warms_up_is_told(base, world, tmp_path, caplog):
    trainer(tmp_path, 2).fit(Specialist(base, "image", replace(QUICK, warmup_steps=2)), data(world))
    assert "warmup_steps is 2, and the run has 2 steps" in caplog.text


def test_a_base_may_be_rehearsed(base, world, tmp_path):
    mix = RehearsalData({name: world / name for name in ("image", "audio")}, batch_size=4, num_workers=0)
    module = Rehearsal(base, QUICK, Lora(rank=2, alpha=2), train_projector=True)
    trainer(tmp_path, 1, FolderCheckpoint(tmp_path / "out")).fit(module, mix)
    assert load_folder(tmp_path / "out")[2].parents.keys() == {"base"}


@pytest.mark.parametrize("modalities", [("image", "video", "document"), ("image", "audio")], ids="+".join)
def test_joint_training_trains_what_its_specialists_do(base, world, tmp_path, modalities):
    """The same parameters, none more; on as many pairs of each modality."""
    record, module = Record(), Joint(base, modalities, QUICK, Lora(rank=2, alpha=2))
    mix = RehearsalData({name: world / name for name in modalities}, batch_size=4, num_workers=0)
    trainer(tmp_path, len(modalities), record, FolderCheckpoint(tmp_path / "out")).fit(module, mix)
    assert [keys[0].split("-")[0] for keys in record.keys] == [*modalities]
    of_specialists = set()
    for modality in modalities:
        alone = Specialist(base, modality, QUICK, Lora(rank=2, alpha=2))
        trainer(tmp_path / modality, 1, Stop(0)).fit(alone, data(world, modality))
        of_specialists |= alone.trained().keys()
    assert module.trained_names == of_specialists
    _, _, provenance = load_folder(tmp_path / "out", ("joint",))
    assert provenance.parents.keys() == {"base"}
    assert provenance.notes["modalities"] == [*modalities]
    assert provenance.notes["seen"] == {f"{name}/{name}": 4 for name in modalities}


def test_joint_training_refuses_other_modalities(base, world, tmp_path):
    mix = RehearsalData({"audio": world / "audio"}, batch_size=4, num_workers=0)
    with pytest.raises(ValueError, match=r"must hold image, video, document pairs only, got the audio task .* Add audio to"):
        trainer(tmp_path, 1).fit(Joint(base, training=QUICK), mix)
    for wrong in ((), ("image", "image")):
        with pytest.raises(ValueError, match="modalities must be one or more"):
            Joint(base, wrong)


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
    assert any("language_model" in name for name in module.trained())
    assert any("visual.blocks" in name for name in module.trained())
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
    from datamodules.shards.write import write_shards
    from datamodules.toy_world import draw_pairs
    from lightning_conan.items import Item, Media, Pair

    pairs = draw_pairs("image", 90, 0)
    pairs += [Pair(f"bad{row}", "image", "image", Item((Media("image", b"x", "x.png"),)), Item(("x",))) for row in range(30)]
    write_shards(pairs, tmp_path / "set")
    module, few = Specialist(base, "image", QUICK), SpecialistData(tmp_path / "set", batch_size=40, num_workers=0)
    with pytest.raises(ValueError, match=r"At most 5\.0% of the samples may be invalid, got \d+ of \d+"):
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
    assert set(module.metadata()["temperatures"]) == {"text", "image", "video", "document", "audio"}


def test_a_learned_temperature_stays_in_bounds_and_is_never_stuck(base, world, tmp_path):
    settings = replace(QUICK, lr=0.5, warmup_steps=0, learn_temperature=True, temperature=LEAST_TEMPERATURE)
    found = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradient = pl_module.log_temperatures["image"].grad
            found.append(float(gradient))
            gradient.fill_(1.0)  # downwards

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert float(pl_module.temperature("image").detach()) == pytest.approx(LEAST_TEMPERATURE, rel=1e-5)

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

    monkeypatch.setattr(contrastive, "info_nce", watched)
    trainer(tmp_path, 1, precision="bf16-mixed").fit(Specialist(base, "image", QUICK), data(world))
    assert seen
    assert set(seen) == {torch.float32}


def test_nothing_but_broken_samples_is_an_error(base, tmp_path):
    from datamodules.shards.write import write_shards
    from lightning_conan.items import Item, Media, Pair

    cut = Item((Media("image", png()[:100], "cut.png"),))
    write_shards([Pair(f"k{n}", "t", "image", cut, Item(("x",))) for n in range(10)], tmp_path / "sets" / "image")
    with pytest.raises(ValueError, match=r"got none in 2 batches: .*cannot be decoded.* \('k\d' of .*Mend the data"):
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
    monkeypatch.setattr(probing, "free_bytes", lambda device: 200_000_000)
    auto = replace(QUICK, token_budget="auto")
    module, straight = Specialist(base, "image", auto), Record()
    trainer(tmp_path / "a", 4, straight).fit(module, data(world))
    assert set(module.budgets.measured) == {"image"}
    assert 256 <= module.budgets.measured["image"] <= 2**17
    trainer(tmp_path / "b", 4, Stop(2)).fit(Specialist(base, "image", auto), data(world))
    monkeypatch.setattr(probing, "free_bytes", lambda device: 1)  # what is free now does not matter
    again, resumed = Specialist(base, "image", auto), Record()
    trainer(tmp_path / "b", 4, resumed).fit(again, data(world), ckpt_path="last")
    assert again.budgets.measured == module.budgets.measured
    assert resumed.losses == straight.losses[2:]


def test_no_form_of_a_layer_is_left_uncompiled(encoded):
    """Beyond a limit torch would run layers as they are: in scoring, in both passes of a step, and in each tower."""
    torch._dynamo.reset()
    frames = torch._dynamo.utils.counters["frames"]
    frames.clear()
    model = tiny_embedder(0)[0]
    Adapters(model, Lora(4, 4), ("backbone.", "audio_encoder."), ())
    model.switch("sdpa", "eager")
    for training, learning in ((False, False), (True, False), (True, True)):
        model.train(training)
        for chunk in pack([encoded[name] for name in ("text", "image", "audio")], 1):
            with torch.set_grad_enabled(learning):
                found = model(chunk)
            if learning:
                found.sum().backward()
    assert frames["ok"] == frames["total"] > 8


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


def test_a_specialist_refuses_pairs_of_another_modality(base, world, tmp_path):
    """Its folder would be taken for what it is called."""
    with pytest.raises(ValueError, match=r"must hold video pairs only, got the image task .* Name other data\.init_args\.train"):
        trainer(tmp_path, 1).fit(Specialist(base, "video", QUICK), data(world))


@pytest.mark.parametrize("callback", [EMAWeightAveraging(), StochasticWeightAveraging(1e-3)])
def test_averages_of_weights_are_refused(base, world, tmp_path, callback):
    with pytest.raises(ValueError, match=f"Leave {type(callback).__name__} out"):
        trainer(tmp_path, 1, callback).fit(Specialist(base, "image", QUICK), data(world))


def test_a_run_without_an_end_is_refused(base, world, tmp_path):
    with pytest.raises(ValueError, match=r"Set trainer\.max_steps or max_epochs"):
        trainer(tmp_path, -1, max_time="00:00:01:00").fit(Specialist(base, "image", QUICK), data(world))


def test_overfitting_sees_the_same_batch_each_epoch(base, world, tmp_path):
    record = Record()
    trainer(tmp_path, 3, record, overfit_batches=1).fit(Specialist(base, "image", QUICK), data(world))
    assert len(set(record.keys)) == 1 < len(record.keys)


def test_a_ckpt_is_no_folder_to_score(base, world, tmp_path):
    trainer(tmp_path, 1).fit(Specialist(base, "image", QUICK), data(world))
    runner = trainer(tmp_path, 1)
    with pytest.raises(ValueError, match="resumes `conan fit`; `conan test` reads folders"):
        runner.test(Stage(base), SpecialistData(test={"a": world / "image"}), ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="Stages predict nothing"):
        runner.predict(Stage(base), data(world))


OPTIONS = {
    "false_negative_margin": 0.05,
    "same_side_negatives": True,
    "matryoshka_dims": (16, 128),
    "temperatures": {"image": 0.2},
}


@pytest.mark.parametrize(("option", "value"), OPTIONS.items(), ids=OPTIONS)
def test_each_option_of_the_loss_reaches_it(base, world, tmp_path, option, value):
    """The logged value is the loss of the same embeddings with the contrast that the option stands for."""
    settings, found = replace(QUICK, **{option: value}), []
    module, record = Specialist(base, "image", settings), Record()
    loss = module.loss
    module.loss = lambda batch, output: found.append((batch, output.embeddings.detach())) or loss(batch, output)
    trainer(tmp_path, 1, record).fit(module, data(world))
    (batch, embeddings), size = found[0], len(found[0][0])
    contrast = {
        "false_negative_margin": Contrast(QUICK.temperature, margin=0.05),
        "same_side_negatives": Contrast(QUICK.temperature, same_side=True),
        "matryoshka_dims": Contrast(QUICK.temperature, dims=(16, 128)),
        "temperatures": Contrast(0.2),
    }[option]
    ids = hash_ids(batch.hashes()).split(size)
    pairs = PairEmbeddings(*embeddings.split(size), embeddings[:0], *ids, ids[0][:0])
    assert record.losses[0] == pytest.approx(float(symmetric_info_nce(pairs, contrast)), rel=1e-5)
    assert record.losses[0] != pytest.approx(float(symmetric_info_nce(pairs, Contrast(QUICK.temperature))), rel=1e-3)


def test_hard_negatives_are_in_the_loss_that_is_logged(base, tmp_path):
    """0, 1 and 2 of them in a batch, against a plain cross-entropy."""
    pairs = [
        msgspec.structs.replace(pair, negatives=tuple(Item((f"no {row}.{place}",)) for place in range(row % 3)))
        for row, pair in enumerate(draw_pairs("image", 6, 0))
    ]
    write_shards(pairs, tmp_path / "set")
    module, record, found = Specialist(base, "image", QUICK), Record(), []
    loss = module.loss
    module.loss = lambda batch, output: found.append(output.embeddings.detach()) or loss(batch, output)
    trainer(tmp_path, 1, record).fit(module, SpecialistData(tmp_path / "set", batch_size=6, num_workers=0))
    query, target, negative = found[0].split([6, 6, 6])
    rows, temperature = torch.arange(6), QUICK.temperature
    forth = F.cross_entropy(query @ torch.cat([target, negative]).T / temperature, rows)
    wanted = (forth + F.cross_entropy(target @ query.T / temperature, rows)) / 2
    assert record.losses[0] == pytest.approx(float(wanted), rel=1e-5)


class Norms(Callback):
    """The gradients' norm when the optimizer steps, and what was logged of it."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.stepped = float(torch.nn.utils.get_total_norm([p.grad for p in pl_module.trained().values() if p.grad is not None]))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.logged = float(trainer.callback_metrics["train/gradient_norm"])


def test_gradients_are_clipped_and_their_norm_before_is_logged(base, world, tmp_path):
    found = []
    for limit in (1e6, 1e-3):
        norms = Norms()
        trainer(tmp_path / str(limit), 1, norms).fit(Specialist(base, "image", replace(QUICK, clip_norm=limit)), data(world))
        found.append(norms)
    free, clipped = found
    assert free.stepped == pytest.approx(free.logged, rel=1e-5)
    assert clipped.logged == pytest.approx(free.logged, rel=1e-5)
    assert clipped.stepped == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_follows_its_schedule(base, world, tmp_path):
    rates = []

    class Rates(Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append(float(trainer.callback_metrics["train/lr"]))

    trainer(tmp_path, 6, Rates()).fit(Specialist(base, "image", QUICK), data(world))
    assert rates == pytest.approx([QUICK.lr * QUICK.scale(step, 6) for step in range(1, 7)])


def test_each_step_drops_others(base, world, tmp_path):
    """Not the same entries again and again."""
    masks = []

    class Masks(Callback):
        def on_train_start(self, trainer, pl_module):
            drop = next(module for module in pl_module.modules() if isinstance(module, torch.nn.Dropout))
            drop.register_forward_hook(lambda module, inputs, output: masks.append((output == 0).float().mean(dim=-1)))

    training = replace(QUICK, token_budget=100_000)
    trainer(tmp_path, 2, Masks()).fit(Specialist(base, "image", training, Lora(rank=4, alpha=4, dropout=0.5)), data(world))
    first, second = masks
    assert first.shape != second.shape or not torch.equal(first, second)


@pytest.mark.parametrize(("form", "lost"), [("dense", True), ("float32", False)])
def test_what_rounding_takes_of_adapters_is_told(world, tmp_path, caplog, form, lost):
    """Two small steps on a bfloat16 base are gone in a bfloat16 folder."""
    model, processor = tiny_embedder(0)
    base = save_folder(tmp_path / "base", model.bfloat16(), processor, Provenance("base"))
    module = Specialist(base, "image", replace(QUICK, lr=1e-5), Lora(rank=4, alpha=4))
    trainer(tmp_path / "work", 2, FolderCheckpoint(tmp_path / "out", form)).fit(module, data(world))
    assert ("of what training changed" in caplog.text) == lost
    start, found = (load_folder(folder)[0].state_dict() for folder in (base, tmp_path / "out"))
    assert lost or any(not torch.equal(found[name], start[name].float()) for name in found)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16 if lost else torch.float32}


def test_each_fault_is_listed_once_and_counted_on(base, tmp_path):
    """In every epoch the same sample is broken, and a run that goes on has seen what the one before has."""
    pairs = draw_pairs("image", 11, 0)
    pairs.insert(2, msgspec.structs.replace(pairs[0], key="poison", query=Item((Media("image", png()[:200], "cut.png"),))))
    write_shards(pairs, tmp_path / "set")
    for steps, seen, broken in ((4, 24, 2), (6, 36, 3)):  # two steps an epoch
        pairs = SpecialistData(tmp_path / "set", batch_size=6, num_workers=0)
        trainer(tmp_path, steps).fit(Specialist(base, "image", QUICK), pairs, ckpt_path="last")
        assert (pairs.seen, pairs.broken) == (seen, broken)
        assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 1
