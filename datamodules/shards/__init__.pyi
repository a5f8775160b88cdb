from .read import Reading, ShardSet
from .reencode import Reencoding
from .write import write_resumable, write_shards

__all__ = ["Reading", "Reencoding", "ShardSet", "write_resumable", "write_shards"]
