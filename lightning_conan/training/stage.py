"""What all stages share: a folder in, contrastive steps, retrieval scores, a folder out."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from lightning_conan.embedder import (
    Batch,
    Chunk,
    Encoded,
    blank,
    pack,
    pad,
)
from lightning_conan.items import Modality
from lightning_conan.objectives import Contrast, PairEmbeddings, cached_backward, one_pass_backward, symmetric_info_nce
from lightning_conan.reasoning import Decoding
from lightning_conan.retrieval.metric import hash_ids
from lightning_conan.training.collectives import (
    gather_pairs,
    in_step,
    leave_gradients_alone,
    most,
    sum_gradients,
    total,
    world_size,
)
from lightning_conan.training.memory import fitting_budget, trained_bytes
from lightning_conan.training.negatives import NegativeWatch
from lightning_conan.training.optimizers import go_on_with, make_optimizer, optimizer_settings
from lightning_conan.training.settings import LEAST_TEMPERATURE, TOWERS, Training
from lightning_conan.training.sharding import clip_gradients, is_sharded, sync_gradients
from lightning_conan.training.weights import Weights

log = logging.getLogger(__name__)


class Stage(Weights):
    """A checkpoint folder, scored as it is; subclasses say what trains.

    Args:
        folder: The checkpoint folder to start from.
        training: How it trains.
        decoding: How a model that reasons writes about queries, when it is scored.
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
        self.budgets: dict[str, int] = {}
        self.skipped = self.idle = 0
        self.seen: Counter[str] = Counter()
        self.best: dict[str, float] = {}
        self.watch = NegativeWatch(training.dynamic_negatives) if training.dynamic_negatives else None
        if training.learn_temperature:
            start = {name: torch.tensor(training.temperature_of(name)).log() for name in TOWERS}
            self.log_temperatures = nn.ParameterDict({name: nn.Parameter(value) for name, value in start.items()})

    @override
    def notes(self) -> dict[str, Any]:
        dims = self.training_settings.matryoshka_dims
        notes: dict[str, Any] = {"steps": self.global_step, "seen": dict(sorted(self.seen.items()))}
        if self.best:
            notes["best"] = self.best
        if dims:
            notes["matryoshka_dims"] = sorted(dims, reverse=True)
        if self.training_settings.learn_temperature:
            notes["temperatures"] = {name: float(torch.as_tensor(self.temperature(name)).detach()) for name in TOWERS}
        return notes

    def temperature(self, modality: Modality) -> float | Tensor:
        """What divides a modality's scores."""
        if self.training_settings.learn_temperature:
            learned: Tensor = self.log_temperatures[modality].exp()
            return learned
        return self.training_settings.temperature_of(modality)

    def budget(self, modality: Modality) -> int:
        """Padded tokens of a chunk; ``auto`` is measured once a modality, and all ranks take the smallest."""
        settled = self.training_settings.token_budget
        if settled != "auto":
            return settled
        if modality not in self.budgets:
            later = [parameter for parameter in self.trained().values() if not parameter.requires_grad]
            for parameter in later:  # it will train under this budget too
                parameter.requires_grad_()
            moments = 0 if self.optimizers().state else 2 * trained_bytes(self.embedder)  # type: ignore[union-attr]
            found = fitting_budget(self.embedder, self.embed_chunk, modality, self.device, moments)
            for parameter in later:
                parameter.requires_grad_(False)
            self.budgets[modality] = -most(-found, self.device)
            log.info("token_budget: %d for %s", self.budgets[modality], modality)
        return self.budgets[modality]

    # Training

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        leave_gradients_alone(self.trainer.strategy.model)  # Lightning turns DDP's sums on again after every step
        if not self.teaches(batch):
            self.idle_step(batch)
            return
        self.idle = 0
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR), "configure_optimizers makes one scheduler"
        assert isinstance(optimizer, LightningOptimizer), "and one optimizer"
        if self.watch is not None:
            batch = self.watch.choose(batch)
        optimizer.zero_grad()
        items, known = self.inputs(batch)
        live = [row for row in range(len(items)) if row not in known]
        chunks, fits = self.chunks_of([items[row] for row in live], batch.modality)
        torch.manual_seed(hash((self.training_settings.seed, self.global_step, self.global_rank)) % 2**63)

        def loss(embeddings: Tensor) -> Tensor:
            if known:
                rows = torch.tensor([*live, *known], device=self.device).argsort()
                embeddings = torch.cat([embeddings, torch.stack([*known.values()]).to(embeddings)])[rows]
            with torch.autocast(self.device.type, enabled=False):  # bfloat16's two or three digits are too few for scores
                return self.checked(self.loss(batch, embeddings.float()), batch)

        def backward(value: Tensor, last: bool) -> None:
            sync_gradients(self.embedder, last)
            self.manual_backward(value)

        if fits:
            value = one_pass_backward(self.embed_chunk, chunks, loss, backward, self.device)
        else:
            learns = self.embedder.learns_from
            value = cached_backward(self.embed_chunk, chunks, len(live), loss, backward, self.device, learns)
        self.gather_gradients()
        sum_gradients(self.trained().values())
        value = total(value)
        norm = self.clipped_norm(batch)
        if not bool(torch.isfinite(norm)):  # counted by clipped_norm; a step of zero keeps Lightning's count and ours together
            optimizer.zero_grad()
        optimizer.step()
        self.keep_temperatures()
        self.after_step()
        scheduler.step()
        self.log("train/loss", value, prog_bar=True)
        self.log(f"train/loss/{batch.modality}", value)
        self.log_dict({f"seen/{name}": float(count) for name, count in self.seen.items()})
        self.log_dict({"train/gradient_norm": norm, "train/lr": scheduler.get_last_lr()[0], "train/skipped_steps": self.skipped})
        if self.training_settings.learn_temperature:
            self.log(f"train/temperature/{batch.modality}", self.temperature(batch.modality))

    def chunks_of(self, items: list[Encoded], modality: Modality) -> tuple[Sequence[Chunk], bool]:
        """Items in chunks under the budget, and whether all chunks' graphs fit into memory together."""
        budget = self.budget(modality)
        chunks: Sequence[Chunk]
        if items:
            chunks = packed = pack(items, budget)
            fits = max(packed.tokens, sum(item.heard for item in items)) <= budget
        else:  # a rank whose share is broken takes part with a row that counts for nothing: the others wait for it
            chunks, fits = [pad([blank(self.embedder.config, modality)], [])], True
        if world_size() > 1 and not is_sharded(self.embedder):
            kinds = {(bool(item.mels) or item.frames is not None, bool(item.pixels)): item for item in items}
            learns = any(map(self.embedder.learns_from, kinds.values()))
            if most(int(learns), self.device) and not learns:  # others learn from this rank's items, through what is gathered
                chunks = [*chunks, pad([blank(self.embedder.config, modality)], [])]
        if is_sharded(self.embedder):  # several chunks at once would gather weights in another order than one by one
            return in_step(chunks, items, self.embedder.config, self.device), False
        return chunks, fits

    def teaches(self, batch: Batch) -> bool:
        """Whether there is anything to tell apart: two pairs on all ranks together, or one and a hard negative."""
        counts = torch.tensor([len(batch), sum(map(len, batch.negatives))], device=self.device)
        pairs, negatives = total(counts).tolist()
        return bool(pairs > 1 or (pairs and negatives))

    def idle_step(self, batch: Batch) -> None:
        """Nothing to do: all that the ranks were to get is broken, which the data module has listed, or a single pair.

        Raises:
            ValueError: So it was for as many batches as an epoch has.
        """
        self.idle += 1
        if self.idle >= self.trainer.num_training_batches:
            raise ValueError(
                f"Training needs usable samples, two of them in a batch, or one and a hard negative, got none in {self.idle} "
                f"batches. Raise data.init_args.batch_size, or mend what is broken: {batch.faults[:1]}."
            )

    def embed_chunk(self, chunk: Chunk) -> Float[Tensor, "rows _"]:
        """What the loss is computed from: a row for each item."""
        found: Tensor = self.embedder(chunk)
        return found

    def inputs(self, batch: Batch) -> tuple[list[Encoded], dict[int, Float[Tensor, " dim"]]]:
        """The batch's items, and the embeddings of those that nothing which trains takes part in, by row."""
        return list(batch.items()), {}

    def gather_gradients(self) -> None:
        """What a subclass does once all chunks' gradients are there."""

    @torch.no_grad()
    def keep_temperatures(self) -> None:
        """Puts learned temperatures back that a step took too low: limited in the loss they would get no gradient any more."""
        if self.training_settings.learn_temperature:
            for value in self.log_temperatures.values():
                value.clamp_(min=math.log(LEAST_TEMPERATURE))

    def after_step(self) -> None:
        """What a subclass does once the optimizer has stepped."""

    def loss(self, batch: Batch, embeddings: Float[Tensor, "items _"]) -> Float[Tensor, ""]:
        """This rank's share of the loss of all ranks' pairs, from ``embed_chunk`` of ``batch.items()``."""
        if self.watch is not None:
            self.watch.note(batch, embeddings.detach())
        ids = hash_ids(batch.hashes()).to(embeddings.device)
        pairs, own = gather_pairs(embeddings, ids, len(batch))
        pairs = self.enlarged(pairs, batch)
        self.seen[f"{batch.modality}/{batch.task}"] += len(pairs.query)
        share = len(batch) / len(pairs.query)  # the ranks' losses add up to the mean over all pairs
        return share * symmetric_info_nce(pairs, self.contrast(batch), own)

    def contrast(self, batch: Batch) -> Contrast:
        """What counts as a negative, and how much."""
        return self.training_settings.contrast(self.temperature(batch.modality))

    def enlarged(self, pairs: PairEmbeddings, batch: Batch) -> PairEmbeddings:
        """A subclass may add negatives that no batch holds."""
        return pairs

    def checked(self, value: Tensor, batch: Batch, what: str = "loss") -> Tensor:
        """The value, if it is finite: Lightning itself would go on with NaN weights."""
        everywhere = total(value.detach())  # if one rank stopped alone, the others would wait for it
        if not bool(torch.isfinite(everywhere)):
            odd, samples = (everywhere, "of other ranks") if bool(torch.isfinite(value)) else (value, str(batch.keys))
            raise ValueError(
                f"The {what} must be finite, got {odd.item()} at step {self.global_step} of task {batch.task!r}. "
                f"Lower training.lr or look at the samples {samples}."
            )
        return value

    def clipped_norm(self, batch: Batch) -> Tensor:
        """Clips the gradients and returns their norm before, the same on every rank; counts it when it is not finite."""
        norm = clip_gradients(self.trained().values(), self.training_settings.clip_norm)
        if not bool(torch.isfinite(norm)):
            self.skipped += 1
            if self.skipped > self.training_settings.max_skipped_steps:
                self.checked(norm, batch, "gradient")
        return norm

    @override
    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings = self.training_settings
        optimizer = make_optimizer(self.trained().values(), settings)
        if not math.isfinite(steps := self.trainer.estimated_stepping_batches):
            raise ValueError(
                "The learning rate falls over the run, whose length must be known. Set trainer.max_steps or max_epochs."
            )
        self.check_length(int(steps))
        scheduler = LambdaLR(optimizer, lambda step: settings.scale(step, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def check_length(self, steps: int) -> None:
        """Looks whether the run is long enough for what it is to do; a subclass may refuse."""
        if steps <= self.training_settings.warmup_steps:
            log.warning(
                "training.warmup_steps is %d, and the run has %d steps: the learning rate only rises.",
                self.training_settings.warmup_steps,
                steps,
            )

    # Resuming: a .ckpt holds what trains; the rest comes from the folder

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = self.trained()
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}
        checkpoint["folder"] = self.provenance.fingerprint
        checkpoint["budgets"], checkpoint["skipped"] = self.budgets, self.skipped
        checkpoint["seen"], checkpoint["best"] = dict(self.seen), self.best
        checkpoint["made_with"] = self.made_with()
        checkpoint["optimizer"] = optimizer_settings(self.training_settings)
        checkpoint["watch"] = self.watch.state_dict() if self.watch is not None else None

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_resumable(checkpoint)
        go_on_with(checkpoint, self.training_settings)
        self.budgets, self.skipped = checkpoint["budgets"], checkpoint["skipped"]  # other chunks would round otherwise
        self.seen = Counter(checkpoint["seen"])
        if self.watch is not None and checkpoint["watch"] is not None:
            self.watch.load_state_dict(checkpoint["watch"])
