"""What Prometheus sees of an executor."""

from collections.abc import Iterator
from contextlib import suppress

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from libs.events.log import LogError
from services.executor.executor import Executor


class ExecutorMetrics(Collector):
    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "flowledger_partitions_owned",
            "Partitions this executor owns",
            value=sum(phase == "active" for phase in self._executor.owned.values()),
        )
        yield GaugeMetricFamily("flowledger_runs_quarantined", "Runs set aside", value=len(self._executor.quarantined))
        yield GaugeMetricFamily(
            "flowledger_partitions_alarmed", "Partitions stopped by an alarm", value=len(self._executor.health.alarms)
        )
        yield GaugeMetricFamily("flowledger_runs_unfinished", "Unfinished runs", value=self._executor.unfinished_runs)
        yield GaugeMetricFamily(
            "flowledger_runs_in_memory",
            "Unfinished runs whose state is in memory; runs that wait for a person are not",
            value=self._executor.runs_in_memory,
        )
        lag = GaugeMetricFamily(
            "flowledger_executor_lag_records", "Commands that wait to be decided", labels=["partition"]
        )
        # Without the log there is no lag to tell; readiness says why.
        with suppress(LogError):
            for partition, records in self._executor.lag_records().items():
                lag.add_metric([str(partition)], records)
        yield lag
        yield from self._executor.measures.collect()
