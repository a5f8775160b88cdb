"""LoRA by peft, injected in place and merged in place."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_conan.embedder import Adapter, OmniEmbedder
from lightning_conan.training.settings import Lora


class Adapters:
    """Adapters on an embedder's linear layers.

    Not a module: peft changes the embedder in place, which stays the only owner of its parameters.

    Args:
        embedder: Its linear layers get adapters, in place.
        lora: Rank, scale and dropout.
        lora_prefixes: Name prefixes of modules whose linear layers get adapters.
        trainable_prefixes: Name prefixes of parameters that train fully, and so need none.

    Raises:
        ValueError: No linear layer's name starts with one of ``lora_prefixes``.
    """

    def __init__(
        self, embedder: OmniEmbedder, lora: Lora, lora_prefixes: tuple[str, ...], trainable_prefixes: tuple[str, ...]
    ) -> None:
        from peft import LoraConfig, LoraModel  # takes a second to import, and most commands do without
        from peft.tuners.lora import LoraLayer

        names = [
            name
            for name, module in embedder.named_modules()
            if isinstance(module, nn.Linear) and name.startswith(lora_prefixes) and not name.startswith(trainable_prefixes)
        ]
        if not names:
            raise ValueError(f"Adapters need linear layers that start with {lora_prefixes}, got none.")
        self.config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names)
        trained = [parameter for parameter in embedder.parameters() if parameter.requires_grad]
        self.model = LoraModel(embedder, {"default": self.config}, "default")
        for parameter in trained:  # peft freezes everything but its adapters
            parameter.requires_grad_(True)
        adapted_layers: list[Any] = [layer for layer in embedder.modules() if isinstance(layer, LoraLayer)]
        for layer in adapted_layers:
            layer._cast_input_dtype = cast_input
            layer.lora_variant["default"] = OneProduct

    def merge(self, dtype: torch.dtype) -> tuple[float, float]:
        """Adds the adapters to the dense weights and removes them.

        Args:
            dtype: Only used to measure the rounding error; the weights keep their dtype.

        Returns:
            Squared norms of the error of rounding the sums to ``dtype``, and of the update.
        """
        from peft.tuners.lora import LoraLayer

        lost, change = 0.0, 0.0
        layers: list[Any] = [layer for layer in self.model.modules() if isinstance(layer, LoraLayer)]
        for layer in layers:
            layer.lora_variant.clear()  # peft's own way of merging is the right one
            delta = layer.get_delta_weight("default").detach().float()
            exact = layer.get_base_layer().weight.detach().float() + delta
            lost += float((exact - exact.to(dtype).float()).square().sum())
            change += float(delta.square().sum())
        self.model.merge_and_unload()
        return lost, change

    def export(self, embedder: OmniEmbedder, base: Path, trainable_prefixes: tuple[str, ...]) -> Adapter:
        """Collects the trained parameters as an adapter on ``base``.

        Args:
            embedder: The adapted model.
            base: The checkpoint folder that the adapter belongs to.
            trainable_prefixes: Name prefixes of parameters that were trained fully; each must be a whole module.

        Raises:
            ValueError: A prefix is no whole module, which adapter folders cannot express.
        """
        check_modules(embedder, trainable_prefixes)
        named = dict(embedder.named_parameters())
        factors = {name.replace(".default.", "."): tensor for name, tensor in named.items() if ".lora_" in name}
        whole = {name: tensor for name, tensor in named.items() if name.startswith(trainable_prefixes)}
        config = self.config.to_dict() | {"base_model_name_or_path": str(base.resolve())}
        return Adapter(factors, whole, [name.removesuffix(".") for name in trainable_prefixes], config)


def check_modules(embedder: OmniEmbedder, trainable_prefixes: tuple[str, ...]) -> None:
    """Refuses fully trained parameters that are no whole modules, since adapter folders cannot express them.

    Args:
        embedder: Its module names are checked against.
        trainable_prefixes: Name prefixes of parameters that train fully; a dot at the end is ignored.

    Raises:
        ValueError: A prefix is no module's name.
    """
    modules = {name for name, _ in embedder.named_modules()}
    if odd := [name for name in trainable_prefixes if name.removesuffix(".") not in modules]:
        raise ValueError(f"An adapter folder takes whole modules besides LoRA, got {odd[0]!r}. Write a dense folder instead.")


class OneProduct:
    """LoRA's forward pass with fewer wide tensors: it scales the rank-sized product, and ``addmm`` adds the second one in place.

    peft's own makes a tensor of the output's width each for the product, its scaled copy and the sum, and again in the
    backward pass.
    """

    @staticmethod
    def forward(layer: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:  # noqa: ARG004
        """``result + scaling * B(A(dropout(x)))``, as a peft ``LoraVariant`` gives it.

        Args:
            layer: peft's layer.
            active_adapter: The adapter's name.
            x: The input, (*, in).
            result: The layer's output without the adapter, (*, out).
            kwargs: Unused; other variants take some.
        """
        narrow = layer.lora_A[active_adapter](layer.lora_dropout[active_adapter](x)) * layer.scaling[active_adapter]
        second = layer.lora_B[active_adapter].weight
        if not torch.is_autocast_enabled(x.device.type):
            result = result.to(narrow.dtype)
        return torch.addmm(result.reshape(-1, len(second)), narrow.reshape(-1, second.shape[1]), second.mT).view(result.shape)


def cast_input(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Casts an adapter's input to its weights' dtype, but not under autocast, which casts by itself.

    peft's own way would widen and narrow the input under autocast, and keep a copy for each adapter.

    Args:
        value: The input; None is returned unchanged.
        dtype: Of the adapter's weights.
    """
    return value if value is None or torch.is_autocast_enabled(value.device.type) else value.to(dtype)
