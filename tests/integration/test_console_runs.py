"""The console with a whole instance behind it: runs of the draft and its parts, what they leave, their history."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowledger.dev import Embedded, start_embedded
from libs.settings import Settings
from services.api.console.secrets import MASK
from tests.api_world import until
from tests.documents import document, edges, end, node, start, template
from tests.unit.api.speaking import llm

UNKNOWN = "00000000-0000-4000-8000-000000000009"
FLOW = document(
    [start("q"), template("shout", "{{ q }}!", q="start.q"), template("twice", "{{ s }} {{ s }}", s="shout.output"),
     end(answer="twice.output")],
    edges("start > shout > twice > end"),
)  # fmt: skip
CHAT = document(
    [start(), node("answer", "answer", answer="you said {{#sys.query#}}", variables=[])],
    edges("start > answer"),
    mode="advanced-chat",
)


def inside(container: str, each: dict[str, Any], kind: str) -> dict[str, Any]:
    each["parentId"] = container
    each["data"] |= {f"isIn{kind.title()}": True, f"{kind}_id": container}
    return each


ROUNDS = document(
    [
        start("items"),
        template("list", "{{ items }}", items="start.items"),
        node(
            "each",
            "iteration",
            iterator_selector=["start", "items"],
            output_selector=["word", "output"],
            start_node_id="eachstart",
        ),
        inside("each", node("eachstart", "iteration-start"), "iteration"),
        inside("each", template("word", "<{{ item }}>", item="each.item"), "iteration"),
        end(words="each.output"),
    ],
    edges("start > list > each > end", "eachstart > word"),
)


COUNTED = document(
    [
        start("q"),
        template("shout", "{{ q }}!", q="start.q"),
        node(
            "round",
            "loop",
            start_node_id="roundstart",
            loop_count=9,
            break_conditions=[
                {"variable_selector": ["round", "count"], "comparison_operator": "≥", "value": "3", "varType": "number"}
            ],
            logical_operator="and",
            loop_variables=[
                {"id": "c", "label": "count", "var_type": "number", "value_type": "constant", "value": 0},
                {"id": "t", "label": "said", "var_type": "string", "value_type": "variable",
                 "value": ["shout", "output"]},
            ],
        ),
        inside("round", node("roundstart", "loop-start"), "loop"),
        inside(
            "round",
            node("add", "assigner", version="2", items=[
                {"variable_selector": ["round", "count"], "input_type": "constant", "operation": "+=", "value": 1}
            ]),
            "loop",
        ),
        inside("round", template("word", "{{ said }}{{ count }}", said="round.said", count="round.count"), "loop"),
        end(count="round.count"),
    ],
    edges("start > shout > round > end", "roundstart > add > word"),
)  # fmt: skip
"""A loop that counts to three, with the text of a node before it."""


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    folder = tmp_path_factory.mktemp("console")
    settings = Settings(models="offline", data=folder, secret_key=None, sandbox="process")
    made = start_embedded(folder, "127.0.0.1", 0, settings)
    made.folder = folder  # type: ignore[attr-defined]  # for the test that looks into it
    yield made
    made.stop()


@pytest.fixture
def console(instance: Embedded) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {instance.admin_token}"}
    with httpx.Client(base_url=f"{instance.url}/console/api/", headers=headers, timeout=30, trust_env=False) as made:
        yield made


def imported(console: httpx.Client, text: str = FLOW) -> str:
    answer = console.post("apps/imports", json={"mode": "yaml-content", "yaml_content": text})
    assert answer.json()["status"] == "completed", answer.text
    return f"apps/{answer.json()['app_id']}"


def frames(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def run(console: httpx.Client, app: str, q: str = "hey", **more: Any) -> list[dict[str, Any]]:
    return frames(console.post(f"{app}/workflows/draft/run", json={"inputs": {"q": q}, **more}))


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


# --- runs of the draft ---


def test_the_draft_runs_as_it_is_and_is_recorded_as_debugging(console: httpx.Client, instance: Embedded) -> None:
    app = imported(console)
    seen = run(console, app)
    assert seen[0]["event"] == "workflow_started"
    last = seen[-1]["data"]
    assert (last["status"], last["outputs"]) == ("succeeded", {"answer": "hey! hey!"})
    finished = [frame["data"] for frame in seen if frame["event"] == "node_finished"]
    assert [one["node_id"] for one in finished] == ["start", "shout", "twice", "end"]
    assert finished[1]["outputs"] == {"output": "hey!"}
    draft = console.get(f"{app}/workflows/draft").json()
    assert last["workflow_id"] == draft["id"]
    history = console.get(f"{app}/workflow-runs").json()
    assert [(one["id"], one["version"]) for one in history["data"]] == [(last["id"], "draft")]
    assert console.get(f"{app}/workflow-runs", params={"triggered_from": "app-run"}).json()["data"] == []


def test_a_later_save_is_what_the_next_run_runs(console: httpx.Client) -> None:
    app = imported(console)
    run(console, app)
    draft = console.get(f"{app}/workflows/draft").json()
    draft["graph"]["nodes"][1]["data"]["template"] = "{{ q }}?"
    assert (
        console.post(f"{app}/workflows/draft", json={"graph": draft["graph"], "hash": draft["hash"]}).status_code == 200
    )
    assert run(console, app)[-1]["data"]["outputs"] == {"answer": "hey? hey?"}


def test_pins_answer_for_nodes_of_the_draft(console: httpx.Client) -> None:
    app = imported(console)
    seen = run(console, app, pins={"nodes": {"shout": {"outputs": {"output": "pinned"}}}})
    assert seen[-1]["data"]["outputs"] == {"answer": "pinned pinned"}
    answer = console.post(f"{app}/workflows/draft/run", json={"inputs": {}, "pins": {"nodes": {"x": {"outputs": {}}}}})
    assert code_of(answer) == (400, "invalid_param")


def test_a_draft_run_is_stopped_by_its_task(console: httpx.Client) -> None:
    app = imported(console)
    pins = {"nodes": {"shout": {"outputs": {"output": "late"}, "delay_s": 60}}}
    with console.stream("POST", f"{app}/workflows/draft/run", json={"inputs": {"q": "x"}, "pins": pins}) as answer:
        task_id = answer.headers["x-task-id"]
        other = imported(console)
        assert console.post(f"{other}/workflow-runs/tasks/{task_id}/stop").json() == {"result": "success"}
        lines = answer.iter_lines()
        next(line for line in lines if '"node_id":"shout"' in line)
        assert console.post(f"{app}/workflow-runs/tasks/{task_id}/stop").json() == {"result": "success"}
        last = [line for line in lines if line.startswith("data: ")][-1]
    assert json.loads(last[6:])["data"]["status"] == "stopped"
    assert console.post(f"{app}/workflow-runs/tasks/nothing/stop").json() == {"result": "success"}


def test_what_is_wrong_with_a_draft_run_is_said_before_it(console: httpx.Client) -> None:
    bare = console.post("apps", json={"name": "x", "mode": "workflow"}).json()["id"]
    assert code_of(console.post(f"apps/{bare}/workflows/draft/run", json={"inputs": {}})) == (400, "invalid_param")
    app, chat = imported(console), imported(console, CHAT)
    assert code_of(console.post(f"{app}/workflows/draft/run", json={})) == (400, "invalid_param")
    assert code_of(console.post(f"{app}/workflows/draft/run", json={"inputs": []})) == (400, "invalid_param")
    assert code_of(console.post(f"{chat}/workflows/draft/run", json={"inputs": {}})) == (404, "app_not_found")
    other = f"{app}/advanced-chat/workflows/draft/run"
    assert code_of(console.post(other, json={"query": "x"})) == (404, "app_not_found")
    own = f"{chat}/advanced-chat/workflows/draft/run"
    assert code_of(console.post(own, json={"query": 3})) == (400, "invalid_param")
    broken = json.loads(FLOW)
    broken["workflow"]["graph"]["nodes"][1]["data"]["type"] = "nope"
    answer = console.post(f"{imported(console, json.dumps(broken))}/workflows/draft/run", json={"inputs": {}})
    assert code_of(answer) == (400, "definition_invalid")
    assert answer.json()["problems"]


def test_a_chatflow_answers_from_its_draft(console: httpx.Client) -> None:
    app = imported(console, CHAT)
    seen = frames(console.post(f"{app}/advanced-chat/workflows/draft/run", json={"query": "hello"}))
    assert "".join(frame["answer"] for frame in seen if frame["event"] == "message") == "you said hello"
    assert seen[-1]["event"] == "workflow_finished"
    items = console.get(f"{app}/advanced-chat/workflow-runs").json()["data"]
    assert items[0]["id"] == seen[-1]["workflow_run_id"]
    talk = {name: seen[-1][name] for name in ("conversation_id", "message_id")}
    assert talk.items() <= items[0].items()
    more = {"query": "again", "conversation_id": talk["conversation_id"]}
    again = frames(console.post(f"{app}/advanced-chat/workflows/draft/run", json=more))
    assert again[0]["conversation_id"] == talk["conversation_id"]
    assert again[0]["data"]["inputs"]["sys.dialogue_count"] == 2
    more["conversation_id"] = "01a219fe-cc6f-7000-9d2c-5a87966bf196"
    assert code_of(console.post(f"{app}/advanced-chat/workflows/draft/run", json=more)) == (404, "not_found")
    assert console.get(f"{app}/advanced-chat/workflow-runs/count").json()["succeeded"] == 2


def test_a_secret_of_a_draft_stands_in_no_file(console: httpx.Client, instance: Embedded) -> None:
    secret = "sk-planted-0123456789"
    text = json.loads(FLOW)
    text["workflow"]["environment_variables"] = [{"id": "s", "name": "key", "value_type": "secret", "value": secret}]
    app = imported(console, json.dumps(text))
    draft = console.get(f"{app}/workflows/draft").json()
    graph = {"graph": draft["graph"] | {"viewport": {"x": 1}}, "hash": draft["hash"]}
    assert console.post(f"{app}/workflows/draft", json=graph).status_code == 200
    assert console.post(f"{app}/workflows/draft/backup").status_code == 201
    run(console, app)
    console.post(f"{app}/workflows/publish")
    folder: Path = instance.folder  # type: ignore[attr-defined]  # set by the fixture
    found = [path.name for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert found == []


# --- parts of the draft ---


def test_a_single_node_answers_with_its_execution(console: httpx.Client) -> None:
    app = imported(console)
    path = f"{app}/workflows/draft/nodes/shout"
    assert code_of(console.get(f"{path}/last-run")) == (404, "not_found")
    answer = console.post(f"{path}/run", json={"inputs": {"#start.q#": "alone"}})
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert (made["node_id"], made["status"], made["outputs"]) == ("shout", "succeeded", {"output": "alone!"})
    assert made["created_by_account"]["id"]
    assert console.get(f"{path}/last-run").json() == made
    assert console.get(f"{app}/workflow-runs").json()["data"] == []
    assert run(console, app)[-1]["data"]["status"] == "succeeded"
    assert console.get(f"{path}/last-run").json()["outputs"] == {"output": "hey!"}


def test_a_single_node_that_fails_answers_with_its_failure(console: httpx.Client) -> None:
    text = json.loads(FLOW)
    text["workflow"]["graph"]["nodes"][1]["data"]["template"] = "{{ q.x.y }}"
    app = imported(console, json.dumps(text))
    made = console.post(f"{app}/workflows/draft/nodes/shout/run", json={"inputs": {"#start.q#": "x"}}).json()
    assert made["status"] == "failed"
    assert made["error"]


def test_a_single_node_takes_what_earlier_runs_have_left(console: httpx.Client) -> None:
    app = imported(console)
    path = f"{app}/workflows/draft/nodes/twice/run"
    assert code_of(console.post(path, json={"inputs": {}})) == (400, "invalid_param")
    run(console, app, "first")
    assert console.post(path, json={"inputs": {}}).json()["outputs"] == {"output": "first! first!"}
    given = {"#shout.output#": "given"}
    assert console.post(path, json={"inputs": given}).json()["outputs"] == {"output": "given given"}
    assert code_of(console.post(path, json={})) == (400, "invalid_param")
    nowhere = f"{app}/workflows/draft/nodes/nowhere/run"
    assert code_of(console.post(nowhere, json={"inputs": {}})) == (400, "invalid_param")


def test_a_single_node_takes_what_was_said_from_the_start_node(console: httpx.Client) -> None:
    repeated = node(
        "shout", "template-transform", template="{{ q }}!",
        variables=[{"variable": "q", "value_selector": ["start", "sys.query"]}],
    )  # fmt: skip
    answer = node("answer", "answer", answer="{{#shout.output#}}", variables=[])
    app = imported(
        console, document([start(), repeated, answer], edges("start > shout > answer"), mode="advanced-chat")
    )
    path = f"{app}/workflows/draft/nodes/shout/run"
    assert code_of(console.post(path, json={"inputs": {}})) == (400, "invalid_param")
    assert console.post(path, json={"inputs": {}, "query": "first"}).json()["outputs"] == {"output": "first!"}
    frames(console.post(f"{app}/advanced-chat/workflows/draft/run", json={"query": "hello"}))
    assert console.post(path, json={"inputs": {}}).json()["outputs"] == {"output": "hello!"}
    assert console.post(path, json={"inputs": {}, "query": "bye"}).json()["outputs"] == {"output": "bye!"}
    given = {"#start.sys.query#": "given"}
    assert console.post(path, json={"inputs": given}).json()["outputs"] == {"output": "given!"}
    assert by_name(console.get(f"{app}/workflows/draft/nodes/start/variables")) == {}
    listed = console.get(f"{app}/workflows/draft/variables", params={"limit": 100}).json()["items"]
    assert not [one["name"] for one in listed if one["name"].startswith("sys.")]
    assert len([one for one in listed if one["name"] == "query"]) == 1


def test_a_single_iteration_streams_its_rounds(console: httpx.Client) -> None:
    app = imported(console, ROUNDS)
    path = f"{app}/workflows/draft/iteration/nodes/each/run"
    seen = frames(console.post(path, json={"inputs": {"each.input_selector": ["a", "b"]}}))
    names = [frame["event"] for frame in seen]
    assert (names[0], names[-1]) == ("workflow_started", "workflow_finished")
    assert names.count("iteration_next") == 2
    done = next(frame["data"] for frame in seen if frame["event"] == "iteration_completed")
    assert done["outputs"] == {"output": ["<a>", "<b>"]}
    assert console.get(f"{app}/workflow-runs").json()["data"][0]["id"] == seen[0]["workflow_run_id"]
    assert code_of(console.post(path, json={})) == (400, "invalid_param")
    other = f"{app}/workflows/draft/loop/nodes/each/run"
    assert code_of(console.post(other, json={"inputs": {}})) == (400, "invalid_param")
    chat = f"{app}/advanced-chat/workflows/draft/iteration/nodes/each/run"
    assert code_of(console.post(chat, json={"inputs": {}})) == (404, "app_not_found")


@pytest.mark.parametrize("chat", [False, True])
def test_a_single_loop_streams_its_rounds(console: httpx.Client, chat: bool) -> None:
    text = json.loads(COUNTED)
    if chat:
        text["app"]["mode"] = "advanced-chat"
        text["workflow"]["graph"]["nodes"][-1]["data"] = {"type": "answer", "title": "A", "answer": "{{#round.count#}}"}
    app = imported(console, json.dumps(text))
    path = f"{app}/{'advanced-chat/' if chat else ''}workflows/draft/loop/nodes/round/run"
    assert code_of(console.post(path, json={"inputs": {}})) == (400, "invalid_param")
    seen = frames(console.post(path, json={"inputs": {"#shout.output#": "given"}}))
    check_loop(seen, "given")
    wrong = f"{app}/workflows/draft/iteration/nodes/round/run"
    assert code_of(console.post(wrong, json={"inputs": {}})) == (400, "invalid_param")


def check_loop(seen: list[dict[str, Any]], text: str) -> None:
    """Frames of a single run of COUNTED's loop, alone from its start to its end."""
    names = [frame["event"] for frame in seen]
    assert (names[0], names[-1]) == ("workflow_started", "workflow_finished")
    assert seen[-1]["data"]["status"] == "succeeded", seen[-1]
    assert names.count("loop_next") == 2
    words = [
        frame["data"]["outputs"]["output"]
        for frame in seen
        if frame["event"] == "node_finished" and frame["data"]["node_id"] == "word"
    ]
    assert words == [f"{text}1", f"{text}2", f"{text}3"]
    done = next(frame["data"] for frame in seen if frame["event"] == "loop_completed")
    assert (done["outputs"]["count"], done["outputs"]["loop_round"]) == (3, 3)
    alone = {frame["data"]["node_id"] for frame in seen if frame["event"] == "node_started"}
    assert not alone & {"start", "shout", "end"}


