"""Steps that hold all modalities: one gradient, that of the mean over all pairs."""

import signal
from collections import Counter

import pytest
import torch
from lightning import Callback
from ranks import both, values
from scenarios import Gradients, fit, fit_and_stop, fit_with, make

from datamodules import RehearsalData, TraceData
from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.embedder import pack
from lightning_conan.objectives import Contrast, PairEmbeddings, symmetric_info_nce
from lightning_conan.retrieval.metric import hash_ids
from lightning_conan.stages import Fused, Rehearsal, Specialist, Trace
from lightning_conan.training import Lora, Training
from runs import QUICK, Stop, noisy_recipe, trainer

EXACT = {"clip_norm": 1e6, "warmup_steps": 0}


class Reference(Callback):
    """Computes the first step's gradient by plain autograd: each part's loss alone, in one chunk, and the mean over pairs."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx:
            return
        self.parts = [(part.modality, len(part)) for part in batch.parts]
        trained = pl_module.trained()
        self.losses = [self.loss(pl_module, part) for part in batch.parts]
        whole = sum(len(part) for part in batch.parts)
        mean = sum(len(part) / whole * loss for part, loss in zip(batch.parts, self.losses, strict=True))
        found = torch.autograd.grad(mean, list(trained.values()), allow_unused=True)
        self.gradients = {
            name: torch.zeros_like(tensor) if gradient is None else gradient
            for (name, tensor), gradient in zip(trained.items(), found, strict=True)
        }
        self.mean = mean.item()

    def loss(self, stage, part):
        (chunk,) = pack(list(part.items()), 10**6)
        rows = torch.tensor(chunk.rows).argsort()
        query, target = stage.embedder(chunk)[rows].split(len(part))
        ids = hash_ids(part.hashes()).split(len(part))
        pairs = PairEmbeddings(query, target, query[:0], *ids, ids[0][:0])
        return symmetric_info_nce(pairs, Contrast(stage.training_settings.temperature))


def close(one, other):
    floor = 1e-5 * max(tensor.abs().max() for tensor in one.values())
    return one.keys() == other.keys() and all((tensor - other[name]).abs().max() <= floor for name, tensor in one.items())


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Sets of different sizes: the small one's sub-batches are smaller, and a step has several of them."""
    root = tmp_path_factory.mktemp("uneven")
    for modality, size in {"image": 20, "video": 12, "document": 20, "audio": 3}.items():
        write_shards(draw_pairs(modality, size, 0), root / modality)
    return root


@pytest.mark.parametrize("budget", [60, 200, 100_000])
def test_the_gradient_is_that_of_the_mean_over_all_pairs(recovered, uneven, tmp_path, budget):
    """In several chunks and in one, against plain autograd; not that of the mean over parts, whose sizes differ."""
    module, data = make("mixed", recovered, uneven, 6, token_budget=budget)
    reference, gradients = Reference(), Gradients()
    runner = trainer(tmp_path, 1, reference, gradients)
    runner.fit(module, data)
    counts = Counter(modality for modality, _ in reference.parts)
    assert set(counts) == {"image", "video", "document", "audio"}
    assert counts["audio"] > 1
    assert close(reference.gradients, gradients.found)
    assert float(runner.callback_metrics["train/loss"]) == pytest.approx(reference.mean, rel=1e-4)
    for kind in counts:
        own = [(size, loss) for (other, size), loss in zip(reference.parts, reference.losses, strict=True) if other == kind]
        expected = sum(size * loss.item() for size, loss in own) / sum(size for size, _ in own)
        assert float(runner.callback_metrics[f"train/loss/{kind}"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("strategy", "budget"), [("ddp", 60), ("ddp", "auto"), ("fsdp2", 60), ("fsdp2", 4000)])
def test_two_ranks_are_one_process(recovered, uneven, tmp_path, strategy, budget):
    alone = fit("mixed", recovered, uneven, tmp_path / "alone", 3, token_budget=100_000, learn_temperature=True)
    settings = {"token_budget": budget, "strategy": strategy, "learn_temperature": True}
    ranks = values(fit_with, "mixed", recovered, uneven, tmp_path / "run", 3, 6, settings)
    for step in range(3):
        assert sorted(key for rank in ranks for key in rank["keys"][step]) == sorted(alone["keys"][step])
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-3)
        assert close(alone["gradients"], rank["gradients"])
    assert all(torch.equal(tensor, ranks[1]["weights"][name]) for name, tensor in ranks[0]["weights"].items())


@pytest.mark.parametrize("steps", [3, 9])
def test_a_stop_after_any_step_leaves_the_same_run(recovered, uneven, tmp_path, steps):
    """Bit for bit, in mid-epoch and beyond it, with dropout."""
    settings = {"dropout": 0.2, "token_budget": 200}
    straight = fit("mixed", recovered, uneven, tmp_path / "a", 12, **settings)
    fit("mixed", recovered, uneven, tmp_path / "b", 12, callbacks=[Stop(steps)], **settings)
    resumed = fit("mixed", recovered, uneven, tmp_path / "b", 12, ckpt="last", **settings)
    assert resumed["keys"] == straight["keys"][steps:]
    assert resumed["losses"] == straight["losses"][steps:]
    assert all(torch.equal(tensor, resumed["weights"][name]) for name, tensor in straight["weights"].items())


