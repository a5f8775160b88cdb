"""FSDP2: weights sharded over the ranks, gathered layer by layer when they are needed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed import get_rank, is_initialized
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from typing_extensions import override

from lightning_conan.embedder import OmniEmbedder
from lightning_conan.training.protocols import trained_of

NAME = "fsdp2"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(embedder: OmniEmbedder, mesh: DeviceMesh) -> None:
    """Shards every layer's weights, and the remaining ones, over the ranks of a mesh; gradients become sums over the ranks.

    Args:
        embedder: Changed in place.
        mesh: A device mesh of one dimension, the ranks.
    """
    for module in [*embedder.layers(), embedder]:
        fully_shard(module, mesh=mesh)
    for method in ("read_prefix", "encode_frames"):  # called without forward, they have to gather weights too
        register_fsdp_forward_method(embedder, method)
    for part in sharded_modules(embedder):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def is_sharded(module: nn.Module) -> bool:
    """True if the module's weights lie in shards."""
    return isinstance(module, FSDPModule)


def sharded_modules(module: nn.Module) -> list[FSDPModule]:
    """The modules that gather their weights each by itself."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def sync_gradients(module: nn.Module, sync: bool) -> None:
    """Sets whether the next backward pass sums gradients over the ranks or accumulates them on each rank.

    Args:
        module: Unchanged if it is not sharded.
        sync: True to sum.
    """
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(sync)


def gather_weights(module: nn.Module) -> None:
    """Gathers the whole weights on every rank until ``share_weights``, so that ranks may run different code in between."""
    if isinstance(module, FSDPModule):
        module._get_fsdp_state()._lazy_init()  # else the first layer that runs alone would take itself for the root
    # Lightning scores in inference mode, and what is first gathered there could never train.
    with torch.inference_mode(False), torch.no_grad():
        for part in sharded_modules(module):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()


def share_weights(module: nn.Module) -> None:
    """Ends ``gather_weights``."""
    for part in sharded_modules(module):
        part.reshard()
        part.set_reshard_after_forward(id(part) != id(module), recurse=False)


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """``gather_weights`` for the length of a block."""
    gather_weights(module)
    try:
        yield
    finally:
        share_weights(module)


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor that may be sharded or partial as a plain one; a collective operation."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gathers tensors that may be sharded into the first rank's host memory; other ranks get none. A collective operation."""
    found = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if not (is_initialized() and get_rank()):
            found[name] = gathered.cpu()
    return found


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Float[Tensor, ""]:
    """Scales gradients, in shards or not, down to a norm; returns the norm before, the same on every rank.

    Args:
        parameters: Those without gradients are skipped.
        limit: The largest L2 norm of all gradients together.
    """
    listed = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in listed if parameter.grad is not None]
    halves = [[gradient for gradient in gradients if isinstance(gradient, DTensor) == kind] for kind in (True, False)]
    norm: Tensor = torch.stack([whole(get_total_norm(half)).to(gradients[0].device) for half in halves if half]).norm()
    clip_grads_with_norm_(listed, limit, norm)
    return norm


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all ranks, with checkpoints that any number of ranks and any strategy can read.

    ``--trainer.strategy fsdp2`` names it. A .ckpt is one file in the form that a single process writes: what trains and its
    optimizer state, whole. (Lightning's own would be a folder for each, or take the frozen weights along.)
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        return whole_on_first(trained_of(self.lightning_module))  # some may be frozen now

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        set_model_state_dict(self.model, checkpoint["state_dict"], options=StateDictOptions(full_state_dict=True, strict=False))

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        assert self.model is not None
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        named: Any = get_optimizer_state_dict(self.model, plain, options=WHOLE)
        numbers: dict[Any, int] = {}
        for group in named.get("param_groups", []):  # only rank 0 gets any
            for name in group["params"]:
                numbers[name] = len(numbers)
        groups = [group | {"params": [numbers[name] for name in group["params"]]} for group in named.get("param_groups", [])]
        return {"state": {numbers[name]: state for name, state in named.get("state", {}).items()}, "param_groups": groups}

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.model is not None
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for optimizer, found in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
            state = {order[number]: value for number, value in found["state"].items()}
            groups = [group | {"params": [order[number] for number in group["params"]]} for group in found["param_groups"]]
            named: Any = {"state": state, "param_groups": groups}
            set_optimizer_state_dict(self.model, optimizer, named, options=StateDictOptions(full_state_dict=True, strict=False))
            for parameter in [parameter for parameter in optimizer.state if names[id(parameter)] not in state]:
                del optimizer.state[parameter]  # torch makes one for what was never stepped

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


StrategyRegistry.register(NAME, FSDP2Strategy, description="Weights in shards over all ranks (FSDP2)", override=True)
