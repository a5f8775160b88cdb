"""Figures of a server in Prometheus' text form."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Metrics:
    """Counters, gauges and histograms of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("conan_requests", "Requests answered.", ("path", "status"), registry=self.registry)
        self.seconds = Histogram(
            "conan_request_seconds", "Time of a request.", ("path",), buckets=SECONDS, registry=self.registry
        )
        self.active = Gauge("conan_requests_active", "Requests that are being answered.", registry=self.registry)
        self.held = Gauge("conan_body_bytes", "Bytes of the bodies of these.", registry=self.registry)
        self.waiting = Gauge("conan_waiting_tokens", "Tokens that wait for the model.", registry=self.registry)
        self.tokens = Counter("conan_tokens", "Tokens read.", registry=self.registry)
        self.reasoning = Counter("conan_reasoning_tokens", "Tokens written about queries.", registry=self.registry)
        self.truncated = Counter("conan_reasoning_truncated", "Queries whose reasoning was cut.", registry=self.registry)
        self.batches = Histogram("conan_batch_items", "Items of a batch.", buckets=SIZES, registry=self.registry)
        self.model = Histogram("conan_model_seconds", "Time of a batch.", buckets=SECONDS, registry=self.registry)
        self.decoding = Histogram("conan_decode_seconds", "Time of an input's media.", buckets=SECONDS, registry=self.registry)
        self.killed = Counter("conan_decoders_killed", "Decoding processes that were replaced.", registry=self.registry)

    def text(self) -> bytes:
        """All figures in Prometheus' text form."""
        return generate_latest(self.registry)
