"""What watches over a run: frozen parts, folders, checkpoints, scores."""

from callbacks.folder_checkpoint import FolderCheckpoint
from callbacks.frozen_backbone import FrozenBackbone
from callbacks.resumable_checkpoint import ResumableCheckpoint
from callbacks.score_file import ScoreFile

__all__ = ["FolderCheckpoint", "FrozenBackbone", "ResumableCheckpoint", "ScoreFile"]
