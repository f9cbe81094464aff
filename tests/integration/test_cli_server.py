"""The command line against a small real HTTP server: targets, output, streams, exit codes."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from flowledger.cli import run
from flowledger.client import AsyncClient, Client, Result

RUN = "0199d0c5-0001-7003-8000-000000000001"
OTHER = "0199d0c5-0002-7003-8000-000000000002"
INPUTS = [{"variable": "city", "type": "text-input"}]
APP = "11111111-1111-4111-8111-111111111111"


def frame(sequence: int, event: str, **data: Any) -> tuple[int, dict[str, Any]]:
    return sequence, {"event": event, "task_id": "t1", "workflow_run_id": RUN, "data": data}


STORY = [
    frame(2, "workflow_started", id=RUN),
    frame(3, "node_started", id="e1", node_id="a", node_type="llm", title="Ask"),
    frame(4, "node_finished", id="e1", node_id="a", node_type="llm", title="Ask", status="succeeded", elapsed_time=0.1),
    frame(
        5, "workflow_finished", id=RUN, status="succeeded", outputs={"text": "hi"}, error=None, elapsed_time=0.2,
        total_steps=3, total_tokens=7,
    ),
]  # fmt: skip


class StandIn:
    """What the API would know, and what it was asked."""

    def __init__(self) -> None:
        self.story = list(STORY)
        self.cut_after: int | None = None
        """Close the first stream behind this sequence."""
        self.refusal: dict[str, str] | None = None
        """Refuse to start a run, with this message and, where it is about a part of the request, `params`."""
        self.undecided = False
        """Nobody decides about a start before `hold` is set."""
        self.busy: int | None = None
        """Refuse to start a run for now, with this status."""
        self.hold = threading.Event()
        self.hold.set()
        self.asked: list[tuple[str, str, dict[str, Any], dict[str, str]]] = []
        stand_in = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.answer(self, {})

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                yaml = self.headers.get("Content-Type") == "application/yaml"
                stand_in.answer(self, {"document": raw.decode()} if yaml else json.loads(raw or b"{}"))

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.02))
        self._thread.start()

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        parts = urlparse(request.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.asked.append((request.command, parts.path, body | query, dict(request.headers)))
        if request.headers.get("Authorization") != "Bearer secret" and parts.path != "/healthz":
            return self.send(request, 401, {"code": "unauthorized", "message": "no", "status": 401})
        app = {"app_id": APP, "name": "Flow", "mode": "workflow", "workflow_id": "w", "versions": 1, "inputs": INPUTS}
        runs = [
            {"id": run_id, "status": status, "created_at": "2026-05-02T09:00:00.000Z", "elapsed_time": 1.0}
            for run_id, status in ((RUN, "succeeded"), (OTHER, "failed"))
        ]
        match request.command, parts.path:
            case "GET", "/healthz":
                self.send(request, 200, {"status": "ok", "instance_id": "i1"})
            case "GET", "/v1/apps":
                self.send(request, 200, {"data": [app]})
            case "GET", path if path == f"/v1/apps/{APP}":
                self.send(request, 200, app)
            case "POST", "/v1/apps/import":
                self.send(request, 200, app | {"version": "v1", "api_key": "app-1", "warnings": []})
            case "GET", "/v1/runs":
                self.send(request, 200, {"data": runs, "next_cursor": None})
            case "POST", "/v1/runs" if self.busy:
                busy = {"code": "too_many_requests", "message": "enough. Try again later", "status": self.busy}
                self.send(request, self.busy, busy, {"Retry-After": "7"})
            case "POST", "/v1/runs" if self.refusal:
                self.send(request, 400, {"code": "invalid_param", "status": 400} | (self.refusal or {}))
            case "POST", "/v1/runs" if self.undecided:
                self.hold.wait(20)
                self.send(request, 503, {"code": "service_unavailable", "message": "no answer", "status": 503})
            case "POST", "/v1/runs":
                self.stream(request, 0, self.cut_after)
            case "GET", path if path == f"/v1/workflow/{RUN}/events":
                self.stream(request, int(request.headers.get("Last-Event-ID", "0")), None)
            case "GET", path if path == f"/v1/runs/{RUN}":
                self.send(request, 200, runs[0] | {"seq": 5, "outputs": {"text": "hi"}, "nodes": {}})
            case "GET", path if path == f"/v1/runs/{RUN}/history":
                # As the API's last line says that it cannot go on: the answer's status is long gone.
                event = {"seq": 1, "type": "RunAccepted", "data": {}}
                request.send_response(200)
                request.end_headers()
                request.wfile.write(json.dumps(event).encode() + b"\n" + b'{"error": {"message": "no more"}}\n')
            case _:
                self.send(request, 404, {"code": "not_found", "message": f"no {parts.path}", "status": 404})

    def send(
        self, request: BaseHTTPRequestHandler, status: int, body: Any, headers: dict[str, str] | None = None
    ) -> None:
        raw = json.dumps(body).encode()
        request.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(raw)))
        request.end_headers()
        request.wfile.write(raw)

    def stream(self, request: BaseHTTPRequestHandler, after: int, cut_after: int | None) -> None:
        request.send_response(200)
        for name, value in (
            ("Content-Type", "text/event-stream"), ("X-Workflow-Run-Id", RUN), ("X-Task-Id", "t1"),
        ):  # fmt: skip
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(b"event: ping\n\n")
        for sequence, data in self.story:
            if sequence == self.story[-1][0]:
                self.hold.wait(20)
            if sequence > after:
                request.wfile.write(f"id: {sequence}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode())
                request.wfile.flush()
            if sequence == cut_after:
                return


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    for name in [name for name in os.environ if name.startswith("FLOWLEDGER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    made = StandIn()
    monkeypatch.setenv("FLOWLEDGER_URL", made.url)
    monkeypatch.setenv("FLOWLEDGER_ADMIN_TOKEN", "secret")
    yield made
    made.close()


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_run_prints_one_object_with_the_result(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "Flow", "-i", "n=3", "--json"]) == 0
    assert lines(capsys.readouterr().out) == [
        {
            "workflow_run_id": RUN, "task_id": "t1", "status": "succeeded", "outputs": {"text": "hi"}, "error": None,
            "elapsed_time": 0.2, "total_steps": 3, "total_tokens": 7,
        }
    ]  # fmt: skip
    body = next(body for _, path, body, _ in stand_in.asked if path == "/v1/runs")
    assert body == {"app_id": APP, "inputs": {"n": 3}, "user": "cli", "response_mode": "streaming"}


def test_run_with_watch_prints_every_frame_first(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "Flow", "--watch", "--json"]) == 0
    out = lines(capsys.readouterr().out)
    assert [line.get("event") for line in out] == [data["event"] for _, data in STORY] + [None]


def test_watching_a_run_talks_on_stderr_and_prints_the_outputs(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", "Flow", "--watch"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"text": "hi"}
    assert "Ask (llm)" in captured.err
    assert "\x1b" not in captured.err + captured.out


def test_a_broken_stream_is_resumed_behind_the_last_frame(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.cut_after = 3
    assert run(["run", "Flow", "--watch", "--json"]) == 0
    out = lines(capsys.readouterr().out)
    assert [line["event"] for line in out[:-1]] == [data["event"] for _, data in STORY]
    resumed = [headers for _, path, _, headers in stand_in.asked if path.endswith("/events")]
    assert [headers["Last-Event-ID"] for headers in resumed] == ["3"]


@pytest.mark.parametrize(("status", "code"), [("failed", 1), ("stopped", 5), ("paused", 8), ("partial-succeeded", 0)])
def test_the_exit_code_tells_how_the_run_ended(
    stand_in: StandIn, status: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.story[-1] = frame(5, "workflow_finished", id=RUN, status=status, outputs={}, error="why", elapsed_time=1)
    assert run(["run", "Flow"]) == code
    if code:
        assert f"flowledger history {RUN}" in capsys.readouterr().err


def test_a_failure_names_its_node(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    failed = frame(4, "node_finished", id="e1", node_id="a", title="Ask", status="failed", error="busy")
    ended = frame(5, "workflow_finished", id=RUN, status="failed", outputs={}, error="busy")
    stand_in.story[2:] = [failed, ended]
    assert run(["run", APP, "--url", stand_in.url]) == 1
    assert f'run {RUN} failed in node "Ask" (a): busy. See' in capsys.readouterr().err


def test_detach_prints_the_id_and_leaves_the_run_alone(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in.hold.clear()
    assert run(["run", "Flow", "--detach"]) == 0
    captured = capsys.readouterr()
    assert captured.out == RUN + "\n"
    assert f"flowledger watch {RUN}" in captured.err


def test_any_line_end_of_unicode_may_stand_in_a_value(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = {"text": "a\u2028b\u2029c\x85d"}
    stand_in.story[-1] = frame(5, "workflow_finished", id=RUN, status="succeeded", outputs=outputs)
    assert run(["run", "Flow", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"] == outputs
    with Client(stand_in.url, "secret") as client:
        assert client.run(RUN).result(timeout_s=10).outputs == outputs

    async def awaited() -> Result:
        async with AsyncClient(stand_in.url, "secret") as client:
            return await client.run(RUN).result(timeout_s=10)

    assert asyncio.run(awaited()).outputs == outputs


@pytest.mark.parametrize(
    "words",
    [
        ["bulk", "stop", "--app", "", "--yes"],
        ["runs", "--app", ""],
        ["import", "FILE", "--app", ""],
        ["keys", "Flow", "revoke", ""],
        ["versions", ""],
        ["bulk", "stop", "--since", "", "--yes"],
        ["bulk", "stop", "--url", "", "--yes"],
        ["runs", "--data", ""],
        ["keys", "Flow", "add", ""],
        ["run", ""],
        ["run", "Flow", "--only", ""],
        ["run", "Flow", "--root", ""],
        ["run", "Flow", "--conversation", ""],
        ["run", "Flow", "--only", "a", "--from-run", ""],
        ["why", RUN, ""],
        ["resume", RUN, "--action", ""],
        ["resume", RUN, "--form", ""],
        ["verify", ""],
    ],
)
def test_an_empty_text_is_not_everything(
    stand_in: StandIn, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flow.yml").write_text("kind: app")
    assert run([str(tmp_path / "flow.yml") if word == "FILE" else word for word in words]) == 2
    assert "it is empty. Give " in capsys.readouterr().err
    assert stand_in.asked == []


@pytest.mark.parametrize("words", [["history", RUN], ["history", RUN, "--json"], ["export", RUN, "-o", "FILE"]])
def test_a_history_that_breaks_off_is_not_taken_for_the_whole(
    stand_in: StandIn, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.jsonl"
    assert run([str(file) if word == "FILE" else word for word in words]) == 7
    captured = capsys.readouterr()
    assert f"the history of run {RUN} breaks off behind 1 events: no more" in captured.err
    assert captured.out == ""
    assert not file.exists()


def test_waiting_longer_than_asked_is_exit_6_and_says_how_to_return(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.cut_after = 3
    stand_in.hold.clear()
    asked_at = time.monotonic()
    assert run(["run", "Flow", "--timeout", "0.1"]) == 6
    assert time.monotonic() - asked_at < 5, "a ping comes after ten"
    assert f"flowledger watch {RUN}" in capsys.readouterr().err
    assert run(["watch", RUN, "--timeout", "0.1", "--url", stand_in.url]) == 6
    assert f"flowledger watch {RUN} --url {stand_in.url}" in capsys.readouterr().err


def test_a_start_that_nobody_decides_in_time_is_exit_6_too(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stand_in.undecided = True
    stand_in.hold.clear()
    asked_at = time.monotonic()
    assert run(["run", "Flow", "--timeout", "0.3", "--url", stand_in.url, "--data", str(tmp_path)]) == 6
    assert time.monotonic() - asked_at < 5
    said = capsys.readouterr().err
    assert "Not decided in time; the run may begin all the same." in said
    assert f"flowledger runs --url {stand_in.url} --data {tmp_path}\n" in said, "the token lies in that folder"


@pytest.mark.parametrize(
    ("refusal", "about_inputs"),
    [
        ({"message": "city is required in input form", "params": "inputs"}, True),
        ({"message": "conversation_id: expected a UUID"}, False),
        ({"message": "pins: no such node", "params": "pins"}, False),
    ],
)
def test_inputs_are_named_only_where_they_are_what_is_wrong(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str], refusal: dict[str, str], about_inputs: bool
) -> None:
    stand_in.refusal = refusal
    assert run(["run", "Flow"]) == 2
    said = capsys.readouterr().err
    assert refusal["message"] in said
    assert ("Inputs: city (text-input)" in said) == about_inputs


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_server_that_is_busy_is_tried_later(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    stand_in.busy = status
    assert run(["run", "Flow"]) == 7
    said = capsys.readouterr().err
    assert said.endswith("enough. Try again later (wait 7 s)\n")
    assert "Inputs:" not in said


def test_a_document_that_may_not_be_read_is_wrong_usage(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "flow.yml").write_text("kind: app")
    monkeypatch.setattr(Path, "read_text", refuse)
    assert run(["run", "flow.yml"]) == 2
    assert capsys.readouterr().err == "flow.yml: Permission denied. Make it readable, or name another document\n"


def test_ctrl_c_detaches_with_130_and_says_that_the_run_goes_on(stand_in: StandIn) -> None:
    stand_in.hold.clear()
    code = "from flowledger.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "watch", RUN, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    ) as watching:
        assert watching.stdout is not None
        first = watching.stdout.readline()
        assert first, watching.communicate()[1]
        assert json.loads(first)["event"] == "workflow_started"
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert "goes on" in errors
    assert f"flowledger watch {RUN}" in errors


def test_a_file_is_imported_and_then_run(stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "flow.yml"
    variables = [{"variable": "code", "type": "text-input"}]
    nodes = [{"id": "s", "data": {"type": "start", "variables": variables}}]
    file.write_text(json.dumps({"workflow": {"graph": {"nodes": nodes}}}))
    assert run(["run", str(file), "-i", "code=0042", "-i", "n=1", "--json"]) == 0
    imported = next(body for _, path, body, _ in stand_in.asked if path == "/v1/apps/import")
    assert imported["document"] == file.read_text()
    body = next(body for _, path, body, _ in stand_in.asked if path == "/v1/runs")
    assert body["inputs"] == {"code": "0042", "n": 1}


def test_runs_are_listed_with_all_keys(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", "--json"]) == 0
    (listed,) = lines(capsys.readouterr().out)
    assert [one["id"] for one in listed] == [RUN, OTHER]  # type: ignore[index]  # a list on one line
    wanted = {"app_id", "workflow_id", "version", "error", "started_at", "finished_at", "seq", "triggered_from"}
    assert wanted <= set(listed[0])  # type: ignore[index]  # as above
    assert run(["runs"]) == 0
    assert "succeeded" in capsys.readouterr().out


def test_a_unique_prefix_of_a_run_is_enough_and_an_ambiguous_one_is_not(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["show", "0199d0c5-0001", "--json"]) == 0
    assert lines(capsys.readouterr().out)[0]["id"] == RUN
    assert run(["show", "0199"]) == 2
    assert RUN in capsys.readouterr().err
    assert run(["show", "0aaa", "--url", stand_in.url]) == 3
    assert f"List runs: flowledger runs --url {stand_in.url}" in capsys.readouterr().err


def test_a_refused_token_says_where_to_get_one(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLOWLEDGER_ADMIN_TOKEN", "wrong")
    assert run(["apps"]) == 7
    assert "FLOWLEDGER_ADMIN_TOKEN" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_exit_7(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["apps", "--url", "http://127.0.0.1:9"]) == 7
    assert "flowledger dev" in capsys.readouterr().err


def test_the_server_that_has_the_data_folder_open_is_found_by_its_address_file(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FLOWLEDGER_URL")
    monkeypatch.delenv("FLOWLEDGER_ADMIN_TOKEN")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "admin-token").write_text("secret\n")
    (folder / "server.json").write_text(json.dumps({"url": stand_in.url, "instance_id": "i1", "pid": 1}))
    assert run(["apps", "--data", str(folder), "--json"]) == 0
    assert lines(capsys.readouterr().out)[0][0]["app_id"] == APP  # type: ignore[index]  # a list on one line
