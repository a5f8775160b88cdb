"""Stops a run that cannot go well: a loss or gradient that is not finite, or no usable batch in an epoch."""

import json
import math

import torch
from torch import Tensor

from lightning_conan.embedder import Batch, MixedBatch
from lightning_conan.training.collectives import total

MAX_IDLE = 1000
"""Idle batches in a row that are an error where an epoch's length is unknown."""


class StepGuard:
    """Counts skipped steps and idle batches, and raises when there are too many.

    Args:
        max_skipped: ``training.max_skipped_steps``.
    """

    def __init__(self, max_skipped: int) -> None:
        self.max_skipped = max_skipped
        self.skipped = self.idle = 0

    def check_finite(self, value: Tensor, batch: Batch | MixedBatch, step: int, what: str = "loss") -> None:
        """Raises if the value is not finite on every rank: Lightning itself would continue with NaN weights.

        Args:
            value: This rank's loss, or the gradient's norm; a scalar.
            batch: Named by the error.
            step: Number of steps so far, named by the error.
            what: Name of the value in the message.

        Raises:
            ValueError: It is NaN or infinite, here or on another rank.
        """
        everywhere = total(value.detach())  # if one rank stopped alone, the others would wait for it
        if not bool(torch.isfinite(everywhere)):
            odd, samples = (everywhere, "of other ranks") if bool(torch.isfinite(value)) else (value, str(batch.keys))
            raise ValueError(
                f"The {what} must be finite, got {odd.item()} at step {step} of task {batch.task!r}. "
                f"Lower training.lr or look at the samples {samples}."
            )

    def skips(self, norm: Tensor, batch: Batch | MixedBatch, step: int) -> bool:
        """True if the step must be skipped, because its gradient is not finite.

        Args:
            norm: The gradient's norm, the same on every rank.
            batch: Named by the error.
            step: Number of steps so far, named by the error.

        Raises:
            ValueError: More steps than allowed were skipped.
        """
        if bool(torch.isfinite(norm)):
            return False
        self.skipped += 1
        if self.skipped > self.max_skipped:
            self.check_finite(norm, batch, step, "gradient")
        return True

    def count_idle(self, batch: Batch | MixedBatch, batches: float) -> None:
        """Counts a batch without anything to contrast: every sample is invalid, or there is a single pair.

        Args:
            batch: Its first fault is named by the error.
            batches: Batches of an epoch, infinite if unknown: so many idle ones in a row are an error.

        Raises:
            ValueError: So many in a row were idle.
        """
        self.idle += 1
        if self.idle >= (MAX_IDLE if math.isinf(batches) else batches):
            fault = next((f": {said(fault)}" for fault in batch.faults), "")
            raise ValueError(
                f"A batch needs two usable pairs, or one and a hard negative, got none in {self.idle} batches{fault}. "
                f"{'Mend the data, or raise' if fault else 'Raise'} data.init_args.batch_size."
            )


def said(fault: str) -> str:
    """Reason and place of a fault, a line of ``quarantine.jsonl``."""
    found = json.loads(fault)
    return f"{found['reason']} ({found['key']!r} of {found['where']})"
