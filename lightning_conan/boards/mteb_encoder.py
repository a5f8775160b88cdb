"""A checkpoint folder as mteb's encoder and search engine, with the cache of embeddings that all boards share."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mteb._create_dataloaders import create_dataloader
from mteb.models.abs_encoder import AbsEncoder, get_prompt
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from mteb.types import PromptType
from torch import Tensor

from lightning_conan.boards.mteb_embedder import EncoderOptions, Request, RowEmbedder
from lightning_conan.boards.mteb_model import model_meta
from lightning_conan.boards.mteb_rows import rows_of
from lightning_conan.boards.ranks import gathered, share
from lightning_conan.boards.scoring import BLOCK, ROWS
from lightning_conan.retrieval.search import top_k


class MtebEncoder(RowEmbedder):
    """Embeds and searches for ``mteb.evaluate``; implements its ``EncoderProtocol`` and its ``SearchProtocol``.

    Files in a task's data set are read as in training and by the other boards: videos with their true frame rate, sounds at any
    rate. Each content is embedded once, on any number of ranks, which must all evaluate the same tasks. Inputs of tasks without
    queries and documents, such as classification, are embedded as targets.

    Args:
        folder: A checkpoint folder.
        cache: Folder of embeddings, which all boards share.
        options: Instructions, and settings of embedding.

    Raises:
        ValueError: A prompt's name is no task, type of tasks, or side of a search.
    """

    def __init__(self, folder: Path, cache: Path, options: EncoderOptions = EncoderOptions()) -> None:  # noqa: B008  # frozen
        with warnings.catch_warnings(action="ignore"):  # of what is refused
            odd = AbsEncoder.validate_task_to_prompt_name(dict(options.prompts), raise_for_invalid_keys=False)[1]
        if odd:
            raise ValueError(f"Prompts must be named by mteb's tasks, types of tasks, query or document, got {', '.join(odd)}.")
        super().__init__(folder, cache, options)
        self.mteb_model_meta = model_meta(folder)
        self.corpus: tuple[list[str], list[str]] = [], []

    # mteb's EncoderProtocol

    def encode(self, inputs: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **kwargs: Any) -> np.ndarray:
        """Embeds the inputs of a loader.

        Args:
            inputs: A ``DataLoader[BatchedInput]``.
            task_metadata: The task; its name and type choose the instruction.
            hf_split: Split of its data.
            hf_subset: Subset of its data.
            kwargs: mteb's ``prompt_type`` and ``show_progress_bar``; the token budget stands for its ``batch_size``.

        Raises:
            ValueError: Inputs that cannot be read, or another precision than float32.
        """
        if kwargs.get("precision") not in (None, "float32"):
            raise ValueError(f"precision must be float32, got {kwargs['precision']!r}. Quantise the embeddings afterwards.")
        return self.cache.vectors(self.contents(self.request(inputs, task_metadata, kwargs))).numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of all pairs, (n, m).

        Args:
            embeddings1: Embeddings, (n, dim) or (dim).
            embeddings2: Embeddings, (m, dim) or (dim).
        """
        return torch.as_tensor(cos_sim(embeddings1, embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines row by row, (n).

        Args:
            embeddings1: Embeddings, (n, dim).
            embeddings2: Embeddings, (n, dim).
        """
        return torch.as_tensor(pairwise_cos_sim(embeddings1, embeddings2))

    # mteb's SearchProtocol

    def index(self, corpus: Any, *, task_metadata: Any, encode_kwargs: Any, num_proc: int | None = None, **kwargs: Any) -> None:
        """Embeds a corpus.

        Args:
            corpus: mteb's data set of it.
            task_metadata: The task.
            encode_kwargs: See ``encode``.
            num_proc: Processes that prepare the data set.
            kwargs: The split and the subset.
        """
        contents = self.side(corpus, PromptType.document, task_metadata, {**encode_kwargs, "num_proc": num_proc})
        self.corpus = list(corpus["id"]), contents

    def search(
        self, queries: Any, *, task_metadata: Any, top_k: int, encode_kwargs: Any, num_proc: int | None = None, **kwargs: Any
    ) -> dict[str, dict[str, float]]:
        """Ranks the corpus that was indexed, or each query's own candidates.

        Args:
            queries: mteb's data set of them.
            task_metadata: The task.
            top_k: Entries to return for each query.
            encode_kwargs: See ``encode``.
            num_proc: Processes that prepare the data set.
            kwargs: mteb's ``top_ranked``, candidates by query; the split and the subset.

        Returns:
            Score by query and entry.

        Raises:
            ValueError: No corpus was indexed.
        """
        if not self.corpus[0]:
            raise ValueError("A corpus must be indexed before it is searched, got none. Call index first.")
        contents = self.side(queries, PromptType.query, task_metadata, {**encode_kwargs, "num_proc": num_proc})
        asked = list(zip(queries["id"], contents, strict=True))
        pools = kwargs.get("top_ranked")
        mine = share(asked)
        found = self.rank_all(mine, top_k) if pools is None else self.rank_pools(mine, pools, top_k)
        return dict(gathered([(query, ranking) for (query, _), ranking in zip(mine, found, strict=True)]))

    def rank_all(self, queries: Sequence[tuple[str, str]], k: int) -> Iterator[dict[str, float]]:
        """Yields each query's ranking of the whole corpus, block by block and exactly.

        Args:
            queries: Id and content of each.
            k: Length of a ranking.
        """
        ids, contents = self.corpus
        for start in range(0, len(queries), ROWS):
            vectors = self.cache.vectors([content for _, content in queries[start : start + ROWS]])
            blocks = (self.cache.vectors(contents[first : first + BLOCK]) for first in range(0, len(contents), BLOCK))
            scores, rows = top_k(vectors, blocks, k)
            for values, found in zip(scores.tolist(), rows.tolist(), strict=True):
                yield {ids[row]: value for value, row in zip(values, found, strict=True)}

    def rank_pools(self, queries: Sequence[tuple[str, str]], pools: Any, k: int) -> Iterator[dict[str, float]]:
        """Yields each query's ranking of its own candidates.

        Args:
            queries: Id and content of each.
            pools: Ids of the candidates by query.
            k: Length of a ranking.
        """
        content_of = dict(zip(*self.corpus, strict=True))
        for query, content in queries:
            pool = list(dict.fromkeys(pools.get(query) or []))
            if not pool:
                yield {}
                continue
            scores, rows = top_k(self.cache.vectors([content]), [self.cache.vectors([content_of[entry] for entry in pool])], k)
            yield {pool[row]: score for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True)}

    # Inputs

    def side(self, dataset: Any, prompt_type: PromptType, task: Any, kwargs: Mapping[str, Any]) -> list[str]:
        """Embeds the queries or the corpus of a retrieval task, and returns their contents.

        Args:
            dataset: The data set.
            prompt_type: Queries or documents.
            task: Metadata of the task.
            kwargs: See ``encode``; and ``num_proc``, the number of processes that prepare the data set.
        """
        loader = create_dataloader(dataset, task_metadata=task, prompt_type=prompt_type, num_proc=kwargs["num_proc"])
        return self.contents(self.request(loader, task, {**kwargs, "prompt_type": prompt_type}))

    def request(self, inputs: Any, task: Any, kwargs: Mapping[str, Any]) -> Request:
        """Resolves side and instruction of a loader's inputs.

        Args:
            inputs: The loader.
            task: Metadata of the task.
            kwargs: See ``encode``.
        """
        prompt_type = kwargs.get("prompt_type")
        instruction = get_prompt(dict(self.options.prompts), task, prompt_type) or self.processor.config.instruction
        return Request(
            rows_of(inputs, self.reader),
            "query" if prompt_type == PromptType.query else "target",
            None if instruction == self.processor.config.instruction else instruction,
            task.name,
            bool(kwargs.get("show_progress_bar", False)),
        )
