"""Two API replicas behind a plain TCP proxy, on Kafka and PostgreSQL: no client can tell which one it talks to, nor
that one of them was killed.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conversations import counting
from tests.documents import document, edges, end, start
from tests.e2e.calling import call, chain
from tests.e2e.deployment import Api, Deployment, Frame, Service, deployment, frames, wait_until
from tests.e2e.following import Follower, Patient
from tests.e2e.proxy import Proxy
from tests.e2e.witness import Witness
from tests.unit.api.speaking import llm

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(120)]

ECHO = document([start("q"), end(answer="start.q")], edges("start > end"))


class Replicas:
    """Two API processes, one executor, one projector; `proxy` stands before the API."""

    def __init__(self, deployed: Deployment, proxy: Proxy) -> None:
        self.proxy = proxy
        self._deployed = deployed
        self._services: list[Service] = []
        deployed.start("executor")
        deployed.start("projector")
        self.mend()

    def mend(self) -> None:
        """Start what was killed."""
        self._services = [service for service in self._services if service.alive]
        while len(self._services) < 2:
            self._services.append(self._deployed.start("api"))
        self.proxy.lead_to(*(service.url for service in self._services))

    def kill(self, place: int) -> None:
        self._services[place].kill()

    @property
    def both(self) -> list[Api]:
        return [self._deployed.client_of(service.url, Patient()) for service in self._services]

    def behind_proxy(self) -> Api:
        """A client each request of which is a connection of its own."""
        api = self._deployed.client_of(self.proxy.url, Patient())
        api.http.headers["Connection"] = "close"
        return api


@pytest.fixture(scope="module")
def deployed_replicas(
    module_kafka: tuple[str, str], module_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    folder: Path = tmp_path_factory.mktemp("replicas")
    with ExitStack() as stack:
        deployed = stack.enter_context(deployment(*module_kafka, module_database, folder))
        yield Replicas(deployed, stack.enter_context(Proxy()))


@pytest.fixture
def replicas(deployed_replicas: Replicas) -> Replicas:
    deployed_replicas.mend()
    return deployed_replicas


@pytest.fixture
def witness() -> Iterator[Witness]:
    with Witness() as it:
        yield it


def told(api: Api, key: str, run_id: str, last: str | None = "0") -> list[tuple[str | None, Frame]]:
    with api.attach(key, run_id, last) as answer:
        return [(frame.id, frame) for frame in frames(answer)]


def ask(api: Api, key: str, path: str, **query: str) -> Any:
    answer = api.http.get(path, params=query, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def start_blocking(api: Api, key: str, once: str | None = None, q: str = "x") -> httpx.Response:
    """`once`: the idempotency key; None: one of its own."""
    body = {"inputs": {"q": q}, "response_mode": "blocking", "user": "tester"}
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": once or str(uuid4())}
    return api.http.post("/v1/workflows/run", json=body, headers=headers)


def test_a_run_is_told_alike_by_both_replicas_while_it_runs_and_afterwards(
    replicas: Replicas, witness: Witness
) -> None:
    here, there = replicas.both
    nodes = [start("q"), call("call", f"{witness.url}/call?delay=0.5"), llm(), end(text="llm.text")]
    key = here.import_document(document(nodes, edges("start > call > llm > end")))["api_key"]
    with ThreadPoolExecutor(1) as pool, here.run(key, {"q": "x"}) as answer:
        run_id = answer.headers["X-Workflow-Run-Id"]
        other = pool.submit(told, there, key, run_id)
        own = [(frame.id, frame) for frame in frames(answer)]
        streams = [other.result(60), told(here, key, run_id), told(there, key, run_id)]
    assert own[-1][1]["data"]["status"] == "succeeded"
    for stream in streams:
        assert [each for each in stream if not speaks(each)] == [each for each in own if not speaks(each)]
        assert said(stream) == said(own) != ""


def speaks(told: tuple[str | None, Frame]) -> bool:
    """Whether it is a piece of text: where text is cut depends on when it is sent, what it says does not."""
    return bool(told[1]["event"] == "text_chunk")


def said(stream: list[tuple[str | None, Frame]]) -> str:
    return "".join(each[1]["data"]["text"] for each in stream if speaks(each))


@pytest.mark.parametrize("stopped_at", [0, 1])
def test_a_run_is_stopped_at_either_replica(replicas: Replicas, witness: Witness, stopped_at: int) -> None:
    here, there = both = replicas.both
    key = here.import_document(chain(witness, 1, 60))["api_key"]
    with here.run(key, {"q": "x"}) as answer:
        run_id, task_id = answer.headers["X-Workflow-Run-Id"], answer.headers["X-Task-Id"]
        with there.attach(key, run_id) as attached:
            wait_until(lambda: witness.calls, "the call")
            stop = both[stopped_at].http.post(
                f"/v1/workflows/tasks/{task_id}/stop",
                json={"user": "tester"},
                headers={"Authorization": f"Bearer {key}"},
            )
            assert stop.json() == {"result": "success"}
            for stream in (answer, attached):
                assert list(frames(stream))[-1]["data"]["status"] == "stopped"


def test_a_client_whose_replica_is_killed_goes_on_at_the_other_without_gap_or_duplicate(
    replicas: Replicas, witness: Witness
) -> None:
    key = replicas.both[0].import_document(chain(witness, 3, 0.6))["api_key"]
    client = Follower(replicas.proxy.url, key, {"q": "x"})
    wait_until(lambda: witness.calls, "the first call")
    replicas.kill(replicas.proxy.taken[-1])
    client.join(60)
    client.check(5)
    assert client.attached == 1
    assert [call.path for call in witness.calls] == ["/call1", "/call2", "/call3"]
    whole = [frame for _, frame in told(replicas.behind_proxy(), key, client.run_id)]
    assert client.frames == whole


def test_a_blocking_request_whose_replica_dies_is_repeated_and_answered_with_the_same_run(
    replicas: Replicas, witness: Witness
) -> None:
    api = replicas.behind_proxy()
    key = api.import_document(chain(witness, 1, 1.5))["api_key"]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(start_blocking, api, key, "once")
        wait_until(lambda: witness.calls, "the call")
        replicas.kill(replicas.proxy.taken[-1])
        with pytest.raises(httpx.TransportError):
            first.result(30)
    answer = start_blocking(api, key, "once")
    assert answer.json()["data"]["status"] == "succeeded", answer.text
    assert len(witness.calls) == 1
    listed = ask(api, key, "/v1/runs")["data"]
    assert [run["id"] for run in listed] == [answer.json()["workflow_run_id"]]


def test_one_idempotency_key_at_both_replicas_at_once_makes_one_run(replicas: Replicas) -> None:
    both = replicas.both
    key = both[0].import_document(ECHO)["api_key"]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(start_blocking, both[number % 2], key, "same") for number in range(8)]
    answers = [each.result() for each in asked]
    assert [answer.status_code for answer in answers] == [200] * 8
    assert all(answer.json() == answers[0].json() for answer in answers)
    assert len(ask(both[0], key, "/v1/runs")["data"]) == 1
    reused = start_blocking(both[1], key, "same", "other")
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")


def test_what_one_replica_has_answered_the_other_shows(replicas: Replicas) -> None:
    key = replicas.both[0].import_document(ECHO)["api_key"]
    for here, there in (replicas.both, replicas.both[::-1]) * 3:
        run_id = start_blocking(here, key).json()["workflow_run_id"]
        assert there.detail(key, run_id)["status"] == "succeeded"
        assert ask(there, key, f"/v1/runs/{run_id}")["status"] == "succeeded"
        assert ask(there, key, "/v1/runs")["data"][0]["id"] == run_id
        assert ask(there, key, "/v1/workflows/logs")["data"][0]["workflow_run"]["id"] == run_id
        assert there.history(run_id)[-1]["type"] == "RunSucceeded"


def test_a_conversation_alternates_between_replicas(replicas: Replicas) -> None:
    api = replicas.behind_proxy()
    key = api.import_document(counting())["api_key"]
    talk: str | None = None
    begun = len(replicas.proxy.taken)
    for number in range(1, 5):
        body = {"inputs": {}, "query": f"say {number}", "user": "ann", "conversation_id": talk}
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": str(number)}
        answer = api.http.post("/v1/chat-messages", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        talk = answer.json()["conversation_id"]
        assert answer.json()["answer"].endswith(f"#{number}")
    assert len(set(replicas.proxy.taken[begun:])) == 2
    shown = [ask(each, key, "/v1/messages", user="ann", conversation_id=str(talk))["data"] for each in replicas.both]
    assert shown[0] == shown[1]
    assert [message["query"] for message in shown[0]] == [f"say {number}" for number in range(1, 5)]


def test_a_connection_for_many_runs_goes_on_at_the_other_replica(replicas: Replicas, witness: Witness) -> None:
    api = replicas.behind_proxy()
    key = api.import_document(chain(witness, 2, 0.6))["api_key"]
    runs = []
    for _ in range(3):
        with api.run(key, {"q": "x"}) as answer:
            runs.append(answer.headers["X-Workflow-Run-Id"])
    got: list[Frame] = []
    with followed(api, key, runs) as answer:
        stream = frames(answer)
        while not any(frame["event"] == "node_finished" for frame in got):
            got.append(next(stream))
        replicas.kill(replicas.proxy.taken[-1])
        with pytest.raises(httpx.TransportError):
            got.extend(stream)
    last = max(index for index, frame in enumerate(got) if frame.id)
    del got[last + 1 :]
    with followed(api, key, runs, str(got[-1].id)) as answer:
        got += frames(answer)
    for run_id in runs:
        own = [frame for _, frame in told(api, key, run_id)]
        assert [frame for frame in got if frame["workflow_run_id"] == run_id] == own
        assert own[-1]["data"]["status"] == "succeeded"


@contextmanager
def followed(api: Api, key: str, runs: list[str], last: str = "") -> Iterator[httpx.Response]:
    headers = {"Authorization": f"Bearer {key}", "Last-Event-ID": last}
    with api.http.stream("GET", "/v1/runs/events", params={"run": runs}, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        yield answer


def test_keys_apps_and_sessions_of_one_replica_are_known_at_the_other(replicas: Replicas) -> None:
    here, there = replicas.both
    app = here.import_document(ECHO)
    assert start_blocking(there, app["api_key"]).status_code == 200
    keys = f"/v1/apps/{app['app_id']}/keys"
    made = here.http.post(keys, headers=here.admin).json()
    assert start_blocking(there, made["key"]).status_code == 200
    revoked = there.http.delete(f"{keys}/{made['id']}", headers=there.admin)
    assert revoked.is_success, revoked.text
    assert start_blocking(there, made["key"]).status_code == 401
    wait_until(lambda: start_blocking(here, made["key"]).status_code == 401, "the key is refused everywhere")
    assert start_blocking(here, app["api_key"]).status_code == 200
