"""Uploads, previews, and files in the inputs of runs, over real HTTP."""

import http.client
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from libs.events.blobs import PIECE_BYTES, BlobLost, LogBlobs
from libs.events.memory import MemoryLog, MemoryStore
from services.api import Limits
from services.api.access import end_user_id
from services.api.uploads import MAX_HELD_BYTES
from tests.api_world import ScriptedExecutor, Server
from tests.documents import document, edges, end, node

NAMELESS = "00000000-0000-4000-8000-000000000009"


def wants(kind: str, **rules: Any) -> str:
    variable = {"variable": "f", "label": "F", "type": kind, "required": False, **rules}
    return document([node("start", "start", variables=[variable]), end(out="start.f")], edges("start > end"))


@pytest.fixture(scope="module")
def log() -> Iterator[MemoryLog]:
    made = MemoryLog(MemoryStore(partitions=2))
    yield made
    made.close()


@pytest.fixture(scope="module")
def executor(log: MemoryLog) -> Iterator[ScriptedExecutor]:
    made = ScriptedExecutor(log)
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(log: MemoryLog, executor: ScriptedExecutor) -> Iterator[Server]:
    made = Server(log, limits=Limits(blocked_extensions=frozenset({"exe"})))
    yield made
    made.close()


@pytest.fixture
def app(server: Server) -> dict[str, Any]:
    return server.import_app(wants("file"))


