from .embed import EmbedData
from .loading.base import PairData
from .rehearsal import RehearsalData
from .shards.read import Reading
from .shards.webdataset import WebDataset
from .specialist import SpecialistData
from .trace import TraceData

__all__ = ["EmbedData", "PairData", "Reading", "RehearsalData", "SpecialistData", "TraceData", "WebDataset"]
