from .coefficients import Found, Search, Trial, search_alphas
from .dare import Dare
from .della import Della
from .engine import FusionReport
from .iso_c import IsoC
from .mergekit import read_mergekit
from .method import Method, Place
from .recipe import Recipe
from .statistics import Fisher, RegMean
from .task_arithmetic import TaskArithmetic
from .ties import Ties
from .tsv_m import TsvM
from .write import dry_run, fuse_folders, fused_model

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
