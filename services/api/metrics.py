"""Few metrics, units in the names, no ids as labels."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.api.streams import RunStreams
from services.api.tail import EventTail


class ApiMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "flowledger_api_requests",
            "Answers by route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "flowledger_api_first_byte_seconds",
            "From a request to the first byte of its answer",
            ["route"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
            registry=self.registry,
        )

    def watch(self, tail: EventTail, streams: RunStreams) -> None:
        """Values that are looked up when somebody asks for them."""
        self._gauge("flowledger_api_streams", "Open event streams", lambda: streams.clients)
        self._gauge("flowledger_api_stream_waiting_bytes", "Of the slowest client", lambda: streams.waiting_bytes)
        self._gauge("flowledger_api_live_runs", "Runs whose fold is kept in memory", lambda: tail.live_runs)
        self._gauge("flowledger_api_ignored_records", "Records the validity rule did not admit", lambda: tail.ignored)

    def _gauge(self, name: str, text: str, value: Callable[[], int]) -> None:
        Gauge(name, text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)
