"""A checkpoint folder that embeds items of many requests together."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import torch

from lightning_conan.embedder import Encoded, load_folder
from lightning_conan.embedder.checkpoint import changed_versions, compare_golden, embeds_as, read_config, stored_dtype
from lightning_conan.items import Item, Side
from lightning_conan.reasoning import encode_queries
from lightning_conan.serving.batching import Batcher
from lightning_conan.serving.decoding import DecodingPool
from lightning_conan.serving.errors import ApiError, invalid
from lightning_conan.serving.limits import RequestLimits
from lightning_conan.serving.metrics import Metrics
from lightning_conan.serving.settings import EngineSettings
from lightning_conan.serving.vectors import Embedded


class Engine:
    """A folder's model, with a pool that decodes and a batcher that feeds it.

    Args:
        folder: The checkpoint folder.
        settings: Settings of embedding.
        limits: Caps on requests.
        metrics: Counts what happens.

    Raises:
        ValueError: The folder is damaged, or its golden vectors come out differently.
    """

    def __init__(self, folder: Path, settings: EngineSettings, limits: RequestLimits, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        dtype = stored_dtype(read_config(folder))
        self.model, self.processor, self.provenance = load_folder(folder, dtype=dtype, device=settings.device)
        self.golden = self.check(folder) if settings.verify else None
        self.fingerprint = embeds_as(self.provenance, self.processor)
        self.dim = self.model.config.dim
        self.dimensions = sorted({self.dim, *self.provenance.notes.get("matryoshka_dims", ())}, reverse=True)
        self.max_tokens = limits.max_tokens or settings.token_budget
        media = limits.media(self.processor.config.limits)
        self.pool = DecodingPool(folder, self.processor, media, settings.num_workers, limits.decode_seconds, metrics)
        self.threads, self.writing = torch.get_num_threads(), Lock()
        at_once = settings.batches_at_once or (2 if settings.device == "cpu" and self.threads > 1 else 1)
        self.batcher = Batcher(self.compute, settings.token_budget, settings.max_wait_ms / 1000, metrics, at_once)

    def check(self, folder: Path) -> float:
        """Recomputes the golden vectors and returns the largest distance.

        Raises:
            ValueError: There are none, or one is too far off.
        """
        off, allowed = compare_golden(folder, self.model, self.processor)
        worst = max(off.values())
        if not all(value <= allowed for value in off.values()):
            raise ValueError(
                f"The golden vectors of {folder} must come out within {allowed:g}, they are off by up to {worst:.2g}. "
                f"{changed_versions(folder)}"
            )
        return worst

    async def start(self) -> None:
        """Starts to embed, once all decoding processes are there."""
        self.batcher.start()
        await self.pool.ready()

    async def close(self) -> None:
        """Ends what it has started."""
        await self.batcher.close()
        self.pool.close()

    async def embed(self, items: Sequence[Item], side: Side) -> list[Embedded]:
        """Embeds items, in their order.

        Args:
            items: The items.
            side: Side of a search.

        Raises:
            ApiError: One's media cannot be decoded, or it has too many tokens.
        """
        try:
            encoded = await self.pool.encode(items, side)
        except ValueError as error:
            raise invalid(str(error)) from error
        for number, item in enumerate(encoded):
            if len(item) > self.max_tokens:
                raise ApiError(
                    400,
                    f"An input must have at most {self.max_tokens} tokens, got {len(item)} for input {number}. Split it.",
                    None,
                    "context_length_exceeded",
                )
        found = await self.batcher.submit(encoded, self.processor.config.reasons and side == "query")
        self.metrics.tokens.inc(sum(one.tokens for one in found))
        return found

    def compute(self, items: list[Encoded], reasons: bool) -> list[Embedded]:
        """Embeds a batch, in a thread of the model's.

        Args:
            items: The items.
            reasons: True if they are reasoned about first.

        Raises:
            RuntimeError: Embeddings that are not finite.
        """
        budget, written = self.settings.token_budget, None
        if self.batcher.at_once > 1:  # of this thread; a batch that is alone has all
            torch.set_num_threads(max(1, self.threads // max(1, len(self.batcher.busy))))
        with torch.inference_mode():
            if reasons:
                with self.writing:
                    written = encode_queries(self.model, items, self.settings.decoding, budget)
            vectors = (self.model.embed(items, budget) if written is None else written.embeddings).cpu()
        if not bool(vectors.isfinite().all()):
            raise RuntimeError("Embeddings must be finite, got NaN or inf. The model diverged: do not serve it.")
        if written is None:
            return [Embedded(vector, len(item)) for vector, item in zip(vectors, items, strict=True)]
        self.metrics.reasoning.inc(sum(map(len, written.tokens)))
        self.metrics.truncated.inc(sum(written.truncated))
        results = zip(vectors, items, written.tokens, written.truncated, strict=True)
        return [Embedded(vector, len(item), tokens, cut) for vector, item, tokens, cut in results]

    async def text_of(self, tokens: Sequence[int]) -> str:
        """Text of token ids, which the tokenizer must make of that text again.

        Raises:
            ApiError: It makes others: they are another tokenizer's, or hold special tokens.
        """
        processor, ids = self.pool.processor, list(tokens)

        def decoded() -> str | None:
            if not ids or not 0 <= min(ids) <= max(ids) < len(processor.tokenizer):
                return None
            text = str(processor.tokenizer.decode(ids, skip_special_tokens=False))
            return text if processor.tokenize(text) == ids else None

        text = await self.pool.apart(decoded)
        if text is None:
            raise invalid(
                f"Token ids must be those that this model's tokenizer makes of a text, got {str(ids[:8])[1:-1]}... "
                "Send the text itself (LangChain: check_embedding_ctx_length=False)."
            )
        return text

    async def written(self, found: Embedded) -> str:
        """The reasoning about a query, as text; empty if there is none."""
        tokens = found.written
        if not tokens:
            return ""
        return await self.pool.apart(lambda: str(self.processor.tokenizer.decode(tokens, skip_special_tokens=False)))
