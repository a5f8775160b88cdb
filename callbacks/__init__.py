"""What watches over a run: frozen parts, folders, checkpoints, scores, embeddings."""

from callbacks.data_monitor import DataMonitor
from callbacks.embedding_parts import EmbeddingParts
from callbacks.folder_checkpoint import FolderCheckpoint
from callbacks.frozen_backbone import FrozenBackbone
from callbacks.projector_drift import ProjectorDrift
from callbacks.resumable_checkpoint import ResumableCheckpoint
from callbacks.score_file import ScoreFile

__all__ = [
    "DataMonitor",
    "EmbeddingParts",
    "FolderCheckpoint",
    "FrozenBackbone",
    "ProjectorDrift",
    "ResumableCheckpoint",
    "ScoreFile",
]
