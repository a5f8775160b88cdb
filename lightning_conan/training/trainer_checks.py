"""Options of a Trainer that a stage refuses, each with what to use instead; docs/lightning.md lists them."""

from lightning import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_conan.training.protocols import callbacks_of
from lightning_conan.training.sharding import FSDP2Strategy

PRECISIONS = ("32-true", "bf16-mixed")
CLIP = "Set clip_norm of lightning_conan.training.Training (model.init_args.training.clip_norm)."
BATCH = (
    "Set a larger batch_size (data.init_args.batch_size): chunks of token_budget tokens are in memory at once, and all pairs of "
    "a batch are each other's negatives."
)
OPTIONS = {"gradient_clip_val": (None, CLIP), "gradient_clip_algorithm": (None, CLIP), "accumulate_grad_batches": (1, BATCH)}
"""Options for modules that leave optimizing to Lightning: their default, and ours instead."""
CALLBACKS: dict[type[Callback], str] = {
    WeightAveraging: "Weights are not averaged over steps: a .ckpt holds what trains alone.",
    StochasticWeightAveraging: "Weights are not averaged over steps: a .ckpt holds what trains alone.",
    GradientAccumulationScheduler: f"Gradients are not accumulated over batches. {BATCH}",
    BatchSizeFinder: "Memory grows with training.token_budget, not with the batch, so no batch size is too large. Set "
    "Training(token_budget='auto'), which measures what fits, and choose batch_size by the number of negatives.",
}
"""Callbacks that a stage refuses, and why."""


def check_trainer(trainer: Trainer) -> None:
    """Refuses, before anything is loaded, a Trainer that would train or score a stage wrongly.

    Raises:
        ValueError: An option or callback does not fit; names what to use instead.
    """
    if str(trainer.precision) not in PRECISIONS:  # others cast weights that train, and rotary frequencies
        raise ValueError(f"precision must be {' or '.join(PRECISIONS)}, got {trainer.precision}.")
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FSDP2Strategy):  # others sum no gradients, or not all
        raise ValueError(f"trainer.strategy must be auto, ddp or fsdp2, got {type(strategy).__name__}.")
    for option, (default, remedy) in OPTIONS.items():  # Lightning would advise automatic optimization
        if (value := getattr(trainer, option)) != default:
            raise ValueError(f"trainer.{option} must not be set: stages do that themselves, got {value}. {remedy}")
    for callback in callbacks_of(trainer):
        for kind, reason in CALLBACKS.items():
            if isinstance(callback, kind):
                raise ValueError(f"{reason} Leave {type(callback).__name__} out.")
        if isinstance(callback, LearningRateFinder) and not callback._early_exit:
            raise ValueError(
                "A learning rate is searched before the run whose schedule it scales, not within it. Leave LearningRateFinder "
                "out and call Tuner(trainer).lr_find(stage, ...) before fit."
            )
