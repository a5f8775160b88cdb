"""Task vectors: many specialists of one base into one model."""

from lightning_conan.fusion.engine import FusionReport, fuse_folders
from lightning_conan.fusion.recipe import Recipe
from lightning_conan.fusion.task_arithmetic import task_arithmetic

__all__ = ["FusionReport", "Recipe", "fuse_folders", "task_arithmetic"]
