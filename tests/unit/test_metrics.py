"""docs/metrics.md names exactly what the services serve."""

import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client import Metric

from services.api.metrics import ApiMetrics
from services.executor.executor import Health
from services.executor.measures import Measures
from services.executor.metrics import ExecutorMetrics
from services.projector.health import ProjectorMetrics
from services.projector.projector import ProjectorState

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def _served(families: Iterable[Metric]) -> set[tuple[str, str]]:
    return {(f.name + "_total" if f.type == "counter" else f.name, f.type) for f in families}


def test_the_page_names_every_metric_and_no_other() -> None:
    api = ApiMetrics()
    here: Any = SimpleNamespace(clients=0, waiting_bytes=0, live_runs=0, ignored=0)
    api.watch(here, here)
    executor: Any = SimpleNamespace(
        owned={},
        quarantined={},
        health=Health(),
        unfinished_runs=0,
        runs_in_memory=0,
        measures=Measures(),
        lag_records=lambda: {0: 1},
    )
    state = ProjectorState(True, {0: 1}, None, "", None, None, 0, 0, 0)
    projector: Any = SimpleNamespace(state=lambda: state)
    served = _served(api.registry.collect())
    served |= _served(ExecutorMetrics(executor).collect()) | _served(ProjectorMetrics(projector).collect())
    named = set(re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.read_text("utf-8"), re.MULTILINE))
    assert named == served
