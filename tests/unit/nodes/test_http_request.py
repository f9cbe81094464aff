"""How an `http-request` node assembles its request and reads an answer: what can be seen without a network.

Requests end in memory here; the transport is tested with real sockets in tests/integration.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from libs.net import GuardedHttp
from libs.workflow.outcome import Failed, Outcome, Succeeded
from services.executor.files import FileStore
from services.executor.nodes.http_request import HttpRequestHandler
from tests.attempts import attempt_of
from tests.unit.nodes.kept import kept_files

RUN_ID = "019b0000-0000-7000-8000-000000000001"
Answer = Callable[[httpx.Request], httpx.Response]


class InMemoryHttp(GuardedHttp):
    """Answers requests with a function and keeps them."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer
        self.requests: list[httpx.Request] = []

    @asynccontextmanager
    async def open(self, request: httpx.Request, **_: Any) -> AsyncIterator[httpx.Response]:
        self.requests.append(request)
        answer = self._answer(request)
        stream = httpx.ByteStream(answer.content)
        yield httpx.Response(answer.status_code, headers=answer.headers, stream=stream, request=request)


def ok(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, text="fine")


def run(
    data: dict[str, Any],
    values: dict[str, Any] | None = None,
    *,
    secrets: dict[str, str] | None = None,
    answer: Answer = ok,
    files: FileStore | None = None,
) -> tuple[Outcome, list[httpx.Request]]:
    http = InMemoryHttp(answer)
    complete = {"method": "get", "url": "http://api.example/x", "headers": "", "params": "", **data}
    attempt = replace(attempt_of("http-request", complete, values, secrets=secrets), run_id=RUN_ID)
    outcome = asyncio.run(HttpRequestHandler(http, files).run(attempt))
    return outcome, http.requests


def sent(data: dict[str, Any], values: dict[str, Any] | None = None, **rest: Any) -> httpx.Request:
    outcome, requests = run(data, values, **rest)
    assert isinstance(outcome, Succeeded), outcome
    assert len(requests) == 1
    return requests[0]


def failed(data: dict[str, Any], values: dict[str, Any] | None = None, **rest: Any) -> Failed:
    outcome, _ = run(data, values, **rest)
    assert isinstance(outcome, Failed), outcome
    return outcome


def body(kind: str, *items: Any) -> dict[str, Any]:
    return {"method": "post", "body": {"type": kind, "data": list(items)}}


def text(value: str, key: str = "") -> dict[str, Any]:
    return {"key": key, "type": "text", "value": value}


def recorded(outcome: Outcome) -> str:
    assert outcome.process_data is not None
    return str(outcome.process_data["request"])


def test_the_answer_becomes_status_body_headers_and_no_files() -> None:
    outcome, _ = run({}, answer=lambda _: httpx.Response(201, headers={"X-A": "1"}, json={"a": 1}))
    assert isinstance(outcome, Succeeded)
    assert outcome.outputs["status_code"] == 201
    assert outcome.outputs["body"] == '{"a":1}'
    assert outcome.outputs["headers"]["x-a"] == "1"  # type: ignore[index,call-overload]
    assert outcome.outputs["files"] == []
    assert outcome.output_types["files"] == "array[file]"


def test_parameters_are_split_before_values_are_put_in_and_keep_repeated_keys() -> None:
    request = sent(
        {"url": "http://api.example/x?z=0", "params": "a:{{#s.v#}}\n:ignored\na: 2\n"}, {"s.v": "1\nb: 3&c=4"}
    )
    assert str(request.url) == "http://api.example/x?z=0&a=1%0Ab%3A+3%26c%3D4&a=2"


def test_header_lines_are_split_before_values_are_put_in() -> None:
    request = sent({"headers": "X-A: {{#s.v#}}\nX-B:no colon: here\nX-Empty\n\n"}, {"s.v": "one\n"})
    assert request.headers["x-a"] == "one"
    assert request.headers["x-b"] == "no colon: here"
    assert request.headers["x-empty"] == ""


@pytest.mark.parametrize("value", ["a\nX-Admin: 1", "a\r\nX-Admin: 1", "a\rX-Admin: 1", "a\0b"])
def test_a_line_break_inside_a_header_value_fails_the_node(value: str) -> None:
    outcome, requests = run({"headers": "X-A: {{#s.v#}}"}, {"s.v": value})
    assert isinstance(outcome, Failed)
    assert outcome.error_type == "HttpRequestNodeError"
    assert "header X-A: the value contains a line break" in outcome.error
    assert requests == []


def test_a_value_cannot_become_the_name_of_a_second_header() -> None:
    assert failed({"headers": "{{#s.v#}}"}, {"s.v": "X-A: 1\nX-B: 2"}).error_type == "HttpRequestNodeError"


