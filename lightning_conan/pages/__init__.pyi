from .figures import figure
from .layout import Section, bullets, document, fragment, grid, note
from .showing import Bounds, Shown, show_medium, show_parts
from .tables import Column, table

__all__ = [
    "Bounds",
    "Column",
    "Section",
    "Shown",
    "bullets",
    "document",
    "figure",
    "fragment",
    "grid",
    "note",
    "show_medium",
    "show_parts",
    "table",
]
