"""A planted secret: it does its work, and stands in no file of the data folder, no answer, stream or log line."""

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowledger import Client
from flowledger.cli import run as run_cli
from flowledger.client import Refused, RunStopped
from flowledger.dev import Embedded, start_embedded
from libs.events.codec import decode_event
from libs.events.log import LogError, Topic
from libs.events.sqlite import SqliteLog
from libs.settings import Settings
from tests.documents import code, document, edges, end, node, start, template

SECRET = "sk-live-0123456789-abcdefghij"
PIECES = ("0123456789-abcdefghij", "sk-live-0123")


def flow(port: int) -> str:
    call = node(
        "call",
        "http-request",
        method="get",
        url=f"http://127.0.0.1:{port}/",
        authorization={"type": "api-key", "config": {"type": "bearer", "api_key": "{{#env.key#}}"}},
        headers="X-Made: {{#header.output#}}",
        params="key:{{#env.key#}}",
        body={"type": "none", "data": []},
        timeout={},
    )
    joined = code(
        "joined",
        code="def main(key):\n    return {'result': key + '!'}\n",
        variables=[{"variable": "key", "value_selector": ["env", "key"]}],
    )
    return document(
        [start("q"), template("header", "made of {{ key }}", key="env.key"), joined, call,
         end(status="call.status_code", header="header.output", joined="joined.result", key="env.key")],
        edges("start > header > joined > call > end"),
        environment_variables=[{"name": "key", "value_type": "secret", "value": SECRET}],
    )  # fmt: skip


@pytest.fixture
def called() -> Iterator[tuple[int, list[Any]]]:
    """A server, and the headers it got."""
    seen: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, dict(self.headers)))
            self.send_response(200)
            self.end_headers()
            echoed = {"path": self.path, "basic": self.headers.get("X-Basic"), "error": repr(self.headers.get("X-Odd"))}
            self.wfile.write(json.dumps(echoed).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], seen
    server.shutdown()
    server.server_close()


def opened(folder: Path, key: str | None = None, *, executor: bool = True) -> Embedded:
    settings = Settings(models="offline", data=folder, http_allow=("127.0.0.1",), secret_key=key, sandbox="process")
    return start_embedded(folder, "127.0.0.1", 0, settings, executor=executor)


def shows(text: str) -> bool:
    return any(piece in text for piece in PIECES)


def test_a_secret_does_its_work_and_stands_nowhere(
    tmp_path: Path, called: tuple[int, list[Any]], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    port, seen = called
    instance = opened(tmp_path)
    client = Client(instance.url, instance.admin_token)
    made = client.import_document(flow(port).encode())
    run = client.start(made["app_id"], {"q": "x"})
    frames = [event.raw for event in run.events()]
    result = run.result()
    path, headers = seen[0]
    assert (headers["Authorization"], headers["X-Made"]) == (f"Bearer {SECRET}", f"made of {SECRET}")
    assert path.endswith(f"key={SECRET}")
    assert result.outputs["header"] == "made of sk-liv************ij"
    assert result.outputs["status"] == 200
    said = [frames, [line.raw for line in run.history()], run.state().raw, [one.raw for one in client.runs()], made]
    with httpx.Client(base_url=instance.url, headers={"Authorization": f"Bearer {made['api_key']}"}) as asked:
        body = {"inputs": {"q": "x"}, "response_mode": "blocking", "user": "u"}
        said.append(asked.post("/v1/workflows/run", json=body).json())
        said.append(asked.get(f"/v1/workflows/run/{run.id}").json())
        said.append(asked.get(f"/v1/apps/{made['app_id']}").json())
    client.close()
    instance.stop()
    assert not shows(json.dumps(said))
    assert not shows(caplog.text)
    assert not shows("".join(capfd.readouterr()))
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"log.db", "tables.db", "secret-key"} <= {file.name for file in files}
    assert [file.name for file in files if any(piece.encode() in file.read_bytes() for piece in PIECES)] == []
    assert (tmp_path / "secret-key").stat().st_mode & 0o777 == 0o600


def test_an_answer_of_a_chatflow_shows_a_mask(tmp_path: Path) -> None:
    chatflow = document(
        [start(), node("answer", "answer", answer="it is {{#env.key#}}.", variables=[])],
        edges("start > answer"),
        mode="advanced-chat",
        environment_variables=[{"name": "key", "value_type": "secret", "value": SECRET}],
    )
    instance = opened(tmp_path)
    with Client(instance.url, instance.admin_token) as client:
        made = client.import_document(chatflow.encode())
        run = client.start(made["app_id"], query="hi")
        events = list(run.events())
        assert "".join(str(one.raw["answer"]) for one in events if one.event == "message") == (
            "it is sk-liv************ij."
        )
        assert not shows(json.dumps([one.raw for one in events]))
    instance.stop()


