"""Optimizers of a stage."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer
from typing_extensions import override

from lightning_conan.training.settings import Training

log = logging.getLogger(__name__)


def make_optimizer(parameters: Iterable[Tensor], settings: Training) -> Optimizer:
    """Makes the optimizer that ``training.optimizer`` names; weight decay goes to matrices only.

    Args:
        parameters: The parameters that train.
        settings: Optimizer, learning rate, betas and weight decay.
    """
    listed = list(parameters)
    matrices, rest = [p for p in listed if p.ndim >= 2], [p for p in listed if p.ndim < 2]
    if settings.optimizer == "muon":
        return MuonAdamW([p for p in matrices if p.ndim == 2], [*[p for p in matrices if p.ndim > 2], *rest], settings)
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=settings.lr, betas=settings.betas, fused=True)


def optimizer_settings(settings: Training) -> dict[str, Any]:
    """Settings that an optimizer's state depends on, and the learning rate."""
    return {name: getattr(settings, name) for name in ("optimizer", "lr", "betas", "weight_decay")}


def go_on_with(checkpoint: dict[str, Any], settings: Training) -> None:
    """Lets a run resume at another learning rate.

    Args:
        checkpoint: The loaded .ckpt; its learning rates are changed in place.
        settings: Settings of the resumed run.

    Raises:
        ValueError: Another setting differs, which the optimizer's state depends on.
    """
    now = optimizer_settings(settings)
    before = checkpoint.get("optimizer", now)  # not in those of earlier versions
    if odd := [name for name in now if name != "lr" and before[name] != now[name]]:
        raise ValueError(
            f"A resumed run must keep its optimizer. It began with training.{odd[0]} {before[odd[0]]}, got {now[odd[0]]}. "
            "Leave it, or start a new run."
        )
    if before["lr"] != now["lr"]:
        ratio = now["lr"] / before["lr"]
        log.warning("training.lr is %g from here on, and was %g", now["lr"], before["lr"])
        for group in (group for state in checkpoint.get("optimizer_states", []) for group in state["param_groups"]):
            group["lr"], group["initial_lr"] = group["lr"] * ratio, now["lr"]
        for state in checkpoint.get("lr_schedulers", []):
            state["base_lrs"] = [now["lr"]] * len(state["base_lrs"])
            state["_last_lr"] = [lr * ratio for lr in state["_last_lr"]]


class MuonAdamW(Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon/) for matrices and AdamW for all other parameters, as one optimizer.

    Muon's updates are orthogonal: each direction of a matrix moves equally fast, however small its gradient is. They are
    scaled to the size of AdamW's (https://arxiv.org/abs/2502.16982).

    Args:
        matrices: Parameters of two dimensions.
        rest: All others.
        settings: Learning rate, weight decay and AdamW's betas.
    """

    def __init__(self, matrices: list[Tensor], rest: list[Tensor], settings: Training) -> None:
        decay, self.parts = settings.weight_decay, list[Optimizer]()
        if matrices:
            self.parts.append(Muon(matrices, settings.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
        if rest:
            self.parts.append(AdamW(rest, settings.lr, settings.betas, weight_decay=0.0, fused=True))
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.state, part.param_groups = self.state, [group]  # loading a checkpoint replaces both
            part.step()
        return loss
