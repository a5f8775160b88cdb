"""Towers: the modules that turn the inputs of a modality into rows in place of its placeholder tokens."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import override

if TYPE_CHECKING:  # files of modalities are imported without torch
    from torch import Tensor, nn

    from lightning_conan.embedder.config import OmniConfig

Inputs = Sequence[Any]
"""Tensors of several media, in the order of their placeholders."""


class Tower(ABC):
    """Encoder and projector of one or several modalities.

    Args:
        name: Name in ``Encoded.media``.
        prefixes: Parameter name prefixes of encoder and projector.
        projector: Parameter name prefixes of the projector.
        owned: Name prefixes of the tensors that one modality's specialist alone trains; empty if several share them.
        entry: Name of the tower's settings in ``OmniConfig.modalities``; empty if every model has the tower.
        called: The rows that it makes, in errors.
        layers: Names of the classes of its layers, each of which is sharded and checkpointed by itself.
    """

    name: str
    prefixes: tuple[str, ...]
    projector: tuple[str, ...]
    owned: tuple[str, ...] = ()
    entry = ""
    called = "rows"
    layers: tuple[str, ...] = ()

    def build(self, config: "OmniConfig") -> "dict[str, nn.Module]":
        """Makes the modules that the model gets for it, by attribute; none where the backbone has them.

        Args:
            config: The model's config.
        """
        return {}

    @abstractmethod
    def token_ids(self, config: "OmniConfig") -> Mapping[str, int]:
        """Ids of the placeholder tokens that its rows replace, by name."""

    @abstractmethod
    def rows(self, model: Any, inputs: Inputs) -> "tuple[Tensor, list[Tensor]]":
        """Computes a row for each placeholder, and features that are added after the first layers (DeepStack), if any.

        Args:
            model: The ``OmniEmbedder``.
            inputs: Its inputs, on the model's device.
        """

    def depth(self, config: "OmniConfig") -> int:
        """Number of the encoder's layers."""
        raise NotImplementedError(f"{type(self).__name__} must define depth")

    def width(self, config: "OmniConfig") -> int:
        """Numbers that enter a layer of the encoder, for each token of the language model."""
        raise NotImplementedError(f"{type(self).__name__} must define width")

    def shrink(self, config: "OmniConfig", depth: int, ids: Iterator[int]) -> None:
        """Gives the encoder few layers and the placeholders new ids, to measure memory with a small vocabulary.

        Args:
            config: The model's config; changed in place.
            depth: Number of layers.
            ids: Free token ids.
        """
        raise NotImplementedError(f"{type(self).__name__} must define shrink")


class EncoderTower(Tower):
    """An encoder and a projector of the modality's own: the modules ``NAME_encoder`` and ``NAME_projector``.

    Its settings stand in ``OmniConfig.modalities[NAME]``: ``encoder`` (a transformers config, as a dictionary),
    ``projector_hidden_size`` and ``token_ids``.

    Args:
        name: Name in ``Encoded.media``, and before ``_encoder`` and ``_projector``.
        layers: Names of the classes of the encoder's layers.
        dtype_of_inputs: True to convert inputs to the encoder's dtype before ``encode``.
    """

    def __init__(self, name: str, layers: tuple[str, ...] = ()) -> None:
        self.name = self.entry = name
        self.called, self.layers = f"{name} frames", layers
        self.projector = (f"{name}_projector.",)
        self.prefixes = self.owned = (f"{name}_encoder.", f"{name}_projector.")

    def settings(self, config: "OmniConfig") -> dict[str, Any]:
        """The tower's settings in a model's config.

        Raises:
            ValueError: The model has no such tower.
        """
        found: dict[str, Any] | None = config.modalities.get(self.entry)
        if found is None:
            raise ValueError(
                f"The model must have a {self.name} encoder, it has {['audio', *config.modalities]}. Add one to its base with "
                "embedder.extend_folder, or leave such items out."
            )
        return found

    def encoder_config(self, config: "OmniConfig") -> Any:
        """The encoder's config, as transformers' class."""
        from lightning_conan.embedder.config import build

        return build(self.settings(config)["encoder"], "")

    @override
    def build(self, config: "OmniConfig") -> "dict[str, nn.Module]":
        """Makes the encoder by ``AutoModel`` and the projector, a two-layer MLP.

        Args:
            config: The model's config.
        """
        import torch
        from transformers import AutoModel

        from lightning_conan.embedder.projector import Projector

        made = self.encoder_config(config)
        encoder = AutoModel.from_config(made, dtype=torch.get_default_dtype())
        projector = Projector(self.encoded_width(config), self.settings(config)["projector_hidden_size"], config.dim)
        return {f"{self.name}_encoder": encoder, f"{self.name}_projector": projector}

    def encoded_width(self, config: "OmniConfig") -> int:
        """Length of a row before the projector."""
        return int(self.encoder_config(config).hidden_size)

    @override
    def token_ids(self, config: "OmniConfig") -> Mapping[str, int]:
        found: dict[str, int] = self.settings(config)["token_ids"]
        return found

    @abstractmethod
    def encode(self, encoder: Any, inputs: Inputs) -> "Tensor":
        """Encodes inputs, and returns their rows before the projector, one input's after the other's.

        The rows of an input must not depend on its neighbours.

        Args:
            encoder: The encoder model.
            inputs: Its inputs.
        """

    def frames(self, model: Any, inputs: Inputs) -> "Tensor":
        """Encodes inputs with a model's encoder.

        Args:
            model: The ``OmniEmbedder``.
            inputs: Its inputs, on the model's device.
        """
        return self.encode(getattr(model, f"{self.name}_encoder"), inputs)

    def project(self, model: Any, frames: "Tensor") -> "Tensor":
        """Projects encoded rows to token embeddings.

        Args:
            model: The ``OmniEmbedder``.
            frames: From ``frames``.
        """
        projected: Tensor = getattr(model, f"{self.name}_projector")(frames)
        return projected

    @override
    def rows(self, model: Any, inputs: Inputs) -> "tuple[Tensor, list[Tensor]]":
        return self.project(model, model.encode_frames(self.name, inputs)), []

    @override
    def depth(self, config: "OmniConfig") -> int:
        return int(self.encoder_config(config).num_hidden_layers)

    @override
    def width(self, config: "OmniConfig") -> int:
        return int(self.encoder_config(config).hidden_size)

    @override
    def shrink(self, config: "OmniConfig", depth: int, ids: Iterator[int]) -> None:
        found = self.settings(config)
        found["encoder"] = {**self.encoder_config(config).to_dict(), "num_hidden_layers": depth}
        found["token_ids"] = {name: next(ids) for name in found["token_ids"]}
