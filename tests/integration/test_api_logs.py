"""The log of an app and its end users: filters, pages, and never older than what was answered before."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.events.log import Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.model import RunAccepted, RunFailed, RunStarted
from libs.tables import open_engine, sqlite_url
from services.api import Limits
from services.api.access import end_user_id
from services.api.account import ADMIN_ID
from services.api.records import Records
from services.projector.projector import Projector
from services.projector.rebuild import rebuild
from tests.api_world import ECHO, ScriptedExecutor, Server, echo

SHORT = Limits(tables_s=0.2)


def script(executor: ScriptedExecutor, run_id: str, accepted: RunAccepted) -> None:
    if accepted.inputs.get("q") == "fail":
        executor.emit(run_id, RunStarted(max_steps=1), RunFailed(error="it broke", code="node_failed"))
    elif accepted.inputs.get("q") != "wait":
        echo(executor, run_id, accepted)


@contextmanager
def served(folder: Path) -> Iterator[tuple[Server, Projector]]:
    log = MemoryLog(MemoryStore(partitions=3))
    engine = open_engine(sqlite_url(folder / "tables.db"))
    projector = Projector(log, engine)
    projector.start()
    executor = ScriptedExecutor(log, script)
    server = Server(log, Records(engine, log.topic_id(Topic.EVENTS)), Limits(tables_s=10))
    yield server, projector
    server.close()
    executor.close()
    projector.stop()
    engine.dispose()
    log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("tables")) as (made, _):
        yield made


@pytest.fixture
def key(server: Server) -> str:
    return str(server.import_app()["api_key"])


def ask(server: Server, key: str, **query: Any) -> Any:
    return server.http.get("/v1/workflows/logs", headers={"Authorization": f"Bearer {key}"}, params=query)


def logged(server: Server, key: str, **query: Any) -> list[str]:
    answer = ask(server, key, **query)
    assert answer.status_code == 200, answer.text
    return [entry["workflow_run"]["id"] for entry in answer.json()["data"]]


def ran(server: Server, key: str, q: str = "hi", user: str = "u1") -> str:
    return str(server.start(key, {"inputs": {"q": q}, "user": user}).json()["workflow_run_id"])


def test_an_entry_has_the_shape_of_the_contract(server: Server, key: str) -> None:
    run_id = ran(server, key, user="crm-42")
    (entry,) = ask(server, key).json()["data"]
    assert set(entry) == {
        "id", "workflow_run", "details", "created_from", "created_by_role", "created_by_account",
        "created_by_end_user", "created_at",
    }  # fmt: skip
    assert set(entry["workflow_run"]) == {
        "id", "version", "status", "triggered_from", "error", "elapsed_time", "total_tokens", "total_steps",
        "created_at", "finished_at", "exceptions_count",
    }  # fmt: skip
    run = entry["workflow_run"]
    assert (run["id"], run["status"], run["triggered_from"], run["error"]) == (run_id, "succeeded", "app-run", None)
    assert (entry["created_from"], entry["created_by_role"], entry["details"]) == ("service-api", "end_user", None)
    user = entry["created_by_end_user"]
    assert (user["type"], user["session_id"], user["is_anonymous"]) == ("service-api", "crm-42", False)
    assert isinstance(entry["created_at"], int)
    assert isinstance(run["finished_at"], int)
    assert entry["id"] != run_id


def test_a_run_is_in_the_log_as_soon_as_it_was_answered_and_newest_first(server: Server, key: str) -> None:
    made: list[str] = []
    for number in range(12):
        made.insert(0, ran(server, key, f"q{number}"))
        assert logged(server, key) == made


def test_pages(server: Server, key: str) -> None:
    made = [ran(server, key) for _ in range(5)][::-1]
    pages = [ask(server, key, page=page, limit=2).json() for page in (1, 2, 3, 4)]
    assert [[entry["workflow_run"]["id"] for entry in page["data"]] for page in pages] == [
        made[:2], made[2:4], made[4:], [],
    ]  # fmt: skip
    assert [(page["page"], page["limit"], page["total"], page["has_more"]) for page in pages] == [
        (1, 2, 5, True), (2, 2, 5, True), (3, 2, 5, False), (4, 2, 5, False),
    ]  # fmt: skip


def test_filters(server: Server, key: str) -> None:
    good, failed = ran(server, key, "Blue Whale"), ran(server, key, "fail", user="Ann_1")
    assert logged(server, key, status="succeeded") == [good]
    assert logged(server, key, status="failed") == [failed]
    assert logged(server, key, status="stopped") == []
    assert logged(server, key, keyword="blue wHALE") == [good]
    assert logged(server, key, keyword="ann_") == [failed]
    assert logged(server, key, keyword="%") == []
    assert logged(server, key, keyword=good.upper()[:30]) == [good]  # sys.workflow_run_id is part of the inputs
    assert logged(server, key, keyword=good.replace("-", "").upper()) == [good]
    assert logged(server, key, keyword="Blue Whale" + " " * 20 + "beyond the thirtieth") == []
    assert logged(server, key, created_by_end_user_session_id="Ann_1") == [failed]
    assert logged(server, key, created_by_end_user_session_id="Ann") == []
    assert logged(server, key, created_by_account="admin") == []
    assert logged(server, key, created_at__after="2020-01-01T00:00:00Z") == [failed, good]
    assert logged(server, key, created_at__before="2020-01-01T00:00:00+02:00") == []
    assert logged(server, key, created_at__after="2099-01-01") == []
    assert logged(server, key, created_at__after="9999-12-31T23:59:59-12:00") == []
    assert logged(server, key, created_at__after="0001-01-01") == [failed, good]
    assert logged(server, key, created_by_end_user_session_id="Ann\0_1") == [failed]


def test_bounds_of_time_are_inclusive(server: Server, key: str) -> None:
    run_id = ran(server, key)
    at = server.http.get(f"/v1/runs/{run_id}", headers=server.admin()).json()["created_at"]
    exact = server.parts.tail.outline(run_id).accepted_us
    instant = f"{at[:-4]}{exact % 1_000_000:06d}Z"
    assert logged(server, key, created_at__after=instant, created_at__before=instant) == [run_id]


def test_a_log_shows_its_own_app_and_published_runs_only(server: Server, key: str) -> None:
    app = server.import_app(ECHO)
    ran(server, app["api_key"])
    body = {"app_id": app["app_id"], "inputs": {"q": "x"}}
    by_admin = server.http.post("/v1/runs", json=body, headers=server.admin()).json()["workflow_run_id"]
    assert logged(server, key) == []
    entries = ask(server, app["api_key"]).json()["data"]
    (by_account,) = [entry for entry in entries if entry["workflow_run"]["id"] == by_admin]
    assert by_account["created_by_account"]["id"] == ADMIN_ID
    assert (by_account["created_by_role"], by_account["created_by_end_user"]) == ("account", None)
    assert logged(server, app["api_key"], created_by_account="admin") == [by_admin]


@pytest.mark.parametrize(
    "query",
    [
        {"status": "running"}, {"status": "partial-succeeded"}, {"page": "0"}, {"page": "100000"}, {"page": "x"},
        {"page": "-1"}, {"limit": "0"}, {"limit": "101"}, {"limit": "1.5"}, {"created_at__after": "yesterday"},
        {"created_at__before": "2020-13-01"}, {"created_by_account": "nobody@example.org"},
    ],
)  # fmt: skip
def test_a_wrong_query_is_invalid_param(server: Server, key: str, query: dict[str, str]) -> None:
    answer = ask(server, key, **query)
    assert (answer.status_code, answer.json()["code"], answer.json()["status"]) == (400, "invalid_param", 400)


def test_a_log_that_would_be_too_old_is_not_given(tmp_path: Path) -> None:
    with served(tmp_path) as (server, projector):
        key = str(server.import_app()["api_key"])
        ran(server, key)
        projector.stop()
        ran(server, key)
        parts = server.parts
        behind = Server(parts.log, parts.tables._records, SHORT)  # noqa: SLF001  # the same tables, less patience
        try:
            answer = ask(behind, key)
        finally:
            behind.close()
    assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
    assert answer.headers["retry-after"]


def test_an_end_user_is_known_by_its_id_in_its_app(server: Server) -> None:
    app, other = server.import_app(), server.import_app()
    ran(server, app["api_key"], user="crm-42")
    user_id = end_user_id(app["app_id"], "crm-42")
    path = f"/v1/end-users/{user_id}"
    found = server.http.get(path, headers={"Authorization": f"Bearer {app['api_key']}"}).json()
    assert found["created_at"].endswith("Z")
    assert found == found | {
        "id": user_id, "app_id": app["app_id"], "type": "service-api", "external_user_id": "crm-42",
        "session_id": "crm-42", "is_anonymous": False,
    }  # fmt: skip
    assert set(found) == {
        "id", "tenant_id", "app_id", "type", "external_user_id", "name", "is_anonymous", "session_id", "created_at",
        "updated_at",
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {app['api_key']}"}
    server.http.post("/v1/runs", headers=headers, json={"inputs": {"q": "x"}})  # names no user
    nobody = end_user_id(app["app_id"], "DEFAULT-USER")
    assert server.http.get(f"/v1/end-users/{nobody}", headers=headers).json()["is_anonymous"] is True
    (entry,) = ask(server, app["api_key"], created_by_end_user_session_id="DEFAULT-USER").json()["data"]
    assert entry["created_by_end_user"]["is_anonymous"] is True
    for who, where in ((other, path), (app, "/v1/end-users/nonsense")):
        answer = server.http.get(where, headers={"Authorization": f"Bearer {who['api_key']}"})
        assert (answer.status_code, answer.json()["code"]) == (404, "end_user_not_found")


def upload(server: Server, key: str, user: str) -> str:
    answer = server.http.post(
        "/v1/files/upload",
        headers={"Authorization": f"Bearer {key}"},
        files={"file": ("a.txt", b"x", "text/plain")},
        data={"user": user},
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["created_by"])


def seen(server: Server, key: str, user_id: str) -> Any:
    answer = server.http.get(f"/v1/end-users/{user_id}", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_end_user_who_only_uploaded_is_known_everywhere_and_after_a_rebuild(tmp_path: Path) -> None:
    with served(tmp_path) as (server, projector):
        key = server.import_app()["api_key"]
        user_id = upload(server, key, "only-uploads")
        found = seen(server, key, user_id)
        assert (found["external_user_id"], found["type"], found["is_anonymous"]) == (
            "only-uploads", "service-api", False,
        )  # fmt: skip
        parts = server.parts
        records = parts.tables._records  # noqa: SLF001  # the same tables
        other = Server(parts.log, records)  # another replica, or this one after a restart
        try:
            assert seen(other, key, user_id) == found
            projector.stop()
            rebuild(parts.log, records._engine)  # noqa: SLF001
            assert seen(other, key, user_id) == found
        finally:
            other.close()


def test_an_end_user_is_said_once_and_runs_add_to_what_is_known(server: Server, key: str) -> None:
    user_id = upload(server, key, "both")
    first = seen(server, key, user_id)
    upload(server, key, "both")
    assert seen(server, key, user_id) == first  # nothing more was written
    ran(server, key, user="both")
    then = seen(server, key, user_id)
    assert then["created_at"] == first["created_at"]
    assert then["updated_at"] > first["updated_at"]


def test_a_browser_that_only_uploaded_is_known_as_one(server: Server) -> None:
    app = server.import_app()
    detail = server.http.get(f"/console/api/apps/{app['app_id']}", headers=server.admin()).json()
    code = {"X-App-Code": detail["site"]["code"]}
    passport = server.http.get("/api/passport", params={"user_id": "ann"}, headers=code).json()["access_token"]
    answer = server.http.post(
        "/api/files/upload",
        headers=code | {"X-App-Passport": passport},
        files={"file": ("a.txt", b"x", "text/plain")},
    )
    found = seen(server, app["api_key"], answer.json()["created_by"])
    assert (found["type"], found["session_id"]) == ("browser", "ann")


def test_an_upload_is_kept_although_no_executor_is_there(tmp_path: Path) -> None:
    log = MemoryLog(MemoryStore(partitions=1))
    executor = ScriptedExecutor(log, script, deciding=False)
    server = Server(log)
    try:
        upload(server, server.import_app()["api_key"], "early")
    finally:
        server.close()
        executor.close()
        log.close()
