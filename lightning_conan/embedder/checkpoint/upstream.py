"""Published checkpoints: a local folder or a hub's repository, of which only the needed files are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from lightning_conan.embedder.checkpoint.tensors import INDEX, TensorFiles, read_header, tensor_paths

WHOLE = "model.safetensors"
SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model")


class Repository:
    """A folder, or a repository on the hub, of which only the files that are asked for are downloaded.

    Args:
        source: A folder, or a repository's name on the hub (``Qwen/Qwen3-VL-2B-Instruct``).

    Attributes:
        folder: Its small files; of a sentence-transformers folder those of its transformer, such as ``0_Transformer``.

    Raises:
        ValueError: Neither, or it cannot be fetched.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.local = Path(source).is_dir()
        if not self.local and not is_hub_name(source):
            raise ValueError(f"A checkpoint must be a folder or a hub's OWNER/NAME, got {source!r}: no such folder.")
        self.root = Path(source) if self.local else self.download_small()
        self.inner = transformer_of(self.root)
        self.folder = self.root / self.inner

    def names(self) -> list[str]:
        """Names of all files beside its config, those included that were not downloaded."""
        if self.local:
            return sorted(path.name for path in self.folder.iterdir())
        from huggingface_hub import HfApi

        listed: list[str] = self.fetched(HfApi().list_repo_files, self.source)
        begin = f"{self.inner}/" if self.inner else ""
        names = [name.removeprefix(begin) for name in listed if name.startswith(begin)]
        return sorted(name for name in names if "/" not in name)

    def file(self, name: str) -> Path:
        """Path of a file, downloaded if need be."""
        return self.folder / name if self.local else self.download(name)

    def download_small(self) -> Path:
        """Downloads everything but weights."""
        from huggingface_hub import snapshot_download

        return Path(self.fetched(snapshot_download, self.source, allow_patterns=list(SMALL_FILES)))

    def fetched(self, fetch: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Calls a function of the hub's library.

        Args:
            fetch: Function that asks the hub; its result is returned.
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

    def download(self, name: str) -> Path:
        """Downloads a weight file."""
        from huggingface_hub import hf_hub_download

        path = f"{self.inner}/{name}" if self.inner else name
        return Path(self.fetched(hf_hub_download, self.source, path))


class Upstream(Repository):
    """A published checkpoint.

    Args:
        source: A folder, or a repository's name on the hub.
        prefixes: Name prefixes of the tensors to read; files without such tensors are not downloaded.
        skipped: Name prefixes of those among them that are left.

    Raises:
        ValueError: Neither, or a file of it is missing.
    """

    def __init__(self, source: str, prefixes: tuple[str, ...], skipped: tuple[str, ...] = ()) -> None:
        super().__init__(source)
        self.prefixes, self.skipped = prefixes, skipped
        if not (self.folder / "config.json").is_file():
            adapter = (
                " It is an adapter: name it behind its base, as BACKBONE+ADAPTER."
                * (self.folder / "adapter_config.json").is_file()
            )
            raise ValueError(f"{source} is not a transformers checkpoint: it has no config.json.{adapter}")

    @property
    def config(self) -> PreTrainedConfig:
        """Config of the model."""
        return AutoConfig.from_pretrained(self.folder, trust_remote_code=False)  # type: ignore[no-any-return]

    def wants(self, name: str) -> bool:
        """True if a tensor is to be taken."""
        return name.startswith(self.prefixes) and not name.startswith(self.skipped)

    def unwanted(self) -> list[str]:
        """Names of the tensors that are left: of all files by the index, else of those that are read."""
        index = read_json(self.folder / INDEX)
        names = index["weight_map"] if index else [name for path in self.paths() for name in read_header(path)]
        return sorted(name for name in names if not self.wants(name))

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


def is_hub_name(source: str) -> bool:
    """True for a text of the form OWNER/NAME."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def transformer_of(folder: Path) -> str:
    """Returns the folder, within a sentence-transformers folder, of the transformer; empty if that is the folder itself.

    Raises:
        ValueError: The folder has a module with weights besides the transformer, such as a dense layer.
    """
    modules = read_json(folder / "modules.json", list)
    known = ("Pooling", "Normalize")
    odd = [module for module in modules[1:] if module["type"].split(".")[-1] not in known]
    if odd:
        raise ValueError(
            f"{folder} must have a transformer, {known[0]} and {known[1]} alone, it has {odd[0]['type']}: vectors would lack "
            "what that module does. Name a folder without it."
        )
    return str(modules[0]["path"]) if modules else ""


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON.

    Args:
        path: The file.
        content: Values of JSON; others are written as text.
    """
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")


def read_json(path: Path, default: Callable[[], Any] = dict) -> Any:
    """Reads a JSON file, or returns a default if it is not there.

    Args:
        path: The file.
        default: Makes the default; an empty dictionary unless given.
    """
    return json.loads(path.read_text()) if path.is_file() else default()
