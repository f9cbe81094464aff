"""What a client asks for, request by request; `Client` and `AsyncClient` carry the same steps out.

A start always has an idempotency key, the caller's or one made for it: whatever happens on the way, asking again
attaches to the run that the first request made.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flowledger.client.answers import (
    Bulk,
    FlowledgerError,
    HistoryEvent,
    Json,
    RunInfo,
    RunState,
    bulk,
    history_event,
    run_info,
    run_state,
)
from flowledger.client.asking import Call, Servers, Steps, ask, json_call
from flowledger.lines import broken_off

PAGE = 100


class Asking:
    """The steps of every verb. Keeps which document is which app, and nothing else."""

    def __init__(self, servers: Servers, user: str) -> None:
        self.servers = servers
        self.user = user
        self._app_of_digest: dict[str, str] = {}

    def start(
        self,
        target: str | Path | None,
        inputs: Mapping[str, Any],
        query: str | None,
        user: str | None,
        pins: Mapping[str, Any] | None,
        root: str | None,
        idempotency_key: str | None,
    ) -> Steps[tuple[str, str]]:
        """(run id, task id)."""
        body: Json = {"inputs": dict(inputs), "user": user or self.user, "response_mode": "streaming"}
        if target is not None:
            body["app_id"] = yield from self._app(target)
        if query is not None:
            body["query"] = query
        if pins is not None:
            body["pins"] = dict(pins)
        if root is not None:
            body["root"] = root
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex, "Accept": "text/event-stream"}
        call = json_call("POST", "/v1/runs", body, headers=headers, headers_only=True)
        answer = yield from ask(call, self.servers)
        run_id = answer.headers.get("x-workflow-run-id")
        if not run_id:
            raise FlowledgerError(f"{self.servers.url} is not a Flowledger server: its answer names no run")
        return run_id, answer.headers.get("x-task-id", "")

    def import_document(self, document: str | bytes | Path, app: str | None) -> Steps[Json]:
        content = _document(document)
        params = {}
        if app is not None:
            params["app"] = (yield from self._find_app(app))["app_id"]
        # A new app has no key to tell a repeat by, so it is asked for only once.
        call = Call(
            "POST",
            "/v1/apps/import",
            params=params,
            headers={"Content-Type": "application/yaml"},
            content=content,
            repeatable=False,
        )
        made: Json = yield from self._json(call)
        return made

    def apps(self) -> Steps[list[Json]]:
        found: list[Json] = (yield from self._json(Call("GET", "/v1/apps")))["data"]
        return found

    def runs(self, filters: Mapping[str, Any], limit: int) -> Steps[list[RunInfo]]:
        given = {name: str(value) for name, value in filters.items() if value is not None}
        found: list[RunInfo] = []
        while len(found) < limit:
            params = given | {"limit": str(min(PAGE, limit - len(found)))}
            page = yield from self._json(Call("GET", "/v1/runs", params=params))
            found += map(run_info, page["data"])
            if not page.get("next_cursor"):
                break
            given["cursor"] = page["next_cursor"]
        return found

    def state(self, run_id: str, at: int | None) -> Steps[RunState]:
        path = f"{_path(run_id)}/state" if at is not None else _path(run_id)
        params = {} if at is None else {"at": str(at)}
        return run_state((yield from self._json(Call("GET", path, params=params))))

    def history(self, run_id: str, first: int | None, last: int | None) -> Steps[list[HistoryEvent]]:
        params = {name: str(value) for name, value in (("from", first), ("to", last)) if value is not None}
        call = Call("GET", f"{_path(run_id)}/history", params=params, headers={"Accept": "application/x-ndjson"})
        answer = yield from ask(call, self.servers)
        return list(_history(run_id, answer.body))

    def stop(self, run_id: str, reason: str | None) -> Steps[Json]:
        body = {"user": self.user} | ({"reason": reason} if reason else {})
        answer: Json = yield from self._json(json_call("POST", f"{_path(run_id)}/stop", body))
        return answer

    def bulk(
        self, action: str, filters: Mapping[str, str | None], expect: int | None, reason: str | None
    ) -> Steps[Bulk]:
        wanted = {name: value for name, value in filters.items() if value is not None}
        body: Json = {"action": action, "filter": wanted}
        body |= {name: value for name, value in (("expect", expect), ("reason", reason)) if value is not None}
        # Runs that a lost request has stopped do not match any more; those that it tried again do, and are the same.
        call = json_call("POST", "/v1/runs/bulk", body, repeatable=expect is None or action == "retry")
        return bulk((yield from self._json(call)))

    def pause(self, run_id: str, reason: str | None) -> Steps[Json]:
        body = {"user": self.user} | ({"reason": reason} if reason else {})
        answer: Json = yield from self._json(json_call("POST", f"{_path(run_id)}/pause", body))
        return answer

    def resume(
        self, run_id: str, action: str | None, inputs: Mapping[str, Any] | None, form: str | None
    ) -> Steps[Json]:
        given = {"action": action, "inputs": None if inputs is None else dict(inputs), "form": form}
        body = {"user": self.user} | {name: value for name, value in given.items() if value is not None}
        # Done twice it is refused the second time, so a lost answer is the caller's to look into.
        call = json_call("POST", f"{_path(run_id)}/resume", body, repeatable=False)
        answer: Json = yield from self._json(call)
        return answer

    def fork(self, run_id: str, at: int, edits: Mapping[str, Any], key: str | None) -> Steps[tuple[str, str]]:
        """(run id, task id) of the new run."""
        return (yield from self._again(f"{_path(run_id)}/fork", {"at": at, "set": dict(edits)}, key))

    def retry(self, run_id: str, key: str | None) -> Steps[tuple[str, str]]:
        """As `fork`."""
        return (yield from self._again(f"{_path(run_id)}/retry", {}, key))

    def _again(self, path: str, body: Json, key: str | None) -> Steps[tuple[str, str]]:
        made = yield from self._json(
            json_call("POST", path, body, headers={"Idempotency-Key": key or uuid.uuid4().hex})
        )
        return str(made["id"]), str(made["task_id"])

    def why(self, run_id: str, node_id: str | None) -> Steps[str]:
        params = {} if node_id is None else {"node": node_id}
        return str((yield from self._json(Call("GET", f"{_path(run_id)}/why", params=params)))["why"])

    # --- apps ---

    def _app(self, target: str | Path) -> Steps[str]:
        """The id of the app that `target` means: a file, an app's id, or its name."""
        file = Path(target)
        if isinstance(target, Path) or file.suffix in (".yml", ".yaml", ".json"):
            return (yield from self._app_of_document(_document(file)))
        return str((yield from self._find_app(target))["app_id"])

    def _app_of_document(self, document: bytes) -> Steps[str]:
        """Imports the document unless this very one is there."""
        digest = "sha256:" + hashlib.sha256(document).hexdigest()
        if digest not in self._app_of_digest:
            there = [app for app in (yield from self.apps()) if app.get("digest") == digest]
            made = there[0] if there else (yield from self.import_document(document, None))
            self._app_of_digest[digest] = str(made["app_id"])
        return self._app_of_digest[digest]

    def _find_app(self, text: str) -> Steps[Json]:
        if not text.strip():
            raise FlowledgerError("an empty text names no app. Give its id, the beginning of one, or its name")
        apps = yield from self.apps()
        found = [app for app in apps if app["app_id"] == text] or [app for app in apps if app["name"] == text]
        found = found or [app for app in apps if app["app_id"].startswith(text.lower())]
        if len(found) != 1:
            raise FlowledgerError(f'app "{text}": {len(found) or "none"} found at {self.servers.url}')
        return found[0]

    def _json(self, call: Call) -> Steps[Any]:
        return (yield from ask(call, self.servers)).json()


def _path(run_id: str) -> str:
    return f"/v1/runs/{quote(run_id, safe='')}"


def _document(document: str | bytes | Path) -> bytes:
    """The text of a document: its file's, or itself."""
    if isinstance(document, bytes):
        return document
    if isinstance(document, str) and ("\n" in document or document.lstrip().startswith("{")):
        return document.encode()
    try:
        return Path(document).read_bytes()
    except OSError as error:
        raise FlowledgerError(f"{document}: {error.strerror}") from error


def _history(run_id: str, body: bytes) -> Iterator[HistoryEvent]:
    for text in body.splitlines():
        line = json.loads(text)
        if (why := broken_off(line)) is not None:
            raise FlowledgerError(f"the history of run {run_id} breaks off: {why}")
        yield history_event(line)