# --- what runs of the draft leave ---


def by_name(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {one["name"]: one for one in answer.json()["items"]}


def test_values_of_draft_runs_are_shown_changed_forgotten_and_reset(console: httpx.Client) -> None:
    app = imported(console)
    path = f"{app}/workflows/draft"
    assert console.get(f"{path}/variables").json() == {"items": [], "total": 0}
    run(console, app)
    output = by_name(console.get(f"{path}/nodes/shout/variables"))["output"]
    assert (output["value"], output["value_type"], output["selector"]) == ("hey!", "string", ["shout", "output"])
    one = f"{path}/variables/{output['id']}"
    assert console.get(one).json() == output
    changed = console.patch(one, json={"value": "changed"}).json()
    assert (changed["value"], changed["edited"]) == ("changed", True)
    assert console.get(one).json() == changed
    made = console.post(f"{path}/nodes/twice/run", json={"inputs": {}}).json()
    assert made["outputs"] == {"output": "changed changed"}
    assert console.put(f"{one}/reset").json() == output
    assert code_of(console.patch(one, json={"name": "other"})) == (400, "invalid_param")
    assert console.delete(one).status_code == 204
    assert code_of(console.get(one)) == (404, "not_found")
    run(console, app, "again")
    assert console.get(one).json()["value"] == "again!"
    assert console.delete(f"{path}/nodes/shout/variables").status_code == 204
    assert by_name(console.get(f"{path}/nodes/shout/variables")) == {}
    page = console.get(f"{path}/variables", params={"limit": 2}).json()
    assert len(page["items"]) == 2
    assert page["total"] > 2
    assert "value" not in page["items"][0]
    assert console.delete(f"{path}/variables").status_code == 204
    assert {one["type"] for one in console.get(f"{path}/variables").json()["items"]} <= {"sys"}


def test_a_single_start_node_takes_what_it_is_given_and_nothing_of_earlier_runs(console: httpx.Client) -> None:
    app = imported(console)
    run(console, app, "earlier")
    path = f"{app}/workflows/draft/nodes/start/run"
    assert console.post(path, json={"inputs": {"q": "now"}}).json()["outputs"]["q"] == "now"
    assert console.post(path, json={"inputs": {}}).json()["outputs"]["q"] is None


def test_system_environment_and_conversation_values_are_shown(console: httpx.Client) -> None:
    text = json.loads(CHAT)
    text["workflow"]["environment_variables"] = [{"name": "k", "value_type": "secret", "value": "hidden-value"}]
    text["workflow"]["conversation_variables"] = [
        {"id": "c", "name": "mood", "value_type": "string", "value": "good", "description": "how it is"}
    ]
    app = imported(console, json.dumps(text))
    path = f"{app}/workflows/draft"
    frames(console.post(f"{app}/advanced-chat/workflows/draft/run", json={"query": "hello"}))
    assert by_name(console.get(f"{path}/system-variables"))["query"]["value"] == "hello"
    mood = by_name(console.get(f"{path}/conversation-variables"))["mood"]
    assert (mood["value"], mood["description"], mood["type"]) == ("good", "how it is", "conversation")
    environment = by_name(console.get(f"{path}/environment-variables"))["k"]
    assert "hidden" not in json.dumps(environment)
    for reserved in ("sys", "conversation"):
        assert code_of(console.get(f"{path}/nodes/{reserved}/variables")) == (400, "invalid_param")
        assert code_of(console.delete(f"{path}/nodes/{reserved}/variables")) == (400, "invalid_param")
    assert code_of(console.get(f"{path}/variables/{UNKNOWN}")) == (404, "not_found")
    bare = console.post("apps", json={"name": "x", "mode": "workflow"}).json()["id"]
    for asked in ("variables", "conversation-variables", "system-variables", "nodes/start/variables"):
        answer = console.get(f"apps/{bare}/workflows/draft/{asked}")
        assert code_of(answer) == (404, "draft_workflow_not_exist"), asked


def test_all_values_are_forgotten_until_the_next_run_leaves_some(console: httpx.Client) -> None:
    app = imported(console)
    path = f"{app}/workflows/draft"
    run(console, app)
    assert {one["type"] for one in console.get(f"{path}/variables").json()["items"]} == {"node", "sys"}
    assert console.delete(f"{path}/variables").status_code == 204
    assert console.get(f"{path}/variables").json() == {"items": [], "total": 0}
    run(console, app)
    assert {one["type"] for one in console.get(f"{path}/variables").json()["items"]} == {"node", "sys"}


def test_a_value_keeps_its_type_when_it_is_changed(console: httpx.Client) -> None:
    text = json.loads(CHAT)
    text["workflow"]["conversation_variables"] = [
        {"name": "mood", "value_type": "string", "value": "good"},
        {"name": "seen", "value_type": "array[string]", "value": []},
    ]
    app = imported(console, json.dumps(text))
    path = f"{app}/workflows/draft"
    frames(console.post(f"{app}/advanced-chat/workflows/draft/run", json={"query": "hello"}))
    talk = by_name(console.get(f"{path}/conversation-variables"))
    query = by_name(console.get(f"{path}/system-variables"))["query"]
    for known, good, bad in (
        (talk["mood"], "bad", 5),
        (talk["seen"], ["x"], "x"),
        (query, "bye", {"a": 1}),
        (query, "bye", None),
    ):
        answer = console.patch(f"{path}/variables/{known['id']}", json={"value": bad})
        assert (answer.status_code, answer.json()["params"]) == (400, "value"), known["name"]
        assert console.patch(f"{path}/variables/{known['id']}", json={"value": good}).json()["value"] == good


def test_a_secret_of_a_conversation_is_shown_as_a_mask_and_changed_in_the_draft_only(console: httpx.Client) -> None:
    text = json.loads(CHAT)
    text["workflow"]["conversation_variables"] = [{"name": "token", "value_type": "secret", "value": "very-secret"}]
    path = f"{imported(console, json.dumps(text))}/workflows/draft"
    known = by_name(console.get(f"{path}/conversation-variables"))["token"]
    assert (known["value"], known["value_type"]) == (MASK, "secret")
    refused = console.patch(f"{path}/variables/{known['id']}", json={"value": "plain"})
    assert (refused.status_code, refused.json()["params"]) == (400, "value")


# --- history ---


def test_a_run_is_read_with_its_nodes(console: httpx.Client) -> None:
    app = imported(console)
    run_id = run(console, app)[-1]["workflow_run_id"]
    detail = console.get(f"{app}/workflow-runs/{run_id}").json()
    assert (detail["inputs"]["q"], detail["outputs"]) == ("hey", {"answer": "hey! hey!"})
    assert detail["graph"] == json.loads(FLOW)["workflow"]["graph"]
    assert (detail["version"], detail["status"], detail["created_by_role"]) == ("draft", "succeeded", "account")
    nodes = console.get(f"{app}/workflow-runs/{run_id}/node-executions").json()["data"]
    assert [(one["index"], one["node_id"], one["status"]) for one in nodes] == [
        (1, "start", "succeeded"),
        (2, "shout", "succeeded"),
        (3, "twice", "succeeded"),
        (4, "end", "succeeded"),
    ]
    assert nodes[1]["predecessor_node_id"] == "start"
    other = imported(console)
    for unknown in (f"{app}/workflow-runs/{UNKNOWN}", f"{app}/workflow-runs/x", f"{other}/workflow-runs/{run_id}"):
        assert code_of(console.get(unknown)) == (404, "not_found")
        assert console.get(f"{unknown}/node-executions").json() == {"data": []}


def test_rounds_of_a_run_say_where_they_are(console: httpx.Client) -> None:
    app = imported(console, ROUNDS)
    path = f"{app}/workflows/draft/iteration/nodes/each/run"
    run_id = frames(console.post(path, json={"inputs": {"each.input_selector": ["a", "b"]}}))[0]["workflow_run_id"]
    nodes = console.get(f"{app}/workflow-runs/{run_id}/node-executions").json()["data"]
    words = [one for one in nodes if one["node_id"] == "word"]
    places = [one["execution_metadata"] for one in words]
    assert [(one["iteration_id"], one["iteration_index"]) for one in places] == [("each", 0), ("each", 1)]


def test_runs_are_listed_newest_first_in_pages_and_counted(console: httpx.Client) -> None:
    app = imported(console)
    ids = [run(console, app, str(number))[-1]["workflow_run_id"] for number in range(3)]
    failing = {"nodes": {"shout": {"fail": "no"}}}
    ids.append(run(console, app, pins=failing)[-1]["workflow_run_id"])
    path = f"{app}/workflow-runs"
    first = console.get(path, params={"limit": 2}).json()
    assert ([one["id"] for one in first["data"]], first["has_more"]) == ([ids[3], ids[2]], True)
    rest = console.get(path, params={"limit": 2, "last_id": ids[2]}).json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == ([ids[1], ids[0]], False)
    failed = console.get(path, params={"status": "failed"}).json()["data"]
    assert [one["id"] for one in failed] == [ids[3]]
    counts = console.get(f"{path}/count").json()
    assert counts == {"total": 4, "running": 0, "succeeded": 3, "failed": 1, "stopped": 0, "partial_succeeded": 0}
    assert console.get(f"{path}/count", params={"time_range": "1h", "status": "failed"}).json()["total"] == 1
    assert console.get(f"{path}/count", params={"triggered_from": "app-run"}).json()["total"] == 0
    assert code_of(console.get(path, params={"last_id": UNKNOWN})) == (404, "not_found")
    assert console.get(f"{path}/count", params={"time_range": "999999d"}).json()["total"] == 4
    for wrong in ({"last_id": "x"}, {"status": "paused"}, {"triggered_from": "x"}, {"limit": "0"}, {"limit": "101"}):
        assert code_of(console.get(path, params=wrong)) == (400, "invalid_param"), wrong
    assert code_of(console.get(f"{path}/count", params={"time_range": "soon"})) == (400, "invalid_param")


def test_statistics_count_published_runs_by_day(console: httpx.Client, instance: Embedded) -> None:
    app = imported(console)
    run(console, app)
    console.post(f"{app}/workflows/publish")
    key = console.post(f"{app}/api-keys").json()["token"]
    for user in ("a", "a", "b"):
        body = {"inputs": {"q": "x"}, "user": user, "response_mode": "blocking"}
        headers = {"Authorization": f"Bearer {key}"}
        assert console.post(f"{instance.url}/v1/workflows/run", json=body, headers=headers).status_code == 200
    path = f"{app}/workflow/statistics"

    def days(name: str, **query: str) -> Any:
        return console.get(f"{path}/{name}", params=query).json()["data"]

    today = {datetime.now(UTC).strftime("%Y-%m-%d")} | {day["date"] for day in days("daily-conversations")}
    assert sum(day["runs"] for day in days("daily-conversations")) == 3
    if len(today) == 1:  # not across midnight
        assert [day["terminal_count"] for day in days("daily-terminals")] == [2]
        assert [day["interactions"] for day in days("average-app-interactions")] == [1.5]
    assert {day["token_count"] for day in days("token-costs")} == {0}
    assert days("daily-conversations", end="2020-01-01 00:00") == []
    assert days("daily-conversations", start="2020-01-01 00:00", end="2100-01-01 00:00")
    assert code_of(console.get(f"{path}/token-costs", params={"start": "yesterday"})) == (400, "invalid_param")


def test_statistics_count_the_tokens_of_a_fork_once(console: httpx.Client, instance: Embedded) -> None:
    admin = {"Authorization": f"Bearer {instance.admin_token}"}
    text = document([start("q"), llm("one"), llm("two"), end(a="two.text")], edges("start > one > two > end"))
    made = httpx.post(f"{instance.url}/v1/apps/import", content=text, headers=admin, trust_env=False).json()
    path = f"apps/{made['app_id']}/workflow/statistics"

    def counted() -> tuple[int, int]:
        runs = console.get(f"{path}/daily-conversations").json()["data"]
        tokens = console.get(f"{path}/token-costs").json()["data"]
        return sum(day["runs"] for day in runs), sum(day["token_count"] for day in tokens)

    body = {"inputs": {"q": "x"}, "user": "ann", "response_mode": "blocking"}
    key = {"Authorization": f"Bearer {made['api_key']}"}
    run_id = console.post(f"{instance.url}/v1/workflows/run", json=body, headers=key).json()["workflow_run_id"]
    _, spent = counted()
    history = httpx.get(f"{instance.url}/v1/runs/{run_id}/history", headers=admin, trust_env=False).text.splitlines()
    lines = [json.loads(line) for line in history]
    first, second = (line for line in lines if line["type"] == "NodeSucceeded" and line["node_id"] in ("one", "two"))
    of_second = second["data"]["metadata"]["total_tokens"]
    assert 0 < of_second < spent
    for at, more in ((second["seq"], 0), (first["seq"], of_second)):
        before = counted()
        forked = httpx.post(
            f"{instance.url}/v1/runs/{run_id}/fork", json={"at": at}, headers=admin, trust_env=False
        ).json()
        until(partial(_ended, instance, admin, forked["id"]), 60)
        assert counted() == (before[0] + 1, before[1] + more)


def _ended(instance: Embedded, admin: dict[str, str], run_id: str) -> bool:
    found = httpx.get(f"{instance.url}/v1/runs/{run_id}", headers=admin, trust_env=False)
    return bool(found.json()["status"] == "succeeded")


def test_a_stream_is_attached_to_at_the_console(console: httpx.Client) -> None:
    app = imported(console)
    seen = run(console, app)
    path = f"workflow/{seen[0]['workflow_run_id']}/events"
    assert frames(console.get(path, headers={"Last-Event-ID": "0"})) == seen
    assert [frame["event"] for frame in frames(console.get(path))] == ["workflow_finished"]
    assert code_of(console.get(f"workflow/{UNKNOWN}/events")) == (404, "not_found")
    assert code_of(console.get(path, headers={"Last-Event-ID": "x"})) == (400, "invalid_param")


def test_a_published_run_of_a_restored_version_is_in_the_history(console: httpx.Client, instance: Embedded) -> None:
    app = imported(console)
    console.post(f"{app}/workflows/publish")
    key = console.post(f"{app}/api-keys").json()["token"]
    body = {"inputs": {"q": "x"}, "user": "someone", "response_mode": "blocking"}
    made = console.post(f"{instance.url}/v1/workflows/run", json=body, headers={"Authorization": f"Bearer {key}"})
    detail = console.get(f"{app}/workflow-runs/{made.json()['workflow_run_id']}").json()
    assert detail["created_by_end_user"]["session_id"] == "someone"
    listed = console.get(f"{app}/workflow-runs", params={"triggered_from": "app-run"}).json()["data"]
    assert [one["id"] for one in listed] == [made.json()["workflow_run_id"]]
    assert listed[0]["created_by_account"] is None
    logged = console.get(f"{app}/workflow-app-logs", params={"status": "succeeded"}).json()
    assert [(one["workflow_run"]["id"], one["created_from"]) for one in logged["data"]] == [
        (made.json()["workflow_run_id"], "service-api")
    ]
    for status in ("running", "paused", "pending"):
        assert console.get(f"{app}/workflow-app-logs", params={"status": status}).json()["total"] == 0
    assert code_of(console.get(f"{app}/workflow-app-logs", params={"status": "x"})) == (400, "invalid_param")


def test_a_run_is_exported_by_a_link_that_needs_no_token(console: httpx.Client, instance: Embedded) -> None:
    app = imported(console)
    run_id = run(console, app)[0]["workflow_run_id"]
    made = console.get(f"{app}/workflow-runs/{run_id}/export").json()
    assert made["status"] == "success"
    lines = [json.loads(line) for line in httpx.get(made["presigned_url"], trust_env=False).text.splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert (lines[0]["type"], lines[-1]["type"]) == ("RunAccepted", "RunSucceeded")
    link, _, sign = made["presigned_url"].rpartition("=")
    assert code_of(httpx.get(f"{link}={sign[::-1]}", trust_env=False)) == (403, "forbidden")
    other = imported(console)
    missing = console.get(f"{other}/workflow-runs/{run_id}/export")
    assert code_of(missing) == (404, "archive_log_not_found")
    # A link to a file is none to a run.
    file = console.post("files/upload", files={"file": ("a.txt", b"x", "text/plain")}).json()
    query = file["source_url"].partition("?")[2]
    refused = httpx.get(f"{instance.url}/files/runs/{file['id']}/history?{query}", trust_env=False)
    assert code_of(refused) == (403, "forbidden")