@pytest.mark.parametrize("initial", ["first-pin-0001", ""])
def test_what_a_run_puts_into_a_secret_of_its_conversation_is_one_from_there_on(tmp_path: Path, initial: str) -> None:
    variable = {"id": "c1", "name": "pin", "value_type": "secret", "value": initial}
    made = code("made", code="def main(q):\n    return {'result': 'sk-live-' + q[::-1] + '-abcdefghij'}\n",
                variables=[{"variable": "q", "value_selector": ["sys", "query"]}])  # fmt: skip
    written = node("set", "assigner", assigned_variable_selector=["conversation", "pin"], write_mode="over-write",
                   input_variable_selector=["made", "result"])  # fmt: skip
    text = document(
        [start(), made, written, node("answer", "answer", answer="it is {{#conversation.pin#}}")],
        edges("start > made > set > answer"),
        mode="advanced-chat",
        conversation_variables=[variable],
    )  # fmt: skip
    reading = document(
        [start(), template("told", "{{ pin }}", pin="conversation.pin"),
         node("answer", "answer", answer="still {{#told.output#}}")],
        edges("start > told > answer"),
        mode="advanced-chat",
        conversation_variables=[variable],
    )  # fmt: skip
    query, said = "0123456789"[::-1], {}
    for number in (1, 2):
        instance = opened(tmp_path)
        headers = {"Authorization": f"Bearer {instance.admin_token}"}
        with httpx.Client(base_url=instance.url, timeout=30) as asked:
            if number == 1:
                app = asked.post("/v1/apps/import?key=true", content=text, headers=headers).json()
            else:
                asked.post("/v1/apps/import", params={"app_id": app["app_id"]}, content=reading, headers=headers)
            key = {"Authorization": f"Bearer {app['api_key']}"}
            body = {"inputs": {}, "query": query if number == 1 else "?", "user": "u"}
            body |= {"conversation_id": said["conversation_id"]} if number == 2 else {}
            said = asked.post("/v1/chat-messages", json=body, headers=key).json()
            path = f"/v1/conversations/{said['conversation_id']}/variables"
            listed = asked.get(path, params={"user": "u"}, headers=key).json()["data"]
            refused = asked.put(f"{path}/c1", json={"user": "u", "value": "plain"}, headers=key)
        instance.stop()
        assert said["answer"] == ("it is " if number == 1 else "still ") + "sk-liv************ij"
        assert [one["value"] for one in listed] == ["sk-liv************ij"]
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
    with closing(SqliteLog(tmp_path, read_only=True)) as log:
        records = [record for batch in log.read(Topic.EVENTS, 0, 0) for record in batch]
    plain = [decode_event(record).event for record in records if SECRET.encode() in (record.value or b"")]
    assert {getattr(event, "node_id", "") for event in plain} == {"made"}, "what made it did not know that it was one"


