"""Shards in, batches out."""

from datamodules.items import EmbedData
from datamodules.rehearsal import RehearsalData
from datamodules.specialist import SpecialistData
from datamodules.trace import TraceData

__all__ = ["EmbedData", "RehearsalData", "SpecialistData", "TraceData"]
