"""The `http-request` node and the guarded transport over real sockets on 127.0.0.1."""

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import pytest

from libs.net import GuardedHttp, Resolve, system_resolve
from libs.workflow.outcome import Failed, Outcome, Succeeded
from services.executor.nodes.http_request import MAX_TEXT_BYTES, HttpRequestHandler
from tests.attempts import attempt_of

Respond = Callable[["Served"], Awaitable[None]]


class Served:
    """One request as it arrived, and the socket to answer on."""

    def __init__(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = first.split(" ", 2)
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        self.body = body
        self.writer = writer

    async def answer(self, body: bytes = b"ok", status: str = "200 OK", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *(f"{n}: {v}" for n, v in named.items())]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()


class Server:
    """A tiny HTTP server in the test's own loop: one function answers everything."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self.requests: list[Served] = []
        self.hung_up = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                served = Served(head, b"", writer)
                served.body = await reader.readexactly(int(served.headers.get("content-length", 0)))
                self.requests.append(served)
                await self._respond(served)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        except asyncio.CancelledError:
            pass  # the end of the test; the stream's own callback would log it
        finally:
            writer.close()


def node_run(
    respond: Respond,
    data: Callable[[Server], dict[str, Any]],
    *,
    allow: Sequence[str] = ("127.0.0.1",),
    resolve: Resolve = system_resolve,
) -> tuple[Outcome, Server]:
    async def go() -> tuple[Outcome, Server]:
        http = GuardedHttp(allow, resolve)
        async with Server(respond) as server:
            try:
                complete = {"method": "get", "headers": "", "params": "", **data(server)}
                return await HttpRequestHandler(http).run(attempt_of("http-request", complete)), server
            finally:
                await http.aclose()

    return asyncio.run(go())


async def ok(served: Served) -> None:
    await served.answer(content_type="text/plain")


def test_a_post_arrives_with_its_body_and_key() -> None:
    body = {"type": "json", "data": [{"type": "text", "key": "", "value": "{'a': 1}"}]}
    outcome, server = node_run(ok, lambda s: {"method": "post", "url": f"{s.url}/p?q=1", "body": body})
    assert isinstance(outcome, Succeeded), outcome
    assert outcome.outputs["body"] == "ok"
    (request,) = server.requests
    assert (request.method, request.target, request.body) == ("POST", "/p?q=1", b'{"a": 1}')
    assert request.headers["idempotency-key"] == "run-1/n//1"


def test_without_an_allowance_nothing_reaches_the_server() -> None:
    outcome, server = node_run(ok, lambda s: {"url": s.url}, allow=())
    assert isinstance(outcome, Failed)
    assert outcome.error_type == "HttpRequestNodeError"
    assert "127.0.0.1: a loopback address" in outcome.error
    assert "FLOWLEDGER_HTTP_ALLOW" in outcome.error
    assert server.requests == []


def test_a_redirect_to_an_address_that_is_not_allowed_is_refused() -> None:
    async def away(served: Served) -> None:
        await served.answer(status="302 Found", location="http://127.0.0.2:1/latest/meta-data")

    outcome, server = node_run(away, lambda s: {"url": s.url}, allow=("127.0.0.1/32",))
    assert isinstance(outcome, Failed)
    assert "127.0.0.2" in outcome.error
    assert len(server.requests) == 1


class Names:
    """A resolver of a rebinding attacker: a good address first, another one later."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        return [self.answers.pop(0)]


def test_a_name_is_resolved_once_and_keeps_its_host_header() -> None:
    names = Names("127.0.0.1")  # a second question would find no answer
    outcome, server = node_run(
        ok, lambda s: {"url": f"http://service.test:{s.port}/"}, allow=("service.test",), resolve=names
    )
    assert isinstance(outcome, Succeeded), outcome
    assert server.requests[0].headers["host"] == f"service.test:{server.port}"


def test_a_name_that_changes_to_a_private_address_is_refused_at_the_new_connection() -> None:
    async def closing(served: Served) -> None:
        await served.answer(status="302 Found", location="/again", connection="close")

    names = Names("127.0.0.1", "127.0.0.3")
    outcome, server = node_run(
        closing, lambda s: {"url": f"http://service.test:{s.port}/"}, allow=("127.0.0.1",), resolve=names
    )
    assert isinstance(outcome, Failed)
    assert "service.test (127.0.0.3)" in outcome.error
    assert len(server.requests) == 1


def test_redirects_are_followed_but_credentials_stay_with_their_host() -> None:
    async def hop(served: Served) -> None:
        if served.target == "/start":
            await served.answer(status="307 Temporary Redirect", location="/same-host")
        elif served.target == "/same-host":
            port = served.headers["host"].partition(":")[2]
            there = f"http://other.test:{port}/end"
            await served.answer(status="307 Temporary Redirect", location=there, set_cookie="session=1")
        else:
            await served.answer(content_type="text/plain")

    async def names(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    headers = "X-Api-Key: k\nAuthorization: Bearer t\nCookie: c=1\nAccept: text/plain"
    outcome, server = node_run(
        hop,
        lambda s: {"method": "put", "url": f"http://first.test:{s.port}/start", "headers": headers},
        resolve=names,
    )
    assert isinstance(outcome, Succeeded), outcome
    first, same, other = server.requests
    for name in ("x-api-key", "authorization", "cookie"):
        assert name in first.headers
        assert name in same.headers
        assert name not in other.headers
    assert (other.method, other.headers["accept"]) == ("PUT", "text/plain")
    assert other.headers["idempotency-key"] == "run-1/n//1"


def test_endless_redirects_end() -> None:
    async def around(served: Served) -> None:
        await served.answer(status="302 Found", location="/again")

    outcome, server = node_run(around, lambda s: {"url": s.url})
    assert isinstance(outcome, Failed)
    assert "more than 10 redirects" in outcome.error
    assert len(server.requests) == 11


def test_cookies_of_one_request_are_not_sent_with_the_next() -> None:
    async def baking(served: Served) -> None:
        await served.answer(set_cookie="session=1")

    async def go() -> Server:
        http = GuardedHttp(["127.0.0.1"])
        async with Server(baking) as server:
            for _ in range(2):
                async with http.open(httpx.Request("GET", server.url)) as response:
                    await response.aread()
            await http.aclose()
            return server

    assert "cookie" not in asyncio.run(go()).requests[1].headers


def test_proxy_variables_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    outcome, server = node_run(ok, lambda s: {"url": s.url})
    assert isinstance(outcome, Succeeded), outcome
    assert len(server.requests) == 1


def test_an_answer_without_end_is_cut_at_the_limit() -> None:
    sent = 0

    async def endless(served: Served) -> None:
        nonlocal sent
        served.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            served.writer.write(b"x" * 65_536)
            await served.writer.drain()
            sent += 65_536

    outcome, server = node_run(endless, lambda s: {"url": s.url})
    assert isinstance(outcome, Failed)
    assert outcome.error_type == "ResponseSizeError"
    assert "1 MB" in outcome.error
    assert sent < 20 * MAX_TEXT_BYTES  # what fits into the sockets' buffers, not more
    del server


def test_a_declared_length_over_the_limit_is_not_downloaded() -> None:
    async def big(served: Served) -> None:
        served.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5000000\r\n\r\nx")
        await served.writer.drain()

    outcome, _ = node_run(big, lambda s: {"url": s.url})
    assert isinstance(outcome, Failed)
    assert outcome.error_type == "ResponseSizeError"


def test_a_small_answer_that_unpacks_to_a_huge_one_is_cut_at_the_limit() -> None:
    bomb = gzip.compress(b"x" * 50_000_000)
    assert len(bomb) < MAX_TEXT_BYTES

    async def packed(served: Served) -> None:
        await served.answer(bomb, content_type="text/plain", content_encoding="gzip")

    outcome, _ = node_run(packed, lambda s: {"url": s.url})
    assert isinstance(outcome, Failed)
    assert outcome.error_type == "ResponseSizeError"


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(b"one ", mtime=0) + gzip.compress(b"two", mtime=0)),
        ("deflate", zlib.compress(b"one two")),
        ("identity", b"one two"),
    ],
)
def test_packed_answers_are_unpacked(coding: str, body: bytes) -> None:
    async def packed(served: Served) -> None:
        await served.answer(body, content_type="text/plain", content_encoding=coding)

    outcome, _ = node_run(packed, lambda s: {"url": s.url})
    assert isinstance(outcome, Succeeded), outcome
    assert outcome.outputs["body"] == "one two"


