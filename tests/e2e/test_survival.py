"""A real deployment that loses its processes: SIGKILL, SIGSTOP, SIGTERM, a broker that goes away.

Oracles: the run ends as it would have; the client's stream has every event once, in order; finished nodes are not run
again; a call that was made twice carries one idempotency key.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from libs.events.ids import partition_of
from tests import servers
from tests.documents import document, edges, end, node, start
from tests.e2e.deployment import Api, Deployment, Frame, deployment, frames, wait_until
from tests.e2e.ledger import shared_out
from tests.e2e.witness import Witness

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def deployed(kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(kafka_server.bootstrap, kafka_prefix, postgres_url, tmp_path) as it:
        yield it


@pytest.fixture
def witness() -> Iterator[Witness]:
    with Witness() as it:
        yield it


def calls(witness: Witness, count: int, delay_s: float) -> str:
    """start > call1 > call2 > ... > end: HTTP calls that take `delay_s` each."""
    names = [f"call{number}" for number in range(1, count + 1)]
    nodes = [start("q")]
    for name in names:
        nodes.append(
            node(
                name,
                "http-request",
                method="post",
                url=f"{witness.url}/{name}?delay={delay_s}",
                headers="",
                params="",
                body={"type": "none", "data": []},
                authorization={"type": "no-auth", "config": None},
                timeout={},
            )
        )
    nodes.append(end(**{name: f"{name}.body" for name in names}))
    return document(nodes, edges(" > ".join(["start", *names, "end"])))


def collect(answer: Any, into: list[Frame]) -> threading.Thread:
    def read() -> None:
        into.extend(frames(answer))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def check_history(api: Api, run_id: str, nodes: int) -> list[dict[str, Any]]:
    history = api.history(run_id)
    assert [line["seq"] for line in history] == list(range(1, len(history) + 1))
    kinds = Counter(line["type"] for line in history)
    assert kinds["NodeSucceeded"] == nodes + 2
    assert kinds["RunSucceeded"] == 1
    return history


def check_calls(witness: Witness, history: list[dict[str, Any]], names: list[str]) -> None:
    """One call for each time the log says that the attempt began, all with one key, none behind its success.

    A call that was answered may still be made again: its owner may die with the answer in hand, before the log has it.
    """
    begun = Counter(line["node_id"] for line in history if line["type"] in ("NodeStarted", "NodeRestarted"))
    finished = {
        line["node_id"]: datetime.fromisoformat(line["at"]) for line in history if line["type"] == "NodeSucceeded"
    }
    for name in names:
        calls = [call for call in witness.calls if call.path == f"/{name}"]
        assert 1 <= len(calls) <= begun[name]
        assert len({call.key for call in calls}) == 1
        assert all(call.began_at < finished[name].timestamp() for call in calls), (
            f"{name} was called when it had succeeded"
        )
    owners = len({line["epoch"] for line in history})
    assert sum(begun[name] for name in names) < len(names) + owners, "more began again than owners were lost"


def check_stream(got: list[Frame], nodes: int) -> None:
    names = Counter(frame["event"] for frame in got)
    assert names["workflow_started"] == 1
    assert names["workflow_finished"] == 1
    assert names["node_started"] == names["node_finished"] == nodes + 2
    ids = [int(frame.id.partition(".")[0]) for frame in got if frame.id]
    assert ids == sorted(ids)
    assert got[-1]["data"]["status"] == "succeeded"


def epochs(history: list[dict[str, Any]]) -> int:
    """How many owners the run had."""
    return len({line["epoch"] for line in history})


@pytest.mark.parametrize("begun", [1, 2, 4])
def test_an_executor_killed_in_mid_run_is_replaced_and_the_stream_goes_on(
    deployed: Deployment, witness: Witness, begun: int
) -> None:
    """`begun`: calls when it is killed."""
    api = deployed.client(deployed.start("api"))
    deployed.start("projector")
    executors = [deployed.start("executor"), deployed.start("executor")]
    app = api.import_document(calls(witness, 4, 0.5))
    owners = shared_out(deployed, executors)  # asked before: the run is not long, and to read the log takes time
    got: list[Frame] = []
    with api.run(app["api_key"], {"q": "x"}) as answer:
        run_id = answer.headers["X-Workflow-Run-Id"]
        reader = collect(answer, got)
        owner = owners[partition_of(run_id)]
        wait_until(lambda: len(witness.calls) >= begun, "the call", every_s=0.005)
        owner.kill()
        reader.join(60)
        assert not reader.is_alive()
    check_stream(got, 4)
    history = check_history(api, run_id, 4)
    assert epochs(history) == 2, "it was killed in mid-run"
    check_calls(witness, history, [f"call{number}" for number in range(1, 5)])
    assert api.detail(app["api_key"], run_id)["status"] == "succeeded"


def test_an_owner_that_was_frozen_changes_nothing_when_it_wakes(deployed: Deployment, witness: Witness) -> None:
    api = deployed.client(deployed.start("api"))
    deployed.start("projector")
    frozen = deployed.start("executor")
    app = api.import_document(calls(witness, 3, 1.0))
    got: list[Frame] = []
    with api.run(app["api_key"], {"q": "x"}) as answer:
        run_id = answer.headers["X-Workflow-Run-Id"]
        reader = collect(answer, got)
        wait_until(lambda: witness.calls, "the first call")
        frozen.freeze()
        deployed.start("executor")
        reader.join(60)
        assert not reader.is_alive()
        calls_before = len(witness.calls)
        frozen.thaw()
        time.sleep(4)
    assert len(witness.calls) == calls_before, "the thawed owner started an effect"
    check_stream(got, 3)
    check_history(api, run_id, 3)


def test_sigterm_hands_over_without_failing_a_run(deployed: Deployment, witness: Witness) -> None:
    api = deployed.client(deployed.start("api"))
    deployed.start("projector")
    executors = [deployed.start("executor"), deployed.start("executor")]
    app = api.import_document(calls(witness, 6, 0.3))
    owners = shared_out(deployed, executors)
    got: list[Frame] = []
    with api.run(app["api_key"], {"q": "x"}) as answer:
        run_id = answer.headers["X-Workflow-Run-Id"]
        reader = collect(answer, got)
        first = owners[partition_of(run_id)]
        wait_until(lambda: len(witness.calls) >= 2, "the second call", every_s=0.005)
        assert first.terminate() == 0
        reader.join(60)
        assert not reader.is_alive()
    check_stream(got, 6)
    assert epochs(check_history(api, run_id, 6)) == 2, "it ended in mid-run"
    assert [executor.alive for executor in executors if executor is not first] == [True]


def test_a_run_whose_api_is_killed_is_read_on_at_another(deployed: Deployment, witness: Witness) -> None:
    one, other = deployed.start("api"), deployed.start("api")
    deployed.start("executor")
    deployed.start("projector")
    api, elsewhere = deployed.client(one), deployed.client(other)
    app = api.import_document(calls(witness, 4, 0.5))
    got: list[Frame] = []
    with api.run(app["api_key"], {"q": "x"}) as answer:
        run_id = answer.headers["X-Workflow-Run-Id"]
        stream = frames(answer)
        got.extend(next(stream) for _ in range(4))
        one.kill()
        with pytest.raises(Exception):  # noqa: B017, PT011  # whatever the client's library makes of a dead server
            got.extend(stream)
    last = next(frame.id for frame in reversed(got) if frame.id)
    seen = got[: max(index for index, frame in enumerate(got) if frame.id == last) + 1]
    with elsewhere.attach(app["api_key"], run_id, last) as answer:
        seen.extend(frames(answer))
    check_stream(seen, 4)


def _told(history: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(line["type"], line.get("node_id")) for line in history]


def test_a_fork_outlives_its_executor_and_calls_nothing_again(deployed: Deployment, witness: Witness) -> None:
    api = deployed.client(deployed.start("api"))
    executor = deployed.start("executor")
    deployed.start("projector")
    app = api.import_document(calls(witness, 3, 0.5))
    with api.run(app["api_key"], {"q": "x" * 100_000}) as answer:
        origin = list(frames(answer))[-1]["workflow_run_id"]
    history = api.history(origin)
    at = next(line["seq"] for line in history if (line["type"], line.get("node_id")) == ("NodeSucceeded", "call2"))
    body = {"at": at, "set": {"call1.status_code": 201}}
    made = api.http.post(f"/v1/runs/{origin}/fork", json=body, headers=api.admin)
    assert made.status_code == 200, made.text
    assert made.json()["again"] == ["call3", "end"]
    run_id = made.json()["id"]

    def called() -> set[str]:
        return {call.path for call in witness.calls if (call.key or "").startswith(run_id)}

    wait_until(called, "the fork calls")
    executor.kill()
    deployed.start("executor")
    with api.attach(app["api_key"], run_id) as answer:
        assert list(frames(answer))[-1]["data"]["status"] == "succeeded"
    assert called() == {"/call3"}
    told = _told(check_history(api, run_id, 3))
    assert [each for each in told if each[0] != "NodeRestarted"] == _told(history)

    def row() -> list[tuple[str, str, int]]:
        found = api.http.get("/v1/runs", params={"id_prefix": run_id}, headers=api.admin).json()["data"]
        return [(each["status"], each["forked_from"], each["forked_at"]) for each in found]

    wait_until(lambda: row() == [("succeeded", origin, at)], "the fork's row")
