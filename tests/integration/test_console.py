"""The console over real HTTP: sessions, apps, documents in and out, drafts, versions, keys."""

import base64
import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import yaml

from libs.events.log import Topic
from libs.events.memory import MemoryLog
from libs.workflow.node_configs import NODE_TYPES
from services.api.console.secrets import MASK
from tests.api_world import ADMIN, ECHO, Clock, Server
from tests.documents import document, edges, end, node, start

UNKNOWN = "00000000-0000-4000-8000-000000000009"
GRAPH: dict[str, Any] = json.loads(ECHO)["workflow"]["graph"]
OPEN = {("post", "/console/api/login"), ("post", "/console/api/refresh-token")}


@pytest.fixture
def console(server: Server) -> Iterator[httpx.Client]:
    """By the admin token as bearer."""
    with httpx.Client(
        base_url=f"{server.url}/console/api/", headers=server.admin(), timeout=10, trust_env=False
    ) as made:
        yield made


def make_app(console: httpx.Client, **more: Any) -> str:
    answer = console.post("apps", json={"name": "Made", "mode": "workflow", **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def save(console: httpx.Client, app_id: str, hashed: str | None = None, **more: Any) -> httpx.Response:
    body = {"graph": GRAPH, "features": {}, **({} if hashed is None else {"hash": hashed}), **more}
    return console.post(f"apps/{app_id}/workflows/draft", json=body)


def graph_with(title: str) -> dict[str, Any]:
    return json.loads(document([start("q"), node("end", "end", title=title, outputs=[])], edges("start > end")))[
        "workflow"
    ]["graph"]  # type: ignore[no-any-return]  # a graph


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


# --- who may ---


def test_every_route_refuses_without_with_a_wrong_and_with_an_apps_key(server: Server) -> None:
    app = server.import_app()
    paths = server.http.get("/openapi.json").json()["paths"]
    tried = 0
    for path, methods in paths.items():
        if not path.startswith("/console/api/"):
            continue
        filled = path.replace("{app_id}", app["app_id"]).replace("{workflow_id}", app["workflow_id"])
        filled = "/".join(UNKNOWN if part.startswith("{") else part for part in filled.split("/"))
        for method, operation in methods.items():
            if (method, path) in OPEN:
                continue
            assert operation["security"], path
            for given, status in ((None, 401), ("Bearer wrong", 401), ("Basic x", 401), (app["api_key"], 403)):
                header = f"Bearer {given}" if status == 403 else given
                headers = {} if header is None else {"Authorization": header}
                answer = server.http.request(method.upper(), filled, headers=headers)
                assert answer.status_code == status, (method, path, answer.text)
                assert set(answer.json()) == {"code", "message", "status"}
                tried += 1
    assert tried >= 4 * 25
    assert server.registry.app(app["app_id"]) is not None


def login(server: Server, password: str) -> httpx.Response:
    return server.http.post("/console/api/login", json={"email": "me@example.org", "password": password})


@pytest.mark.parametrize("encode", [lambda text: text, lambda text: base64.b64encode(text.encode()).decode()])
def test_a_login_by_the_admin_token_opens_the_console_with_cookies_and_csrf(server: Server, encode: Any) -> None:
    answer = login(server, encode(ADMIN))
    assert answer.json() == {"result": "success"}
    assert set(server.http.cookies) == {"access_token", "refresh_token", "csrf_token"}
    by_name = {line.partition("=")[0]: line.lower() for line in answer.headers.get_list("set-cookie")}
    assert "httponly" in by_name["access_token"]
    assert "httponly" not in by_name["csrf_token"]
    assert all("samesite=lax" in line for line in by_name.values())
    assert ADMIN not in str(server.http.cookies)
    csrf = {"X-CSRF-Token": server.http.cookies["csrf_token"]}
    assert server.http.get("/console/api/apps", headers=csrf).status_code == 200
    for wrong in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": "x"}, {"X-CSRF-Token": "é"}):
        encoded = {name: value.encode("utf-8") for name, value in wrong.items()}
        assert server.http.get("/console/api/apps", headers=encoded).status_code == 401


def test_the_csrf_token_of_another_session_opens_nothing(server: Server) -> None:
    login(server, ADMIN)
    foreign = server.http.cookies["csrf_token"]
    login(server, ADMIN)
    assert server.http.get("/console/api/apps", headers={"X-CSRF-Token": foreign}).status_code == 401


def test_a_draft_is_saved_by_a_beacon_without_headers(server: Server) -> None:
    app_id = server.import_app()["app_id"]
    login(server, ADMIN)
    path = f"/console/api/apps/{app_id}/workflows/draft"
    hashed = server.http.get(path, headers={"X-CSRF-Token": server.http.cookies["csrf_token"]}).json()["hash"]
    body = json.dumps({"graph": graph_with("Beacon"), "hash": hashed})
    plain = {"Content-Type": "text/plain;charset=UTF-8"}
    assert server.http.post(path, content=body, headers=plain).status_code == 200
    assert code_of(server.http.post(path, content=body, headers={"Content-Type": "text/html"})) == (
        415,
        "unsupported_media_type",
    )


@pytest.mark.parametrize(
    "body", [{}, {"password": ""}, {"password": "wrong"}, {"password": 7}, {"password": "d3Jvbmc="}]
)
def test_another_password_is_refused(server: Server, body: Any) -> None:
    assert code_of(server.http.post("/console/api/login", json=body)) == (401, "unauthorized")
    assert not server.http.cookies


def test_a_session_ends_with_its_time_and_goes_on_with_the_refresh_token(server: Server, clock: Clock) -> None:
    login(server, ADMIN)
    csrf = {"X-CSRF-Token": server.http.cookies["csrf_token"]}
    clock.us += 2 * 3600 * 1_000_000
    assert code_of(server.http.get("/console/api/apps", headers=csrf)) == (401, "unauthorized")
    assert server.http.post("/console/api/refresh-token").json() == {"result": "success"}
    csrf = {"X-CSRF-Token": server.http.cookies["csrf_token"]}
    assert server.http.get("/console/api/apps", headers=csrf).status_code == 200
    clock.us += 60 * 24 * 3600 * 1_000_000
    assert code_of(server.http.post("/console/api/refresh-token")) == (401, "unauthorized")


def test_the_access_token_of_a_session_opens_as_bearer_and_its_refresh_token_does_not(server: Server) -> None:
    login(server, ADMIN)
    tokens = dict(server.http.cookies)
    server.http.cookies.clear()
    for name, status in (("access_token", 200), ("refresh_token", 401), ("csrf_token", 401)):
        headers = {"Authorization": f"Bearer {tokens[name]}"}
        assert server.http.get("/console/api/apps", headers=headers).status_code == status, name


def test_a_logout_takes_the_cookies_away(server: Server) -> None:
    login(server, ADMIN)
    answer = server.http.post("/console/api/logout", headers={"X-CSRF-Token": server.http.cookies["csrf_token"]})
    assert answer.json() == {"result": "success"}
    assert not server.http.cookies


def test_cookies_over_https_belong_to_this_host_alone(server: Server) -> None:
    answer = server.http.post("/console/api/login", json={"password": ADMIN}, headers={"X-Forwarded-Proto": "https"})
    lines = answer.headers.get_list("set-cookie")
    assert [line.partition("=")[0] for line in lines] == [
        "__Host-access_token",
        "__Host-refresh_token",
        "__Host-csrf_token",
    ]
    assert all("secure" in line.lower() and "path=/" in line.lower() for line in lines)


# --- apps ---


def test_an_app_is_made_read_changed_and_deleted(console: httpx.Client, server: Server) -> None:
    made = console.post(
        "apps", json={"name": "Weather", "mode": "workflow", "icon_type": "emoji", "icon": "🌦", "description": "d"}
    )
    assert made.status_code == 201
    app = made.json()
    assert (app["name"], app["mode"], app["icon"], app["workflow"]) == ("Weather", "workflow", "🌦", None)
    assert app["api_base_url"] == f"{server.url}/v1"
    assert len(app["site"]["code"]) == 16
    assert {"default_language", "custom_disclaimer", "show_workflow_steps", "copyright"} <= app["site"].keys()
    path = f"apps/{app['id']}"
    assert console.get(path).json() == app
    changed = console.put(path, json={"name": "Rain", "max_active_requests": 3, "use_icon_as_answer_icon": True}).json()
    assert (changed["name"], changed["description"]) == ("Rain", "d")
    assert (changed["max_active_requests"], changed["use_icon_as_answer_icon"]) == (3, True)
    assert console.get(path).json() == changed
    gone = console.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    assert code_of(console.get(path)) == (404, "app_not_found")
    assert code_of(console.delete(path)) == (404, "app_not_found")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "", "mode": "workflow"},
        {"name": " ", "mode": "workflow"},
        {"name": 3, "mode": "workflow"},
        {"name": "x"},
        {"name": "x", "mode": "completion"},
        {"name": "x", "mode": "workflow", "description": "d" * 401},
        {"name": "x", "mode": "workflow", "icon": 3},
    ],
)
def test_a_wrong_app_is_refused(console: httpx.Client, body: Any) -> None:
    before = console.get("apps").json()["total"]
    assert code_of(console.post("apps", json=body)) == (400, "invalid_param")
    assert console.get("apps").json()["total"] == before


