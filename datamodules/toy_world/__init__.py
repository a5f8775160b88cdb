"""A drawn world with captions, in real files: what the demo and the tests learn from."""

from datamodules.toy_world.composed import COMPOSE, draw_composed
from datamodules.toy_world.pairs import DRAW, draw_pairs
from datamodules.toy_world.write import write_world

__all__ = ["COMPOSE", "DRAW", "draw_composed", "draw_pairs", "write_world"]
