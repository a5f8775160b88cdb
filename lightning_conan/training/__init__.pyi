from .column_embedder import ColumnEmbedder
from .inference import EmbeddedItems, EmbeddedPairs
from .settings import DynamicNegatives, Lora, Training
from .stage import Stage

__all__ = ["ColumnEmbedder", "DynamicNegatives", "EmbeddedItems", "EmbeddedPairs", "Lora", "Stage", "Training"]