@pytest.mark.parametrize("body", [{"name": ""}, {"max_active_requests": -1}, {"use_icon_as_answer_icon": "yes"}])
def test_a_wrong_change_is_refused(console: httpx.Client, body: Any) -> None:
    assert code_of(console.put(f"apps/{make_app(console)}", json=body)) == (400, "invalid_param")


def test_apps_are_listed_newest_first_in_pages(console: httpx.Client, clock: Clock) -> None:
    for number in range(3):
        clock.us += 1
        make_app(console, name=f"App {number}", mode="workflow" if number else "advanced-chat")
    page = console.get("apps", params={"limit": 2}).json()
    assert [app["name"] for app in page["data"]] == ["App 2", "App 1"]
    assert (page["page"], page["limit"], page["total"], page["has_more"]) == (1, 2, 3, True)
    page = console.get("apps", params={"limit": 2, "page": 2}).json()
    assert ([app["name"] for app in page["data"]], page["has_more"]) == (["App 0"], False)
    assert console.get("apps", params={"mode": "advanced-chat"}).json()["total"] == 1
    assert console.get("apps", params={"name": "app 1"}).json()["total"] == 1


@pytest.mark.parametrize("query", [{"page": "0"}, {"page": "x"}, {"page": "100000"}, {"limit": "0"}, {"limit": "101"}])
def test_a_wrong_page_is_refused(console: httpx.Client, query: dict[str, str]) -> None:
    assert code_of(console.get("apps", params=query)) == (400, "invalid_param")


