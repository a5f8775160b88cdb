"""Rows of an index by their modality."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_conan.retrieval.search import top_k
from lightning_conan.retrieval.store import EmbeddingStore
from lightning_conan.serving.errors import invalid


class Modalities:
    """The modality of each row of an index, such as ``image`` or ``image+text``.

    Args:
        store: The index.
    """

    def __init__(self, store: EmbeddingStore) -> None:
        self.store, self.names = store, list[str]()
        codes = []
        for table in store.tables:
            found = table["modality"].combine_chunks().dictionary_encode()
            names = found.dictionary.to_pylist()
            self.names += [name for name in names if name not in self.names]
            own = torch.tensor([self.names.index(name) for name in names], dtype=torch.int16)
            codes.append(own[torch.from_numpy(found.indices.to_numpy().copy()).long()])
        self.codes = torch.cat(codes)

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by modality."""
        found = self.codes.long().bincount(minlength=len(self.names)).tolist()
        return dict(zip(self.names, found, strict=True))

    def rows(self, chosen: Sequence[str]) -> Bool[Tensor, " rows"]:
        """Marks the rows whose modality is one of some.

        Raises:
            ApiError: The index has no such modality.
        """
        if not chosen or (odd := set(chosen) - set(self.names)):
            names = sorted(self.names)
            raise invalid(f"modalities must be among the index' own, {names}, got {sorted(odd) if chosen else []}.", "modalities")
        wanted = torch.tensor([self.names.index(name) for name in chosen], dtype=torch.int16)
        return torch.isin(self.codes, wanted)

    def top_k(
        self, query: Float[Tensor, "1 dim"], k: int, chosen: Sequence[str]
    ) -> tuple[Float[Tensor, "1 found"], Int[Tensor, "1 found"]]:
        """Finds the best rows of some modalities, exactly.

        Args:
            query: The embedded query.
            k: Number of rows to find.
            chosen: The modalities.

        Raises:
            ApiError: The index has no such modality.
        """
        mask = self.rows(chosen)

        def blocks() -> Iterator[Float[Tensor, "_ dim"]]:
            start = 0
            for block in self.store.blocks():
                yield block[mask[start : start + len(block)]]
                start += len(block)

        scores, found = top_k(query, blocks(), k)
        return scores, mask.nonzero()[:, 0][found]
