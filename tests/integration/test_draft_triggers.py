"""Runs of the draft by a trigger: an editor waits, the event comes, wherever in the deployment each of them asks."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import httpx
import pytest

from flowledger.dev import Embedded, start_embedded
from libs.events.log import Entry, Log, LogError, Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.settings import Settings
from services.api import Limits
from services.api.awaited import WAIT_US
from tests.api_world import ADMIN, ScriptedExecutor, Server, nothing
from tests.documents import document, edges, end, node, template
from tests.integration.test_triggers import HOOK, Hook, code_of

WAITING = {"status": "waiting", "retry_in": 2000}
BY_ITS_KIND = {"X-Kind": "order"}
MINUTE_US = 60_000_000


def frames(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    folder = tmp_path_factory.mktemp("triggers")
    made = start_embedded(folder, "127.0.0.1", 0, Settings(models="offline", data=folder, sandbox="process"))
    yield made
    made.stop()


@pytest.fixture
def http(instance: Embedded) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=instance.url, timeout=30, trust_env=False) as made:
        yield made


class Editor(Hook):
    """Of a draft whose webhook has an address, and which is not published."""

    def __init__(self, http: httpx.Client, instance: Embedded, text: str = HOOK) -> None:
        super().__init__(http, instance, text, publish=False)
        self.debug = self.address().json()["webhook_debug_url"]

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return self.http.post(f"{self.app}/workflows/draft/{path}", json=body, headers=self.admin)

    def listen(self, node_id: str = "hook") -> httpx.Response:
        return self.post("trigger/run", {"node_id": node_id})

    def listen_alone(self, node_id: str = "hook") -> httpx.Response:
        return self.post(f"nodes/{node_id}/trigger/run")

    def call(self, who: str = "Ada", **headers: str) -> httpx.Response:
        return self.http.post(self.debug, json={"who": who}, headers=BY_ITS_KIND | headers)

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.http.get(f"{self.app}/workflow-runs", headers=self.admin).json()["data"]
        return found


def test_a_call_is_given_to_the_draft_that_waits_and_answered_as_its_node_says(
    http: httpx.Client, instance: Embedded
) -> None:
    editor = Editor(http, instance)
    assert editor.listen().json() == WAITING
    assert editor.listen().json() == WAITING
    called = editor.call()
    assert (called.status_code, called.json()) == (202, {"taken": True})
    shown = frames(editor.listen())
    assert [shown[0]["event"], shown[-1]["event"]] == ["workflow_started", "workflow_finished"]
    assert shown[-1]["data"]["outputs"] == {"who": "Ada", "kind": "order", "page": None}
    assert shown[0]["workflow_run_id"] == called.headers["x-workflow-run-id"]
    run = editor.ended(called)
    assert (run["triggered_from"], run["version"]) == ("debugging", "draft")
    assert [each["id"] for each in editor.runs()] == [run["id"]]
    logs = http.get(f"{editor.app}/workflow-app-logs", headers=editor.admin).json()
    assert logs["total"] == 0
    assert editor.listen().json() == WAITING  # the next one


def test_nobody_waits_for_a_second_call_or_for_one_that_came_unasked(http: httpx.Client, instance: Embedded) -> None:
    editor = Editor(http, instance)
    assert code_of(editor.call()) == (409, "trigger_not_awaited")
    editor.listen()
    assert editor.call("Ada").status_code == 202
    assert code_of(editor.call("Bob")) == (409, "trigger_not_awaited")
    assert frames(editor.listen())[-1]["data"]["outputs"]["who"] == "Ada"
    assert len(editor.runs()) == 1
    assert code_of(http.post("/triggers/webhook-debug/nobody", json={})) == (404, "not_found")
    http.delete(editor.app, headers=editor.admin)
    assert code_of(editor.call()) == (404, "not_found")


def test_a_call_that_lacks_something_leaves_the_wait_as_it_is(http: httpx.Client, instance: Embedded) -> None:
    editor = Editor(http, instance)
    editor.listen()
    assert code_of(http.post(editor.debug, json={"who": "Ada"})) == (400, "invalid_param")
    assert code_of(http.put(editor.debug, json={"who": "Ada"}, headers=BY_ITS_KIND)) == (405, "method_not_allowed")
    assert code_of(http.post(editor.debug, content=b"{", headers=BY_ITS_KIND)) == (400, "bad_request")
    assert editor.listen().json() == WAITING
    assert editor.call().status_code == 202


def test_one_trigger_runs_alone_by_its_event(http: httpx.Client, instance: Embedded) -> None:
    editor = Editor(http, instance)
    assert editor.listen_alone().json() == WAITING
    called = editor.call()
    assert called.status_code == 202
    execution = editor.listen_alone().json()
    assert (execution["node_id"], execution["status"], execution["outputs"]["who"]) == ("hook", "succeeded", "Ada")
    assert editor.ended(called)["triggered_from"] == "single-step"
    assert editor.runs() == []
    editor.listen()
    editor.listen_alone()
    editor.call("for the whole")
    editor.call("for the node")
    assert frames(editor.listen())[-1]["data"]["outputs"]["who"] == "for the whole"
    assert editor.listen_alone().json()["outputs"]["who"] == "for the node"


def test_a_file_of_a_call_is_a_file_of_the_drafts_run(http: httpx.Client, instance: Embedded) -> None:
    made = json.loads(HOOK)
    made["workflow"]["graph"]["nodes"][0]["data"] |= {
        "headers": [], "params": [], "content_type": "multipart/form-data",
        "body": [{"name": "doc", "type": "file", "required": True}],
    }  # fmt: skip
    made["workflow"]["graph"]["nodes"][1]["data"]["outputs"] = [{"variable": "doc", "value_selector": ["hook", "doc"]}]
    editor = Editor(http, instance, json.dumps(made))
    editor.listen()
    assert http.post(editor.debug, files={"doc": ("note.txt", b"inside", "text/plain")}).status_code == 202
    assert frames(editor.listen())[-1]["data"]["outputs"]["doc"]["filename"] == "note.txt"


def several(cron: str = "* * * * *") -> str:
    schedule = node("tick", "trigger-schedule", mode="cron", cron_expression=cron, timezone="UTC")
    second = node("second", "trigger-webhook", method="post", body=[])
    plugin = node("plug", "trigger-plugin", plugin_id="p", event_name="e")
    hook = json.loads(HOOK)["workflow"]["graph"]["nodes"][0]
    return document(
        [hook, second, schedule, plugin, template("t", "hi"), end(who="hook.who", said="t.output")],
        edges("hook > t > end", "second > t", "tick > t", "plug > t"),
    )


def test_a_schedule_runs_the_draft_at_once(http: httpx.Client, instance: Embedded) -> None:
    editor = Editor(http, instance, several("30 2 29 2 *"))
    shown = frames(editor.listen("tick"))
    assert shown[-1]["data"]["outputs"] == {"who": None, "said": "hi"}
    assert frames(editor.post("trigger/run-all", {"node_ids": ["tick"]}))[-1]["data"]["status"] == "succeeded"
    assert editor.listen_alone("tick").json()["status"] == "succeeded"
    assert len(editor.runs()) == 2


def test_the_first_event_of_all_that_are_awaited_begins_the_run(http: httpx.Client, instance: Embedded) -> None:
    editor = Editor(http, instance, several("30 2 29 2 *"))
    all_of_them = {"node_ids": ["hook", "second", "tick", "hook"]}
    assert editor.post("trigger/run-all", all_of_them).json() == WAITING
    second = editor.address("second").json()["webhook_debug_url"]
    assert http.post(second, json={}).status_code == 200
    assert frames(editor.post("trigger/run-all", all_of_them))[-1]["data"]["outputs"] == {"who": None, "said": "hi"}
    assert code_of(editor.call()) == (409, "trigger_not_awaited")


def test_what_cannot_be_awaited_is_said_at_once(http: httpx.Client, instance: Embedded) -> None:
    editor = Editor(http, instance, several("not a schedule"))
    for node_id in ("nowhere", "end", "plug", "tick"):
        assert code_of(editor.listen(node_id)) == (400, "invalid_param")
        assert code_of(editor.listen_alone(node_id)) == (400, "invalid_param")
        assert code_of(editor.post("trigger/run-all", {"node_ids": ["hook", node_id]})) == (400, "invalid_param")
    for wrong in ({}, {"node_ids": []}, {"node_ids": [1]}, {"node_ids": "hook"}):
        assert code_of(editor.post("trigger/run-all", wrong)) == (400, "invalid_param")
    assert code_of(editor.post("trigger/run", {})) == (400, "invalid_param")
    assert code_of(editor.call()) == (409, "trigger_not_awaited")
    body = {"name": "new", "mode": "workflow"}
    empty = http.post("/console/api/apps", json=body, headers=editor.admin).json()["id"]
    asked = http.post(
        f"/console/api/apps/{empty}/workflows/draft/trigger/run", json={"node_id": "hook"}, headers=editor.admin
    )
    assert code_of(asked) == (400, "invalid_param")


def test_a_draft_that_was_changed_meanwhile_says_nothing_to_the_caller(http: httpx.Client, instance: Embedded) -> None:
    editor = Editor(http, instance)
    editor.listen()
    draft = http.get(f"{editor.app}/workflows/draft", headers=editor.admin).json()
    draft["graph"]["nodes"][1]["data"]["type"] = "no such type"
    saved = {"graph": draft["graph"], "hash": draft["hash"]}
    assert http.post(f"{editor.app}/workflows/draft", json=saved, headers=editor.admin).status_code == 200
    refused = editor.call()
    assert code_of(refused) == (409, "trigger_not_awaited")
    assert "no such type" not in refused.text
    assert code_of(editor.listen()) == (400, "definition_invalid")


# --- several replicas, clocks and deaths ------------------------------------------------------------------------------


class Clock:
    """Ahead of the executor's, for which no start may be too old; at a full minute."""

    def __init__(self) -> None:
        self.us = time.time_ns() // 1000 // MINUTE_US * MINUTE_US + 60 * MINUTE_US

    def __call__(self) -> int:
        return self.us


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    made = MemoryLog(MemoryStore(partitions=2))
    yield made
    made.close()