def test_the_keys_of_a_deleted_app_open_nothing(console: httpx.Client, server: Server) -> None:
    app_id = make_app(console)
    key = console.post(f"apps/{app_id}/api-keys").json()["token"]
    console.delete(f"apps/{app_id}")
    assert code_of(server.start(key)) == (403, "forbidden")


def test_an_api_that_is_switched_off_refuses_its_keys(server: Server, console: httpx.Client) -> None:
    app = console.post(f"{server.url}/v1/apps/import", content=ECHO).json()
    path = f"apps/{app['app_id']}/api-enable"
    assert console.post(path, json={"enable_api": False}).json()["enable_api"] is False
    run_url = f"{server.url}/v1/workflows/run"
    body = {"inputs": {}, "user": "u"}
    bearer = {"Authorization": f"Bearer {app['api_key']}"}
    assert code_of(console.post(run_url, json=body, headers=bearer)) == (403, "forbidden")
    console.post(path, json={"enable_api": True})
    assert console.post(run_url, json=body, headers=bearer).status_code == 200
    assert code_of(console.post(path, json={"enable_api": "no"})) == (400, "invalid_param")


def test_keys_are_made_listed_and_revoked_ten_at_most(console: httpx.Client) -> None:
    path = f"apps/{make_app(console)}/api-keys"
    made = [console.post(path) for _ in range(10)]
    assert {answer.status_code for answer in made} == {201}
    first = made[0].json()
    assert set(first) == {"id", "type", "token", "last_used_at", "created_at"}
    assert first["token"].startswith("app-")
    assert code_of(console.post(path)) == (400, "bad_request")
    listed = console.get(path).json()["data"]
    assert len(listed) == 10
    assert first["token"] not in json.dumps(listed)
    assert console.delete(f"{path}/{first['id']}").status_code == 204
    assert code_of(console.delete(f"{path}/{first['id']}")) == (404, "not_found")
    assert console.post(path).status_code == 201


def test_of_keys_made_at_once_ten_are_made(console: httpx.Client, server: Server, log: MemoryLog) -> None:
    path = f"apps/{make_app(console)}/api-keys"
    for _ in range(8):
        assert console.post(path).status_code == 201
    other = Server(log)
    try:
        urls = [f"{one.url}/console/api/{path}" for one in (server, other)] * 4
        with ThreadPoolExecutor(8) as pool:
            made = list(
                pool.map(
                    lambda url: httpx.post(url, headers=server.admin(), timeout=30, trust_env=False, verify=False), urls
                )
            )
    finally:
        other.close()
    assert sorted(answer.status_code for answer in made) == [201] * 2 + [400] * 6
    assert {answer.json()["code"] for answer in made if answer.status_code == 400} == {"bad_request"}
    assert len(console.get(path).json()["data"]) == 10


def test_a_new_node_has_defaults_that_its_editor_can_complete(console: httpx.Client) -> None:
    path = f"apps/{make_app(console)}/workflows/default-workflow-block-configs"
    listed = {each["type"]: each["config"] for each in console.get(path).json()}
    assert (
        {"llm", "code", "http-request", "template-transform", "question-classifier"} <= listed.keys() <= set(NODE_TYPES)
    )
    assert console.get(f"{path}/code").json() == {"type": "code", "config": listed["code"]}
    script = console.get(f"{path}/code", params={"q": '{"code_language": "javascript"}'}).json()["config"]
    assert (script["code_language"], "function main" in script["code"]) == ("javascript", True)
    for block_type in ("code", "http-request", "template-transform", "loop", "trigger-webhook", "trigger-schedule"):
        config = {"url": "http://example.org"} | listed[block_type]
        NODE_TYPES[block_type].config.model_validate(config)
    assert code_of(console.get(f"{path}/teapot")) == (404, "not_found")
    for wrong in ("{", "[]", '{"code_language": "cobol"}'):
        assert code_of(console.get(f"{path}/code", params={"q": wrong})) == (400, "invalid_param")


def test_a_workflow_is_not_converted_to_one(console: httpx.Client) -> None:
    assert code_of(console.post(f"apps/{make_app(console)}/convert-to-workflow", json={})) == (404, "app_not_found")


def test_nothing_is_archived(console: httpx.Client) -> None:
    path = f"apps/{make_app(console)}/workflow-archived-logs"
    assert console.get(path).json() == {"page": 1, "limit": 20, "total": 0, "has_more": False, "data": []}
    assert code_of(console.get(path, params={"limit": 0})) == (400, "invalid_param")