@pytest.mark.parametrize(
    ("config", "header", "value"),
    [
        ({"type": "bearer", "api_key": "{{#env.k#}}"}, "authorization", "Bearer s3cret-key"),
        ({"type": "basic", "api_key": "u:p"}, "authorization", "Basic dTpw"),
        ({"type": "basic", "api_key": "dTpw"}, "authorization", "Basic dTpw"),
        ({"type": "custom", "api_key": "k", "header": "X-Key"}, "x-key", "k"),
    ],
)
def test_the_api_key_is_sent_in_its_form(config: dict[str, str], header: str, value: str) -> None:
    authorization = {"type": "api-key", "config": config}
    data = {"headers": "X-Key: old\nauthorization: old", "authorization": authorization}
    assert sent(data, secrets={"k": "s3cret-key"}).headers[header] == value


def test_an_empty_api_key_is_an_authorization_config_error() -> None:
    authorization = {"type": "api-key", "config": {"type": "bearer", "api_key": "{{#s.k#}}"}}
    assert failed({"authorization": authorization}, {"s.k": ""}).error_type == "AuthorizationConfigError"


@pytest.mark.parametrize("url", ["", "ftp://x/", "//x/", "javascript:1"])
def test_a_url_that_is_not_http_is_an_invalid_url_error(url: str) -> None:
    assert failed({"url": "{{#s.u#}}"}, {"s.u": url}).error_type == "InvalidURLError"


def test_the_method_options_is_rejected_at_run_time() -> None:
    assert failed({"method": "options"}).error_type == "InvalidHttpMethodError"


def test_a_missing_variable_renders_as_its_selector() -> None:
    assert sent({"url": "http://api.example/{{#no.such#}}"}).url.path == "/no.such"


@pytest.mark.parametrize(
    ("written", "arrives"),
    [
        ('{"a": "{{#s.v#}}"}', b'{"a": "line\\nsaid \\"hi\\" twice"}'),
        ("{'a': [1, 2,], 'b': None}", b'{"a": [1, 2], "b": null}'),
        ("{{#s.o#}}", '{"k": "ä"}'.encode()),
        ("{{#s.l#}}", b'[{"a": true}]'),
    ],
)
def test_a_json_body_is_repaired(written: str, arrives: bytes) -> None:
    values = {"s.v": 'line\nsaid "hi" twice', "s.o": {"k": "ä"}, "s.l": [{"a": True}]}
    request = sent(body("json", text(written)), values)
    assert request.content == arrives
    assert request.headers["content-type"] == "application/json"


@pytest.mark.parametrize("written", ["", "no json at all", '{"a": NaN'])
def test_a_json_body_beyond_repair_is_a_request_body_error(written: str) -> None:
    if "NaN" in written:
        assert sent(body("json", text(written))).content == b'{"a": "NaN"}'
    else:
        assert failed(body("json", text(written))).error_type == "RequestBodyError"


@pytest.mark.parametrize("kind", ["json", "raw-text", "binary"])
def test_a_body_of_one_item_refuses_another_number(kind: str) -> None:
    assert failed(body(kind)).error_type == "RequestBodyError"
    assert failed(body(kind, text("1"), text("2"))).error_type == "RequestBodyError"


def test_a_body_written_as_plain_text_is_one_item() -> None:
    request = sent({"method": "post", "body": {"type": "raw-text", "data": "hello {{#s.v#}}"}}, {"s.v": "you"})
    assert request.content == b"hello you"
    assert request.headers["content-type"] == "text/plain"


def test_the_content_type_of_the_author_wins() -> None:
    request = sent({"headers": "content-type: text/markdown", **body("raw-text", text("# x"))})
    assert request.headers["content-type"] == "text/markdown"


def test_in_a_url_encoded_body_the_later_duplicate_wins() -> None:
    request = sent(body("x-www-form-urlencoded", text("1", "a"), text("x y&", "b"), text("2", "a")))
    assert request.content == b"a=2&b=x+y%26"


def test_form_data_without_a_file_is_multipart_and_drops_the_content_type_of_the_author() -> None:
    request = sent({"headers": "Content-Type: text/plain", **body("form-data", text("1", "a"))})
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b'name="a"\r\n\r\n1\r\n' in request.read()


def test_form_data_fetches_remote_files() -> None:
    file = {
        "dify_model_identity": "__dify__file__",
        "type": "image",
        "transfer_method": "remote_url",
        "remote_url": "http://files.example/cat.png",
        "filename": "cat.png",
        "mime_type": "image/png",
    }
    outcome, requests = run(
        body("form-data", {"key": "f", "type": "file", "value": "", "file": ["s", "files"]}),
        {"s.files": [file, file]},
        answer=lambda request: httpx.Response(200, content=b"PIXELS" if "files" in request.url.host else b"ok"),
    )
    assert isinstance(outcome, Succeeded), outcome
    assert requests[-1].read().count(b"PIXELS") == 2
    assert b'filename="cat.png"' in requests[-1].read()
    assert "f: <file cat.png, image/png, -1 bytes>" in recorded(outcome)


