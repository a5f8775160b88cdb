from .embed import EmbedData
from .rehearsal import RehearsalData
from .specialist import SpecialistData
from .trace import TraceData

__all__ = ["EmbedData", "RehearsalData", "SpecialistData", "TraceData"]