def test_a_copy_has_the_draft_and_a_name_of_its_own(console: httpx.Client) -> None:
    app_id = make_app(console, description="d")
    save(console, app_id)
    copy = console.post(f"apps/{app_id}/copy", json={"name": "Other"})
    assert copy.status_code == 201
    assert (copy.json()["name"], copy.json()["description"]) == ("Other", "d")
    draft = console.get(f"apps/{copy.json()['id']}/workflows/draft").json()
    assert draft["graph"] == GRAPH
    assert console.post(f"apps/{app_id}/copy").json()["name"] == "Made copy"


# --- import and export ---


def imported(console: httpx.Client, text: str, **more: Any) -> httpx.Response:
    return console.post("apps/imports", json={"mode": "yaml-content", "yaml_content": text, **more})


def of_version(version: Any) -> str:
    return json.dumps(json.loads(ECHO) | {"version": version})


@pytest.mark.parametrize(
    ("version", "http", "status"),
    [
        ("0.6.0", 200, "completed"),
        ("0.5.9", 200, "completed-with-warnings"),
        ("0.1.5", 200, "completed-with-warnings"),
        ("0.6.1", 202, "pending"),
        ("0.7.0", 202, "pending"),
        ("1.0.0", 202, "pending"),
        ("x", 400, "failed"),
        ("", 400, "failed"),
        (0.6, 400, "failed"),
    ],
)
def test_an_import_answers_by_the_version_of_the_document(
    console: httpx.Client, version: Any, http: int, status: str
) -> None:
    before = console.get("apps").json()["total"]
    answer = imported(console, of_version(version))
    body = answer.json()
    assert (answer.status_code, body["status"]) == (http, status)
    keys = {"id", "status", "app_id", "app_mode", "current_dsl_version", "imported_dsl_version", "error"}
    assert set(body) == keys
    assert (body["app_id"] is not None) == (http == 200)
    assert bool(body["error"]) == (http == 400)
    assert console.get("apps").json()["total"] == before + (1 if http == 200 else 0)


def test_a_document_without_a_version_is_an_old_one(console: httpx.Client) -> None:
    without = {name: value for name, value in json.loads(ECHO).items() if name != "version"}
    body = imported(console, json.dumps(without)).json()
    assert (body["status"], body["imported_dsl_version"]) == ("completed-with-warnings", "0.1.0")


def test_a_held_import_is_confirmed_once_for_ten_minutes(console: httpx.Client, clock: Clock) -> None:
    held = imported(console, of_version("9.0.0"), name="Newer").json()
    late = imported(console, of_version("9.0.0")).json()
    clock.us += 9 * 60 * 1_000_000
    done = console.post(f"apps/imports/{held['id']}/confirm")
    assert (done.status_code, done.json()["status"]) == (200, "completed")
    assert console.get(f"apps/{done.json()['app_id']}").json()["name"] == "Newer"
    again = console.post(f"apps/imports/{held['id']}/confirm")
    assert (again.status_code, again.json()["status"]) == (400, "failed")
    clock.us += 2 * 60 * 1_000_000
    assert console.post(f"apps/imports/{late['id']}/confirm").json()["status"] == "failed"
    assert console.post("apps/imports/nothing/confirm").status_code == 400
    assert console.get("apps").json()["total"] == 1


def test_an_import_can_be_confirmed_at_another_replica(console: httpx.Client, log: MemoryLog, clock: Clock) -> None:
    held = imported(console, of_version("9.0.0")).json()
    other = Server(log, now_us=clock)
    try:
        answer = other.http.post(f"/console/api/apps/imports/{held['id']}/confirm", headers=other.admin())
        assert answer.json()["status"] == "completed"
    finally:
        other.close()
    assert console.get(f"apps/{answer.json()['app_id']}").status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: [",
        "42",
        "kind: app",
        json.dumps({"version": "0.6.0", "app": {"name": "x", "mode": "completion"}, "model_config": {}}),
        json.dumps({"version": "0.6.0", "app": {"name": "x", "mode": "workflow"}, "workflow": {}}),
        ECHO.replace('"test"', '"\\ud83d"'),
    ],
)
def test_what_is_no_document_of_ours_fails_with_a_reason(console: httpx.Client, text: str) -> None:
    answer = imported(console, text)
    assert (answer.status_code, answer.json()["status"]) == (400, "failed")
    assert answer.json()["error"]


def test_an_unknown_mode_of_import_is_refused(console: httpx.Client) -> None:
    assert code_of(console.post("apps/imports", json={"mode": "ftp"})) == (400, "invalid_param")
    for mode in ("yaml-content", "yaml-url"):
        missing = console.post("apps/imports", json={"mode": mode})
        assert (missing.status_code, missing.json()["status"]) == (400, "failed")