def test_a_binary_body_of_something_else_than_a_file_is_a_file_fetch_error() -> None:
    item = {"key": "", "type": "file", "value": "", "file": ["s", "v"]}
    assert failed(body("binary", item), {"s.v": "text"}).error_type == "FileFetchError"


def test_an_uploaded_file_without_a_store_is_a_file_fetch_error_that_says_so() -> None:
    file = {"dify_model_identity": "__dify__file__", "transfer_method": "local_file", "filename": "a.txt"}
    outcome = failed(body("binary", {"key": "", "type": "file", "value": "", "file": ["s", "f"]}), {"s.f": file})
    assert outcome.error_type == "FileFetchError"
    assert "a.txt" in outcome.error


SECRET = "sk-very/secret+value&1"


@pytest.mark.parametrize(
    "data",
    [
        {"url": "http://api.example/{{#env.k#}}"},
        {"params": "key: {{#env.k#}}"},
        {"headers": "X-Other: {{#env.k#}}"},
        {"headers": "Authorization: Bearer {{#env.k#}}"},
        {
            "authorization": {
                "type": "api-key",
                "config": {"type": "custom", "header": "X-Me", "api_key": "{{#env.k#}}"},
            }
        },
        {"authorization": {"type": "api-key", "config": {"type": "basic", "api_key": "u:{{#env.k#}}"}}},
        body("raw-text", text("{{#env.k#}}")),
        body("json", text('{"k": "{{#env.k#}}"}')),
        body("json", text('{"k": {{#s.object#}}}')),
        body("x-www-form-urlencoded", text("{{#env.k#}}", "k")),
        body("form-data", text("{{#env.k#}}", "k")),
        body("raw-text", text("{{#s.copy#}}")),
    ],
)
def test_a_secret_is_sent_but_never_recorded(data: dict[str, Any]) -> None:
    values = {"s.copy": f"<{SECRET}>", "s.object": {"in": [SECRET]}}
    outcome, requests = run(data, values, secrets={"k": SECRET})
    assert isinstance(outcome, Succeeded), outcome
    shown = recorded(outcome)
    for form in (SECRET, httpx.QueryParams({"": SECRET}).__str__()[1:], "sk-very%2Fsecret", "dTpza"):
        assert form not in shown
    wire = f"{requests[0].url}{requests[0].headers.raw}{requests[0].read()!r}"
    assert any(form in wire for form in ("sk-very/secret", "sk-very%2Fsecret", "dTpza"))


def test_a_secret_that_makes_json_or_a_url_only_unmasked_still_works() -> None:
    secret = '{"token": "abcdefgh"}'
    outcome, requests = run(body("json", text("{{#env.k#}}")), secrets={"k": secret})
    assert isinstance(outcome, Succeeded), outcome
    assert requests[0].content == b'{"token": "abcdefgh"}'
    assert "abcdefgh" not in recorded(outcome)
    assert isinstance(run({"url": "{{#env.k#}}"}, secrets={"k": "https://hooks.example/T0/B1"})[0], Succeeded)


def test_an_error_does_not_show_the_secret() -> None:
    for url in ("ftp://{{#env.k#}}", "http://user:{{#env.k#}}@api.example/"):
        outcome = failed({"url": url}, secrets={"k": SECRET})
        assert outcome.error_type == "InvalidURLError"
        assert "very" not in outcome.error


def test_the_authorization_header_is_recorded_as_asterisks_of_its_length() -> None:
    outcome, _ = run({"headers": "Authorization: Bearer abc"})
    assert "Authorization: **********" in recorded(outcome)


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
def test_a_request_that_may_change_something_carries_the_idempotency_key(method: str) -> None:
    assert sent({"method": method}).headers["idempotency-key"] == "run-1/n//1"


def test_a_reading_request_and_the_authors_own_key_are_left_alone() -> None:
    assert "idempotency-key" not in sent({}).headers
    assert sent({"method": "post", "headers": "idempotency-key: mine"}).headers["idempotency-key"] == "mine"


def test_a_status_that_is_not_2xx_fails_only_with_a_strategy_or_retries() -> None:
    def teapot(_: httpx.Request) -> httpx.Response:
        return httpx.Response(418, text="short and stout")

    outcome, _ = run({}, answer=teapot)
    assert isinstance(outcome, Succeeded)
    assert outcome.outputs["status_code"] == 418
    retrying = {"retry_config": {"retry_enabled": True, "max_retries": 1, "retry_interval": 1}}
    outcome = failed(retrying, answer=teapot)
    assert (outcome.error, outcome.error_type) == ("Request failed with status code 418", "HTTPResponseCodeError")
    assert outcome.outputs is not None
    assert outcome.outputs["body"] == "short and stout"


