from .fused import Fused
from .pretraining import Pretraining
from .recovery import ProjectorRecovery
from .rehearsal import Rehearsal
from .settings import DynamicNegatives, Lora, Training
from .specialist import Specialist
from .stage import Stage
from .trace import Trace

__all__ = [
    "DynamicNegatives",
    "Fused",
    "Lora",
    "Pretraining",
    "ProjectorRecovery",
    "Rehearsal",
    "Specialist",
    "Stage",
    "Trace",
    "Training",
]
