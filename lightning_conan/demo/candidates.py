"""Candidates that reason, too: the paper's ablation (arXiv 2603.02929), trained."""

from typing import Any

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from datamodules import TraceData
from datamodules.loading.stream import Encoder
from lightning_conan.embedder import Batch, ChunkOutput, Encoded
from lightning_conan.items import Item, Pair
from lightning_conan.stages import Trace


class CandidateEncoder(Encoder):
    """Encodes pairs whose targets carry a generation target, too: the last line of the query's, which describes them."""

    @override
    def encode(self, pair: Pair, name: str, item: Item) -> Encoded:
        encoded = super().encode(pair, name, item)
        taught = self.teach and name == "target"
        return self.processor.teach(encoded, pair.reasoning.rsplit("\n", 1)[-1]) if taught else encoded


class CandidateData(TraceData):
    """``TraceData`` whose targets carry a generation target, too."""

    @override
    def encoder(self, stage: str) -> Encoder:
        found = super().encoder(stage)
        return CandidateEncoder(found.sets, found.processor, found.cache_bytes, found.seconds, found.teach)


class ReasoningCandidates(Trace):
    """TRACE that reasons about candidates, too; set ``target_hint`` to an instruction that allows it.

    L_gen is the mean of the pair's two sides.
    """

    @override
    def loss(self, batch: Batch, output: ChunkOutput) -> Float[Tensor, ""]:
        losses, pairs = output.generation_losses, len(batch)
        assert losses is not None, "embed_chunk computes them"
        both = (losses[:pairs] + losses[pairs : 2 * pairs]) / 2
        return super().loss(batch, output._replace(generation_losses=both))

    @override
    def score(self, batch: Any, number: int) -> None:
        if batch.queries:
            effort = self.efforts[self.data_sets[number]]
            queries, targets = self.reason(batch.queries, effort), self.reason(batch.targets)
            self.metrics[number].update(queries.embeddings, targets.embeddings, batch.query_hashes, batch.target_hashes)
