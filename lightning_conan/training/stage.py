"""The training step that all stages share, from one checkpoint folder to the next."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from typing_extensions import override

from lightning_conan.embedder import Batch, Chunk, ChunkOutput, Encoded
from lightning_conan.items import Modality
from lightning_conan.objectives import (
    ChunkStep,
    Contrast,
    PairEmbeddings,
    SymmetricInfoNCE,
    cached_backward,
    one_pass_backward,
)
from lightning_conan.reasoning import Decoding
from lightning_conan.retrieval.metric import hash_ids
from lightning_conan.training.budgets import TokenBudgets, pack_chunks
from lightning_conan.training.collectives import gather_pairs, leave_gradients_alone, sum_gradients, total
from lightning_conan.training.guard import StepGuard
from lightning_conan.training.mixed import StepFigures, pair_shares
from lightning_conan.training.negatives import NegativeWatch
from lightning_conan.training.optimizers import go_on_with, make_optimizer, optimizer_settings
from lightning_conan.training.probing import fitting_budget, trained_bytes
from lightning_conan.training.protocols import planned_steps
from lightning_conan.training.resuming import Resuming
from lightning_conan.training.settings import Training
from lightning_conan.training.sharding import clip_gradients, sync_gradients
from lightning_conan.training.temperatures import LogTemperatures

log = logging.getLogger(__name__)


class Stage(Resuming):
    """Scores a checkpoint folder unchanged; subclasses define what trains.

    Args:
        folder: The checkpoint folder to start from.
        training: Settings of training.
        decoding: Settings of writing about queries, when a model that reasons is scored.
    """

    def __init__(
        self,
        folder: Path,
        training: Training = Training(),  # noqa: B008  # frozen
        decoding: Decoding = Decoding(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(folder, training, decoding)
        self.automatic_optimization = False
        self.strict_loading = False  # .ckpt files hold what trains; on_load_checkpoint is strict about it
        self.budgets = TokenBudgets(training.token_budget)
        self.guard = StepGuard(training.max_skipped_steps)
        self.seen: Counter[str] = Counter()
        self.figures = StepFigures()
        self.best: dict[str, float] = {}
        self.watch = NegativeWatch(training.dynamic_negatives) if training.dynamic_negatives else None
        self.log_temperatures = LogTemperatures(training, self.processor.modalities) if training.learn_temperature else None
        self.objective_scalars: nn.ParameterDict | None = None
        if start := training.objective.learned():
            scalars = {name: nn.Parameter(torch.tensor(float(value))) for name, value in start.items()}
            self.objective_scalars = nn.ParameterDict(scalars)

    @override
    def teardown(self, stage: str) -> None:
        if stage == "fit" and not self.global_step:  # as after a search for a learning rate, which restores what was before
            self.has_trained = False

    @override
    def metadata(self) -> dict[str, Any]:
        dims = self.training_settings.matryoshka_dims
        found: dict[str, Any] = {"steps": self.global_step or self.steps_before, "seen": dict(sorted(self.seen.items()))}
        if self.best:
            found["best"] = self.best
        if dims:
            found["matryoshka_dims"] = sorted(dims, reverse=True)
        if self.log_temperatures is not None:
            found["temperatures"] = {name: float(self.log_temperatures.of(name).detach()) for name in self.log_temperatures}
        if self.training_settings.objective != SymmetricInfoNCE():
            found["loss"] = self.training_settings.objective.description
        if self.objective_scalars is not None:
            found["objective"] = {name: float(value.detach()) for name, value in self.objective_scalars.items()}
        return found

    def temperature(self, modality: Modality) -> float | Tensor:
        """The divisor of a modality's scores."""
        if self.log_temperatures is not None:
            return self.log_temperatures.of(modality)
        return self.training_settings.temperature_of(modality)

    def measure_budget(self, modality: Modality) -> int:
        """Padded tokens whose forward and backward pass fit into this rank's device."""
        later = [parameter for parameter in self.trained().values() if not parameter.requires_grad]
        for parameter in later:  # it will train under this budget too
            parameter.requires_grad_()
        moments = 0 if self.optimizers().state else 2 * trained_bytes(self.embedder)  # type: ignore[union-attr]
        found = fitting_budget(self.embedder, self.embed_chunk, modality, self.device, moments)
        for parameter in later:
            parameter.requires_grad_(False)
        return found

    # Training

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        leave_gradients_alone(self.trainer.strategy.model)  # Lightning turns DDP's sums on again after every step
        pairs = self.as_step(batch, batch_idx)
        for part in pairs.parts:
            self.check_batch(part)
        parts = [part for part in pairs.parts if self.has_contrast(part)]
        if not parts:
            self.guard.count_idle(pairs, self.trainer.num_training_batches)
            return None
        self.guard.idle = 0
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(scheduler, LRScheduler), "configure_optimizers makes one scheduler, or the search for a learning rate"
        assert isinstance(optimizer, LightningOptimizer), "and one optimizer"
        if self.watch is not None:
            parts = [self.watch.choose(part) for part in parts]
        optimizer.zero_grad()
        self.accumulate_gradients(parts)
        norm = clip_gradients(self.trained().values(), self.training_settings.clip_norm)
        if self.guard.skips(norm, pairs, self.global_step):  # a step of zero keeps Lightning's count and ours together
            optimizer.zero_grad()
        self.has_trained = True
        optimizer.step()
        if self.log_temperatures is not None:
            self.log_temperatures.clamp()
        self.after_step()
        scheduler.step()
        self.log_step(norm, float(optimizer.param_groups[0]["lr"]))
        return self.figures.loss

    def accumulate_gradients(self, parts: Sequence[Batch]) -> None:
        """Computes the gradients of what trains, summed over the ranks, of the mean over the pairs of all parts."""
        for part in parts:  # measuring would clear gradients that are there already
            self.budgets.of(part.modality, self.measure_budget, self.device)
        torch.manual_seed(hash((self.training_settings.seed, self.global_step, self.global_rank)) % 2**63)
        self.figures = StepFigures()
        for number, share in enumerate(pair_shares(parts, self.device), 1):
            self.figures.share = share
            self.add_gradients(parts[number - 1], number == len(parts))
        self.gather_gradients()
        sum_gradients(self.trained().values())

    def add_gradients(self, batch: Batch, last: bool) -> None:
        """Adds the gradients of a part of the step, multiplied by its share of the pairs, to those that are there.

        Args:
            batch: This rank's pairs of the part.
            last: True for the last part.
        """
        items, cached = self.split_cached(batch)
        live = [row for row in range(len(items)) if row not in cached]
        budget = self.budgets.of(batch.modality, self.measure_budget, self.device)
        chunks, fits = pack_chunks(self.embedder, [items[row] for row in live], batch.modality, budget, self.device)

        def loss(output: ChunkOutput) -> Tensor:
            if cached:
                rows = torch.tensor([*live, *cached], device=self.device).argsort()
                known = torch.stack([*cached.values()]).to(output.embeddings)
                output = output._replace(embeddings=torch.cat([output.embeddings, known])[rows])
            with torch.autocast(self.device.type, enabled=False):  # bfloat16's two or three digits are too few for scores
                value = self.loss(batch, output._replace(embeddings=output.embeddings.float()))
                self.guard.check_finite(value, batch, self.global_step)
                self.figures.add_loss(batch.modality, total(value))
                return self.figures.share * value

        def backward(value: Tensor, last_chunk: bool) -> None:
            sync_gradients(self.embedder, last and last_chunk)
            self.manual_backward(value)

        step = ChunkStep(self.embed_chunk, loss, backward, self.device, self.embedder.learns_from)
        _ = one_pass_backward(step, chunks) if fits else cached_backward(step, chunks, len(live))

    def log_step(self, norm: Tensor, lr: float | Tensor) -> None:
        """Logs loss, gradient norm, learning rate and samples seen.

        Args:
            norm: Norm of the gradient before clipping.
            lr: Learning rate of the next step.
        """
        self.log("train/loss", self.figures.loss, prog_bar=True)
        self.log_dict(self.figures.named())
        self.log_dict({f"seen/{name}": float(count) for name, count in self.seen.items()})
        self.log_dict({"train/gradient_norm": norm, "train/lr": lr, "train/skipped_steps": self.guard.skipped})
        if self.log_temperatures is not None:
            self.log_dict({f"train/temperature/{name}": self.temperature(name) for name in self.figures.losses})
        if self.objective_scalars is not None:
            self.log_dict({f"train/objective/{name}": value for name, value in self.objective_scalars.items()})

    def loss(self, batch: Batch, output: ChunkOutput) -> Float[Tensor, ""]:
        """This rank's share of the loss of all ranks' pairs.

        Args:
            batch: This rank's pairs, encoded.
            output: ``embed_chunk`` of ``batch.items()``, in their order; embeddings in float32.
        """
        if self.watch is not None:
            self.watch.note(batch, output.embeddings.detach())
        value, count = self.contrasted(batch, output.embeddings)
        self.seen[f"{batch.modality}/{batch.task}"] += count
        return value

    def contrasted(self, batch: Batch, embeddings: Float[Tensor, "rows dim"]) -> tuple[Float[Tensor, ""], int]:
        """This rank's share of the objective over all ranks' pairs, and their number.

        Args:
            batch: This rank's pairs, encoded.
            embeddings: Those of ``batch.items()``, in their order.
        """
        ids = hash_ids(batch.hashes()).to(embeddings.device)
        pairs, own = gather_pairs(embeddings, ids, len(batch))
        pairs = self.add_negatives(pairs, batch)
        share = len(batch) / len(pairs.query)  # the ranks' losses add up to the mean over all pairs
        return share * self.training_settings.objective(pairs, self.contrast(batch), own), len(pairs.query)

    # Hooks of subclasses, besides those of Weights

    def check_batch(self, batch: Batch) -> None:
        """Runs before each step; a subclass may refuse a batch, or choose what trains in this step."""

    def has_contrast(self, batch: Batch) -> bool:
        """True if there is anything to contrast: two pairs on all ranks together, or one and a hard negative."""
        counts = torch.tensor([len(batch), sum(map(len, batch.negatives))], device=self.device)
        pairs, negatives = total(counts).tolist()
        return bool(pairs > 1 or (pairs and negatives))

    def split_cached(self, batch: Batch) -> tuple[list[Encoded], dict[int, Float[Tensor, " dim"]]]:
        """The batch's items, and by row the cached embeddings of items that no trainable parameter affects."""
        return list(batch.items()), {}

    def embed_chunk(self, chunk: Chunk) -> ChunkOutput:
        """The tensors that the loss is computed from."""
        return ChunkOutput(self.embedder(chunk))

    def contrast(self, batch: Batch) -> Contrast:
        """Temperature and settings of the objective for a batch."""
        learned = {} if self.objective_scalars is None else dict(self.objective_scalars.items())
        return self.training_settings.contrast(self.temperature(batch.modality), learned)

    def add_negatives(self, pairs: PairEmbeddings, batch: Batch) -> PairEmbeddings:
        """Returns the pairs with further negatives, from outside the batch; unchanged by default.

        Args:
            pairs: Embedded pairs of all ranks.
            batch: This rank's pairs, encoded.
        """
        return pairs

    def gather_gradients(self) -> None:
        """Runs once the gradients of all chunks are there."""

    def after_step(self) -> None:
        """Runs after each step of the optimizer."""

    def check_length(self, steps: int) -> None:
        """Warns of a run that is too short for its schedule; a subclass may refuse it."""
        if steps <= self.training_settings.warmup_steps:
            log.warning(
                "training.warmup_steps is %d, and the run has %d steps: the learning rate only rises.",
                self.training_settings.warmup_steps,
                steps,
            )

    # Optimizer and resuming: a .ckpt holds what trains; the rest comes from the checkpoint folder

    @override
    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings = self.training_settings
        optimizer = make_optimizer(self.trained().values(), settings)
        steps = planned_steps(self.trainer)
        self.check_length(steps)
        scheduler = LambdaLR(optimizer, lambda step: settings.scale(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = self.trained()
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}
        checkpoint["folder"] = self.provenance.fingerprint
        checkpoint["budgets"], checkpoint["skipped"] = self.budgets.measured, self.guard.skipped
        checkpoint["seen"], checkpoint["best"] = dict(self.seen), self.best
        checkpoint["made_with"] = self.made_with()
        checkpoint["optimizer"] = optimizer_settings(self.training_settings)
        checkpoint["watch"] = self.watch.state_dict() if self.watch is not None else None

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_resumable(checkpoint)
        go_on_with(checkpoint, self.training_settings)
        self.budgets.measured = checkpoint["budgets"]  # other chunks would round otherwise
        self.guard.skipped, self.seen = checkpoint["skipped"], Counter(checkpoint["seen"])
        if self.watch is not None and checkpoint["watch"] is not None:
            self.watch.load_state_dict(checkpoint["watch"])
