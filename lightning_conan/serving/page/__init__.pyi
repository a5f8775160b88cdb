from .settings import PageSettings
from .site import Page

__all__ = ["Page", "PageSettings"]
