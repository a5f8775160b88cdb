from .batch import Batch, ItemBatch, MixedBatch
from .checkpoint import (
    STATES,
    Adapter,
    FolderSummary,
    GraftReport,
    Provenance,
    State,
    check_folder,
    describe_folder,
    export_folder,
    extend_folder,
    foreign_provenance,
    graft_folder,
    is_foreign,
    load_folder,
    load_processor,
    read_provenance,
    save_adapter_folder,
    save_folder,
)
from .config import OmniConfig
from .dummy import blank
from .modalities import EncoderTower, ModalitySpec, register_modality
from .model import OmniEmbedder
from .output import ChunkOutput
from .packing import IGNORED, Chunk, Chunks, Encoded, pack, pad
from .processor import OmniProcessor
from .processor_config import ProcessorConfig
from .tiny import tiny_embedder

__all__ = [
    "IGNORED",
    "STATES",
    "Adapter",
    "Batch",
    "Chunk",
    "ChunkOutput",
    "Chunks",
    "Encoded",
    "EncoderTower",
    "FolderSummary",
    "GraftReport",
    "ItemBatch",
    "MixedBatch",
    "ModalitySpec",
    "OmniConfig",
    "OmniEmbedder",
    "OmniProcessor",
    "ProcessorConfig",
    "Provenance",
    "State",
    "blank",
    "check_folder",
    "describe_folder",
    "export_folder",
    "extend_folder",
    "foreign_provenance",
    "graft_folder",
    "is_foreign",
    "load_folder",
    "load_processor",
    "pack",
    "pad",
    "read_provenance",
    "register_modality",
    "save_adapter_folder",
    "save_folder",
    "tiny_embedder",
]
