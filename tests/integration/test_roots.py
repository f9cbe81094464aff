"""A workflow with several triggers, behind HTTP and a clock: each begins runs at its own node, on either log."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.events.kafka import KafkaLog
from libs.events.log import Log
from libs.events.sqlite import SqliteLog
from services.api import Limits
from tests.api_world import VAULT, Server, until
from tests.documents import document, edges, end, node, template
from tests.real_executor import RealExecutor

HOUR_US = 3_600_000_000
WHO = [{"name": "who", "type": "string", "required": True}]
DOCUMENT = document(
    [
        node("order", "trigger-webhook", method="post", content_type="application/json", body=WHO),
        node("refund", "trigger-webhook", method="put", content_type="application/json", body=WHO, status_code=201),
        node("tick", "trigger-schedule", mode="cron", cron_expression="0 * * * *", timezone="UTC"),
        template("ordered", "order of {{ who }}", who="order.who"),
        template("refunded", "refund to {{ who }}", who="refund.who"),
        template("told", "{{ a or '' }}{{ b or '' }}", a="ordered.output", b="refunded.output"),
        template("counted", "counted by {{ user }}", user="sys.user_id"),
        end(told="told.output", counted="counted.output"),
    ],
    edges("order > ordered > told > end", "refund > refunded > told", "tick > counted > end"),
)
RAN = {
    "order": {"order", "ordered", "told", "end"},
    "refund": {"refund", "refunded", "told", "end"},
    "tick": {"tick", "counted", "end"},
}
EVERY = {"order", "refund", "tick", "ordered", "refunded", "told", "counted", "end"}


class World:
    """An API with a clock of its own and an executor, over one log; the document is published."""

    def __init__(self, log: Log, folder: Path) -> None:
        self.now_us = time.time_ns() // 1000 // HOUR_US * HOUR_US + HOUR_US + 60_000_000
        self.server = Server(log, limits=Limits(schedules_s=0.01), now_us=lambda: self.now_us)
        self.executor = RealExecutor(log, folder, VAULT)
        self.app_id = self.server.import_app(DOCUMENT)["app_id"]

    def close(self) -> None:
        self.server.close()
        self.executor.close()

    def get(self, path: str) -> Any:
        answer = self.server.http.get(path, headers=self.server.admin())
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self.server.http.post(path, json=body, headers=self.server.admin())

    def address(self, node_id: str) -> str:
        path = f"/console/api/apps/{self.app_id}/workflows/triggers/webhook?node_id={node_id}"
        return str(self.get(path)["webhook_url"])

    def call(self, node_id: str, who: str, **headers: str) -> str:
        """The run that a call of the webhook has begun."""
        method, status = {"order": ("POST", 200), "refund": ("PUT", 201)}[node_id]
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.server.http.request(method, self.address(node_id), json={"who": who}, headers=named)
        assert answer.status_code == status, answer.text
        return answer.headers["x-workflow-run-id"]

    def start(self, **body: Any) -> str:
        answer = self.post("/v1/runs", {"app_id": self.app_id, "inputs": {}} | body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["workflow_run_id"])

    def ended(self, run_id: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            answer = self.server.http.get(f"/v1/runs/{run_id}", headers=self.server.admin())
            assert answer.status_code in (200, 404), answer.text  # 404: a webhook answers when the start is in the log
            return answer.json() if answer.json().get("finished_at") else None

        return dict(until(found, 30))

    def root_in_history(self, run_id: str) -> Any:
        text = self.server.http.get(f"/v1/runs/{run_id}/history?to=1", headers=self.server.admin()).json()
        return text["data"].get("root")


@pytest.fixture(scope="module", params=["sqlite", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.slow])])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("roots")
    if request.param == "sqlite":
        log: Log = SqliteLog(folder)
    else:
        bootstrap, prefix = request.getfixturevalue("module_kafka")
        log = KafkaLog(bootstrap, {}, prefix, 4)
    made = World(log, folder)
    yield made
    made.close()
    log.close()


def check(run: dict[str, Any], root: str, outputs: dict[str, Any]) -> None:
    assert (run["status"], run["root"], run["outputs"]) == ("succeeded", root, outputs), run["error"]
    ran = {node_id for node_id, one in run["nodes"].items() if one["executions"]}
    skipped = {node_id for node_id, one in run["nodes"].items() if one["status"] == "skipped"}
    assert (ran, skipped) == (RAN[root], EVERY - RAN[root])


def event(who: str) -> dict[str, Any]:
    return {"webhook_data": {"headers": {}, "query_params": {}, "body": {"who": who}, "files": {}}}


def test_every_trigger_begins_runs_at_its_own_node(world: World) -> None:
    listed = world.get(f"/console/api/apps/{world.app_id}/triggers")["data"]
    assert [(one["node_id"], one["trigger_type"]) for one in listed] == [
        ("order", "trigger-webhook"),
        ("refund", "trigger-webhook"),
        ("tick", "trigger-schedule"),
    ]
    assert world.address("order") != world.address("refund")
    order, refund = world.ended(world.call("order", "Ada")), world.ended(world.call("refund", "Bob"))
    check(order, "order", {"told": "order of Ada", "counted": None})
    check(refund, "refund", {"told": "refund to Bob", "counted": None})
    assert order["triggered_from"] == refund["triggered_from"] == "webhook"

    world.now_us = (world.now_us // HOUR_US + 1) * HOUR_US
    fired = until(lambda: world.server.registry.triggers.fired(world.app_id, "tick"))
    tick = world.ended(fired.run_id)
    check(tick, "tick", {"told": None, "counted": "counted by schedule"})
    assert (fired.due_us, tick["triggered_from"]) == (world.now_us, "schedule")


def test_one_key_at_two_webhooks_is_two_runs_and_at_one_of_them_one(world: World) -> None:
    order, refund, again = (
        world.call(node_id, "Ada", Idempotency_Key="delivery-1") for node_id in ("order", "refund", "refund")
    )
    assert order != refund
    assert refund == again


def test_a_start_begins_at_the_first_trigger_or_where_it_says(world: World) -> None:
    check(world.ended(world.start(inputs=event("Ada"))), "order", {"told": "order of Ada", "counted": None})
    named = world.ended(world.start(root="Refund", inputs=event("Bob")))
    check(named, "refund", {"told": "refund to Bob", "counted": None})
    for body, said in (
        ({"root": "told"}, 'no run begins at node "told". Roots of this workflow: order, refund, tick'),
        ({"root": "refnd"}, 'no node "refnd". Did you mean "refund"?'),
        ({"root": "refund", "only": "told"}, "root: goes without only"),
        ({"root": 7}, "root: expected a string"),
    ):
        answer = world.post("/v1/runs", {"app_id": world.app_id, "inputs": {}} | body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
        assert said in answer.json()["message"]


def test_what_is_made_of_a_run_begins_where_the_run_did(world: World) -> None:
    origin = world.ended(world.call("refund", "Bob"))
    history = world.server.http.get(f"/v1/runs/{origin['id']}/history", headers=world.server.admin()).text.splitlines()
    at = next(n for n, line in enumerate(history, 1) if '"NodeSucceeded"' in line and '"refunded"' in line)
    forked = world.post(f"/v1/runs/{origin['id']}/fork", {"at": at, "set": {"refunded.output": "nothing"}}).json()
    assert (forked["again"], forked["first"]) == (["told", "end"], ["told"])
    check(world.ended(forked["id"]), "refund", {"told": "nothing", "counted": None})
    assert world.root_in_history(forked["id"]) == "refund"

    failed = world.ended(world.start(root="refund", inputs=event("Bob"), pins={"nodes": {"told": {"fail": "down"}}}))
    assert failed["status"] == "failed"
    retried = world.post(f"/v1/runs/{failed['id']}/retry", {}).json()
    assert retried["first"] == ["told"]
    assert world.ended(retried["id"])["root"] == world.root_in_history(retried["id"]) == "refund"

    before = world.get(f"/v1/runs/{origin['id']}/state?at=2")
    assert (before["root"], before["nodes"]) == ("refund", {})
    changed = world.get(f"/v1/runs/{origin['id']}/diff?from=2")
    assert changed["nodes"]["order"] == {"to": "skipped"}
    assert changed["variables"]["refund.who"] == {"to": "Bob"}
    why = world.get(f"/v1/runs/{origin['id']}/why?node=order")["why"]
    assert "the run began at another entry of the workflow" in why

    alone = world.ended(world.start(only="told", from_run=origin["id"]))
    assert (alone["status"], alone["root"], alone["outputs"]) == ("succeeded", "told", {"output": "refund to Bob"})
