"""What probes and Prometheus see of a projector."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from libs.events.codec import rfc3339
from libs.events.log import LogError
from services.projector.projector import Projector, ProjectorState


class ProjectorMetrics(Collector):
    """The projector's numbers, asked for at each scrape."""

    def __init__(self, projector: Projector) -> None:
        self._projector = projector

    def collect(self) -> Iterator[Metric]:
        try:
            state = self._projector.state()
        except LogError:
            return  # readiness tells it; a scrape without numbers is better than invented ones
        lag = GaugeMetricFamily(
            "flowledger_projector_lag_records", "Records that are not in the tables.", labels=["partition"]
        )
        for partition, records in state.lag_records.items():
            lag.add_metric([str(partition)], records)
        yield lag
        down = state.database_down_since_s is not None
        yield GaugeMetricFamily(
            "flowledger_projector_database_down", "1 while the database cannot work.", value=float(down)
        )
        yield CounterMetricFamily("flowledger_projector_events", "Events written to the tables.", value=state.events)
        yield CounterMetricFamily("flowledger_projector_dead_letters", "Records set aside.", value=state.dead_letters)
        yield CounterMetricFamily(
            "flowledger_projector_ignored_records", "Records that do not count.", value=state.ignored
        )


def readiness(projector: Projector) -> str | None:
    """None when the tables are kept up to date, else what keeps them from it and since when."""
    try:
        state = projector.state()
    except LogError as error:
        return f"the log cannot be read: {error}"
    return _broken(state) or (None if state.running else f"starting; lag {_lag(state)} records")


def broken(projector: Projector) -> str | None:
    """As `readiness`, of a projector beside an API: that it has only just started is no reason to ask elsewhere."""
    try:
        return _broken(projector.state())
    except LogError as error:
        return f"the log cannot be read: {error}"


def _broken(state: ProjectorState) -> str | None:
    if state.failure is not None or state.denied is not None:
        return state.failure or state.denied
    if state.database_down_since_s is not None:
        since = rfc3339(int(state.database_down_since_s * 1e6))
        return f"database down since {since}: {state.database_problem}; lag {_lag(state)} records"
    return None


def _lag(state: ProjectorState) -> int:
    return sum(state.lag_records.values())
