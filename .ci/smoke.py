"""Checks an installed package, for .ci/smoke: ``modules`` imports each one, ``exported`` embeds with sentence-transformers."""

import importlib
import pkgutil
import sys
from pathlib import Path


def modules() -> None:
    """Imports every module of the three packages."""
    count = 0
    for package in ("lightning_conan", "datamodules", "callbacks"):
        found = importlib.import_module(package)
        assert Path(str(found.__file__)).is_relative_to(sys.prefix), f"{package} comes from {found.__file__}"
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
                count += 1
    print(f"{count} modules imported")


def exported() -> None:
    """Embeds a text with the exported folder."""
    from sentence_transformers import SentenceTransformer

    vectors = SentenceTransformer("exported", trust_remote_code=True, device="cpu").encode(["a small red circle"])
    assert abs(float((vectors**2).sum()) - 1) < 1e-4, vectors
    print(f"sentence-transformers: {vectors.shape[1]} dimensions")


if __name__ == "__main__":
    {"modules": modules, "exported": exported}[sys.argv[1]]()