@pytest.fixture
def executor(log: MemoryLog) -> Iterator[ScriptedExecutor]:
    made = ScriptedExecutor(log, nothing)
    yield made
    made.close()


class Replica(Server):
    """One that an editor asks, and one that is called."""

    app_id = ""

    def waits(self, **body: Any) -> bool:
        """Else the run is streamed, which here never ends."""
        path = f"/console/api/apps/{self.app_id}/workflows/draft/trigger/run"
        with self.stream("POST", path + ("-all" if body else ""), ADMIN, body or {"node_id": "hook"}) as answer:
            assert answer.response.status_code == 200
            return "application/json" in answer.headers["content-type"]

    def debug_url(self) -> str:
        path = f"/console/api/apps/{self.app_id}/workflows/triggers/webhook"
        made = self.http.get(path, params={"node_id": "hook"}, headers=self.admin())
        return httpx.URL(made.json()["webhook_debug_url"]).path

    def call(self, url: str, who: str = "Ada") -> httpx.Response:
        return self.http.post(url, json={"who": who}, headers=BY_ITS_KIND)


@pytest.fixture
def serve(log: MemoryLog, clock: Clock) -> Iterator[Callable[..., Replica]]:
    made: list[Replica] = []

    def one(on: Log = log, text: str = HOOK) -> Replica:
        replica = Replica(on, limits=Limits(), now_us=clock, schedules=False)
        replica.app_id = made[0].app_id if made else replica.import_app(text)["app_id"]
        made.append(replica)
        return replica

    yield one
    for replica in made:
        replica.close()


