from .budget import Budget
from .examples import Example, Hit, show_examples
from .figures import figure
from .layout import Section, bullets, document, fragment, grid, note
from .showing import Bounds, Shown, show_medium, show_parts
from .tables import Column, table

__all__ = [
    "Bounds",
    "Budget",
    "Column",
    "Example",
    "Hit",
    "Section",
    "Shown",
    "bullets",
    "document",
    "figure",
    "fragment",
    "grid",
    "note",
    "show_examples",
    "show_medium",
    "show_parts",
    "table",
]
