from .registry import backbone_of, known_backbones, register_backbone
from .spec import BackboneSpec

__all__ = ["BackboneSpec", "backbone_of", "known_backbones", "register_backbone"]
