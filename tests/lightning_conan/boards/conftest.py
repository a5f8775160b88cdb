"""The tests of mteb need it; it comes with the extra `boards`, and so with `dev`."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("mteb") else ["test_mteb.py"]
