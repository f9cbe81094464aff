"""Imports by URL: fetched by the server, from where nodes may go too, and refused with a reason."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from libs.events.memory import MemoryLog, MemoryStore
from services.api import Limits
from services.api.console.fetching import raw_url
from tests.api_world import ECHO, Server

FILES = {"/echo.yml": ECHO.encode(), "/large.yml": b"#" * 200_000, "/binary.yml": b"\xff\xfe"}


class _Files(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved.yml":
            self.send_response(302)
            self.send_header("Location", "/echo.yml")
            self.end_headers()
            return
        body = FILES.get(self.path)
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    made = MemoryLog(MemoryStore(partitions=2))
    yield made
    made.close()


def imported(server: Server, url: str) -> httpx.Response:
    body = {"mode": "yaml-url", "yaml_url": url}
    return server.http.post("/console/api/apps/imports", json=body, headers=server.admin())


@pytest.mark.parametrize("name", ["echo.yml", "moved.yml"])
def test_a_document_is_fetched_and_imported(log: MemoryLog, files: str, name: str) -> None:
    server = Server(log, http_allow=("127.0.0.1",))
    try:
        answer = imported(server, f"{files}/{name}")
        assert (answer.status_code, answer.json()["status"]) == (200, "completed"), answer.text
        path = f"/console/api/apps/{answer.json()['app_id']}/workflows/draft"
        assert server.http.get(path, headers=server.admin()).json()["graph"]["nodes"]
    finally:
        server.close()


def test_a_private_address_is_not_asked(log: MemoryLog, files: str) -> None:
    server = Server(log)
    try:
        answer = imported(server, f"{files}/echo.yml")
        assert (answer.status_code, answer.json()["status"]) == (400, "failed")
        assert "a loopback address" in answer.json()["error"]
        assert "FLOWLEDGER_HTTP_ALLOW" in answer.json()["error"]
    finally:
        server.close()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/none.yml", "status 404"),
        ("/large.yml", "is larger than"),
        ("/binary.yml", "no UTF-8 text"),
        ("file:///etc/passwd", "begins with http"),
        ("http://", "yaml_url"),
    ],
)
def test_what_is_no_document_is_refused_with_a_reason(log: MemoryLog, files: str, path: str, problem: str) -> None:
    server = Server(log, limits=Limits(max_document_bytes=100_000), http_allow=("127.0.0.1",))
    try:
        answer = imported(server, path if "://" in path else files + path)
        assert (answer.status_code, answer.json()["status"]) == (400, "failed")
        assert problem in answer.json()["error"]
    finally:
        server.close()


def test_a_page_of_github_stands_for_the_file_it_shows() -> None:
    page = "https://github.com/somebody/flows/blob/main/a/b.yml"
    assert raw_url(page) == "https://raw.githubusercontent.com/somebody/flows/main/a/b.yml"
    assert raw_url("https://example.org/blob/x.yml") == "https://example.org/blob/x.yml"
