from .compute_count import ComputeCount
from .data_monitor import DataMonitor
from .embedding_parts import EmbeddingParts
from .folder_checkpoint import FolderCheckpoint
from .frozen_backbone import FrozenBackbone
from .projector_drift import ProjectorDrift
from .resumable_checkpoint import ResumableCheckpoint
from .score_file import ScoreFile

__all__ = [
    "ComputeCount",
    "DataMonitor",
    "EmbeddingParts",
    "FolderCheckpoint",
    "FrozenBackbone",
    "ProjectorDrift",
    "ResumableCheckpoint",
    "ScoreFile",
]