def test_an_import_over_an_app_replaces_its_draft_and_leaves_its_versions(console: httpx.Client) -> None:
    app_id = make_app(console)
    save(console, app_id)
    console.post(f"apps/{app_id}/workflows/publish")
    published = console.get(f"apps/{app_id}/workflows/publish").json()
    other = document([start("other"), end(out="start.other")], edges("start > end"))
    body = imported(console, other, app_id=app_id).json()
    assert (body["status"], body["app_id"]) == ("completed", app_id)
    assert console.get(f"apps/{app_id}/workflows/draft").json()["graph"] == json.loads(other)["workflow"]["graph"]
    assert console.get(f"apps/{app_id}/workflows/publish").json() == published
    assert console.get(f"apps/{app_id}").json()["name"] == "test"
    chat = document([start(), node("answer", "answer", answer="x")], edges("start > answer"), mode="advanced-chat")
    assert imported(console, chat, app_id=app_id).json()["status"] == "failed"
    assert imported(console, ECHO, app_id=UNKNOWN).json()["status"] == "failed"


SECRET = {"id": "s", "name": "token", "value_type": "secret", "value": "very-secret", "description": ""}
PLAIN = {"id": "p", "name": "place", "value_type": "string", "value": "here", "description": ""}


def test_an_export_leaves_out_what_belongs_to_this_place_and_can_be_imported(console: httpx.Client) -> None:
    local_file = {"transfer_method": "local_file", "upload_file_id": UNKNOWN}
    nodes = [
        node("webhook", "trigger-webhook", webhook_url="https://here/x", webhook_debug_url="https://here/y"),
        node("schedule", "trigger-schedule", mode="cron", cron_expression="* * * * *", timezone="Asia/Tokyo"),
        node("plugin", "trigger-plugin", subscription_id="sub", plugin_id="p"),
        node("tool", "tool", credential_id="cred", tool_name="t", provider_id="p"),
        node("agent", "agent", agent_parameters={"tools": {"value": [{"credential_id": "cred", "name": "n"}]}}),
        node("start", "start", variables=[{"variable": "f", "type": "file", "default": local_file}]),
    ]
    text = document(nodes, [], environment_variables=[SECRET, PLAIN])
    app_id = imported(console, text, name="Größe 🌦").json()["app_id"]
    exported = console.get(f"apps/{app_id}/export").json()["data"]
    made = yaml.safe_load(exported)
    assert (made["kind"], made["version"], made["app"]["name"]) == ("app", "0.6.0", "Größe 🌦")
    assert "Größe" in exported
    data = {each["id"]: each["data"] for each in made["workflow"]["graph"]["nodes"]}
    assert (data["webhook"]["webhook_url"], data["webhook"]["webhook_debug_url"]) == ("", "")
    assert (data["schedule"]["mode"], data["schedule"]["cron_expression"]) == ("visual", "")
    assert data["plugin"]["subscription_id"] == ""
    assert "cred" not in exported
    assert "default" not in data["start"]["variables"][0]
    assert [one["value"] for one in made["workflow"]["environment_variables"]] == ["", "here"]
    whole = console.get(f"apps/{app_id}/export", params={"include_secret": "true"}).json()["data"]
    assert [one["value"] for one in yaml.safe_load(whole)["workflow"]["environment_variables"]] == [
        "very-secret",
        "here",
    ]
    assert "cred" in whole
    again = imported(console, exported).json()
    assert again["status"] == "completed"
    assert console.get(f"apps/{again['app_id']}/export").json()["data"] == exported


def test_a_version_is_exported_by_its_id(console: httpx.Client) -> None:
    app_id = make_app(console)
    hashed = save(console, app_id).json()["hash"]
    console.post(f"apps/{app_id}/workflows/publish")
    version = console.get(f"apps/{app_id}/workflows/publish").json()
    save(console, app_id, hashed, graph=graph_with("Later"))
    exported = console.get(f"apps/{app_id}/export", params={"workflow_id": version["id"]}).json()["data"]
    assert yaml.safe_load(exported)["workflow"]["graph"] == GRAPH
    assert code_of(console.get(f"apps/{app_id}/export", params={"workflow_id": UNKNOWN})) == (404, "not_found")
    bare = make_app(console)
    assert code_of(console.get(f"apps/{bare}/export")) == (404, "draft_workflow_not_exist")
    assert console.get(f"apps/imports/{bare}/check-dependencies").json() == {"leaked_dependencies": []}


# --- the draft ---


def test_a_new_app_has_no_draft_until_the_first_save(console: httpx.Client) -> None:
    app_id = make_app(console)
    path = f"apps/{app_id}/workflows/draft"
    assert code_of(console.get(path)) == (404, "draft_workflow_not_exist")
    assert code_of(console.post(f"{path}/features", json={"features": {}})) == (404, "draft_workflow_not_exist")
    assert code_of(console.post(f"apps/{app_id}/workflows/publish")) == (404, "draft_workflow_not_exist")
    saved = save(console, app_id, "of no draft, as none is stored").json()
    assert code_of(save(console, app_id, "no such hash")) == (409, "draft_workflow_not_sync")
    assert set(saved) == {"result", "hash", "updated_at"}
    draft = console.get(path).json()
    assert (draft["hash"], draft["version"], draft["graph"]) == (saved["hash"], "draft", GRAPH)


