"""A stop takes effect within a second, whatever the run is at: embedded, and on Kafka.

Measured by times of the log: from the instant before the stop is asked for to the run's `RunStopped`.
"""

import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.documents import code, document, edges, end, start
from tests.e2e.calling import chain
from tests.e2e.deployment import ADMIN_TOKEN, Api, Service, deployment, wait_until
from tests.e2e.witness import Witness

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc"),
]

logger = logging.getLogger(__name__)

LIMIT_S = 1.0

OTHERS = 1_000

SLEEPS = "import time\ndef main():\n    time.sleep(60)\n    return {'result': 'late'}\n"
BURNS = "def main():\n    while True:\n        pass\n"


class World:
    """Somewhere runs are executed: whom to ask, and the process whose descendants run code."""

    def __init__(self, api: Api, url: str, executor: Service) -> None:
        self.api, self.url, self.executor = api, url, executor

    def begin(self, key: str) -> str:
        """Start a run and leave."""
        with self.api.run(key, {"q": "x"}) as answer:
            return answer.headers["X-Workflow-Run-Id"]

    def stop(self, run_id: str) -> float:
        """Ask for the stop; seconds from before asking until `RunStopped`, by the log."""
        asked = time.time()
        answer = self.api.http.post(f"/v1/runs/{run_id}/stop", headers=self.api.admin)
        assert answer.status_code == 200, answer.text
        wait_until(lambda: self.events(run_id)[-1]["type"] == "RunStopped", "the run has stopped", 10)
        took_s = datetime.fromisoformat(self.events(run_id)[-1]["at"]).timestamp() - asked
        logger.info("stopped after %.3f s", took_s)
        return took_s

    def events(self, run_id: str) -> list[dict[str, Any]]:
        return self.api.history(run_id)


@pytest.fixture(
    params=["embedded", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.postgres])],
)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    yield from embedded(tmp_path) if request.param == "embedded" else on_kafka(request, tmp_path)


def embedded(folder: Path) -> Iterator[World]:
    settings = {"FLOWLEDGER_ADMIN_TOKEN": ADMIN_TOKEN, "FLOWLEDGER_HTTP_ALLOW": "127.0.0.1"}
    service = Service("dev", settings, "--data", str(folder), "--port", "0", "--offline")
    api = Api(service.url)
    try:
        yield World(api, service.url, service)
    finally:
        api.http.close()
        service.kill()


def on_kafka(request: pytest.FixtureRequest, folder: Path) -> Iterator[World]:
    kafka: servers.Kafka = request.getfixturevalue("kafka_server")
    with (
        servers.fresh_topics(kafka.bootstrap, 1) as prefix,
        deployment(kafka.bootstrap, prefix, request.getfixturevalue("postgres_url"), folder, 1) as deployed,
    ):
        service = deployed.start("api")
        deployed.start("projector")
        executor = deployed.start("executor")
        yield World(deployed.client(service), service.url, executor)


@pytest.fixture
def witness() -> Iterator[Witness]:
    with Witness() as it:
        yield it


def one_code_node(text: str) -> str:
    return document([start("q"), code("work", code=text), end(x="work.result")], edges("start > work > end"))


def descendants(pid: int) -> dict[int, tuple[str, int]]:
    """Process id -> (start time, processor time used, in ticks) of all processes below `pid`."""
    parents: dict[int, list[int]] = {}
    facts: dict[int, tuple[str, int]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents.setdefault(int(fields[1]), []).append(int(folder.name))
        facts[int(folder.name)] = fields[19], int(fields[11]) + int(fields[12])
    found, waiting = {}, [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            found[child] = facts[child]
            waiting.append(child)
    return found


def test_a_run_that_waits_behind_a_thousand_others_stops_within_a_second(world: World) -> None:
    app = world.api.import_document(one_code_node(SLEEPS))
    apis = [Api(world.url) for _ in range(8)]

    def begin(number: int) -> None:
        World(apis[number % 8], world.url, world.executor).begin(app["api_key"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, range(OTHERS)))
    for api in apis:
        api.http.close()
    run_id = world.begin(app["api_key"])
    wait_until(lambda: any(event["type"] == "RunStarted" for event in world.events(run_id)), "the run was accepted")
    assert world.stop(run_id) < LIMIT_S
    assert not any(event.get("node_id") == "work" for event in world.events(run_id)), "it did not have to wait"
    assert world.executor.alive


def test_a_stopped_http_call_is_broken_off_within_a_second(world: World, witness: Witness) -> None:
    app = world.api.import_document(chain(witness, 2, 30))
    run_id = world.begin(app["api_key"])
    wait_until(lambda: witness.calls, "the first call")
    asked = time.time()
    assert world.stop(run_id) < LIMIT_S
    wait_until(lambda: witness.calls[0].gone_at is not None, "the connection is closed", 5)
    assert (witness.calls[0].gone_at or 0) - asked < LIMIT_S
    assert len(witness.calls) == 1


def test_a_stopped_code_node_leaves_no_process_within_a_second(world: World) -> None:
    app = world.api.import_document(one_code_node(BURNS))
    pid = world.executor.process.pid
    before = descendants(pid)
    run_id = world.begin(app["api_key"])
    ticks = os.sysconf("SC_CLK_TCK")

    def burning() -> dict[int, str]:
        now = descendants(pid)
        return {p: born for p, (born, used) in now.items() if used - before.get(p, ("", 0))[1] > ticks}

    wait_until(burning, "the code burns")
    busy = burning()
    asked = time.time()
    assert world.stop(run_id) < LIMIT_S

    def gone() -> bool:
        now = descendants(pid)
        return all(p not in now or now[p][0] != born for p, born in busy.items())

    wait_until(gone, "the process is gone", 5)
    assert time.time() - asked < LIMIT_S
