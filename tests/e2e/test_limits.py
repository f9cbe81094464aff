"""Limits and turns on a real deployment: two API replicas, Kafka and PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.events.ids import partition_of
from services.executor.build import PROCESS_SLOTS
from tests import servers
from tests.documents import code, document, edges, end, start
from tests.e2e.calling import chain
from tests.e2e.deployment import Api, Deployment, deployment, wait_until
from tests.e2e.witness import Witness

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(240)]

CROWD = 100


@pytest.fixture
def deployed(kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(kafka_server.bootstrap, kafka_prefix, postgres_url, tmp_path) as made:
        yield made


@pytest.fixture
def witness() -> Iterator[Witness]:
    with Witness() as it:
        yield it


def replicas(deployed: Deployment, **settings: str) -> tuple[Api, Api]:
    here, there = (deployed.client(deployed.start("api", **settings)) for _ in range(2))
    return here, there


def begin(api: Api, key: str) -> httpx.Response:
    """Start a run and leave."""
    body = {"inputs": {"q": "x"}, "response_mode": "streaming", "user": "tester"}
    with api.http.stream("POST", "/v1/workflows/run", json=body, headers={"Authorization": f"Bearer {key}"}) as answer:
        if answer.status_code != 200:
            answer.read()
        return answer


def is_refused(answer: httpx.Response) -> bool:
    if answer.status_code != 429:
        assert answer.status_code == 200, answer.text
        return False
    assert answer.json()["code"] == "too_many_requests"
    assert int(answer.headers["retry-after"]) >= 1
    return True


def begun(answers: list[httpx.Response]) -> list[str]:
    """Ids of the runs that were let in."""
    return [answer.headers["X-Workflow-Run-Id"] for answer in answers if not is_refused(answer)]


def listed(api: Api, **query: str) -> list[dict[str, Any]]:
    answer = api.http.get("/v1/runs", params={"limit": "100"} | query, headers=api.admin)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def test_an_apps_limit_is_exact_at_two_replicas_and_when_its_executor_dies(
    deployed: Deployment, witness: Witness
) -> None:
    both = replicas(deployed, FLOWLEDGER_MAX_APP_RUNS="3")
    deployed.start("projector")
    owners = [deployed.start("executor") for _ in range(2)]
    app = both[0].import_document(chain(witness, 1, 90))
    key = app["api_key"]
    with ThreadPoolExecutor(10) as pool:
        runs = begun(list(pool.map(lambda number: begin(both[number % 2], key), range(10))))
    assert len(runs) == 3
    assert len(set(map(partition_of, runs))) == 1
    wait_until(lambda: len(witness.calls) == 3, "three calls")
    owners[0].kill()
    deployed.start("executor")
    for api in both:
        assert is_refused(begin(api, key))
        fork = api.http.post(f"/v1/runs/{runs[0]}/fork", json={"at": 3}, headers=api.admin)
        assert is_refused(fork)
    stopped = both[0].http.post(f"/v1/runs/{runs[0]}/stop", headers=both[0].admin)
    assert stopped.status_code == 200, stopped.text
    wait_until(lambda: both[0].history(runs[0])[-1]["type"] == "RunStopped", "the run has stopped")
    fork = both[1].http.post(f"/v1/runs/{runs[0]}/fork", json={"at": 3}, headers=both[1].admin)
    assert fork.status_code == 200, fork.text
    assert partition_of(fork.json()["id"]) == partition_of(runs[0])
    assert is_refused(begin(both[0], key))
    assert len(listed(both[1])) == 4


def test_all_apps_together_may_go_over_their_limit_by_what_the_other_replica_starts_at_that_moment(
    deployed: Deployment, witness: Witness
) -> None:
    most = 3
    both = replicas(deployed, FLOWLEDGER_MAX_RUNS=str(most), FLOWLEDGER_KEY_REQUESTS_PER_MINUTE="6")
    deployed.start("projector")
    deployed.start("executor")
    keys = [both[0].import_document(chain(witness, 1, 90))["api_key"] for _ in range(2)]
    with ThreadPoolExecutor(10) as pool:
        runs = begun(list(pool.map(lambda number: begin(both[number % 2], keys[number // 2 % 2]), range(10))))
    assert most <= len(runs) <= 2 * most
    # A stream begins when its command is in the log: the executor, which has just started, may decide it later.
    wait_until(lambda: sorted(run["id"] for run in listed(both[0])) == sorted(runs), "all of them are accepted")
    assert len(listed(both[1])) == len(runs)
    for api in both:
        assert is_refused(begin(api, keys[0]))
    refusals = [begin(both[0], keys[0]) for _ in range(6)]
    asked_too_often = [answer for answer in refusals if is_refused(answer) and "this key" in answer.json()["message"]]
    assert asked_too_often
    assert all(1 <= int(answer.headers["retry-after"]) <= 10 for answer in asked_too_often)


def test_what_one_app_has_queued_does_not_delay_anothers_first_run_and_shows_how_long_it_waited(
    deployed: Deployment,
) -> None:
    deployed.settings["FLOWLEDGER_SANDBOX"] = "process"
    deployed.start("projector")
    both = replicas(deployed)
    text = document(
        [
            start("q"),
            code("c", code="import time\ndef main():\n    time.sleep(0.02)\n    return {'result': 'x'}\n"),
            end(),
        ],
        edges("start > c > end"),
    )
    crowd, other = (both[0].import_document(text) for _ in range(2))
    with ThreadPoolExecutor(24) as pool:  # nobody executes yet: all of them queue
        queued = begun(list(pool.map(lambda number: begin(both[number % 2], crowd["api_key"]), range(CROWD))))
    first = begun([begin(both[0], other["api_key"])])[0]
    deployed.start("executor")
    wait_until(lambda: len(listed(both[0], app=crowd["app_id"], status="succeeded")) == CROWD, "the crowd's runs", 120)
    own, others = began(both[0], first), [began(both[0], run_id) for run_id in queued]
    before = [each for each in others if own["RunAccepted"] <= each["NodeStarted"] < own["NodeStarted"]]
    # Without turns it would be all of them. Partitions are read one by one, so slots are given away in between.
    assert len(before) <= 4 * PROCESS_SLOTS < CROWD / 2
    for api in both:
        shown = [*listed(api, app=other["app_id"]), api.http.get(f"/v1/runs/{first}", headers=api.admin).json()]
        waited_s = (own["NodeStarted"] - own["RunAccepted"]).total_seconds()
        assert [run["queue_time"] for run in shown] == [pytest.approx(waited_s, abs=0.002)] * 2


def began(api: Api, run_id: str) -> dict[str, datetime]:
    """When the run was accepted and begun, and when its code node was."""
    return {
        line["type"]: datetime.fromisoformat(line["at"])
        for line in api.history(run_id)
        if line["type"] in ("RunAccepted", "RunStarted") or (line["type"], line.get("node_id")) == ("NodeStarted", "c")
    }
