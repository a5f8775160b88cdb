from .adapter import Adapter
from .atomic import check_apart, check_replaceable, whole_folder
from .delta import DELTA, write_delta_config
from .export import export_folder
from .extend import extend_folder
from .folder import (
    CONFIG,
    check_folder,
    embeds_as,
    load_folder,
    load_processor,
    open_tensors,
    read_model,
    record_golden,
    save_adapter_folder,
    save_folder,
    stored_dtype,
    write_sidecars,
)
from .foreign import ForeignReport, ForeignTensors, foreign_provenance, is_foreign, open_foreign
from .golden import changed_versions, compare_golden
from .graft import GraftReport, graft_folder
from .provenance import PROVENANCE, STATES, Provenance, State, file_hash, read_config, read_provenance
from .summary import FolderSummary, describe_folder
from .task_vector import LowRank, Replaced, TaskVector, as_matrix
from .tensors import STEM, Spec, TensorFiles, Tensors, check_specs
from .write_tensors import write_order, write_shards

__all__ = [
    "CONFIG",
    "DELTA",
    "PROVENANCE",
    "STATES",
    "STEM",
    "Adapter",
    "FolderSummary",
    "ForeignReport",
    "ForeignTensors",
    "GraftReport",
    "LowRank",
    "Provenance",
    "Replaced",
    "Spec",
    "State",
    "TaskVector",
    "TensorFiles",
    "Tensors",
    "as_matrix",
    "changed_versions",
    "check_apart",
    "check_folder",
    "check_replaceable",
    "check_specs",
    "compare_golden",
    "describe_folder",
    "embeds_as",
    "export_folder",
    "extend_folder",
    "file_hash",
    "foreign_provenance",
    "graft_folder",
    "is_foreign",
    "load_folder",
    "load_processor",
    "open_foreign",
    "open_tensors",
    "read_config",
    "read_model",
    "read_provenance",
    "record_golden",
    "save_adapter_folder",
    "save_folder",
    "stored_dtype",
    "whole_folder",
    "write_delta_config",
    "write_order",
    "write_shards",
    "write_sidecars",
]
