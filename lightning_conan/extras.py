"""Optional dependencies: the extra of this package that installs what one verb or option needs."""

import importlib.util

EXTRAS = {
    "optuna": "alphas",
    "scipy": "alphas",
    "mteb": "boards",
    "torchcodec": "boards",
    "lmdb": "cache",
    "py3langid": "cot",
    "matplotlib": "plots",
    "sentence_transformers": "export",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "lancedb": "lancedb",
    "qdrant_client": "qdrant",
    "pymilvus": "milvus",
    "faiss": "faiss",
    "wandb": "wandb",
}
"""Extra by module, as in setup.cfg."""


def missing(module: str) -> str:
    """Returns the command that installs an optional module, or an empty string if it is there.

    Args:
        module: A key of ``EXTRAS``.
    """
    return "" if importlib.util.find_spec(module) else f"pip install 'lightning-conan[{EXTRAS[module]}]'"


def require(module: str, purpose: str) -> None:
    """Refuses to begin what an optional module is needed for.

    Args:
        module: A key of ``EXTRAS``.
        purpose: The sentence's subject, such as ``Searching coefficients``.

    Raises:
        ValueError: The module is not installed.
    """
    if remedy := missing(module):
        raise ValueError(f"{purpose} needs {module}, which is not installed: {remedy}.")
