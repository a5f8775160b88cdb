"""TRACE: decide, reason, and compress into one token (https://arxiv.org/abs/2603.02929)."""

from lightning_conan.reasoning.decoding import Decoding, Written, encode_queries
from lightning_conan.reasoning.prompts import hints, read_prompts
from lightning_conan.reasoning.reasoner import Reasoner

__all__ = ["Decoding", "Reasoner", "Written", "encode_queries", "hints", "read_prompts"]