def test_the_call_may_arrive_at_another_replica_than_the_question(
    serve: Callable[..., Replica], executor: ScriptedExecutor
) -> None:
    asked, called, third = serve(), serve(), serve()
    url = asked.debug_url()
    for question in (asked, third):  # a proxy gives each question to another one
        assert question.waits()
    assert called.call(url).status_code == 202
    assert code_of(asked.call(url)) == (409, "trigger_not_awaited")
    assert not third.waits()
    assert len(executor.accepted) == 1
    assert executor.accepted[executor.run()].inputs["webhook_data"]["body"] == {"who": "Ada"}  # type: ignore[index,call-overload]
    assert asked.waits()


def test_a_wait_that_nobody_asks_for_is_over_in_half_a_minute(
    serve: Callable[..., Replica], executor: ScriptedExecutor, clock: Clock
) -> None:
    server = serve()
    url = server.debug_url()
    assert server.waits()
    clock.us += WAIT_US - 1
    assert server.waits()
    clock.us += WAIT_US - 1
    assert server.call(url).status_code == 202
    clock.us += WAIT_US  # nobody has asked what came of it
    assert server.waits()
    clock.us += WAIT_US
    assert code_of(server.call(url)) == (409, "trigger_not_awaited")
    assert len(executor.accepted) == 1


