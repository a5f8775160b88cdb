"""Shards in, batches out."""

from datamodules.rehearsal import RehearsalData
from datamodules.specialist import SpecialistData

__all__ = ["RehearsalData", "SpecialistData"]
