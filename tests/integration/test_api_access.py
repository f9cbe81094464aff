"""Apps, keys, documents, authentication, errors and operation over real HTTP."""

import json
import re
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from libs.events.log import Log, Record, Tail, Topic
from libs.events.memory import MemoryLog
from services.api import Beside, Limits
from services.api.drafting import draft_workflow_id
from tests.api_world import ADMIN, ECHO, Serve, Server, serving, until
from tests.documents import document, edges, end, node, start

CHATFLOW = document(
    [start(), node("answer", "answer", answer="hi", variables=[])], edges("start > answer"), mode="advanced-chat"
)
REQUIRED = document(
    [
        node(
            "start",
            "start",
            variables=[
                {"variable": "city", "label": "City", "type": "text-input", "required": True, "max_length": 5},
                {"variable": "size", "label": "Size", "type": "select", "required": False, "options": ["s", "l"]},
            ],
        ),
        end(out="start.city"),
    ],
    edges("start > end"),
)
ANSWERS = {
    ("post", "/v1/apps/{app_id}/keys"): "201",
    ("post", "/v1/files/upload"): "201",
    ("post", "/api/files/upload"): "201",
    ("delete", "/v1/conversations/{conversation_id}"): "204",
    ("delete", "/api/conversations/{conversation_id}"): "204",
    ("post", "/v1/apps/annotations"): "201",
    ("delete", "/v1/apps/annotations/{annotation_id}"): "204",
}
"""Of the others: 200."""
UNKNOWN_ID = "00000000-0000-4000-8000-000000000009"


@pytest.fixture(scope="module")
def serve() -> Serve:
    return partial(serving, limits=Limits(max_body_bytes=100_000))