def test_a_save_from_an_older_draft_is_refused(console: httpx.Client) -> None:
    app_id = make_app(console)
    first = save(console, app_id).json()["hash"]
    second = save(console, app_id, first, graph=graph_with("Second")).json()["hash"]
    assert second != first
    assert code_of(save(console, app_id, first, graph=graph_with("Lost"))) == (409, "draft_workflow_not_sync")
    assert code_of(save(console, app_id, graph=graph_with("Lost"))) == (409, "draft_workflow_not_sync")
    assert console.get(f"apps/{app_id}/workflows/draft").json()["graph"] == graph_with("Second")


def test_of_two_editors_at_two_replicas_one_wins_and_the_other_is_told(
    console: httpx.Client, log: MemoryLog, clock: Clock
) -> None:
    app_id = make_app(console)
    hashed = save(console, app_id).json()["hash"]
    replicas = [Server(log, now_us=clock) for _ in range(2)]
    for server in replicas:  # the first request makes an application's routes, and two of one process not at once
        path = f"{server.url}/console/api/apps/{app_id}/workflows/draft"
        assert httpx.get(path, headers=server.admin(), trust_env=False, verify=False, timeout=20).status_code == 200
    statuses: list[int] = []
    together = threading.Barrier(8)

    def edit(server: Server, number: int) -> None:
        together.wait()
        body = {"graph": graph_with(f"Editor {number}"), "hash": hashed}
        path = f"{server.url}/console/api/apps/{app_id}/workflows/draft"
        statuses.append(
            httpx.post(path, json=body, headers=server.admin(), trust_env=False, verify=False, timeout=20).status_code
        )

    threads = [threading.Thread(target=edit, args=(replicas[number % 2], number)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for replica in replicas:
        replica.close()
    assert sorted(statuses) == [200] + [409] * 7


def test_a_save_keeps_secrets_that_come_back_as_their_mask(console: httpx.Client, server: Server) -> None:
    app_id = make_app(console)
    hashed = save(console, app_id, environment_variables=[SECRET, PLAIN]).json()["hash"]
    path = f"apps/{app_id}/workflows/draft"
    shown = console.get(path).json()["environment_variables"]
    assert [one["value"] for one in shown] == [MASK, "here"]
    assert save(console, app_id, hashed, environment_variables=shown).status_code == 200
    renamed = [shown[0] | {"name": "renamed"}, shown[1] | {"value": "there"}]
    posted = console.post(f"{path}/environment-variables", json={"environment_variables": renamed})
    assert posted.json() == {"result": "success"}
    exported = console.get(f"apps/{app_id}/export", params={"include_secret": "1"}).json()["data"]
    kept = yaml.safe_load(exported)["workflow"]["environment_variables"]
    assert yaml.safe_load(exported)["workflow"]["rag_pipeline_variables"] == []
    assert [(one["name"], one["value"]) for one in kept] == [("renamed", "very-secret"), ("place", "there")]
    assert console.get(path).json()["hash"] == hashed


def test_secret_conversation_variables_are_masked_like_those_of_the_environment(console: httpx.Client) -> None:
    app_id = make_app(console, mode="advanced-chat")
    path = f"apps/{app_id}/workflows/draft"
    save(console, app_id, conversation_variables=[SECRET, PLAIN])
    shown = console.get(path).json()["conversation_variables"]
    assert [one["value"] for one in shown] == [MASK, "here"]
    posted = console.post(f"{path}/conversation-variables", json={"conversation_variables": shown})
    assert posted.json() == {"result": "success"}
    exported = console.get(f"apps/{app_id}/export", params={"include_secret": "1"}).json()["data"]
    kept = yaml.safe_load(exported)["workflow"]["conversation_variables"]
    assert [one["value"] for one in kept] == ["very-secret", "here"]


def test_variables_come_back_with_the_keys_that_editors_read(console: httpx.Client) -> None:
    app_id, bare = make_app(console), {"name": "seen", "value_type": "string", "value": "x"}
    save(console, app_id, environment_variables=[bare], conversation_variables=[bare])
    draft = console.get(f"apps/{app_id}/workflows/draft").json()
    (env,), (talk,) = draft["environment_variables"], draft["conversation_variables"]
    assert env == talk == bare | {"id": env["id"], "description": ""}
    (listed,) = console.get(f"apps/{app_id}/workflows/draft/environment-variables").json()["items"]
    assert listed["id"] == env["id"] == str(uuid.UUID(env["id"]))


def test_parts_of_a_draft_that_a_save_does_not_name_stay(console: httpx.Client) -> None:
    app_id = make_app(console)
    conversation = [{"id": "c", "name": "seen", "value_type": "number", "value": 1, "description": ""}]
    save(console, app_id, features={"opening_statement": "hi"}, environment_variables=[PLAIN])
    path = f"apps/{app_id}/workflows/draft"
    console.post(f"{path}/conversation-variables", json={"conversation_variables": conversation})
    draft = console.get(path).json()
    answer = console.post(path, json={"graph": graph_with("x"), "hash": draft["hash"]})
    assert answer.status_code == 200
    after = console.get(path).json()
    for name in ("features", "environment_variables", "conversation_variables"):
        assert after[name] == draft[name], name
    console.post(f"{path}/features", json={"features": {"opening_statement": "bye"}})
    assert console.get(path).json()["features"] == {"opening_statement": "bye"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"graph": []},
        {"graph": {}, "features": []},
        {"graph": {}, "hash": 3},
        {"graph": {}, "environment_variables": {}},
        {"graph": {}, "environment_variables": [{"name": "x"}]},
        {"graph": {}, "environment_variables": [{"id": 5, "name": "x", "value_type": "string", "value": "y"}]},
        {"graph": {}, "environment_variables": [{"name": "x", "value_type": "number", "value": "many"}]},
        {"graph": {}, "conversation_variables": [{"name": "", "value_type": "string", "value": ""}]},
        {"graph": {"nodes": [node("a", "start"), node("b", "trigger-webhook")]}},
    ],
)
def test_a_wrong_draft_is_refused(console: httpx.Client, body: Any) -> None:
    app_id = make_app(console)
    path = f"apps/{app_id}/workflows/draft"
    assert code_of(console.post(path, json=body)) == (400, "invalid_param")
    assert console.get(path).status_code == 404