def test_a_broken_answer_is_an_http_request_node_error() -> None:
    async def broken(served: Served) -> None:
        served.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await served.writer.drain()
        served.writer.close()

    outcome, _ = node_run(broken, lambda s: {"url": s.url})
    assert isinstance(outcome, Failed)
    assert outcome.error_type == "HttpRequestNodeError"


def test_a_server_that_says_nothing_times_out() -> None:
    async def silent(_: Served) -> None:
        await asyncio.Event().wait()

    outcome, _ = node_run(silent, lambda s: {"url": s.url, "timeout": {"read": 0.05}})
    assert isinstance(outcome, Failed)
    assert outcome.error == "no answer in time (ReadTimeout)"


def test_nobody_listening_is_an_http_request_node_error() -> None:
    outcome, _ = node_run(ok, lambda s: {"url": "http://127.0.0.1:9/"})
    assert isinstance(outcome, Failed)
    assert outcome.error_type == "HttpRequestNodeError"


def test_cancelling_the_attempt_closes_the_connection_at_once() -> None:
    async def go() -> None:
        arrived = asyncio.Event()

        http = GuardedHttp(["127.0.0.1"])
        async with Server(hanging(arrived)) as server:
            data = {"method": "get", "url": server.url, "headers": "", "params": ""}
            task = asyncio.create_task(HttpRequestHandler(http).run(attempt_of("http-request", data)))
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(2):
                await server.hung_up.wait()
            await http.aclose()

    asyncio.run(go())


def hanging(arrived: asyncio.Event) -> Respond:
    """Never answers; the server's loop goes on to read, and so sees the client hang up."""

    async def respond(_: Served) -> None:
        arrived.set()

    return respond
