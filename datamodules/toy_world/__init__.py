"""A drawn world with captions, in real files: what the demo and the tests learn from."""

from datamodules.toy_world.pairs import DRAW, draw_pairs
from datamodules.toy_world.write import write_world

__all__ = ["DRAW", "draw_pairs", "write_world"]