def test_a_body_that_is_no_object_is_refused(console: httpx.Client) -> None:
    path = f"apps/{make_app(console)}/workflows/draft"
    for content in (b"[]", b"{", b"1"):
        answer = console.post(path, content=content, headers={"Content-Type": "application/json"})
        assert code_of(answer) == (400, "bad_request")


def test_texts_of_superseded_drafts_are_taken_back(console: httpx.Client, log: MemoryLog) -> None:
    app_id = make_app(console)
    hashed = save(console, app_id).json()["hash"]
    for number in range(3):
        hashed = save(console, app_id, hashed, graph=graph_with(str(number))).json()["hash"]

    def left() -> int:
        """Texts of drafts that the log must keep."""
        records = [record for batch in log.read(Topic.DEFINITIONS, 0, 0) for record in batch]
        written = {record.key for record in records if (record.key or b"").startswith(b"draft/") and record.value}
        return len(written - {record.key for record in records if record.value is None})

    assert left() == 1
    assert imported(console, ECHO, app_id=app_id).status_code == 200
    assert left() == 1
    assert console.post(f"apps/{app_id}/workflows/draft/backup").status_code == 201
    assert console.post(f"apps/{app_id}/workflows/draft/backup").status_code == 201
    assert left() == 2
    assert console.delete(f"apps/{app_id}").status_code == 204
    assert left() == 0


def test_a_backup_is_put_aside_and_loaded_again(console: httpx.Client) -> None:
    app_id = make_app(console)
    path = f"apps/{app_id}/workflows/draft"
    assert code_of(console.post(f"{path}/backup")) == (404, "draft_workflow_not_exist")
    hashed = save(console, app_id, environment_variables=[SECRET]).json()["hash"]
    assert code_of(console.get(f"{path}/backup")) == (404, "not_found")
    assert code_of(console.post(f"{path}/backup/restore")) == (404, "not_found")
    made = console.post(f"{path}/backup")
    assert (made.status_code, made.json()["hash"]) == (201, hashed)
    changed = save(console, app_id, hashed, graph=graph_with("Changed"), environment_variables=[]).json()["hash"]
    loaded = console.get(f"{path}/backup").json()
    assert (loaded["graph"], loaded["environment_variables"][0]["value"]) == (GRAPH, MASK)
    restored = console.post(f"{path}/backup/restore").json()
    assert (restored["hash"], restored["result"]) == (hashed, "success")
    assert console.get(path).json()["graph"] == GRAPH
    assert code_of(save(console, app_id, changed)) == (409, "draft_workflow_not_sync")
    exported = console.get(f"apps/{app_id}/export", params={"include_secret": "1"}).json()["data"]
    assert "very-secret" in exported


# --- versions ---


