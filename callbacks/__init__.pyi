from .compute_count import ComputeCount
from .data_monitor import DataMonitor
from .embedding_parts import EmbeddingParts
from .folder_checkpoint import FolderCheckpoint
from .frozen_backbone import FrozenBackbone
from .projector_drift import ProjectorDrift
from .resumable_checkpoint import ResumableCheckpoint
from .retrieval_table import RetrievalTable
from .run_record import RunRecord
from .score_file import ScoreFile
from .task_vector_noise import TaskVectorNoise
from .wandb_artifacts import WandbArtifacts
from .wandb_run import WandbRun

__all__ = [
    "ComputeCount",
    "DataMonitor",
    "EmbeddingParts",
    "FolderCheckpoint",
    "FrozenBackbone",
    "ProjectorDrift",
    "ResumableCheckpoint",
    "RetrievalTable",
    "RunRecord",
    "ScoreFile",
    "TaskVectorNoise",
    "WandbArtifacts",
    "WandbRun",
]
