from .decoding import Decoding, ReasonedEmbeddings, encode_queries
from .endpoint import Endpoint
from .prompts import hints, read_prompts
from .reasoner import Reasoner
from .serving import encode_by_engine

__all__ = [
    "Decoding",
    "Endpoint",
    "ReasonedEmbeddings",
    "Reasoner",
    "encode_by_engine",
    "encode_queries",
    "hints",
    "read_prompts",
]