def bearer(app: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {app['api_key']}"}


def upload(
    server: Server, app: dict[str, Any], name: str = "a.txt", content: bytes = b"hello", kind: str = "text/plain",
    user: str | None = "u1",
) -> Any:  # fmt: skip
    data = {} if user is None else {"user": user}
    return server.http.post("/v1/files/upload", headers=bearer(app), files={"file": (name, content, kind)}, data=data)


def run_with(server: Server, app: dict[str, Any], f: Any, user: str = "u1", **more: Any) -> Any:
    return server.start(app["api_key"], {"inputs": {"f": f}, "user": user} | more)


def local(file_id: str, kind: str | None = "document") -> dict[str, Any]:
    return {"type": kind, "transfer_method": "local_file", "upload_file_id": file_id}


# --- upload ---


def test_an_upload_is_answered_with_what_is_known_of_the_file(server: Server, app: dict[str, Any]) -> None:
    answer = upload(server, app, "Q3 Report.PDF", b"%PDF-", "application/pdf")
    assert answer.status_code == 201
    made = answer.json()
    assert (made["name"], made["size"], made["extension"], made["mime_type"]) == (
        "Q3 Report.PDF", 5, "pdf", "application/pdf",
    )  # fmt: skip
    assert made["created_by"] == end_user_id(app["app_id"], "u1")
    assert isinstance(made["created_at"], int)
    for name in ("reference", "preview_url", "original_url", "user_id", "tenant_id", "conversation_id", "file_key"):
        assert made[name] is None


def test_an_upload_without_user_belongs_to_the_anonymous_one(server: Server, app: dict[str, Any]) -> None:
    assert upload(server, app, user=None).json()["created_by"] == end_user_id(app["app_id"], "DEFAULT-USER")


def test_a_long_name_is_shortened_and_keeps_its_extension(server: Server, app: dict[str, Any]) -> None:
    assert upload(server, app, "n" * 300 + ".pdf").json()["name"] == "n" * 200 + ".pdf"


@pytest.mark.parametrize(
    ("files", "status", "code"),
    [
        ({}, 400, "no_file_uploaded"),
        ({"other": ("a.txt", b"x", "text/plain")}, 400, "no_file_uploaded"),
        ({"file": ("a.txt", b"x", "text/plain"), "two": ("b.txt", b"x", "text/plain")}, 400, "too_many_files"),
        ({"file": ("a/b.txt", b"x", "text/plain")}, 400, "invalid_param"),
        ({"file": ("a\\b.txt", b"x", "text/plain")}, 400, "invalid_param"),
        ({"file": ("a.EXE", b"x", "text/plain")}, 400, "invalid_param"),
        ({"file": ("a.png", b"x" * (10 * 1024 * 1024 + 1), "image/png")}, 413, "file_too_large"),
    ],
)
def test_an_upload_that_is_not_taken_says_why(
    server: Server, app: dict[str, Any], files: dict[str, Any], status: int, code: str
) -> None:
    answer = server.http.post("/v1/files/upload", headers=bearer(app), files=files or {"x": (None, b"")})
    assert (answer.status_code, answer.json()["code"], answer.json()["status"]) == (status, code, status)


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        ('name="file"; filename=""\r\nContent-Type: text/plain', 400, "filename_not_exists_error"),
        ('name="file"; filename="a.txt"', 415, "unsupported_file_type"),
        ('name="file"', 400, "no_file_uploaded"),
    ],
)
def test_a_part_that_lacks_something_is_refused(
    server: Server, app: dict[str, Any], head: str, status: int, code: str
) -> None:
    body = f"--b\r\nContent-Disposition: form-data; {head}\r\n\r\nx\r\n--b--\r\n"
    headers = bearer(app) | {"Content-Type": "multipart/form-data; boundary=b"}
    answer = server.http.post("/v1/files/upload", headers=headers, content=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_body_that_is_no_form_is_refused(server: Server, app: dict[str, Any]) -> None:
    answer = server.http.post("/v1/files/upload", headers=bearer(app), json={})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    headers = bearer(app) | {"Content-Type": "multipart/form-data; boundary=b"}
    answer = server.http.post("/v1/files/upload", headers=headers, content=b"--b\r\n")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    answer = server.http.post("/v1/files/upload", files={"file": ("a.txt", b"x")})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_a_body_larger_than_any_file_is_refused_by_its_announced_length(server: Server, app: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("POST", "/v1/files/upload")
    for name, value in bearer(app).items():
        connection.putheader(name, value)
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", str(10**9))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, b"file_too_large" in answer.read()) == (413, True)
    connection.close()


def test_the_admin_uploads_for_an_app_that_it_names(server: Server, app: dict[str, Any]) -> None:
    files = {"file": ("a.txt", b"x", "text/plain")}
    answer = server.http.post("/v1/files/upload", headers=server.admin(), files=files)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
    path = f"/v1/files/upload?app_id={app['app_id']}"
    file_id = server.http.post(path, headers=server.admin(), files=files).json()["id"]
    body = {"app_id": app["app_id"], "inputs": {"f": local(file_id)}}
    assert server.http.post("/v1/runs", headers=server.admin(), json=body).status_code == 200
    assert run_with(server, app, local(file_id)).json()["code"] == "invalid_param"


def test_uploads_are_taken_in_as_far_as_there_is_room(server: Server, app: dict[str, Any]) -> None:
    with server.parts.uploads.room.taken(MAX_HELD_BYTES - 100):
        answer = upload(server, app, content=b"x" * 200)
        assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
        assert answer.headers["retry-after"] == "5"
    assert upload(server, app, content=b"x" * 200).status_code == 201


# --- preview ---


def test_a_file_is_read_by_its_app_and_by_nobody_else(server: Server, app: dict[str, Any], log: MemoryLog) -> None:
    path = f"/v1/files/{upload(server, app).json()['id']}/preview"
    other = Server(log)
    try:
        answer = other.http.get(path, headers=bearer(app))
    finally:
        other.close()
    assert (answer.status_code, answer.content) == (200, b"hello")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["content-length"] == "5"
    assert answer.headers["cache-control"] == "public, max-age=3600"
    stranger = server.http.get(path, headers=bearer(server.import_app()))
    assert (stranger.status_code, stranger.json()["code"]) == (403, "file_access_denied")
    for file_id in (NAMELESS, "nonsense"):
        missing = server.http.get(f"/v1/files/{file_id}/preview", headers=bearer(app))
        assert (missing.status_code, missing.json()["code"]) == (404, "file_not_found")


def test_an_attachment_has_its_name_and_markup_is_always_one(server: Server, app: dict[str, Any]) -> None:
    plain = upload(server, app, "naïve.txt").json()["id"]
    answer = server.http.get(f"/v1/files/{plain}/preview?as_attachment=true", headers=bearer(app))
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''na%C3%AFve.txt"
    assert answer.headers["content-type"] == "application/octet-stream"
    page = upload(server, app, "a.html", b"<script>", "text/html").json()["id"]
    answer = server.http.get(f"/v1/files/{page}/preview", headers=bearer(app))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=8-", 206, b"89"),
        ("bytes=-3", 206, b"789"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=20-30", 200, b"0123456789"),
        ("bytes=-0", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
    ],
)
def test_a_piece_of_a_recording(server: Server, app: dict[str, Any], asked: str, status: int, content: bytes) -> None:
    file_id = upload(server, app, "a.mp3", b"0123456789", "audio/mpeg").json()["id"]
    answer = server.http.get(f"/v1/files/{file_id}/preview", headers=bearer(app) | {"Range": asked})
    assert (answer.status_code, answer.content) == (status, content)
    assert answer.headers["accept-ranges"] == "bytes"


LARGE = bytes(range(256)) * (5 * PIECE_BYTES // 512)
"""Two and a half pieces."""


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("", 0, len(LARGE)),
        (f"bytes=7-{PIECE_BYTES - 1}", 7, PIECE_BYTES),
        (f"bytes={PIECE_BYTES - 2}-", PIECE_BYTES - 2, len(LARGE)),
    ],
)
def test_a_large_file_is_sent_piece_by_piece(
    server: Server, app: dict[str, Any], monkeypatch: pytest.MonkeyPatch, asked: str, first: int, last: int
) -> None:
    file_id = upload(server, app, "a.mp4", LARGE, "video/mp4").json()["id"]
    monkeypatch.setattr(LogBlobs, "get", None)  # nobody asks for all of it at once
    headers = bearer(app) | ({"Range": asked} if asked else {})
    answer = server.http.get(f"/v1/files/{file_id}/preview", headers=headers)
    assert answer.content == LARGE[first:last]
    assert answer.headers["content-length"] == str(last - first)


def test_a_damaged_file_breaks_off(server: Server, app: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(blobs: LogBlobs, ref: Any, start: int = 0) -> Iterator[bytes]:
        yield LARGE
        raise BlobLost("it has another hash")

    file_id = upload(server, app, "a.mp4", LARGE, "video/mp4").json()["id"]
    monkeypatch.setattr(LogBlobs, "pieces", damaged)
    with pytest.raises(httpx.RemoteProtocolError):
        server.http.get(f"/v1/files/{file_id}/preview", headers=bearer(app))


def test_a_signed_link_needs_no_key_and_cannot_be_changed(server: Server, app: dict[str, Any]) -> None:
    link = upload(server, app).json()["source_url"]
    assert server.http.get(link).content == b"hello"
    for changed in (link[:-1], link.replace("timestamp=1", "timestamp=2"), link.split("?")[0], link + "x"):
        answer = server.http.get(changed)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


# --- in the inputs of a run ---


def test_an_uploaded_file_becomes_a_value_that_says_what_is_known_of_it(
    server: Server, app: dict[str, Any], executor: ScriptedExecutor
) -> None:
    file_id = upload(server, app, "a.pdf", b"%PDF-", "application/pdf").json()["id"]
    claimed = local(file_id) | {"filename": "other.exe", "size": 1, "mime_type": "x/y", "remote_url": "http://x/"}
    answer = run_with(server, app, claimed)
    assert answer.status_code == 200, answer.text
    value: Any = executor.accepted[answer.json()["workflow_run_id"]].inputs["f"]
    assert value == {
        "dify_model_identity": "__dify__file__", "id": None, "type": "document", "transfer_method": "local_file",
        "remote_url": None, "reference": file_id, "related_id": file_id, "filename": "a.pdf",
        "extension": ".pdf", "mime_type": "application/pdf", "size": 5, "url": f"/v1/files/{file_id}/preview",
    }  # fmt: skip
    again = run_with(server, app, value)  # what a run answered can be given to the next one
    assert executor.accepted[again.json()["workflow_run_id"]].inputs["f"] == value


def test_a_file_is_found_by_its_id_in_upper_case(
    server: Server, app: dict[str, Any], executor: ScriptedExecutor
) -> None:
    file_id = upload(server, app).json()["id"]
    assert server.http.get(f"/v1/files/{file_id.upper()}/preview", headers=bearer(app)).content == b"hello"
    answer = run_with(server, app, local(file_id.upper()))
    assert answer.status_code == 200, answer.text
    value: Any = executor.accepted[answer.json()["workflow_run_id"]].inputs["f"]
    assert value["related_id"] == file_id


@pytest.mark.parametrize(("only", "name"), [("start", "f"), ("end", "start.f")])
def test_a_node_that_runs_alone_gets_what_is_known_of_a_file(
    server: Server, app: dict[str, Any], executor: ScriptedExecutor, only: str, name: str
) -> None:
    file_id = upload(server, app, "a.pdf", b"%PDF-", "application/pdf").json()["id"]
    body = {"app_id": app["app_id"], "user": "u1", "response_mode": "blocking", "only": only}

    def start(value: Any) -> Any:
        return server.http.post("/v1/runs", headers=server.admin(), json=body | {"inputs": {name: value}})

    answer = start(local(file_id))
    assert answer.status_code == 200, answer.text
    accepted = executor.accepted[answer.json()["workflow_run_id"]]
    value: Any = accepted.inputs["f"] if only == "start" else (accepted.variables or {})["start"]["f"][0]  # type: ignore[index,call-overload]  # by node and name
    assert (value["filename"], value["mime_type"], value["size"]) == ("a.pdf", "application/pdf", 5)
    refused = start(local(NAMELESS))
    assert refused.status_code == 400
    assert "invalid upload file" in refused.json()["message"]


def test_files_beside_the_inputs_are_looked_up_too(
    server: Server, app: dict[str, Any], executor: ScriptedExecutor
) -> None:
    file_id = upload(server, app).json()["id"]
    answer = run_with(server, app, None, files=[local(file_id)])
    (value,) = executor.accepted[answer.json()["workflow_run_id"]].files
    assert value["filename"] == "a.txt"  # type: ignore[index,call-overload]  # a file value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"type": "document"}, "transfer_method"),
        (local(""), "upload_file_id"),
        (local("nonsense"), "upload_file_id"),
        (local(NAMELESS), "invalid upload file"),
        ({"type": "image", "transfer_method": "remote_url"}, "url"),
        ({"type": "image", "transfer_method": "remote_url", "url": "http://x/a.pdf"}, "given as image"),
        ("text", "must be a file"),
        ([], "must be a file"),
    ],
)
def test_a_file_that_cannot_be_used_is_invalid_param(
    server: Server, app: dict[str, Any], given: Any, said: str
) -> None:
    for mode in ("blocking", "streaming"):
        answer = run_with(server, app, given, response_mode=mode)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
        assert said in answer.json()["message"]


