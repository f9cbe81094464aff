"""What an executor counts of its own work, for Prometheus. Written on its event loop, read by whoever scrapes.

Plain numbers: a lone run takes 180 us a step, and the client library's locks and loops would be 3 % of that.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

OUTCOMES = {
    "NodeSucceeded": "succeeded",
    "NodeExcepted": "exception",
    "NodeFailed": "failed",
    "NodeRetryScheduled": "retry",
    "NodeStopped": "stopped",
    "FormOpened": "paused",
}
"""Event that records how an attempt ended -> the label. A form's attempt ends once more, when it is answered."""

BUCKETS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


class Measures:
    def __init__(self) -> None:
        self.attempts: Counter[tuple[str, str]] = Counter()
        """By node type and outcome."""
        self.commands: Counter[str] = Counter()
        self.epochs_lost = 0
        self._appends = [0] * (len(BUCKETS_S) + 1)
        self._append_s = 0.0

    def appended(self, seconds: float) -> None:
        self._appends[bisect_left(BUCKETS_S, seconds)] += 1
        self._append_s += seconds

    def collect(self) -> Iterator[Metric]:
        bounds = (*map(str, BUCKETS_S), "+Inf")
        yield HistogramMetricFamily(
            "flowledger_append_seconds",
            "From handing an append to the log until it is confirmed",
            buckets=list(zip(bounds, accumulate(self._appends), strict=True)),
            sum_value=self._append_s,
        )
        attempts = CounterMetricFamily(
            "flowledger_node_attempts",
            "Attempts of nodes by how they ended; what a fork copies is not counted",
            labels=["type", "outcome"],
        )
        for labels, count in dict(self.attempts).items():
            attempts.add_metric(labels, count)
        yield attempts
        commands = CounterMetricFamily("flowledger_commands", "Commands decided", labels=["outcome"])
        for outcome, count in dict(self.commands).items():
            commands.add_metric([outcome], count)
        yield commands
        yield CounterMetricFamily(
            "flowledger_epochs_lost",
            "Epochs that a delivery error, a foreign claim or a missing record ended",
            value=self.epochs_lost,
        )
