"""Builds the API reference, of the public names of the three packages, with pdoc.

    python docs/reference.py build/docs

Exits with 1 if pdoc warns: of an annotation that it cannot read, a module that it cannot import, a stub that does not fit. The
`conan` command is left to `conan VERB --help`.
"""

import pydoc
import re
import sys
import warnings
from pathlib import Path

import pdoc

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lightning_conan", "!lightning_conan.cli", "!lightning_conan.demo", "datamodules", "callbacks")

ANNOTATION = re.compile(r"annotation .*for ([\w.]+)\.(\w+)[.:] ")
"""In a warning: the class, and its member."""


def inherited(warning: str) -> bool:
    """True for a warning of an inherited member: transformers annotates some by the types of optional libraries."""
    found = ANNOTATION.search(warning)
    return found is not None and found[2] not in vars(pydoc.locate(found[1]))


def build(out: Path) -> list[str]:
    """Writes HTML pages and returns pdoc's warnings of what is ours.

    Args:
        out: The folder to write; what it holds is replaced page by page.
    """
    pdoc.render.configure(docformat="google", footer_text="lightning-conan")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(*PACKAGES, output_directory=out)
    made = [str(warning.message) for warning in caught if Path(pdoc.__file__).parent in Path(warning.filename).parents]
    return [warning for warning in made if not inherited(warning)]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    found = build(Path(sys.argv[1]))
    sys.exit("\n".join(found) if found else 0)
