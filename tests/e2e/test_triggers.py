"""Triggers over a real deployment: two API replicas, two executors, Kafka and PostgreSQL; processes die at will.

The services' clock is put forward to the instants of a schedule, by minutes: the log's own clock stays behind, within
what reads allow for.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.events.kafka import KafkaLog
from libs.events.log import Topic
from tests import servers
from tests.documents import document, edges, end, node
from tests.e2e.deployment import Api, Deployment, Service, deployment, wait_until
from tests.e2e.following import Patient
from tests.integration.test_triggers import HOOK

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(240)]

MINUTE_NS = 60_000_000_000


class Clock:
    """The wall clock of the services."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ahead"
        self._ahead(0)

    def settings(self) -> dict[str, str]:
        return {"PYTHONPATH": str(Path(__file__).parent / "clock"), "TEST_CLOCK": str(self._file)}

    def now_ns(self) -> int:
        return time.time_ns() + int(self._file.read_text("ascii"))

    def put_to(self, at_ns: int) -> None:
        """Forward to this instant, if it is not past it."""
        self._ahead(max(at_ns - time.time_ns(), int(self._file.read_text("ascii"))))

    def _ahead(self, ns: int) -> None:
        written = self._file.with_suffix(".new")
        written.write_text(str(ns), "ascii")
        written.rename(self._file)


class Site:
    def __init__(self, deployed: Deployment, clock: Clock) -> None:
        self.deployed, self.clock = deployed, clock
        deployed.settings |= clock.settings()
        deployed.start("projector")
        self.apis: list[Service] = []
        self.executors: list[Service] = []
        self.mend()

    def mend(self) -> None:
        """Two of each again."""
        for verb, services in (("api", self.apis), ("executor", self.executors)):
            services[:] = [service for service in services if service.alive]
            while len(services) < 2:
                services.append(self.deployed.start(verb))

    def client(self, place: int = 0) -> Api:
        return self.deployed.client_of(self.apis[place].url, Patient())

    def runs(self, api: Api, app_id: str) -> list[dict[str, Any]]:
        answer = api.http.get("/v1/runs", params={"app": app_id, "limit": 100}, headers=api.admin)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])

    def commands(self) -> int:
        """How many the log has."""
        settings = self.deployed.settings
        log = KafkaLog(settings["FLOWLEDGER_KAFKA"], {}, settings["FLOWLEDGER_TOPIC_PREFIX"], self.deployed.partitions)
        try:
            return sum(log.bounds(Topic.COMMANDS, partition)[1] for partition in range(self.deployed.partitions))
        finally:
            log.close()

    def wait_for_runs(self, app_id: str, count: int) -> None:
        api = self.client()

        def ended() -> bool:
            return [run["status"] for run in self.runs(api, app_id)] == ["succeeded"] * count

        wait_until(ended, f"{count} runs of the schedule", 60)


@pytest.fixture
def site(kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str, tmp_path: Path) -> Iterator[Site]:
    with deployment(kafka_server.bootstrap, kafka_prefix, postgres_url, tmp_path) as deployed:
        yield Site(deployed, Clock(tmp_path))


def test_every_instant_of_a_schedule_has_one_run_whoever_dies(site: Site) -> None:
    first = (site.clock.now_ns() // MINUTE_NS + 2) * MINUTE_NS
    instants = [first, first + MINUTE_NS, first + 2 * MINUTE_NS]
    minutes = ",".join(str(at // MINUTE_NS % 60) for at in instants)
    tick = node("tick", "trigger-schedule", mode="cron", cron_expression=f"{minutes} * * * *", timezone="UTC")
    app = site.client().import_document(document([tick, end(at="sys.timestamp")], edges("tick > end")))["app_id"]
    assert site.runs(site.client(1), app) == []

    site.clock.put_to(instants[0])
    site.wait_for_runs(app, 1)

    site.clock.put_to(instants[1])
    site.apis[0].kill()
    site.executors[0].kill()
    site.mend()
    site.wait_for_runs(app, 2)

    for service in (*site.apis, *site.executors):
        service.kill()
    site.clock.put_to(instants[2])
    site.mend()
    site.wait_for_runs(app, 3)

    site.clock.put_to(instants[2] + MINUTE_NS)
    for place in (0, 1):
        shown = site.runs(site.client(place), app)
        assert [run["triggered_from"] for run in shown] == ["schedule"] * 3
        begun_ns = sorted(datetime.fromisoformat(run["created_at"]).timestamp() * 1e9 for run in shown)
        assert all(run_ns >= at for run_ns, at in zip(begun_ns, instants, strict=True))


class Hook:
    """A webhook's address at both replicas."""

    def __init__(self, site: Site) -> None:
        self.site = site
        api = site.client()
        self.app_id = api.import_document(HOOK)["app_id"]
        path = f"/console/api/apps/{self.app_id}/workflows/triggers/webhook?node_id=hook"
        answer = api.http.get(path, headers=api.admin)
        self.path = httpx.URL(answer.json()["webhook_url"]).path

    def call(self, place: int, delivery: str | None, who: str = "Ada") -> httpx.Response:
        headers = {"X-Kind": "order"} | ({} if delivery is None else {"Idempotency-Key": delivery})
        return self.site.client(place).http.post(self.path, json={"who": who}, headers=headers)


def test_a_delivery_that_comes_twice_is_one_run_at_any_replica_and_when_one_dies(site: Site) -> None:
    hook = Hook(site)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda place: hook.call(place, "d1"), (0, 1, 0, 1)))
    assert {(answer.status_code, answer.text) for answer in answers} == {(202, '{"taken":true}')}
    first = {answer.headers["X-Workflow-Run-Id"] for answer in answers}
    assert len(first) == 1
    other = hook.call(1, "d1", "Bob")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")

    for executor in site.executors:
        executor.freeze()
    before = site.commands()
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(hook.call, 0, "d2")
        wait_until(lambda: site.commands() > before, "the start is in the log, and nobody decides it")
        assert not lost.done()
        site.apis[0].kill()
        with pytest.raises(httpx.TransportError):
            lost.result(30)
        for executor in site.executors:
            executor.thaw()
    second = hook.call(1, "d2")
    assert second.status_code == 202, second.text
    site.mend()
    api = site.client()
    wait_until(lambda: all(run["finished_at"] for run in site.runs(api, hook.app_id)), "the runs have ended")
    found = {run["id"]: (run["status"], run["triggered_from"]) for run in site.runs(api, hook.app_id)}
    assert found == dict.fromkeys({*first, second.headers["X-Workflow-Run-Id"]}, ("succeeded", "webhook"))
