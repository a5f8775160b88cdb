from .known_base import KnownBase
from .names import LAYOUTS, Layout, Resolution, resolve
from .opening import adapter_on, foreign_provenance, is_foreign, open_foreign
from .report import ForeignReport
from .tensors import ForeignTensors

__all__ = [
    "LAYOUTS",
    "ForeignReport",
    "ForeignTensors",
    "KnownBase",
    "Layout",
    "Resolution",
    "adapter_on",
    "foreign_provenance",
    "is_foreign",
    "open_foreign",
    "resolve",
]
