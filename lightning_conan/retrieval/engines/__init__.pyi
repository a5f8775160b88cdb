from .engine import Engine, Hit, Settings, Stamp
from .opening import connect, open_engine
from .place import EngineName, Place
from .recall import Reached, measure, tune
from .rows import PartStream, Rows
from .searching import EngineIndex, ExactIndex, SearchIndex
from .transfer import Counts, build_index, check_origin, delete_keys, upsert

__all__ = [
    "Counts",
    "Engine",
    "EngineIndex",
    "EngineName",
    "ExactIndex",
    "Hit",
    "PartStream",
    "Place",
    "Reached",
    "Rows",
    "SearchIndex",
    "Settings",
    "Stamp",
    "build_index",
    "check_origin",
    "connect",
    "delete_keys",
    "measure",
    "open_engine",
    "tune",
    "upsert",
]