def test_a_transport_error_is_an_http_request_node_error() -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("")

    outcome = failed({}, answer=broken)
    assert (outcome.error, outcome.error_type) == ("no answer in time (ReadTimeout)", "HttpRequestNodeError")


@pytest.mark.parametrize(
    ("headers", "content", "text"),
    [
        ({"content-type": "text/html"}, b"<p>", "<p>"),
        ({"content-type": "application/problem+json"}, b"{}", "{}"),
        ({"content-type": "application/octet-stream"}, b"[1]", "[1]"),
        ({"content-type": "text/plain; charset=gb18030"}, "中".encode("gb18030"), "中"),
        ({"content-type": "text/html"}, '<meta charset="gbk">中'.encode("gbk"), '<meta charset="gbk">中'),
        ({}, "ü".encode(), "ü"),
        ({"content-type": "image/png"}, b"", ""),
    ],
)
def test_an_answer_that_is_text_becomes_the_body(headers: dict[str, str], content: bytes, text: str) -> None:
    outcome, _ = run({}, answer=lambda _: httpx.Response(200, headers=headers, content=content))
    assert isinstance(outcome, Succeeded), outcome
    assert outcome.outputs["body"] == text


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "image/png"},
        {"content-type": "text/csv"},
        {"content-type": "application/pdf"},
        {"content-type": "text/plain", "content-disposition": "attachment; filename=x"},
    ],
)
def test_an_answer_that_is_a_file_needs_a_store(headers: dict[str, str]) -> None:
    outcome = failed({}, answer=lambda _: httpx.Response(200, headers=headers, content=b"\x00\xff"))
    assert outcome.error_type == "HttpRequestNodeError"
    assert "the response is a file" in outcome.error


def test_a_file_in_an_answer_is_kept_and_can_be_sent_on() -> None:
    files, kept = kept_files({"note.txt": b"read me"})
    png = httpx.Response(200, content=b"\x89PNG", headers={"content-type": "image/png"})
    outcome, _ = run({"url": "http://api.example/cat.png"}, answer=lambda _: png, files=files)
    assert isinstance(outcome, Succeeded)
    (made,) = outcome.outputs["files"]  # type: ignore[misc,union-attr]  # a list of file values
    assert (made["type"], made["transfer_method"], made["mime_type"], made["size"]) == (
        "image", "tool_file", "image/png", 4,
    )  # fmt: skip
    for value, content in ((made, b"\x89PNG"), (kept["note.txt"], b"read me")):
        body = {"type": "binary", "data": [{"type": "file", "file": ["s", "f"]}]}
        (request,) = run({"method": "post", "body": body}, {"s.f": value}, files=files)[1]
        assert request.read() == content


@pytest.mark.parametrize(
    ("path", "headers", "name", "kind", "media_type"),
    [
        ("200/300", {"content-type": "image/jpeg"}, "300.jpg", "image", "image/jpeg"),
        ("qr?text=a.b", {"content-type": "image/webp"}, "qr.webp", "image", "image/webp"),
        ("v", {"content-type": "image/x-new"}, "v", "image", "image/x-new"),
        (
            "d",
            {"content-type": "application/vnd.openxmlformats-officedocument.wordprocessingml.document"},
            "d.docx",
            "document",
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        ),
        (
            "get",
            {"content-type": "application/octet-stream", "content-disposition": "attachment; filename=a.pdf"},
            "a.pdf",
            "document",
            "application/pdf",
        ),
        (
            "get",
            {"content-type": "text/plain", "content-disposition": "attachment; filename*=UTF-8''r%C3%A9sum%C3%A9.txt"},
            "r\u00e9sum\u00e9.txt",
            "document",
            "text/plain",
        ),
        ("", {"content-type": "video/mp4"}, "response.mp4", "video", "video/mp4"),
    ],
)
def test_a_file_in_an_answer_has_the_name_and_type_that_its_server_gives(
    path: str, headers: dict[str, str], name: str, kind: str, media_type: str
) -> None:
    files, _ = kept_files()
    answer = httpx.Response(200, content=b"\x00\xff", headers=headers)
    outcome, _ = run({"url": f"http://api.example/{path}"}, answer=lambda _: answer, files=files)
    assert isinstance(outcome, Succeeded)
    (made,) = outcome.outputs["files"]  # type: ignore[misc,union-attr]  # a list of file values
    assert (made["filename"], made["type"], made["mime_type"]) == (name, kind, media_type)
