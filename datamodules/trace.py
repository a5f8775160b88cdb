"""Pairs whose training queries carry their reasoning, for TRACE."""

from dataclasses import dataclass

from typing_extensions import override

from datamodules.loading.stream import Encoder
from datamodules.rehearsal import RehearsalData


@dataclass(eq=False, repr=False)
class TraceData(RehearsalData):
    """Mixes packed data sets, each batch of one task; training queries carry their reasoning (``conan cot``).

    Args:
        teach: True to attach the reasoning as generation target; false for a plain embedder (``lambda_gen: 0``).
    """

    batch_size: int = 1024
    teach: bool = True

    @override
    def encoder(self, stage: str) -> Encoder:
        encoder = super().encoder(stage)
        encoder.teach = self.teach and stage == "fit"
        return encoder
