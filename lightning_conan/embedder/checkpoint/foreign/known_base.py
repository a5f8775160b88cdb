"""A base to which foreign checkpoints are compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from lightning_conan.embedder.backbones import backbone_of
from lightning_conan.embedder.checkpoint.provenance import read_provenance
from lightning_conan.embedder.checkpoint.tensors import Tensors
from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.processor import own_tokens


@dataclass(frozen=True)
class KnownBase:
    """A base to which foreign checkpoints are compared.

    Args:
        where: Its folder, for messages.
        tensors: Its tensors, by our names.
        config: Config of its backbone.
        vocabulary: Its token ids.
        own: Tokens that only our bases have.
        names: Folders and hub names that an adapter of this base may record.
        fingerprint: Hash of its weights, if it is a checkpoint folder.
    """

    where: Path | str
    tensors: Tensors
    config: PreTrainedConfig
    vocabulary: Mapping[str, int]
    own: frozenset[str]
    names: tuple[str, ...]
    fingerprint: str | None = None

    @classmethod
    def from_folder(cls, folder: Path, tensors: Tensors) -> "KnownBase":
        """Describes a base folder.

        Args:
            folder: The base folder.
            tensors: Its tensors.
        """
        provenance = read_provenance(folder)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        names = tuple(str(provenance.notes[part]) for part in ("backbone",) if part in provenance.notes)
        config = OmniConfig.from_pretrained(folder).backbone_config
        own = frozenset(own_tokens(backbone_of(config.model_type)))
        return cls(folder, tensors, config, tokenizer.get_vocab(), own, (str(folder), *names), provenance.fingerprint)

    @property
    def is_tied(self) -> bool:
        """True if the output head shares the token embeddings."""
        return bool(self.config.tie_word_embeddings)

    @property
    def upstream_vocabulary(self) -> dict[str, int]:
        """Token ids without the tokens that only our bases have."""
        return {token: row for token, row in self.vocabulary.items() if token not in self.own}
