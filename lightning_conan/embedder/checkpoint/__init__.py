"""Checkpoint folders: provenance, tensors, adapters, golden vectors, grafting."""

from lightning_conan.embedder.checkpoint.adapter import Adapter
from lightning_conan.embedder.checkpoint.delta import DELTA, write_delta_config
from lightning_conan.embedder.checkpoint.export import export_folder
from lightning_conan.embedder.checkpoint.folder import (
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
from lightning_conan.embedder.checkpoint.golden import changed_versions, compare_golden
from lightning_conan.embedder.checkpoint.graft import GraftReport, graft_folder
from lightning_conan.embedder.checkpoint.provenance import PROVENANCE, STATES, Provenance, State, file_hash, read_provenance
from lightning_conan.embedder.checkpoint.tensors import STEM, Spec, TensorFiles, Tensors, check_specs, write_order, write_shards
from lightning_conan.embedder.checkpoint.whole import check_apart, check_replaceable, whole_folder

__all__ = [
    "CONFIG",
    "DELTA",
    "PROVENANCE",
    "STATES",
    "STEM",
    "Adapter",
    "GraftReport",
    "Provenance",
    "Spec",
    "State",
    "TensorFiles",
    "Tensors",
    "changed_versions",
    "check_apart",
    "check_folder",
    "check_replaceable",
    "check_specs",
    "compare_golden",
    "embeds_as",
    "export_folder",
    "file_hash",
    "graft_folder",
    "load_folder",
    "load_processor",
    "open_tensors",
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
