"""Every route of the OpenAPI document, tried by strangers: without a key, with a wrong one, with another app's.

Routes that are added later are tried as well. What a stranger may get is an error, or an answer that says nothing of
the other app; and when all of it was tried, nothing of that app has changed.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowledger.dev import start_embedded
from libs.settings import Settings
from tests.documents import document, edges, end, start

MARK = "alpha-marker-7f3a"
WRONG = ("app-000000000000000000000000", "nobody", "app-")
TELLS_NOTHING = {("post", "/v1/workflows/tasks/{task_id}/stop")}
"""Answers "success" whatever the id is, as the reference does: who asks learns nothing."""


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    security: frozenset[str]

    @property
    def place(self) -> tuple[str, str]:
        return self.method, self.path


class Apps:
    """A server with two apps; `ids` are those of the first one's things, by the names that paths use."""

    def __init__(self, url: str, admin: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=20, trust_env=False, verify=False)
        self.admin = {"Authorization": f"Bearer {admin}"}
        flow = document([start("q"), end(answer="start.q")], edges("start > end")).replace('"test"', f'"{MARK}"')
        first = self.post("/v1/apps/import", self.admin, content=flow).json()
        second = self.post("/v1/apps/import", self.admin, content=flow.replace(MARK, "beta")).json()
        self.key, self.other = first["api_key"], second["api_key"]
        mine = {"Authorization": f"Bearer {self.key}"}
        body = {"inputs": {"q": MARK}, "user": "u", "response_mode": "blocking"}
        run = self.post("/v1/workflows/run", mine, json=body).json()
        file = self.post("/v1/files/upload", mine, data={"user": "u"}, files={"file": (f"{MARK}.txt", b"x")}).json()
        keys = self.http.get(f"/v1/apps/{first['app_id']}/keys", headers=self.admin).json()["data"]
        note = self.post("/v1/apps/annotations", mine, json={"question": MARK, "answer": MARK}).json()
        job = self.post("/v1/apps/annotation-reply/disable", mine, json={}).json()
        self.ids = {
            "app_id": first["app_id"],
            "workflow_id": first["workflow_id"],
            "run_id": run["workflow_run_id"],
            "workflow_run_id": run["workflow_run_id"],
            "task_id": run["task_id"],
            "key_id": keys[0]["id"],
            "file_id": file["id"],
            "end_user_id": file["created_by"],
            "annotation_id": note["id"],
            "job_id": job["job_id"],
        }
        self.operations = [
            Operation(method, path, frozenset(name for one in operation.get("security", ()) for name in one))
            for path, methods in self.http.get("/openapi.json").json()["paths"].items()
            for method, operation in methods.items()
        ]

    def post(self, path: str, headers: dict[str, str], **content: Any) -> httpx.Response:
        answer = self.http.post(path, headers=headers, **content)
        assert answer.is_success, answer.text
        return answer

    def ask(self, operation: Operation, headers: dict[str, str]) -> httpx.Response:
        """With the first app's ids wherever an id can be given."""
        path = operation.path
        for name in [part[1:-1] for part in path.split("/") if part.startswith("{")]:
            path = path.replace(f"{{{name}}}", self.ids.get(name, "00000000-0000-4000-8000-000000000001"))
        query = {"user": "u", "app": self.ids["app_id"], "run": self.ids["run_id"], "id": self.ids["key_id"]}
        body = None
        if operation.method in ("post", "put", "patch"):
            body = {"inputs": {}, "user": "u", "response_mode": "blocking", "app_id": self.ids["app_id"], "at": 2}
            body |= {"question": "q", "answer": "a"}
        return self.http.request(operation.method, path, params=query, json=body, headers=headers)

    def told(self) -> list[Any]:
        """What the first app is, as its administrator sees it."""
        paths = [f"/v1/apps/{self.ids['app_id']}", f"/v1/apps/{self.ids['app_id']}/keys",
                 f"/v1/runs?app={self.ids['app_id']}", f"/v1/runs/{self.ids['run_id']}"]  # fmt: skip
        mine = {"Authorization": f"Bearer {self.key}"}
        told = [self.http.get(path, headers=mine).json() for path in ("/v1/apps/annotations", "/v1/parameters")]
        return told + [self.http.get(path, headers=self.admin).json() for path in paths]


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apps]:
    folder: Path = tmp_path_factory.mktemp("data")
    instance = start_embedded(folder, "127.0.0.1", 0, Settings(models="offline", data=folder))
    made = Apps(instance.url, instance.admin_token)
    yield made
    made.http.close()
    instance.stop()


def test_without_a_key_nothing_else_of_a_request_is_looked_at(apps: Apps) -> None:
    for operation in apps.operations:
        path = re.sub(r"\{[^}]+\}", "none%00such", operation.path)
        query = dict.fromkeys(("from", "to", "at", "limit", "page", "last_id", "user"), "-1")
        for body in (b"", b"{", b"\xff"):
            answer = apps.http.request(
                operation.method, path, params=query, content=body, headers={"Content-Type": "application/json"}
            )
            assert not operation.security or answer.status_code == 401, (operation.place, body, answer.text)


@pytest.mark.timeout(240)
def test_without_a_key_or_with_a_wrong_one_every_protected_route_answers_401(apps: Apps) -> None:
    wrong = [{}, *({"Authorization": f"Bearer {key}"} for key in WRONG), {"Authorization": f"Basic {apps.key}"}]
    wrong += [{"Cookie": f"access_token={apps.key}"}, {"X-App-Passport": apps.key}]
    tried = [operation for operation in apps.operations if operation.security]
    assert len(tried) > 20
    for operation in tried:
        for headers in wrong:
            answer = apps.ask(operation, headers)
            assert answer.status_code == 401, (operation.place, headers, answer.status_code, answer.text)
            assert MARK not in answer.text


def test_what_needs_no_key_says_nothing_of_an_app(apps: Apps) -> None:
    for operation in apps.operations:
        if not operation.security:
            assert MARK not in apps.ask(operation, {}).text, operation.place


def test_another_apps_key_sees_and_changes_nothing(apps: Apps) -> None:
    before = apps.told()
    assert MARK in json.dumps(before)
    other = {"Authorization": f"Bearer {apps.other}"}
    for operation in apps.operations:
        if not operation.security:
            continue
        answer = apps.ask(operation, other)
        if "app_key" not in operation.security:
            assert answer.status_code in (401, 403), (operation.place, answer.status_code, answer.text)
        elif "{" in operation.path and operation.place not in TELLS_NOTHING:
            assert 400 <= answer.status_code < 500, (operation.place, answer.status_code, answer.text)
        assert MARK not in answer.text, operation.place
        assert apps.ids["run_id"] not in answer.text.replace(f'run \\"{apps.ids["run_id"]}\\" does not exist', "")
    assert apps.told() == before


def test_the_apps_own_key_opens_what_it_should(apps: Apps) -> None:
    """The other tests would pass on a server that refuses everybody."""
    mine = {"Authorization": f"Bearer {apps.key}"}
    run = apps.ids["run_id"]
    for path in (f"/v1/runs/{run}", f"/v1/runs/{run}/history", f"/v1/workflows/run/{run}", "/v1/runs", "/v1/apps"):
        answer = apps.http.get(path, headers=mine)
        assert answer.status_code == 200
        assert run in answer.text or MARK in answer.text
