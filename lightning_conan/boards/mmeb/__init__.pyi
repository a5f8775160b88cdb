from .boards import V2, V3, read_mmeb
from .results import write_results
from .task import MmebTask

__all__ = ["V2", "V3", "MmebTask", "read_mmeb", "write_results"]
