"""Task vectors: many specialists of one base into one model."""

from lightning_conan.fusion.dare import Dare
from lightning_conan.fusion.della import Della
from lightning_conan.fusion.engine import FusionReport
from lightning_conan.fusion.iso_c import IsoC
from lightning_conan.fusion.mergekit import read_mergekit
from lightning_conan.fusion.method import Method, Place
from lightning_conan.fusion.recipe import Recipe
from lightning_conan.fusion.search import Found, Search, Trial, search_alphas
from lightning_conan.fusion.statistics import Fisher, RegMean
from lightning_conan.fusion.task_arithmetic import TaskArithmetic
from lightning_conan.fusion.ties import Ties
from lightning_conan.fusion.tsv_m import TsvM
from lightning_conan.fusion.write import dry_run, fuse_folders, fused_model

__all__ = [
    "Dare",
    "Della",
    "Fisher",
    "Found",
    "FusionReport",
    "IsoC",
    "Method",
    "Place",
    "Recipe",
    "RegMean",
    "Search",
    "TaskArithmetic",
    "Ties",
    "Trial",
    "TsvM",
    "dry_run",
    "fuse_folders",
    "fused_model",
    "read_mergekit",
    "search_alphas",
]
