"""Engines by name, and places of their indexes; free of torch, which a search by a helper process does not need."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_conan.web import is_url, without_secrets

EngineName = Literal["lancedb", "qdrant", "milvus", "faiss"]


@dataclass(frozen=True)
class Kind:
    """Facts about an engine, whose class is in the file of its name.

    Args:
        title: Its name in messages.
        module: Python module that it needs, a key of ``extras.EXTRAS``.
        cls: Name of its class.
        suffix: Of the index beside a folder of embeddings.
        exclusive: True if an index in a folder is for one process at a time.
    """

    title: str
    module: str
    cls: str
    suffix: str
    exclusive: bool = False


ENGINES: dict[EngineName, Kind] = {
    "lancedb": Kind("LanceDB", "lancedb", "LanceEngine", ".lancedb"),
    "qdrant": Kind("Qdrant", "qdrant_client", "QdrantEngine", ".qdrant", exclusive=True),
    "milvus": Kind("Milvus", "pymilvus", "MilvusEngine", ".milvus.db", exclusive=True),
    "faiss": Kind("faiss", "faiss", "FaissEngine", ".faiss"),
}


@dataclass(frozen=True)
class Place:
    """An engine's index: the folder or server, and the name of the table there.

    Args:
        engine: The engine.
        at: A path, or the URL of a server.
        name: Table or collection; several may share a place.
        index_from: Rows from which on LanceDB and faiss get an approximate index; fewer are searched exhaustively.

    Raises:
        ValueError: A URL for an engine that has no server.
    """

    engine: EngineName
    at: str
    name: str = "embeddings"
    index_from: int = 20_000

    def __post_init__(self) -> None:
        if self.engine == "faiss" and self.remote:
            raise ValueError(f"faiss has no server, got {self.at}. Give a folder (--at), or take qdrant or milvus.")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise ValueError(
                f"A table's name must be of letters, digits, underscores, hyphens and dots, got {self.name!r}. Change --name."
            )
        if self.index_from < 1:
            raise ValueError(f"index_from must be positive, got {self.index_from}.")

    @property
    def remote(self) -> bool:
        """True for a server."""
        return "://" in self.at

    @property
    def exclusive(self) -> bool:
        """True if one process at a time may use it."""
        return ENGINES[self.engine].exclusive and not self.remote

    def check_there(self) -> None:
        """Refuses a path where nothing is: opening it would make a folder.

        Raises:
            ValueError: There is no such path.
        """
        if not self.remote and not Path(self.at).exists():
            raise self.nothing()

    def nothing(self) -> ValueError:
        """Makes the error about a place without an index."""
        return ValueError(f"{self} holds no index. Write it with `conan index`.")

    def check_free(self) -> None:
        """Refuses a folder of other things, among which an index would be written.

        Raises:
            ValueError: It holds a checkpoint or embeddings.
        """
        if self.remote:
            return
        for name in ("conan.json", "part-00000.parquet"):
            if (Path(self.at) / name).exists():
                raise ValueError(f"An index must have a folder of its own, {self.at} holds {name}. Choose another --at.")

    def __str__(self) -> str:
        return f"{self.at} ({ENGINES[self.engine].title}, {self.name})"

    @classmethod
    def beside(cls, index: Path | str, engine: EngineName, at: str | None = None, name: str = "embeddings") -> "Place":
        """Place of an engine's index for a folder of embeddings.

        Args:
            index: The folder; the engine's index lies beside it, unless ``at`` says otherwise. Or its URL.
            engine: The engine.
            at: Path or URL.
            name: Table or collection there.

        Raises:
            ValueError: Embeddings behind a URL, and no ``at``.
        """
        if is_url(index) and at is None:
            raise ValueError(
                f"An engine's index of embeddings behind a URL needs a place, got {without_secrets(str(index))} alone. Set --at."
            )
        whole = Path(index).resolve()
        return cls(engine, at or str(whole.with_name(f"{whole.name}{ENGINES[engine].suffix}")), name)
