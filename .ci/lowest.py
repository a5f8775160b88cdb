"""Prints a constraints file of the lowest release that setup.cfg allows of each direct requirement.

    python .ci/lowest.py > constraints.txt && pip install -c constraints.txt ".[all]"

Nothing but the standard library, so that it runs before anything is installed.
"""

import configparser
import re
import sys
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.cfg"


def requirements(setup: Path = SETUP) -> list[str]:
    """Returns every requirement of the package and of its extras, this package's own name left out."""
    found = configparser.ConfigParser()
    found.read(setup)
    name = found["metadata"]["name"]
    blocks = [found["options"]["install_requires"], *found["options.extras_require"].values()]
    lines = {line.strip() for block in blocks for line in block.splitlines()}
    return sorted(line for line in lines if line and not line.startswith(("#", name)))


def lowest(requirement: str) -> str:
    """Returns ``NAME==VERSION`` for a requirement such as ``NAME[extra]>=VERSION,<NEXT``.

    Raises:
        ValueError: The requirement has no lower bound.
    """
    name = re.match(r"[\w.-]+", requirement)
    bound = re.search(r"(?:>=|==|~=)\s*([\w.]+)", requirement)
    if name is None or bound is None:
        raise ValueError(f"A requirement must have a lower bound (>=, == or ~=), got {requirement!r}. Add one in setup.cfg.")
    return f"{name.group()}=={bound.group(1)}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in sorted({lowest(requirement) for requirement in requirements()}))
