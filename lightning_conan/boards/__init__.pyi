from .cache import EmbeddingCache
from .scoring import TaskScores, score_task
from .tasks import RetrievalTask, TaskSettings, read_task

__all__ = ["EmbeddingCache", "RetrievalTask", "TaskScores", "TaskSettings", "read_task", "score_task"]
