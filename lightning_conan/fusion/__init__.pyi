from .coefficients import Search, SearchResult, Trial, search_alphas
from .dare import Dare
from .della import Della
from .iso_c import CompactIsoC, IsoC
from .mergekit import read_mergekit
from .method import Method, TensorContext
from .recipe import Recipe
from .sources import foreign_reports
from .statistics import Fisher, RegMean
from .task_arithmetic import TaskArithmetic
from .tensorwise import FusionReport
from .ties import Ties
from .tsv_m import TsvM
from .write import dry_run, fuse_folders, fused_model

__all__ = [
    "CompactIsoC",
    "Dare",
    "Della",
    "Fisher",
    "FusionReport",
    "IsoC",
    "Method",
    "Recipe",
    "RegMean",
    "Search",
    "SearchResult",
    "TaskArithmetic",
    "TensorContext",
    "Ties",
    "Trial",
    "TsvM",
    "dry_run",
    "foreign_reports",
    "fuse_folders",
    "fused_model",
    "read_mergekit",
    "search_alphas",
]
