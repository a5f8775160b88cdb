"""Settings of a served model."""

from dataclasses import dataclass, field

from lightning_conan.reasoning import Decoding


@dataclass(frozen=True)
class EngineSettings:
    """Settings of embedding.

    Args:
        device: Device of the model, such as ``cpu`` or ``cuda:1``.
        token_budget: Padded tokens that are embedded at once.
        max_wait_ms: Milliseconds that a batch waits for more inputs under load; a lone request never waits.
        batches_at_once: Batches that are embedded at the same time, each with its share of the processor's threads. By default
            2 on a CPU with several threads, else 1.
        num_workers: Processes that decode media; 0 decodes in the server's own, where a decoder that hangs cannot be killed.
        decoding: Settings of writing about queries, for a model that reasons.
        verify: Recompute the folder's golden vectors at the start, and refuse to serve if they differ.
    """

    device: str = "cpu"
    token_budget: int = 16_384
    max_wait_ms: float = 4.0
    batches_at_once: int | None = None
    num_workers: int = 2
    decoding: Decoding = field(default_factory=Decoding)
    verify: bool = True

    def __post_init__(self) -> None:
        at_once = self.batches_at_once
        if at_once is not None and (at_once < 1 or (at_once > 1 and self.device != "cpu")):
            raise ValueError(
                f"batches_at_once must be positive, and 1 but on a CPU, got {at_once} on {self.device}. Set it to 1."
            )
        if self.token_budget < 1 or self.max_wait_ms < 0 or self.num_workers < 0:
            raise ValueError(
                "token_budget must be positive, max_wait_ms and num_workers not negative, "
                f"got {self.token_budget}, {self.max_wait_ms} and {self.num_workers}."
            )