def test_who_asks_every_two_seconds_does_not_write_every_two_seconds(
    serve: Callable[..., Replica], executor: ScriptedExecutor, clock: Clock, log: MemoryLog
) -> None:
    server = serve()
    assert server.waits()
    _, before = log.bounds(Topic.DEFINITIONS, 0)
    for _ in range(30):
        clock.us += 2_000_000
        assert server.waits()
    assert log.bounds(Topic.DEFINITIONS, 0)[1] - before <= 6


class Dying:
    """A log that does not take what is said of a wait's run: its process dies behind the start."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.dying = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def send(self, topic: Topic, partition: int, entry: Entry, timeout_s: float = 4.0) -> "Future[int]":
        if self.dying and b'"run_id":"' in (entry.value or b"") and topic is Topic.DEFINITIONS:
            failed: Future[int] = Future()
            failed.set_exception(LogError("gone"))
            return failed
        return self._log.send(topic, partition, entry, timeout_s)


def test_a_run_whose_beginning_was_not_told_is_found_by_the_next_call(
    serve: Callable[..., Replica], executor: ScriptedExecutor, log: MemoryLog
) -> None:
    asked, called = serve(), serve(Dying(log))
    url = asked.debug_url()
    assert asked.waits()
    assert code_of(called.call(url)) == (503, "service_unavailable")
    assert asked.waits()
    assert code_of(asked.call(url, "Bob")) == (409, "trigger_not_awaited")
    assert not asked.waits()
    assert [accepted.inputs["webhook_data"]["body"] for accepted in executor.accepted.values()] == [{"who": "Ada"}]  # type: ignore[index,call-overload]


def test_beside_other_triggers_a_schedule_begins_at_its_next_instant(
    serve: Callable[..., Replica], executor: ScriptedExecutor, clock: Clock
) -> None:
    clock.us += MINUTE_US // 2
    server = serve(text=several())
    both = {"node_ids": ["hook", "tick"]}
    assert server.waits(**both)
    clock.us += MINUTE_US // 2 - 1_000_000
    assert server.waits(**both)
    clock.us += 1_000_000
    assert not server.waits(**both)
    assert executor.accepted[executor.run()].root == "tick"
    assert server.waits(**both)
    assert len(executor.accepted) == 1
