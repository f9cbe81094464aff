"""What an executor counts of its own work, for Prometheus. Written on its event loop, read by whoever scrapes."""

from prometheus_client import Counter, Histogram

OUTCOMES = {
    "NodeSucceeded": "succeeded",
    "NodeExcepted": "exception",
    "NodeFailed": "failed",
    "NodeRetryScheduled": "retry",
    "NodeStopped": "stopped",
    "FormOpened": "paused",
}
"""Event that records how an attempt ended -> the label. A form's attempt ends once more, when it is answered."""


class Measures:
    def __init__(self) -> None:
        self.append_seconds = Histogram(
            "flowledger_append_seconds",
            "From handing an append to the log until it is confirmed",
            buckets=(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0),
            registry=None,
        )
        self.attempts = Counter(
            "flowledger_node_attempts",
            "Attempts of nodes by how they ended; what a fork copies is not counted",
            ["type", "outcome"],
            registry=None,
        )
        self.commands = Counter(
            "flowledger_commands", "Commands decided: accepted or rejected", ["outcome"], registry=None
        )
        self.epochs_lost = Counter(
            "flowledger_epochs_lost",
            "Epochs that a delivery error, a foreign claim or a missing record ended",
            registry=None,
        )

    def all(self) -> tuple[Histogram | Counter, ...]:
        return self.append_seconds, self.attempts, self.commands, self.epochs_lost