def test_a_draft_is_published_and_runs(server: Server, console: httpx.Client, clock: Clock) -> None:
    app_id = make_app(console)
    save(console, app_id)
    key = console.post(f"apps/{app_id}/api-keys").json()["token"]
    assert console.get(f"apps/{app_id}/workflows/publish").json() is None
    body = {"marked_name": "first", "marked_comment": "good"}
    published = console.post(f"apps/{app_id}/workflows/publish", json=body)
    assert published.json() == {"result": "success", "created_at": clock.us // 1_000_000}
    version = console.get(f"apps/{app_id}/workflows/publish").json()
    assert (version["marked_name"], version["marked_comment"], version["graph"]) == ("first", "good", GRAPH)
    assert console.get(f"apps/{app_id}").json()["workflow"]["id"] == version["id"]
    answer = console.post(
        f"{server.url}/v1/workflows/run",
        json={"inputs": {"q": "hi"}, "user": "u"},
        headers={"Authorization": f"Bearer {key}"},
    )
    assert answer.json()["data"]["outputs"] == {"answer": "hi"}
    assert answer.json()["data"]["workflow_id"] == version["id"]


@pytest.mark.parametrize("body", [{"marked_name": "n" * 21}, {"marked_comment": "c" * 101}, {"marked_name": 3}])
def test_a_wrong_mark_is_refused(console: httpx.Client, body: Any) -> None:
    app_id = make_app(console)
    save(console, app_id)
    assert code_of(console.post(f"apps/{app_id}/workflows/publish", json=body)) == (400, "invalid_param")


def test_a_draft_that_cannot_run_is_not_published_and_names_its_mistakes(console: httpx.Client) -> None:
    app_id = make_app(console)
    save(console, app_id, graph={"nodes": [node("a", "nope"), node("b", "nada")], "edges": []})
    answer = console.post(f"apps/{app_id}/workflows/publish")
    assert code_of(answer) == (400, "definition_invalid")
    assert len(answer.json()["problems"]) >= 2
    assert console.get(f"apps/{app_id}/workflows/publish").json() is None


def test_a_schedule_that_no_clock_can_keep_is_not_published(console: httpx.Client) -> None:
    app_id = make_app(console)
    tick = node("tick", "trigger-schedule", mode="cron", cron_expression="often")
    save(console, app_id, graph={"nodes": [tick, end()], "edges": edges("tick > end")})
    answer = console.post(f"apps/{app_id}/workflows/publish")
    assert code_of(answer) == (400, "invalid_param")
    assert "cron_expression" in answer.json()["message"]
    assert console.get(f"apps/{app_id}/workflows/publish").json() is None


def publish_two(console: httpx.Client, clock: Clock) -> tuple[str, list[dict[str, Any]]]:
    app_id = make_app(console)
    hashed = save(console, app_id).json()["hash"]
    console.post(f"apps/{app_id}/workflows/publish", json={"marked_name": "first"})
    clock.us += 1_000_000
    save(console, app_id, hashed, graph=graph_with("Second"))
    console.post(f"apps/{app_id}/workflows/publish")
    return app_id, console.get(f"apps/{app_id}/workflows").json()["items"]


def test_versions_are_listed_with_the_draft_first(console: httpx.Client, clock: Clock) -> None:
    app_id, items = publish_two(console, clock)
    assert items[0]["version"] == "draft"
    assert [item["marked_name"] for item in items] == ["", "", "first"]
    path = f"apps/{app_id}/workflows"
    page = console.get(path, params={"limit": 2}).json()
    assert (page["items"], page["has_more"]) == (items[:2], True)
    page = console.get(path, params={"limit": 2, "page": 2}).json()
    assert (page["items"], page["has_more"]) == (items[2:], False)
    assert console.get(path, params={"named_only": "true"}).json()["items"] == items[2:]
    assert console.get(path, params={"user_id": items[0]["created_by"]["id"]}).status_code == 200
    assert code_of(console.get(path, params={"user_id": UNKNOWN})) == (403, "forbidden")


def test_versions_are_marked_deleted_and_restored(console: httpx.Client, clock: Clock) -> None:
    app_id, (draft, current, old) = publish_two(console, clock)
    path = f"apps/{app_id}/workflows"
    marked = console.patch(f"{path}/{old['id']}", json={"marked_comment": "old one"}).json()
    assert (marked["marked_name"], marked["marked_comment"]) == ("first", "old one")
    assert code_of(console.patch(f"{path}/{old['id']}", json={})) == (400, "invalid_param")
    assert code_of(console.patch(f"{path}/{UNKNOWN}", json={"marked_name": "x"})) == (404, "not_found")
    restored = console.post(f"{path}/{old['id']}/restore").json()
    assert console.get(f"{path}/draft").json()["graph"] == GRAPH
    assert restored["hash"] == old["hash"]
    for unpublished in ("draft", draft["id"]):
        assert code_of(console.post(f"{path}/{unpublished}/restore")) == (400, "bad_request")
        assert console.delete(f"{path}/{unpublished}").status_code in (400, 405)
    assert code_of(console.post(f"{path}/{UNKNOWN}/restore")) == (404, "not_found")
    assert code_of(console.delete(f"{path}/{current['id']}")) == (400, "bad_request")
    assert console.delete(f"{path}/{old['id']}").status_code == 204
    assert code_of(console.delete(f"{path}/{old['id']}")) == (404, "not_found")
    assert [item["id"] for item in console.get(path).json()["items"]] == [draft["id"], current["id"]]


def test_an_app_that_the_command_line_imported_has_its_document_as_draft(server: Server, console: httpx.Client) -> None:
    app = console.post(f"{server.url}/v1/apps/import", content=ECHO).json()
    draft = console.get(f"apps/{app['app_id']}/workflows/draft").json()
    assert draft["graph"] == GRAPH
    assert save(console, app["app_id"], draft["hash"], graph=graph_with("Edited")).status_code == 200


def test_another_apps_versions_are_not_there(console: httpx.Client, clock: Clock) -> None:
    _, (_, current, _) = publish_two(console, clock)
    other = make_app(console)
    path = f"apps/{other}/workflows/{current['id']}"
    assert code_of(console.post(f"{path}/restore")) == (404, "not_found")
    assert code_of(console.delete(path)) == (404, "not_found")
    assert code_of(console.patch(path, json={"marked_name": "x"})) == (404, "not_found")
