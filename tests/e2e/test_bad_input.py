"""What is wrong from outside: an answer that names the place and the next step, and a server that goes on.

Every case goes to a real `flowledger dev`. Afterwards the process is alive, what was there before is there still, and
neither answers nor log lines hold a traceback or a secret.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.documents import document, edges, end, node, template
from tests.e2e.deployment import ADMIN_TOKEN, Api, Service
from tests.e2e.test_front_door import HELLO, CommandLine

TEXT = HELLO.read_text()
UNKNOWN = "01999999-9999-7999-8999-999999999999"
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}

# One input that must be given, one that must be a number.
STRICT = document(
    [
        node(
            "start",
            "start",
            variables=[
                {"variable": "who", "label": "Who", "type": "text-input", "required": True, "max_length": 8},
                {"variable": "age", "label": "Age", "type": "number", "required": False},
            ],
        ),
        template("t", "{{ who }}", who="start.who"),
        end(out="t.output"),
    ],
    edges("start > t > end"),
)


class Site:
    """A server with one app, and a run that was there before."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service, self.folder = service, folder
        self.api = Api(service.url)
        self.http = self.api.http
        made = self.api.import_document(STRICT)
        self.app_id, self.key = made["app_id"], made["api_key"]
        self.own = {"Authorization": f"Bearer {self.key}"}
        self.before = self.run({"who": "Ada"})
        assert self.before.json()["data"]["outputs"] == {"out": "Ada"}

    def run(self, inputs: Any, **body: Any) -> httpx.Response:
        return self.post({"inputs": inputs, "user": "u", "response_mode": "blocking"} | body)

    def post(self, body: Any, path: str = "/v1/workflows/run", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        return self.http.post(path, content=content, headers={"Content-Type": "application/json"} | self.own | headers)

    def import_(self, text: str | bytes) -> httpx.Response:
        return self.http.post("/v1/apps/import", content=text, headers=ADMIN)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    data = tmp_path_factory.mktemp("data")
    service = Service(
        "dev", {"FLOWLEDGER_DATA": str(data), "FLOWLEDGER_ADMIN_TOKEN": ADMIN_TOKEN}, "--port", "0", "--offline"
    )
    try:
        found = Site(service, data)
        yield found
        found.http.close()
        assert service.terminate() == 0
    finally:
        service.kill()
    said = "\n".join(service.log)
    assert "Traceback" not in said
    assert ADMIN_TOKEN not in said
    assert found.key not in said


@pytest.fixture(autouse=True)
def _everything_goes_on(site: Site) -> Iterator[None]:
    yield
    assert site.service.alive
    assert site.run({"who": "Bob"}).json()["data"]["outputs"] == {"out": "Bob"}
    run_id = site.before.headers["X-Workflow-Run-Id"]
    assert site.http.get(f"/v1/runs/{run_id}", headers=ADMIN).json()["outputs"] == {"out": "Ada"}


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """The text of an error answer, which is what it should be."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert (body["code"], body["status"]) == (code, status)
    assert len(body["message"]) > 10 or code == "method_not_allowed"
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text
    assert ADMIN_TOKEN not in answer.text
    assert len(answer.content) < 20_000, "a payload came back"
    return answer.text


# --- documents ------------------------------------------------------------------------------------------------------

DOCUMENTS: dict[str, tuple[str | bytes, str, str]] = {
    # name: (document, where it is wrong, what it says)
    "broken YAML": (TEXT[:400] + "\n  : ][ {", "line 15", "broken YAML"),
    "tabs": ("app:\n\tname: x", "line 2", "never tabs"),
    "control characters": ("a: \x00", "line 1", "control characters"),
    "text only": ("just text", "", "mapping"),
    "unknown node type": (
        TEXT.replace("type: template-transform", "type: teleport"), "nodes[3].data.type", "teleport",
    ),
    "edge to a missing node": (TEXT.replace("target: greet,", "target: gret,"), "edges[0].target", "gret"),
    "edge from a missing node": (TEXT.replace("source: greet,", "source: gret,"), "edges[1].source", "gret"),
    "no nodes": (
        "{app: {mode: workflow, name: x}, kind: app, version: 0.3.0, workflow: {graph: {nodes: [], edges: []}}}",
        "workflow.graph.nodes", "no node",
    ),
    "nested too deep": ("a: " + "[" * 100_000, "line 1", "nested deeper"),
    "a tag that would run code": ("!!python/object/apply:os.system ['id']", "line 1", "tag"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_wrong_document_is_refused_with_place_and_reason(site: Site, tmp_path: Path, name: str) -> None:
    text, place, reason = DOCUMENTS[name]
    apps = len(site.http.get("/v1/apps", headers=ADMIN).json()["data"])
    answer = site.import_(text)
    refused(answer, 400, "definition_invalid")
    problems = [one for one in answer.json()["problems"] if one["severity"] == "error"]
    assert any(place in one["at"] and reason in one["problem"] + one["hint"] for one in problems), problems
    assert all(one["hint"] for one in problems), "every mistake has a next step"
    assert len(site.http.get("/v1/apps", headers=ADMIN).json()["data"]) == apps
    file = tmp_path / "bad.yml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    cli = CommandLine(tmp_path)
    said = cli("validate", file, code=4).out
    assert place in said
    assert reason in said


def test_a_wrong_document_is_refused_by_run_with_all_its_mistakes(site: Site, tmp_path: Path) -> None:
    text = TEXT.replace("target: greet,", "target: gret,").replace("type: if-else", "type: ifelse")
    (tmp_path / "bad.yml").write_text(text)
    cli = CommandLine(tmp_path, FLOWLEDGER_URL=site.service.url, FLOWLEDGER_ADMIN_TOKEN=ADMIN_TOKEN)
    for verb in ("run", "import"):
        said = cli(verb, tmp_path / "bad.yml", code=4).err
        assert "gret" in said
        assert "ifelse" in said
        assert ADMIN_TOKEN not in said


def test_a_document_that_is_no_text_is_refused(site: Site) -> None:
    assert "UTF-8" in refused(site.import_(b"\xff\xfe\x00"), 400, "bad_request")
    refused(site.import_("   "), 400, "bad_request")


def test_a_document_of_12_mb_is_refused_and_one_of_5_mb_runs(site: Site, tmp_path: Path) -> None:
    big = TEXT + "# " + "x" * 12_000_000
    assert "10485760" in refused(site.import_(big), 413, "request_entity_too_large")
    (tmp_path / "big.yml").write_text(big)
    cli = CommandLine(tmp_path, FLOWLEDGER_URL=site.service.url, FLOWLEDGER_ADMIN_TOKEN=ADMIN_TOKEN)
    assert "10485760" in cli("validate", tmp_path / "big.yml", code=4).out
    assert "10485760" in cli("import", tmp_path / "big.yml", code=4).err
    large = TEXT.replace("You write one", "You write " + "x" * 5_000_000 + " one")
    app_id = site.import_(large).json()["app_id"]
    ran = site.http.post("/v1/runs", json={"app_id": app_id}, headers=ADMIN)
    assert ran.json()["data"]["status"] == "succeeded"


def test_a_reference_to_a_missing_node_is_a_warning_that_names_the_near_one(site: Site) -> None:
    answer = site.import_(TEXT.replace("[greet, text]", "[gret, text]"))
    assert answer.status_code == 200
    warning = answer.json()["warnings"][0]
    assert "gret" in warning["problem"]
    assert "greet" in warning["hint"]


# --- requests for runs ----------------------------------------------------------------------------------------------

OK = {"inputs": {"who": "Ada"}, "user": "u"}

BODIES: dict[str, tuple[Any, int, str, str]] = {
    # name: (body, status, code, what it names)
    "an array": ([1], 400, "bad_request", "object"),
    "null": (None, 400, "bad_request", "object"),
    "no JSON": ("{nope", 400, "bad_request", "line 1"),
    "cut JSON": ('{"inputs": {"who": "A', 400, "bad_request", "line 1"),
    "NaN": ('{"inputs": {"who": NaN}, "user": "u"}', 400, "bad_request", "line 1"),
    "nested too deep": ('{"inputs": {"who": ' + "[" * 100_000 + "]" * 100_000 + "}}", 400, "bad_request", "recursion"),
    "half a character": ('{"inputs": {"who": "\\ud800"}, "user": "u"}', 400, "bad_request", "line 1"),
    "another encoding": (b'{"inputs": {"who": "\xe9"}, "user": "u"}', 400, "bad_request", "line 1"),
    "no inputs": ({"user": "u"}, 400, "invalid_param", "inputs"),
    "inputs that are a list": (OK | {"inputs": []}, 400, "invalid_param", "inputs"),
    "no user": ({"inputs": {"who": "Ada"}}, 400, "invalid_param", "user"),
    "a missing input": (OK | {"inputs": {}}, 400, "invalid_param", "who is required"),
    "an input of a wrong type": (OK | {"inputs": {"who": {"a": 1}}}, 400, "invalid_param", "who"),
    "a number that is none": (OK | {"inputs": {"who": "Ada", "age": "old"}}, 400, "invalid_param", "age"),
    "a text that is too long": (OK | {"inputs": {"who": "Ada Lovelace"}}, 400, "invalid_param", "who"),
    "an unknown mode": (OK | {"response_mode": "sideways"}, 400, "invalid_param", "sideways"),
    "files that are none": (OK | {"files": "x"}, 400, "invalid_param", "files"),
    "5 MB": (OK | {"inputs": {"who": "x" * 5_000_000}}, 413, "request_entity_too_large", "4194304"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_a_wrong_body_is_refused_before_any_stream(site: Site, name: str, streaming: bool) -> None:
    body, status, code, named = BODIES[name]
    if isinstance(body, dict):
        body = {"response_mode": "streaming" if streaming else "blocking"} | body
    answer = site.post(body)
    assert named in refused(answer, status, code)
    assert "X-Workflow-Run-Id" not in answer.headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_wrong_content_type_is_415(site: Site, kind: str) -> None:
    assert "application/json" in refused(site.post(OK, **{"Content-Type": kind}), 415, "unsupported_media_type")


@pytest.mark.parametrize("key", ["", "x" * 300])
def test_an_idempotency_key_of_a_wrong_length_is_refused(site: Site, key: str) -> None:
    assert "255" in refused(site.post(OK, **{"Idempotency-Key": key}), 400, "invalid_param")


# --- who calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Basic YTpi", "Bearer app-doesnotexist0123456789ab", f"Bearer {ADMIN_TOKEN}", "x y"]
)
def test_an_unknown_key_is_401_on_the_app_paths(site: Site, header: str | None) -> None:
    headers = {"Content-Type": "application/json"} | ({} if header is None else {"Authorization": header})
    answer = site.http.post("/v1/workflows/run", json=OK, headers=headers)
    refused(answer, 401, "unauthorized")
    assert "app-does" not in answer.text


def test_a_wrong_admin_token_is_told_where_the_right_one_is(site: Site, tmp_path: Path) -> None:
    cli = CommandLine(tmp_path, FLOWLEDGER_URL=site.service.url, FLOWLEDGER_ADMIN_TOKEN="guess-4711")
    said = cli("runs", code=7).err
    assert "FLOWLEDGER_ADMIN_TOKEN" in said
    assert "guess-4711" not in said


# --- ids ------------------------------------------------------------------------------------------------------------

Ask = Callable[[Site, str], httpx.Response]
READS: dict[str, Ask] = {
    "run": lambda site, name: site.http.get(f"/v1/runs/{name}", headers=ADMIN),
    "state": lambda site, name: site.http.get(f"/v1/runs/{name}/state", headers=ADMIN),
    "history": lambda site, name: site.http.get(f"/v1/runs/{name}/history", headers=ADMIN),
    "stop": lambda site, name: site.http.post(f"/v1/runs/{name}/stop", headers=ADMIN),
    "detail": lambda site, name: site.http.get(f"/v1/workflows/run/{name}", headers=site.own),
    "events": lambda site, name: site.http.get(f"/v1/workflow/{name}/events?user=u", headers=site.own),
    "app": lambda site, name: site.http.get(f"/v1/apps/{name}", headers=ADMIN),
    "keys": lambda site, name: site.http.get(f"/v1/apps/{name}/keys", headers=ADMIN),
    "import": lambda site, name: site.http.post("/v1/apps/import", params={"app": name}, content=STRICT, headers=ADMIN),
}
GARBAGE = [UNKNOWN, "nope", "'; drop table runs; --", "%00", "a" * 3_000, "01999999-9999-7fff-8999-999999999999", "💥"]


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("read", READS)
def test_an_unknown_id_is_404(site: Site, read: str, name: str) -> None:
    refused(READS[read](site, name), 404, "not_found")


@pytest.mark.parametrize("task_id", [UNKNOWN, "nope", "💥"])
def test_stopping_an_unknown_task_tells_nobody_whether_it_exists(site: Site, task_id: str) -> None:
    answer = site.http.post(f"/v1/workflows/tasks/{task_id}/stop", json={"user": "u"}, headers=site.own)
    assert (answer.status_code, answer.json()) == (200, {"result": "success"})


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("cursor=zzz", "cursor"),
        ("limit=-1", "limit"),
        ("limit=101", "limit"),
        ("status=bogus", "status"),
        ("since=yesterday", "since"),
        ("since=99999-01-01T00:00:00Z", "since"),
    ],
)
def test_a_wrong_filter_is_named(site: Site, query: str, named: str) -> None:
    assert named in refused(site.http.get(f"/v1/runs?{query}", headers=ADMIN), 400, "invalid_param")


def test_a_wrong_place_to_resume_from_is_named(site: Site) -> None:
    run_id = site.before.headers["X-Workflow-Run-Id"]
    answer = site.http.get(f"/v1/workflow/{run_id}/events?user=u", headers=site.own | {"Last-Event-ID": "abc"})
    assert "Last-Event-ID" in refused(answer, 400, "invalid_param")


def test_paths_and_methods_that_are_not_there_have_the_envelope(site: Site) -> None:
    refused(site.http.get("/v1/nothing"), 404, "not_found")
    refused(site.http.put("/v1/runs", headers=ADMIN), 405, "method_not_allowed")


@pytest.mark.parametrize(
    ("pins", "named"), [([1], "pins"), ({"nodes": {"x": {"outputs": {}}}}, "x"), ({"nodez": {}}, "nodez")]
)
def test_wrong_pins_are_named(site: Site, pins: Any, named: str) -> None:
    body = {"app_id": site.app_id, "inputs": {"who": "Ada"}, "pins": pins}
    assert named in refused(site.http.post("/v1/runs", json=body, headers=ADMIN), 400, "invalid_param")


def test_pins_need_the_admin_token(site: Site) -> None:
    refused(site.post(OK | {"pins": {}}, "/v1/runs"), 403, "forbidden")


def test_a_broken_pins_or_inputs_file_is_wrong_usage(site: Site, tmp_path: Path) -> None:
    (tmp_path / "broken.yml").write_text("a: [")
    (tmp_path / "list.yml").write_text("[1]")
    (tmp_path / "flow.json").write_text(STRICT)
    cli = CommandLine(tmp_path, FLOWLEDGER_URL=site.service.url, FLOWLEDGER_ADMIN_TOKEN=ADMIN_TOKEN)
    for option in ("--pin", "--inputs"):
        assert "broken.yml" in cli("run", "flow.json", option, "broken.yml", code=2).err
        assert "list.yml" in cli("run", "flow.json", option, "list.yml", code=2).err
    missing = cli("run", "flow.json", code=2).err
    assert "who is required" in missing