def test_a_file_of_another_user_or_app_cannot_be_used(server: Server, app: dict[str, Any]) -> None:
    file_id = upload(server, app, user="u2").json()["id"]
    answer = run_with(server, app, local(file_id))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
    assert "invalid upload file" in answer.json()["message"]
    for method in ("local_file", "tool_file", "datasource_file"):  # a value as runs answer it is not believed either
        made_up = {"dify_model_identity": "__dify__file__", "transfer_method": method, "related_id": file_id}
        assert run_with(server, app, made_up).status_code == 400
    assert run_with(server, app, local(file_id), user="u2").status_code == 200
    assert run_with(server, server.import_app(wants("file")), local(file_id), user="u2").status_code == 400


@pytest.mark.parametrize(
    ("rules", "name", "kind", "said"),
    [
        ({"allowed_file_types": ["image"]}, "a.txt", "document", "type document"),
        ({"allowed_file_upload_methods": ["remote_url"]}, "a.txt", "document", "local_file"),
        ({"allowed_file_types": ["custom"], "allowed_file_extensions": [".abc"]}, "a.xyz", "custom", ".xyz"),
        ({}, "a.png", "document", "given as document"),
    ],
)
def test_rules_of_the_variable_are_checked_against_the_stored_file(
    server: Server, rules: dict[str, Any], name: str, kind: str, said: str
) -> None:
    app = server.import_app(wants("file", **rules))
    answer = run_with(server, app, local(upload(server, app, name).json()["id"], kind))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
    assert said in answer.json()["message"]


