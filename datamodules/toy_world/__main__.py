"""``python -m datamodules.toy_world --out FOLDER`` draws the toy world."""

from jsonargparse import auto_cli

from datamodules.toy_world.write import write_world

if __name__ == "__main__":
    auto_cli(write_world, prog="python -m datamodules.toy_world", as_positional=False)
