"""Published checkpoints: a local folder or a hub's repository, of which only the needed files are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from lightning_conan.embedder.checkpoint.tensors import INDEX, TensorFiles, tensor_paths

WHOLE = "model.safetensors"
SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model")


class Upstream:
    """A published checkpoint.

    Args:
        source: A folder, or a repository's name on the hub (``Qwen/Qwen3-VL-2B-Instruct``).
        prefixes: Name prefixes of the tensors to read; files without such tensors are not downloaded.

    Raises:
        ValueError: Neither, or a file of it is missing.
    """

    def __init__(self, source: str, prefixes: tuple[str, ...]) -> None:
        self.source, self.prefixes = source, prefixes
        self.local = Path(source).is_dir()
        if not self.local and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
            raise ValueError(f"A checkpoint must be a folder or a hub's OWNER/NAME, got {source!r}: no such folder.")
        self.folder = Path(source) if self.local else self.download_small()
        if not (self.folder / "config.json").is_file():
            raise ValueError(f"{source} is not a transformers checkpoint: it has no config.json.")

    def download_small(self) -> Path:
        """Downloads everything but weights."""
        from huggingface_hub import snapshot_download

        return Path(self.fetched(snapshot_download, self.source, allow_patterns=list(SMALL_FILES)))

    def fetched(self, fetch: Callable[..., str], *args: Any, **options: Any) -> str:
        """Calls a function of the hub's library.

        Args:
            fetch: Function that downloads, and returns a path.
            args: Its arguments.
            options: Its keyword arguments.

        Raises:
            ValueError: It failed: no such repository, no access, no network.
        """
        try:
            return fetch(*args, **options)
        except Exception as error:  # the library lets its HTTP client's errors through
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{self.source!r} could not be fetched from the hub ({reason}). Name a local folder instead."
            ) from error

    @property
    def config(self) -> PreTrainedConfig:
        """Config of the model."""
        return AutoConfig.from_pretrained(self.folder, trust_remote_code=False)  # type: ignore[no-any-return]

    def wants(self, name: str) -> bool:
        """True if a tensor is to be taken."""
        return name.startswith(self.prefixes)

    def tensors(self) -> TensorFiles:
        """Opens the wanted tensors.

        Raises:
            ValueError: No tensor's name begins so.
        """
        found = TensorFiles(self.paths(), self.wants)
        if not found.specs:
            raise ValueError(f"{self.source} must hold tensors that begin with {self.prefixes}, but there are none.")
        return found

    def paths(self) -> list[Path]:
        """Paths of the files with wanted tensors, downloaded if need be."""
        if not (self.folder / INDEX).is_file():
            if self.local and not (self.folder / WHOLE).is_file():
                return tensor_paths(self.folder)
            return [self.folder / WHOLE if self.local else self.download(WHOLE)]  # Whisper's come in float32, too, beside it
        weights: dict[str, str] = json.loads((self.folder / INDEX).read_text())["weight_map"]
        names = sorted({file for tensor, file in weights.items() if self.wants(tensor)})
        if not self.local:
            return [self.download(name) for name in names]
        if missing := [name for name in names if not (self.folder / name).is_file()]:
            raise ValueError(f"{self.source} is incomplete: {INDEX} names {missing[0]}, which is not there. Copy it again.")
        return [self.folder / name for name in names]

    def download(self, name: str) -> Path:
        """Downloads a weight file."""
        from huggingface_hub import hf_hub_download

        return Path(self.fetched(hf_hub_download, self.source, name))


def read_json(path: Path, default: Callable[[], Any] = dict) -> Any:
    """Reads a JSON file, or returns a default if it is not there.

    Args:
        path: The file.
        default: Makes the default; an empty dictionary unless given.
    """
    return json.loads(path.read_text()) if path.is_file() else default()
