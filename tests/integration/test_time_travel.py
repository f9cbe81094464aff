"""Runs of a part, forks and retries over HTTP, on a whole embedded deployment."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowledger.dev import start_embedded
from libs.settings import Settings
from tests.documents import document, edges, end, if_else, node, start, template
from tests.unit.api.speaking import llm

NUMBERS = document(
    [
        node(
            "start",
            "start",
            variables=[
                {"variable": "q", "label": "q", "type": "number", "required": False, "default": 7, "options": []},
                {"variable": "most", "label": "m", "type": "text-input", "required": False, "default": "5"},
            ],
        ),
        llm(),
        if_else("choice", "start.q", ">", "{{#start.most#}}"),
        template("big", "{{ a }}: {{ q }} is big", a="llm.text", q="start.q"),
        end("yes", said="big.output"),
        end("no", said="start.q"),
    ],
    edges("start > llm > choice", "choice[true] > big > yes", "choice[false] > no"),
)


CHAT = document(
    [start("q"), llm(), node("answer", "answer", answer="{{#conversation.mood#}}: {{#sys.query#}} {{#llm.text#}}")],
    edges("start > llm > answer"),
    mode="advanced-chat",
    conversation_variables=[{"id": "m", "name": "mood", "value_type": "string", "value": "calm"}],
)


class Server:
    def __init__(self, folder: Path) -> None:
        self.instance = start_embedded(folder, "127.0.0.1", 0, Settings(models="offline", data=folder))
        self.http = httpx.Client(
            base_url=self.instance.url,
            headers={"Authorization": f"Bearer {self.instance.admin_token}"},
            timeout=30,
            trust_env=False,
        )
        made = self.imported(NUMBERS)
        self.app_id, self.key = made["app_id"], made["api_key"]

    def imported(self, text: str) -> dict[str, Any]:
        return dict(
            self.http.post("/v1/apps/import", content=text, headers={"Content-Type": "application/json"}).json()
        )

    def run(self, **body: Any) -> dict[str, Any]:
        """A run's blocking answer."""
        answer = self.http.post("/v1/runs", json={"app_id": self.app_id, "user": "u"} | body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def ended(self, run_id: str) -> dict[str, Any]:
        """The run once its stream has ended."""
        with self.http.stream("GET", f"/v1/workflow/{run_id}/events?user=u", headers={"Last-Event-ID": "0"}) as stream:
            frames = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
        assert frames[-1]["event"] == "workflow_finished"
        return dict(self.http.get(f"/v1/runs/{run_id}").json()) | {"frames": frames}

    def history(self, run_id: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.http.get(f"/v1/runs/{run_id}/history").text.splitlines()]

    def seq(self, run_id: str, kind: str, node_id: str) -> int:
        lines = self.history(run_id)
        return int(next(each["seq"] for each in lines if (each["type"], each.get("node_id")) == (kind, node_id)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("data"))
    yield made
    made.http.close()
    made.instance.stop()


# --- runs of a part ---


def test_one_node_runs_with_the_variables_of_an_earlier_run(server: Server) -> None:
    earlier = server.run(inputs={})
    answer = server.run(only="big", from_run=earlier["workflow_run_id"], inputs={"llm.text": "so"})
    assert answer["data"]["outputs"] == {"output": "so: 7 is big"}
    run = server.ended(answer["workflow_run_id"])
    assert (run["only"], run["triggered_from"], set(run["nodes"])) == ("big", "debugging", {"big"})


def test_one_node_is_named_by_its_title_and_streams_its_frames(server: Server) -> None:
    answer = server.run(only="Big", inputs={"#llm.text#": "so", "#start.q#": "1"})
    frames = server.ended(answer["workflow_run_id"])["frames"]
    kinds = [each["event"] for each in frames]
    assert kinds == ["workflow_started", "node_started", "node_finished", "workflow_finished"]


def test_one_node_of_a_chatflow_takes_system_and_conversation_values(server: Server) -> None:
    app = server.imported(CHAT)["app_id"]
    given = {"#conversation.mood#": "glad", "#sys.query#": "why", "#llm.text#": "so"}
    answer = server.run(app_id=app, only="answer", query="", inputs=given)
    assert server.ended(answer["workflow_run_id"])["outputs"]["answer"] == "glad: why so"
    later = {"#sys.query#": "how", "#llm.text#": "then"}
    answer = server.run(app_id=app, only="answer", from_run=answer["workflow_run_id"], query="", inputs=later)
    assert server.ended(answer["workflow_run_id"])["outputs"]["answer"] == "glad: how then"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"only": "big"}, "Variable key #llm.text# not found in user inputs."),
        ({"only": "bigg"}, 'no node "bigg". Did you mean "big"?'),
        ({"only": "big", "inputs": {"x": 1}}, "Variable key"),
        (
            {"only": "choice", "inputs": {"start.q": 1, "start.most": "1", "x": 1}},
            'x: node "choice" does not read that',
        ),
        ({"only": 7}, "only: expected a string"),
        ({"from_run": "x"}, "from_run: goes with only"),
    ],
)
def test_a_part_that_cannot_run_is_refused(server: Server, body: dict[str, Any], said: str) -> None:
    answer = server.post("/v1/runs", {"app_id": server.app_id} | body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
    assert said in answer.json()["message"]


def test_a_part_needs_the_admin_token(server: Server) -> None:
    own = {"Authorization": f"Bearer {server.key}"}
    answer = server.post("/v1/runs", {"only": "big", "inputs": {}}, headers=own)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_an_earlier_run_that_is_not_there_is_404(server: Server) -> None:
    answer = server.post("/v1/runs", {"app_id": server.app_id, "only": "big", "from_run": "0" * 8})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# --- forks ---


def test_a_fork_is_a_run_of_its_own_with_the_edited_value(server: Server) -> None:
    origin = server.run(inputs={})["workflow_run_id"]
    at = server.seq(origin, "NodeSucceeded", "llm")
    answer = server.post(f"/v1/runs/{origin}/fork", {"at": at, "set": {"llm.text": "well"}})
    made = answer.json()
    assert answer.headers["x-workflow-run-id"] == made["id"]
    assert (made["again"], made["first"]) == (["choice", "big", "yes"], ["choice"])
    run = server.ended(made["id"])
    assert run["outputs"] == {"said": "well: 7 is big"}
    assert (run["forked_from"], run["forked_at"]) == (origin, at)
    lines = server.history(made["id"])
    assert [each["cause"] for each in lines[2:at]] == ["copied"] * (at - 2)
    assert server.ended(origin)["outputs"] != run["outputs"]
    listed = server.http.get("/v1/runs", params={"id_prefix": made["id"]}).json()["data"]
    assert [(each["forked_from"], each["forked_at"]) for each in listed] == [(origin, at)]


def test_an_edited_value_may_take_a_branch_without_nodes_that_would_run_again(server: Server) -> None:
    origin = server.run(inputs={})["workflow_run_id"]
    at = server.seq(origin, "NodeSucceeded", "llm")
    made = server.post(f"/v1/runs/{origin}/fork", {"at": at, "set": {"start.most": "9"}}).json()
    assert made["again"] == ["choice", "big", "yes"]
    assert server.ended(made["id"])["outputs"] == {"said": 7}
    begun = [each["node_id"] for each in server.history(made["id"]) if each["type"] == "NodeStarted"]
    assert begun[-2:] == ["choice", "no"]


def test_a_fork_with_a_key_is_made_once(server: Server) -> None:
    origin = server.run(inputs={})["workflow_run_id"]
    key = {"Idempotency-Key": f"fork-{origin}"}
    first, second = (server.post(f"/v1/runs/{origin}/fork", {"at": 3}, headers=key).json() for _ in range(2))
    assert first["id"] == second["id"]
    other = server.post(f"/v1/runs/{origin}/fork", {"at": 4}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "at: expected the sequence of an event"),
        ({"at": "3"}, "at: expected the sequence of an event"),
        ({"at": True}, "at: expected the sequence of an event"),
        ({"at": 0}, "at: the run has events 1 to"),
        ({"at": 999}, "at: the run has events 1 to"),
        ({"at": 3, "set": []}, "set: expected an object"),
        ({"at": 4, "set": {"start.mst": 1}}, 'there is no value "start.mst". Did you mean "start.most"?'),
        ({"at": 4, "set": {"start.most": 1}}, "start.most: expected a value of type string, got number"),
    ],
)
def test_a_fork_that_cannot_be_is_refused(server: Server, body: dict[str, Any], said: str) -> None:
    origin = server.run(inputs={})["workflow_run_id"]
    answer = server.post(f"/v1/runs/{origin}/fork", body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
    assert said in answer.json()["message"]


def test_a_forked_message_finds_the_conversation_as_the_first_one_did(server: Server) -> None:
    app = server.imported(CHAT)["app_id"]
    origin = server.run(app_id=app, query="hello", inputs={"q": "?"})["workflow_run_id"]
    at = server.seq(origin, "NodeStarted", "llm")
    plain = server.post(f"/v1/runs/{origin}/fork", {"at": at}).json()["id"]
    assert server.ended(plain)["outputs"] == server.ended(origin)["outputs"]
    edits = {"conversation.mood": "glad", "sys.query": "bye"}
    edited = server.ended(server.post(f"/v1/runs/{origin}/fork", {"at": at, "set": edits}).json()["id"])
    assert edited["status"] == "succeeded"
    assert edited["outputs"]["answer"].startswith("glad: bye ")
    assert edited["inputs"]["sys.conversation_id"] != server.ended(origin)["inputs"]["sys.conversation_id"]


def test_only_who_sees_a_run_can_fork_or_retry_it(server: Server) -> None:
    origin = server.run(inputs={})["workflow_run_id"]
    own, other = ({"Authorization": f"Bearer {key}"} for key in (server.key, "app-" + "x" * 24))
    assert server.post(f"/v1/runs/{origin}/fork", {"at": 3}, headers=own).status_code == 200
    assert server.post(f"/v1/runs/{origin}/fork", {"at": 3}, headers=other).status_code == 401
    for verb in ("fork", "retry"):
        answer = server.post(f"/v1/runs/{'0' * 8}/{verb}", {"at": 3})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# --- retries ---


def test_a_failed_run_is_tried_again_at_the_node_that_failed(server: Server) -> None:
    origin = server.run(inputs={"most": "many"})
    assert origin["data"]["status"] == "failed"
    answer = server.post(f"/v1/runs/{origin['workflow_run_id']}/retry", {"set": {"start.most": "6"}})
    made = answer.json()
    assert (answer.status_code, made["first"], made["again"]) == (200, ["choice"], ["choice"])
    run = server.ended(made["id"])
    assert (run["status"], run["inputs"]["most"]) == ("succeeded", "6")
    again = server.post(f"/v1/runs/{origin['workflow_run_id']}/retry").json()
    assert server.ended(again["id"])["status"] == "failed"


def test_a_run_that_has_not_failed_is_not_retried(server: Server) -> None:
    origin = server.run(inputs={})["workflow_run_id"]
    answer = server.post(f"/v1/runs/{origin}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "run_not_failed")


# --- differences and reasons ---


def test_a_difference_is_told_between_any_two_events(server: Server) -> None:
    run_id = server.run(inputs={})["workflow_run_id"]
    at = server.seq(run_id, "NodeSucceeded", "llm")
    found = server.http.get(f"/v1/runs/{run_id}/diff", params={"from": at - 1, "to": at}).json()
    assert found["nodes"] == {"llm": {"from": "running", "to": "succeeded"}}
    assert "llm.text" in found["variables"]
    assert server.http.get(f"/v1/runs/{run_id}/diff").json()["status"] == {"from": "pending", "to": "succeeded"}


@pytest.mark.parametrize("query", ["from=0", "to=999", "from=5&to=4", "from=x"])
def test_a_difference_of_places_that_are_none_is_refused(server: Server, query: str) -> None:
    run_id = server.run(inputs={})["workflow_run_id"]
    answer = server.http.get(f"/v1/runs/{run_id}/diff?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")


def test_a_reason_is_one_sentence_for_the_run_or_a_node(server: Server) -> None:
    run_id = server.run(inputs={"q": 1})["workflow_run_id"]
    whole = server.http.get(f"/v1/runs/{run_id}/why").json()
    assert (whole["id"], whole["status"], whole["node_id"]) == (run_id, "succeeded", None)
    found = server.http.get(f"/v1/runs/{run_id}/why", params={"node": "Big"}).json()
    assert found["node_id"] == "big"
    assert 'because node "Choice" (choice) took the branch "false"' in found["why"]
    answer = server.http.get(f"/v1/runs/{run_id}/why", params={"node": "bgi"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_differences_and_reasons_are_for_those_who_see_the_run(server: Server) -> None:
    run_id = server.run(inputs={})["workflow_run_id"]
    own = {"Authorization": f"Bearer {server.key}"}
    other = {"Authorization": f"Bearer {server.imported(CHAT)['api_key']}"}
    for path in ("diff", "why"):
        assert server.http.get(f"/v1/runs/{run_id}/{path}", headers=own).status_code == 200
        assert server.http.get(f"/v1/runs/{run_id}/{path}", headers=other).status_code == 404
    for path in ("fork", "retry"):
        assert server.post(f"/v1/runs/{run_id}/{path}", {"at": 3}, headers=other).status_code == 404