def test_two_ranks_stop_and_resume_bit_for_bit(recovered, uneven, tmp_path):
    straight = values(fit, "mixed", recovered, uneven, tmp_path / "a", 5)
    both(fit_and_stop, "mixed", recovered, uneven, tmp_path / "b", signal.SIGTERM)
    resumed = values(fit, "mixed", recovered, uneven, tmp_path / "b", 5, 6, (), "last")
    for one, other in zip(straight, resumed, strict=True):
        assert one["losses"][3:] == other["losses"]
        assert all(torch.equal(tensor, other["weights"][name]) for name, tensor in one["weights"].items())


def test_a_run_of_mixed_steps_is_not_resumed_without_them(recovered, uneven, tmp_path):
    fit("mixed", recovered, uneven, tmp_path, 3, callbacks=[Stop(1)])
    with pytest.raises(ValueError, match="Resuming needs the same data"):
        fit("rehearsal", recovered, uneven, tmp_path, 3, ckpt="last")


def test_a_part_without_a_contrast_leaves_the_others(recovered, tmp_path):
    """All images are invalid: the step is that of the other modality alone."""
    from lightning_conan.items import Item, Media, Pair
    from samples import png

    cut = Item((Media("image", png()[:100], "cut.png"),))
    write_shards([Pair(f"k{n}", "t", "image", cut, Item(("x",))) for n in range(6)], tmp_path / "image")
    write_shards(draw_pairs("audio", 6, 0), tmp_path / "audio")
    folders = {name: tmp_path / name for name in ("image", "audio")}
    mixed = RehearsalData(folders, batch_size=6, num_workers=0, mixed=True)
    runner = trainer(tmp_path / "run", 1)
    runner.fit(Rehearsal(recovered, QUICK), mixed)
    assert runner.callback_metrics["train/loss"] == runner.callback_metrics["train/loss/audio"]
    assert "train/loss/image" not in runner.callback_metrics
    assert mixed.broken == 6


def test_a_specialist_refuses_steps_of_other_modalities(base, uneven, tmp_path):
    folders = {name: uneven / name for name in ("image", "audio")}
    mixed = RehearsalData(folders, batch_size=6, num_workers=0, mixed=True)
    with pytest.raises(ValueError, match="must hold image pairs only, got the audio task"):
        trainer(tmp_path, 1).fit(Specialist(base, "image", QUICK, Lora(rank=4, alpha=4)), mixed)


def test_workers_change_nothing(recovered, uneven, tmp_path):
    found = []
    for workers in (0, 2):
        folders = {name: uneven / name for name in ("image", "audio")}
        mixed = RehearsalData(folders, batch_size=6, num_workers=workers, mixed=True)
        runner = trainer(tmp_path / str(workers), 1)
        module = Rehearsal(recovered, QUICK)
        runner.fit(module, mixed)
        found.append([[(part.source, part.keys) for part in batch.parts] for batch in mixed.train_dataloader()])
    assert found[0] == found[1] != []


class AlphaGradient(Callback):
    """Notes the coefficients' gradient."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found = pl_module.alphas.grad.clone()


def test_coefficients_learn_from_all_parts(base, uneven, tmp_path):
    """Their gradient is the mean, by pairs, of those that each modality gives alone."""
    recipe = noisy_recipe(base, tmp_path)

    def gradient(*names):
        seen, folders = AlphaGradient(), {name: uneven / name for name in names}
        data = RehearsalData(folders, batch_size=20, num_workers=0, mixed=True, max_epochs=1)
        settings = Training(lr=0.05, warmup_steps=1, token_budget=500, clip_norm=1e6)
        trainer(tmp_path / "-".join(names), 1, seen).fit(Fused(recipe, settings), data)
        return seen.found

    image, video, both = gradient("image"), gradient("video"), gradient("image", "video")
    assert torch.allclose(both, 20 / 32 * image + 12 / 32 * video, atol=1e-5)
    assert not torch.allclose(both, (image + video) / 2, atol=1e-5)


def test_figures_of_a_mixed_step_are_means_over_its_pairs(base, uneven, tmp_path):
    """Else those of the last part would stand for all."""
    folders = {name: uneven / name for name in ("image", "audio")}
    runner = trainer(tmp_path, 1)
    module = Trace(base, QUICK, Lora(rank=4, alpha=4), lambda_gen=0.5, lambda_ret=2.0, query_hint="", target_hint="")
    runner.fit(module, TraceData(folders, batch_size=6, num_workers=0, mixed=True))
    generation, retrieval, loss = (
        float(runner.callback_metrics[f"train/{name}"]) for name in ("generation_loss", "retrieval_loss", "loss")
    )
    assert loss == pytest.approx(0.5 * generation + 2.0 * retrieval, rel=1e-5)
    assert {"train/loss/image", "train/loss/audio"} <= runner.callback_metrics.keys()
