"""Freezes all but a projector, and proves at the end that nothing else moved."""

import hashlib
import logging
from collections.abc import Iterator

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from typing_extensions import override

from lightning_conan.embedder import OmniEmbedder
from lightning_conan.training.protocols import embedder_of

log = logging.getLogger(__name__)


class FrozenBackbone(Callback):
    """Freezes everything but ``trains``, keeps it in eval mode, and checks at the end that it is unchanged bit for bit.

    Args:
        trains: Parameter name prefixes, within the embedder, of what may move.

    Raises:
        ValueError: No parameter's name starts with one of ``trains``.
        RuntimeError: A frozen tensor changed, or no other did.

    Example:
        >>> from lightning_conan.embedder import tiny_embedder
        >>> model, _ = tiny_embedder()
        >>> frozen = dict(FrozenBackbone(("audio_projector.",)).frozen(model))
        >>> sorted({name.split(".")[0] for name in frozen})
        ['audio_encoder', 'backbone']
    """

    def __init__(self, trains: tuple[str, ...] = ("audio_projector.",)) -> None:
        self.trains = tuple(trains)
        self.before: dict[str, str] = {}

    def frozen(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers that must not move."""
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not name.startswith(self.trains):
                yield name, tensor

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = embedder_of(pl_module)
        names = [name for name, _ in module.named_parameters()]
        if not any(name.startswith(self.trains) for name in names):
            raise ValueError(
                f"FrozenBackbone(trains={self.trains}) matches none of {len(names)} parameters. They look like {names[0]!r}."
            )
        for name, parameter in module.named_parameters():
            if not name.startswith(self.trains):
                parameter.requires_grad_(False)
        self.before = checksums(module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        module = embedder_of(pl_module)
        for name, child in module.named_children():
            child.train(f"{name}.".startswith(self.trains))
        if isinstance(module, OmniEmbedder):
            module.keep_checkpointing()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = trainer.global_step  # a run that is resumed may have none left
        frozen = {id(tensor) for _, tensor in self.frozen(embedder_of(pl_module))}
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if held := sum(id(parameter) in frozen for group in groups for parameter in group["params"]):
            raise RuntimeError(
                f"The optimizer must hold no frozen parameter, got {held}: {type(pl_module).__name__} trains more."
            )

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = checksums(embedder_of(pl_module))
        moved = {name for name, digest in self.before.items() if digest != now[name]}
        if odd := sorted(name for name in moved if not name.startswith(self.trains)):
            raise RuntimeError(f"{len(odd)} frozen tensors moved, such as {odd[0]!r}: the folder is not written.")
        if not moved and (steps := trainer.global_step - self.start):
            raise RuntimeError(f"None of {self.trains} moved in {steps} steps: nothing was trained.")
        log.info("frozen: %d tensors unchanged, bit for bit; trained: %d", len(self.before) - len(moved), len(moved))


def checksums(module: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and buffer."""
    return {name: checksum(tensor) for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def checksum(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes; of this rank's share of a sharded one."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    flat = local.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()
