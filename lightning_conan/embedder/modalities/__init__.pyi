from .registry import register_modality, spec_of, specs_of, towers_of, unregister_modality
from .spec import ModalitySpec
from .tower import EncoderTower, Inputs, Tower

__all__ = [
    "EncoderTower",
    "Inputs",
    "ModalitySpec",
    "Tower",
    "register_modality",
    "spec_of",
    "specs_of",
    "towers_of",
    "unregister_modality",
]
