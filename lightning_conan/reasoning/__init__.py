"""TRACE: decide, reason, and compress into one token (https://arxiv.org/abs/2603.02929)."""

from lightning_conan.reasoning.decoding import Decoding, Written, encode_queries
from lightning_conan.reasoning.endpoint import Endpoint
from lightning_conan.reasoning.engine import encode_by_engine
from lightning_conan.reasoning.prompts import hints, read_prompts
from lightning_conan.reasoning.reasoner import Reasoner

__all__ = ["Decoding", "Endpoint", "Reasoner", "Written", "encode_by_engine", "encode_queries", "hints", "read_prompts"]
