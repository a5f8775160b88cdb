from .settings import DynamicNegatives, Lora, Training
from .stage import Stage

__all__ = ["DynamicNegatives", "Lora", "Stage", "Training"]
