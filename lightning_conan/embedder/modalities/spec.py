"""Description of a modality: how its files are read, how an item holds it, and which parameters it passes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_conan.embedder.modalities.tower import Tower
from lightning_conan.items import Item, Kind, Media

if TYPE_CHECKING:  # files of modalities are imported without torch
    from lightning_conan.embedder.config import OmniConfig
    from lightning_conan.embedder.packing import Encoded


class ModalitySpec(Kind):
    """One modality; a subclass a file. What is said here is what processor, packing, model, fusion, drift and memory read.

    Args:
        name: Name in manifests, recipes and configs.
        suffixes: Suffixes of its files, lower case, without the dot.
        timed: True if an entry of a manifest may name a start and an end in seconds.
        tokens: Special tokens that it brings, by name.
        placeholder: Name of the token whose embeddings its tower's rows replace.
        tower: Encoder and projector of its inputs; several modalities may share one. None for text.
        alpha: Fusion coefficient where a recipe names none; None if a recipe must name one.
        form: Contents in memory that are taken, for errors; empty if there are none beside files.
        golden_name: Name of its file among a folder's golden vectors.
    """

    tokens: Mapping[str, str] = {}
    placeholder = ""
    tower: Tower | None = None
    alpha: float | None = None
    form = ""
    golden_name = ""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Parameter name prefixes of the modules that its pairs pass through."""
        return ("backbone.language_model.", *(self.tower.prefixes if self.tower else ()))

    @property
    def projector(self) -> tuple[str, ...]:
        """Parameter name prefixes of its projector; none for text."""
        return self.tower.projector if self.tower else ()

    @property
    def owned(self) -> tuple[str, ...]:
        """Name prefixes of the tensors that only its specialist trains; fusion copies them from it."""
        return self.tower.owned if self.tower else ()

    @property
    def fresh(self) -> tuple[str, ...]:
        """Parameter name prefixes that a specialist trains without adapters, as they start at random."""
        return self.projector if self.owned else ()

    @property
    def entry(self) -> str:
        """Name of its entry in ``OmniConfig.modalities``; empty if every model has the modality."""
        return self.tower.entry if self.tower else ""

    def takes(self, decoded: Any) -> bool:
        """True for a decoded medium of this modality; a document's page counts as an image."""
        raise NotImplementedError(f"{type(self).__name__} must define takes")

    def add(self, prompt: Any, decoded: Any, processor: Any) -> None:
        """Appends a decoded medium to a prompt: its tensors (``attach``) and its placeholders (``add``).

        Args:
            prompt: The ``PromptBuilder``; extended in place.
            decoded: From ``decode`` or ``read``.
            processor: The ``OmniProcessor``, for its settings.

        Raises:
            ValueError: The medium is too small to encode.
        """
        raise NotImplementedError(f"{type(self).__name__} must define add")

    def hashed(self, decoded: Any) -> "tuple[str, Any]":
        """Returns what identifies a decoded medium: a text of its kind and shape, and a tensor with its contents."""
        return f"{tuple(decoded.shape)}:{decoded.dtype}:None", decoded

    def read(self, content: Any, reader: Any) -> Any:
        """Decodes a medium in memory, as sentence-transformers hands them over; by default only one that is decoded already.

        Args:
            content: The medium.
            reader: The ``ArrayReader``, for its settings.

        Raises:
            ValueError: Another type.
        """
        if self.takes(content):
            return content
        raise ValueError(f"{self.form or f'A {self.name} must be a path'}, got {content!r:.80}.")

    def token_id(self, config: "OmniConfig") -> int:
        """Id of the placeholder token.

        Raises:
            ValueError: Text, which has none, or a model without the modality.
        """
        if self.tower is None:
            raise ValueError(f"A projector makes the tokens of media, got {self.name!r}.")
        return self.tower.token_ids(config)[self.placeholder]

    def dummy(self, config: "OmniConfig", tokens: int) -> "Encoded":
        """Makes a dummy item.

        Args:
            config: Token ids and sizes of the model.
            tokens: Number of tokens of the medium, about.
        """
        raise NotImplementedError(f"{type(self).__name__} must define dummy")

    def draw_golden(self) -> bytes:
        """Draws a small file, the same everywhere: its embedding is kept with a folder's weights."""
        raise NotImplementedError(f"{type(self).__name__} must define draw_golden")

    def golden_item(self, files: Mapping[str, bytes]) -> Item:
        """Makes the item of its golden vector.

        Args:
            files: Contents by name; that of ``golden_name`` is from ``draw_golden``.
        """
        return Item((Media(self.name, files[self.golden_name], self.golden_name),))
