"""One model for every modality: config, processor, packing, weights."""

from transformers import AutoConfig, AutoModel

from lightning_conan.embedder.batch import Batch, ItemBatch
from lightning_conan.embedder.blank import blank
from lightning_conan.embedder.checkpoint import (
    STATES,
    Adapter,
    GraftReport,
    Provenance,
    State,
    check_folder,
    export_folder,
    graft_folder,
    load_folder,
    load_processor,
    read_provenance,
    save_adapter_folder,
    save_folder,
)
from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.model import OmniEmbedder
from lightning_conan.embedder.packing import IGNORED, Chunk, Chunks, Encoded, pack, pad
from lightning_conan.embedder.processor import OmniProcessor
from lightning_conan.embedder.processor_config import ProcessorConfig
from lightning_conan.embedder.tiny import tiny_embedder

AutoConfig.register(OmniConfig.model_type, OmniConfig, exist_ok=True)
AutoModel.register(OmniConfig, OmniEmbedder, exist_ok=True)

__all__ = [
    "IGNORED",
    "STATES",
    "Adapter",
    "Batch",
    "Chunk",
    "Chunks",
    "Encoded",
    "GraftReport",
    "ItemBatch",
    "OmniConfig",
    "OmniEmbedder",
    "OmniProcessor",
    "ProcessorConfig",
    "Provenance",
    "State",
    "blank",
    "check_folder",
    "export_folder",
    "graft_folder",
    "load_folder",
    "load_processor",
    "pack",
    "pad",
    "read_provenance",
    "save_adapter_folder",
    "save_folder",
    "tiny_embedder",
]