def test_more_files_than_a_list_takes_are_refused(server: Server) -> None:
    app = server.import_app(wants("file-list", max_length=2))
    given = local(upload(server, app).json()["id"])
    assert run_with(server, app, [given, given]).status_code == 200
    answer = run_with(server, app, [given] * 3)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
    assert "at most 2" in answer.json()["message"]
    assert run_with(server, app, "").status_code == 200  # as if it were not there


# --- where files come from besides the service API ---


def test_a_browsers_upload_is_for_that_browser(server: Server, app: dict[str, Any], executor: ScriptedExecutor) -> None:
    code = server.http.get(f"/console/api/apps/{app['app_id']}", headers=server.admin()).json()["site"]["code"]

    def visit(user: str) -> dict[str, str]:
        answer = server.http.get("/api/passport", params={"user_id": user}, headers={"X-App-Code": code})
        return {"X-App-Code": code, "X-App-Passport": answer.json()["access_token"]}

    mine, other = visit("me"), visit("you")
    form = {"file": ("a.txt", b"hello", "text/plain")}
    made = server.http.post("/api/files/upload", headers=mine, files=form)
    assert made.status_code == 201, made.text
    body = {"inputs": {"f": local(made.json()["id"])}}
    assert server.http.post("/api/workflows/run", headers=mine, json=body).status_code == 200
    refused = server.http.post("/api/workflows/run", headers=other, json=body)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_param")
    assert run_with(server, app, body["inputs"]["f"], user="me").status_code == 400  # a namesake of the service API
    assert server.http.post("/api/files/upload", files=form).status_code == 401


def test_an_upload_of_the_console_is_for_whoever_edits(server: Server, app: dict[str, Any]) -> None:
    form = {"file": ("a.txt", b"hello", "text/plain")}
    made = server.http.post("/console/api/files/upload", headers=server.admin(), files=form)
    assert made.status_code == 201, made.text
    given = local(made.json()["id"])
    body = {"app_id": app["app_id"], "inputs": {"f": given}}
    assert server.http.post("/v1/runs", headers=server.admin(), json=body).status_code == 200
    assert run_with(server, app, given).json()["code"] == "invalid_param"
    preview = f"/v1/files/{made.json()['id']}/preview"
    assert server.http.get(preview, headers=server.admin()).content == b"hello"
    assert server.http.get(preview, headers=bearer(app)).status_code == 403
    assert server.http.post("/console/api/files/upload", headers=bearer(app), files=form).status_code in (401, 403)