class Late:
    """A log that tells of definitions only when it is asked how far they go."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._deliver: Callable[[list[Record]], None] = lambda _: None
        self._held: list[Record] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def tail(
        self, topic: Topic, starts: Mapping[int, int], deliver: Callable[[list[Record]], None], *more: Any, **named: Any
    ) -> Tail:
        if topic is not Topic.DEFINITIONS:
            return self._log.tail(topic, starts, deliver, *more, **named)
        self._deliver = deliver
        return self._log.tail(topic, starts, self._hold, *more, **named)

    def bounds(self, topic: Topic, partition: int) -> tuple[int, int]:
        found = self._log.bounds(topic, partition)
        if topic is Topic.DEFINITIONS:
            until(lambda: self._told() >= found[1])
        return found

    def _hold(self, records: list[Record]) -> None:
        with self._lock:
            self._held += records

    def _told(self) -> int:
        """Hand over what was held; up to where that is."""
        with self._lock:
            if self._held:
                self._deliver(self._held)
                self._end = self._held[-1].offset + 1
                self._held = []
            return self._end

    _end = 0


@pytest.fixture
def key(server: Server) -> str:
    return str(server.import_app()["api_key"])


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def run(server: Server, key: str, body: Any = None, **more: Any) -> Any:
    given = {"inputs": {}, "user": "u"} if body is None else body
    return server.http.post("/v1/workflows/run", headers=bearer(key), json=given, **more)


# --- documents, apps, versions ---


def test_an_import_answers_with_the_app_and_its_key(server: Server) -> None:
    made = server.import_app()
    assert set(made) >= {"app_id", "name", "mode", "workflow_id", "version", "api_key", "warnings"}
    assert (made["name"], made["mode"]) == ("test", "workflow")
    assert made["api_key"].startswith("app-")
    assert len(made["api_key"]) == 28
    for warning in made["warnings"]:
        assert set(warning) >= {"at", "problem", "hint"}


def test_an_update_publishes_a_version_and_gives_a_key_only_when_asked(server: Server) -> None:
    made = server.import_app()
    updated = server.http.post(
        "/v1/apps/import", params={"app": made["app_id"]}, content=REQUIRED, headers=server.admin()
    ).json()
    assert (updated["app_id"], updated["api_key"]) == (made["app_id"], None)
    assert updated["workflow_id"] != made["workflow_id"]
    app = server.http.get(f"/v1/apps/{made['app_id']}", headers=server.admin()).json()
    assert [one["workflow_id"] for one in app["versions"]] == [made["workflow_id"], updated["workflow_id"]]
    assert [one["variable"] for one in app["inputs"]] == ["city", "size"]
    with_key = server.http.post(
        "/v1/apps/import", params={"app_id": made["app_id"], "key": "true"}, content=ECHO, headers=server.admin()
    ).json()
    assert with_key["api_key"]


@pytest.mark.parametrize("text", ["a: [", "", "42", "\x00", "kind: app\n"])
def test_a_document_that_cannot_run_names_its_problems(server: Server, text: str) -> None:
    answer = server.http.post("/v1/apps/import", content=text, headers=server.admin())
    assert answer.status_code == 400
    body = answer.json()
    if text:
        assert body["code"] == "definition_invalid"
        assert body["problems"]
        assert set(body["problems"][0]) == {"at", "problem", "hint", "severity"}


def test_all_problems_of_a_document_come_at_once(server: Server) -> None:
    wrong = document([start(), node("a", "nope"), node("b", "nada"), end()], edges("start > a > b > end"))
    body = server.http.post("/v1/apps/import", content=wrong, headers=server.admin()).json()
    assert len([problem for problem in body["problems"] if problem["severity"] == "error"]) >= 2


def test_a_document_that_is_not_utf8_is_refused(server: Server) -> None:
    answer = server.http.post("/v1/apps/import", content=b"\xff\xfe\x00", headers=server.admin())
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


@pytest.mark.usefixtures("log")  # counts all apps
def test_apps_are_listed_for_the_admin_and_own_apps_for_a_key(server: Server, key: str) -> None:
    other = server.import_app()
    everything = server.http.get("/v1/apps", headers=server.admin()).json()["data"]
    own = server.http.get("/v1/apps", headers=bearer(key)).json()["data"]
    assert len(everything) == 2
    assert len(own) == 1
    assert server.http.get(f"/v1/apps/{other['app_id']}", headers=bearer(key)).status_code == 404
    assert server.http.get(f"/v1/apps/{UNKNOWN_ID}", headers=server.admin()).status_code == 404


def test_an_app_imported_on_one_replica_runs_on_another_at_once(server: Server, log: MemoryLog) -> None:
    other = Server(log)
    try:
        for _ in range(5):
            assert run(other, server.import_app()["api_key"]).status_code == 200
    finally:
        other.close()


# --- keys ---


def test_keys_are_made_listed_and_revoked(server: Server) -> None:
    app = server.import_app()
    path = f"/v1/apps/{app['app_id']}/keys"
    made = server.http.post(path, headers=server.admin())
    assert made.status_code == 201
    new = made.json()
    assert set(new) == {"id", "prefix", "created_at", "key"}
    assert run(server, new["key"]).status_code == 200
    listed = server.http.get(path, headers=server.admin()).json()["data"]
    assert [one["prefix"] for one in listed] == [app["api_key"][:8], new["key"][:8]]
    assert all("key" not in one for one in listed)
    assert server.http.delete(f"{path}/{new['id']}", headers=server.admin()).json() == {"result": "success"}
    assert run(server, new["key"]).status_code == 401
    assert server.http.delete(path, params={"id": listed[0]["id"]}, headers=server.admin()).status_code == 200
    assert run(server, app["api_key"]).status_code == 401
    assert server.http.delete(f"{path}/{new['id']}", headers=server.admin()).status_code == 404


def test_an_existing_key_is_brought_along(server: Server) -> None:
    app = server.import_app()
    path = f"/v1/apps/{app['app_id']}/keys"
    known = "app-0123456789abcdefghijklmn"
    assert server.http.post(path, json={"key": known}, headers=server.admin()).status_code == 201
    assert run(server, known).status_code == 200
    again = server.http.post(path, json={"key": known}, headers=server.admin())
    assert again.status_code == 201
    assert len(server.http.get(path, headers=server.admin()).json()["data"]) == 2
    elsewhere = server.import_app()["app_id"]
    refused = server.http.post(f"/v1/apps/{elsewhere}/keys", json={"key": known}, headers=server.admin())
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
    for wrong in ("dataset-0123456789abcdefghijklmn", "app-", 7, "app-white space 0123"):
        assert server.http.post(path, json={"key": wrong}, headers=server.admin()).status_code == 400


def test_the_eleventh_key_is_refused(server: Server) -> None:
    path = f"/v1/apps/{server.import_app()['app_id']}/keys"
    statuses = [server.http.post(path, headers=server.admin()).status_code for _ in range(10)]
    assert statuses == [201] * 9 + [400]


def test_keys_stand_in_the_log_as_hashes_only(server: Server, log: MemoryLog) -> None:
    key = server.import_app()["api_key"]
    values = [record.value or b"" for batch in log.read(Topic.DEFINITIONS, 0, 0) for record in batch]
    assert all(key.encode() not in value for value in values)


# --- who calls ---


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "app-0123456789"},
        {"Authorization": "Basic app-0123456789"},
        {"Authorization": "Bearer app-unknown012345678901234"},
        {"Authorization": "Bearer dataset-012345678901234567890"},
        {"Authorization": f"Bearer {ADMIN}"},
    ],
)
def test_a_missing_or_wrong_key_is_401(server: Server, headers: dict[str, str]) -> None:
    answer = server.http.post("/v1/workflows/run", headers=headers, json={"inputs": {}, "user": "u"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="api"'
    assert {"code": "unauthorized", "status": 401}.items() <= answer.json().items()


def test_the_scheme_word_may_have_any_case(server: Server, key: str) -> None:
    headers = {"Authorization": f"bEARER {key}"}
    assert server.http.post("/v1/workflows/run", headers=headers, json={"inputs": {}, "user": "u"}).is_success


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/apps/import"),
        ("GET", "/v1/apps/x/keys"),
        ("POST", "/v1/apps/x/keys"),
        ("DELETE", "/v1/apps/x/keys/y"),
    ],
)
def test_what_needs_the_admin_is_403_for_a_key(server: Server, key: str, method: str, path: str) -> None:
    answer = server.http.request(method, path, headers=bearer(key))
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_the_key_is_checked_first_then_the_user_then_the_mode(server: Server) -> None:
    chat = server.import_app(CHATFLOW)["api_key"]
    assert run(server, "app-nope", {}).status_code == 401
    assert run(server, chat, {}).json()["code"] == "invalid_param"
    answer = run(server, chat, {"user": "u"})
    assert (answer.status_code, answer.json()["code"]) == (400, "not_workflow_app")
    stop = server.http.post("/v1/workflows/tasks/x/stop", headers=bearer(chat), json={"user": "u"})
    assert stop.json()["code"] == "not_workflow_app"


# --- bodies ---


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"inputs": {}}, "user"),
        ({"inputs": {}, "user": ""}, "user"),
        ({"inputs": {}, "user": None}, "user"),
        ({"user": "u"}, "inputs"),
        ({"user": "u", "inputs": []}, "inputs"),
        ({"user": "u", "inputs": None}, "inputs"),
        ({"user": "u", "inputs": {}, "response_mode": "both"}, "response_mode"),
        ({"user": "u", "inputs": {}, "response_mode": 7}, "response_mode"),
        ({"user": "u", "inputs": {}, "files": {}}, "files"),
        ({"user": "u", "inputs": {}, "files": ["x"]}, "files"),
    ],
)
def test_a_wrong_field_is_invalid_param(server: Server, key: str, body: dict[str, Any], field: str) -> None:
    answer = run(server, key, body)
    assert (answer.status_code, answer.json()["code"], answer.json()["params"]) == (400, "invalid_param", field)


def test_a_user_that_is_not_text_is_turned_into_text(server: Server, key: str) -> None:
    assert run(server, key, {"user": 42, "inputs": {}}).status_code == 200


def test_unknown_fields_and_null_modes_are_tolerated(server: Server, key: str) -> None:
    body = {"user": "u", "inputs": {"other": 1}, "response_mode": None, "files": None, "x": 1}
    assert run(server, key, body).status_code == 200


@pytest.mark.parametrize("mode", ["blocking", "streaming"])
@pytest.mark.parametrize("inputs", [{}, {"city": 7}, {"city": "too long"}, {"city": "a", "size": "xl"}])
def test_wrong_inputs_are_refused_before_any_stream(server: Server, mode: str, inputs: dict[str, Any]) -> None:
    key = server.import_app(REQUIRED)["api_key"]
    answer = run(server, key, {"inputs": inputs, "user": "u", "response_mode": mode})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "bad_request"),
        (b"", "application/json", 400, "bad_request"),
        (b"\xff\xfe", "application/json", 400, "bad_request"),
        (b"[]", "application/json", 400, "bad_request"),
        (b'"x"', "application/json", 400, "bad_request"),
        (b"null", "application/json", 400, "bad_request"),
        (b'{"user": NaN}', "application/json", 400, "bad_request"),
        (b"[" * 50_000, "application/json", 400, "bad_request"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"x" * 100_001, "application/json", 413, "request_entity_too_large"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(
    server: Server, key: str, content: bytes, kind: str, status: int, code: str
) -> None:
    headers = bearer(key) | {"Content-Type": kind}
    answer = server.http.post("/v1/workflows/run", headers=headers, content=content)
    assert (answer.status_code, answer.json()["code"], answer.json()["status"]) == (status, code, status)


def test_a_large_body_of_unknown_length_is_refused_too(server: Server, key: str) -> None:
    headers = bearer(key) | {"Content-Type": "application/json"}
    pieces = (b"x" * 10_000 for _ in range(11))
    answer = server.http.post("/v1/workflows/run", headers=headers, content=pieces)
    assert answer.status_code == 413


def test_a_draft_is_not_run_by_its_id(server: Server) -> None:
    app = server.import_app()
    path = f"/v1/workflows/{draft_workflow_id(app['app_id'])}/run"
    answer = server.http.post(path, headers=bearer(app["api_key"]), json={"inputs": {}, "user": "u"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_a_bad_trace_session_is_refused(server: Server, key: str) -> None:
    body = {"user": "u", "inputs": {}, "trace_session_id": "x" * 201}
    assert run(server, key, body).json()["code"] == "bad_request"


def test_versions_are_looked_up_as_the_contract_says(server: Server, key: str) -> None:
    body = {"inputs": {}, "user": "u"}
    foreign = server.import_app()["workflow_id"]
    for workflow_id, status, code in (
        ("nope", 400, "bad_request"),
        (UNKNOWN_ID, 404, "not_found"),
        (foreign, 404, "not_found"),
    ):
        answer = server.http.post(f"/v1/workflows/{workflow_id}/run", headers=bearer(key), json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize("last", ["x", "1.2.3", "-1"])
def test_a_wrong_last_event_id_is_refused(server: Server, key: str, last: str) -> None:
    run_id = run(server, key).json()["workflow_run_id"]
    answer = server.http.get(f"/v1/workflow/{run_id}/events?user=u", headers=bearer(key) | {"Last-Event-ID": last})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")


# --- everything else ---


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/v1/nope", 404, "not_found"),
        ("GET", "/v1/workflows/run", 405, "method_not_allowed"),
        ("PATCH", "/v1/apps", 405, "method_not_allowed"),
    ],
)
def test_unknown_routes_answer_with_the_envelope(
    server: Server, method: str, path: str, status: int, code: str
) -> None:
    answer = server.http.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["x-version"]


@pytest.mark.usefixtures("log")  # breaks its server
def test_an_unexpected_failure_is_an_envelope_without_a_traceback(server: Server, key: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret detail")

    server.registry.apps = fail  # type: ignore[method-assign, assignment]
    answer = server.http.get("/v1/apps", headers=server.admin())
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_server_error")
    assert "secret" not in answer.text
    assert server.http.get("/healthz").status_code == 200


def test_browsers_may_call(server: Server) -> None:
    asked = {"Origin": "http://x", "Access-Control-Request-Method": "POST"}
    answer = server.http.options("/v1/workflows/run", headers=asked)
    assert answer.status_code == 200
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    assert server.http.get("/healthz").headers["access-control-allow-origin"] == "*"


def test_a_wrong_method_is_answered_with_those_of_the_path(server: Server) -> None:
    for path, known in {
        "/": "GET, HEAD, OPTIONS",
        "/v1/runs": "GET, HEAD, OPTIONS, POST",
        "/v1/runs/bulk": "OPTIONS, POST",
        f"/v1/apps/{UNKNOWN_ID}/keys": "DELETE, GET, HEAD, OPTIONS, POST",
        f"/v1/apps/{UNKNOWN_ID}/keys/x": "DELETE, OPTIONS",
    }.items():
        answer = server.http.patch(path, headers=server.admin())
        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == known
        asked = server.http.options(path)
        assert (asked.status_code, asked.content, asked.headers["allow"]) == (200, b"", known)


def test_the_printed_address_opens_a_page_that_leads_on(server: Server) -> None:
    assert "http://x&#x27;y/v1" in server.http.get("/", headers={"Host": "x'y"}).text
    page = server.http.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for link in re.findall(r'href="([^"]+)"', page.text):
        assert server.http.get(f"/{link}").status_code == 200, link
    assert f"flowledger import FILE --url {server.http.base_url}".rstrip("/") in page.text
    assert "<script" not in page.text
    assert "//" not in page.text.replace(str(server.http.base_url).rstrip("/"), ""), "nothing from elsewhere"


def test_head_is_get_without_the_body(server: Server) -> None:
    for path, status in {"/healthz": 200, "/readyz": 200, "/v1/": 200, "/v1/apps": 200, "/v1/apps/x": 404}.items():
        got, head = (server.http.request(method, path, headers=server.admin()) for method in ("GET", "HEAD"))
        assert (got.status_code, head.status_code) == (status, status)
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
    assert server.http.head("/v1/workflows/run").status_code == 405
    assert server.http.head("/v1/apps").status_code == 401
    assert server.http.options("/v1/nope").status_code == 404


def test_a_service_in_the_same_process_answers_for_its_part(log: MemoryLog) -> None:
    problems: list[str] = []
    numbers = CollectorRegistry()
    Counter("spoons", "Of the other service", registry=numbers).inc(3)
    made = Server(log, beside=(Beside("other", lambda: problems[0] if problems else None, numbers),))
    try:
        assert made.http.get("/readyz").status_code == 200
        assert "spoons_total 3.0" in made.http.get("/metrics").text
        problems.append("out of forks")
        answer = made.http.get("/readyz")
        assert (answer.status_code, answer.json()["problem"]) == (503, "other: out of forks")
        assert made.http.get("/healthz").status_code == 200
    finally:
        made.close()


def test_pages_of_other_origins_are_told_nothing_when_origins_are_named(log: MemoryLog) -> None:
    made = Server(log, origins=("https://a.example",))
    try:
        own = made.http.get("/v1/", headers={"Origin": "https://a.example"}).headers
        assert (own["access-control-allow-origin"], own["vary"]) == ("https://a.example", "Origin")
        other = made.http.get("/v1/", headers={"Origin": "https://b.example"}).headers
        assert "access-control-allow-origin" not in other
        asked = {"Origin": "https://b.example", "Access-Control-Request-Method": "POST"}
        assert "access-control-allow-origin" not in made.http.options("/v1/workflows/run", headers=asked).headers
    finally:
        made.close()


def test_health_names_the_instance(server: Server) -> None:
    health = server.http.get("/healthz").json()
    assert (health["status"], health["instance_id"], health["models"]) == ("ok", "instance-1", "configured")


def test_a_replica_is_ready_when_it_has_read_everything(server: Server, log: MemoryLog) -> None:
    until(lambda: server.http.get("/readyz").json()["lag_records"] == 0)
    server.parts.tail.problem = "the broker is away"
    answer = server.http.get("/readyz")
    assert (answer.status_code, answer.json()["problem"]) == (503, "the broker is away")
    assert server.http.get("/healthz").status_code == 200


@pytest.mark.usefixtures("log")  # counts all requests
def test_metrics_have_units_and_no_ids(server: Server, key: str) -> None:
    run_id = run(server, key).json()["workflow_run_id"]
    server.http.get(f"/v1/runs/{run_id}", headers=bearer(key))
    text = server.http.get("/metrics").text
    assert 'flowledger_api_requests_total{method="POST",route="/v1/workflows/run",status="200"} 1.0' in text
    assert 'route="/v1/runs/{run_id}"' in text
    assert run_id not in text


def test_the_openapi_document_names_every_route_with_its_answers(server: Server) -> None:
    found = server.http.get("/openapi.json").json()
    assert len(found["paths"]) >= 16
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/console/"):
                assert operation["responses"].keys() & {"200", "201", "204"}, path
                assert operation["security"] or path == "/console/api/login", path
                assert "401" in operation["responses"], path
                continue
            assert operation["responses"][ANSWERS.get((method, path), "200")], path
            if path.startswith("/v1/") and path != "/v1/":
                assert operation["security"], path
                assert "401" in operation["responses"], path
    references = {part.split('"')[0] for part in server.http.get("/openapi.json").text.split('"$ref":"')[1:]}
    assert all(ref.startswith("#/components/schemas/") for ref in references)
    assert {ref.rsplit("/", 1)[1] for ref in references} <= set(found["components"]["schemas"])
    assert server.http.get("/docs").status_code == 200


def test_the_root_of_the_api_needs_no_key(server: Server) -> None:
    assert server.http.get("/v1/").json()["api_version"] == "v1"


def test_a_first_version_that_another_replica_has_published_runs_at_once(server: Server, log: MemoryLog) -> None:
    behind = Server(Late(log))  # type: ignore[arg-type]  # stands in for a log
    try:
        console = "/console/api/apps"
        body = {"name": "new", "mode": "workflow"}
        app = server.http.post(console, json=body, headers=server.admin()).json()["id"]
        key = server.http.post(f"{console}/{app}/api-keys", headers=server.admin()).json()["token"]
        assert behind.start(key).json()["message"] == "the app has no published version"
        draft = {"graph": json.loads(ECHO)["workflow"]["graph"]}
        server.http.post(f"{console}/{app}/workflows/draft", json=draft, headers=server.admin())
        published = server.http.post(f"{console}/{app}/workflows/publish", headers=server.admin())
        assert published.json()["result"] == "success", published.text
        answer = behind.start(key)
        assert (answer.status_code, answer.json()["data"]["outputs"]) == (200, {"answer": "hi"}), answer.text
    finally:
        behind.close()