def test_a_fork_of_a_chatflow_works_with_the_secrets_of_its_conversation(
    tmp_path: Path, called: tuple[int, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    port, seen = called
    call = node(
        "call",
        "http-request",
        method="get",
        url=f"http://127.0.0.1:{port}/",
        authorization={"type": "no-auth", "config": None},
        headers="X-Token: {{#conversation.token#}}\nX-Made: {{#header.output#}}",
        params="",
        body={"type": "none", "data": []},
        timeout={},
    )
    said = node("said", "answer", answer="with {{#conversation.token#}}: {{#header.output#}}", variables=[])
    chatflow = document(
        [start(), template("header", "made of {{ token }}", token="conversation.token"), call, said],
        edges("start > header > call > said"),
        mode="advanced-chat",
        conversation_variables=[
            {"id": "1", "name": "token", "value_type": "secret", "value": SECRET, "description": ""}
        ],
    )
    instance = opened(tmp_path)
    shown: list[Any] = []
    with Client(instance.url, instance.admin_token) as client:
        key = client.import_document(chatflow.encode())["api_key"]
        talk = ""
        # The second message finds the variable in the conversation, not in the document.
        for _ in range(2):
            body = {"query": "hi", "inputs": {}, "user": "ann", "response_mode": "blocking", "conversation_id": talk}
            bearer = {"Authorization": f"Bearer {key}"}
            answer = httpx.post(f"{instance.url}/v1/chat-messages", json=body, headers=bearer, timeout=60)
            talk, run_id = answer.json()["conversation_id"], answer.headers["X-Workflow-Run-Id"]
            lines = list(client.history(run_id))
            at = next(line.seq for line in lines if line.type == "NodeSucceeded" and line.node_id == "header")
            forked = client.fork(run_id, at)
            shown += [event.raw for event in forked.events()]
            assert forked.result(timeout_s=60).status == "succeeded"
            shown += [line.raw for line in forked.history()] + [forked.state().raw]
        shown += [one.raw for one in client.runs()]
    instance.stop()
    # Two messages, two forks: what was copied (the header) and what was made anew (the token) are the secret itself.
    assert [(headers["X-Token"], headers["X-Made"]) for _, headers in seen] == [(SECRET, f"made of {SECRET}")] * 4
    answers = [frame["answer"] for frame in shown if frame.get("event") == "message"]
    assert "".join(answers).count("with sk-liv************ij: made of sk-liv************ij") == 2
    assert run_cli(["export", forked.id, "-o", str(tmp_path / "run.json"), "--data", str(tmp_path)]) == 0
    assert not shows(json.dumps(shown))
    assert not shows("".join(capsys.readouterr()))
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file.name for file in files if any(piece.encode() in file.read_bytes() for piece in PIECES)] == []


def test_another_key_is_named_at_the_start_and_reading_goes_on_without(
    tmp_path: Path, called: tuple[int, list[Any]]
) -> None:
    instance = opened(tmp_path)
    with Client(instance.url, instance.admin_token) as client:
        run = client.start(client.import_document(flow(called[0]).encode())["app_id"])
        outputs = run.result().outputs
    instance.stop()
    with pytest.raises(LogError, match="FLOWLEDGER_SECRET_KEY") as refused:
        opened(tmp_path, "another-key")
    assert "another-key" not in str(refused.value)
    reading = opened(tmp_path, "another-key", executor=False)
    with Client(reading.url, reading.admin_token) as client:
        assert client.state(run.id).outputs == outputs
        ready = httpx.get(f"{reading.url}/readyz")
        assert (ready.status_code, "FLOWLEDGER_SECRET_KEY" in ready.json()["problem"]) == (503, True)
        with pytest.raises(Refused, match="FLOWLEDGER_SECRET_KEY") as unsealed:
            client.import_document(flow(called[0]).replace("call", "other").encode())
        assert unsealed.value.status == 503, "what it sealed, nobody else could open"
    reading.stop()
    again = opened(tmp_path)
    with Client(again.url, again.admin_token) as client:
        assert client.start(client.apps()[0]["app_id"]).result().status == "succeeded"
    again.stop()


def test_a_lost_key_costs_the_apps_that_were_sealed_with_it(tmp_path: Path, called: tuple[int, list[Any]]) -> None:
    text = flow(called[0]).encode()
    instance = opened(tmp_path)
    with Client(instance.url, instance.admin_token) as client:
        app_id = client.import_document(text)["app_id"]
        run = client.start(app_id)
        outputs = run.result().outputs
        held = client.start(app_id, pins={"nodes": {"joined": {"outputs": {"result": "x"}, "delay_s": 60}}})
        next(event for event in held.events() if event.data.get("node_id") == "joined")
    instance.stop()
    (tmp_path / "secret-key").unlink()
    with pytest.raises(LogError, match="FLOWLEDGER_SECRET_KEY"):
        opened(tmp_path, "a new key")
    api = opened(tmp_path, "a new key", executor=False)
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {api.admin_token}"}) as http:
        assert http.delete(f"/console/api/apps/{app_id}").status_code == 204
        assert http.get("/readyz").status_code == 200
    api.stop()
    again = opened(tmp_path, "a new key")
    with Client(again.url, again.admin_token) as client:
        assert client.start(client.import_document(text)["app_id"]).result().status == "succeeded"
        assert client.state(run.id).outputs == outputs
        # Nobody can fold the run that was under way, so it is set aside; its end can be recorded all the same.
        client.run(held.id).stop()
        with pytest.raises(RunStopped):
            client.run(held.id).result(timeout_s=10)
    again.stop()


def test_a_secret_that_an_editor_saves_stands_nowhere(tmp_path: Path) -> None:
    flow = document([start("q"), template("t", "{{ k }}!", k="env.key"), end(a="t.output")], edges("start > t > end"))
    instance = opened(tmp_path)
    said: list[str] = []
    with httpx.Client(base_url=instance.url, headers={"Authorization": f"Bearer {instance.admin_token}"}) as http:

        def ask(method: str, path: str, **content: Any) -> Any:
            answer = http.request(method, path, timeout=30, **content)
            assert answer.is_success, answer.text
            said.append(answer.text)
            return answer

        app = ask("POST", "/v1/apps/import", content=flow).json()["app_id"]
        console = f"/console/api/apps/{app}"
        draft = ask("GET", f"{console}/workflows/draft").json()
        saved = {name: draft[name] for name in ("graph", "features", "hash")} | {"conversation_variables": []}
        saved["environment_variables"] = [{"id": "1", "name": "key", "value_type": "secret", "value": SECRET}]
        ask("POST", f"{console}/workflows/draft", json=saved)
        assert "sk-liv************ij!" in ask("POST", f"{console}/workflows/draft/run", json={"inputs": {}}).text
        ask("POST", f"{console}/workflows/draft/backup")
        ask("POST", f"{console}/workflows/publish", json={})
        newer = flow.replace('"0.6.0"', '"9.9.0"').replace(
            '"environment_variables": []',
            f'"environment_variables": [{{"name": "key", "value_type": "secret", "value": "{SECRET}"}}]',
        )
        ask("POST", "/console/api/apps/imports", json={"mode": "yaml-content", "yaml_content": newer})
        for path in ("export", "workflows", "workflows/publish", "workflows/draft", "workflows/draft/variables",
                     "workflows/draft/environment-variables", "workflow-runs"):  # fmt: skip
            ask("GET", f"{console}/{path}")
    instance.stop()
    assert not shows("".join(said))
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file.name for file in files if any(piece.encode() in file.read_bytes() for piece in PIECES)] == []
