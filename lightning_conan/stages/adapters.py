"""LoRA by peft, injected in place and merged in place."""

from torch import nn

from lightning_conan.embedder import OmniEmbedder
from lightning_conan.stages.settings import Lora


class Adapters:
    """Adapters on an embedder's linear layers.

    Not a module: peft changes the embedder in place, which stays the only owner of its parameters.

    Args:
        embedder: Its linear layers get adapters, in place.
        lora: Rank, scale and dropout.
        adapted: Beginnings of the names of modules that get adapters.
        full: Beginnings of the names of parameters that train fully, and so need none.

    Raises:
        ValueError: No linear layer starts with ``adapted``.
    """

    def __init__(self, embedder: OmniEmbedder, lora: Lora, adapted: tuple[str, ...], full: tuple[str, ...]) -> None:
        from peft import LoraConfig, LoraModel  # takes a second to import, and most commands do without

        names = [
            name
            for name, module in embedder.named_modules()
            if isinstance(module, nn.Linear) and name.startswith(adapted) and not (full and name.startswith(full))
        ]
        if not names:
            raise ValueError(f"Adapters need linear layers that start with {adapted}, got none.")
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names)
        trained = [parameter for parameter in embedder.parameters() if parameter.requires_grad]
        self.model = LoraModel(embedder, {"default": config}, "default")
        for parameter in trained:  # peft freezes everything but its adapters
            parameter.requires_grad_(True)

    def merge(self) -> None:
        """Adds the adapters to the dense weights and removes them."""
        self.model.merge_and_unload()
