from .fused import Fused
from .joint import Joint
from .pretraining import Pretraining
from .recovery import ProjectorRecovery
from .rehearsal import Rehearsal
from .specialist import Specialist
from .trace import Trace

__all__ = ["Fused", "Joint", "Pretraining", "ProjectorRecovery", "Rehearsal", "Specialist", "Trace"]
