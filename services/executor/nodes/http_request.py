"""`http-request`: one HTTP call, assembled from templates.

A request that may change something (POST, PUT, PATCH, DELETE) carries `Idempotency-Key: run/node/path/attempt` unless
the author set that header: an attempt that lost its owner runs again, and a server that knows the header does the work
once. Responses are measured while they arrive, unpacked; what is too large is not read to its end.

Differs from other engines where they are unsafe: header lines are split before values are put in and a line break left
inside a value fails the node, so no value can add a header; secrets are masked in the recorded request in every body
kind, wherever the run has copied them to; form data without a file has no placeholder part.
"""

import base64
import codecs
import json
import mimetypes
import re
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Final
from urllib.parse import quote, urlencode

import httpx
from pydantic import JsonValue

from libs.net import GuardedHttp, decoded
from libs.workflow import templates
from libs.workflow.configs.outside import Authorization, Body, BodyItem, HttpRequestConfig, Timeout
from libs.workflow.definition import Node
from libs.workflow.outcome import Failed, Outcome, Succeeded, Values
from libs.workflow.pool import Pool
from libs.workflow.segments import is_file
from services.executor.documents.kinds import EXTENSIONS
from services.executor.download import NotFetched, content_of
from services.executor.files import FileReader, FileStore, fit_name, reader
from services.executor.lenient_json import parse_leniently
from services.executor.nodes.masking import Masking
from services.executor.nodes.port import Attempt, Handler

MAX_TEXT_BYTES: Final = 1024 * 1024
MAX_FILE_BYTES: Final = 10 * 1024 * 1024
MAX_TIMEOUT_S: Final = {"connect": 10.0, "read": 600.0, "write": 600.0}
_MAX_DUMP_CHARACTERS: Final = 20_000

_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"})
_CHANGING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_UNSENDABLE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_USER_INFO: Final = re.compile(r"//[^/?#]*@")
_OURS: Final = frozenset({"content-length", "transfer-encoding"})
_CREDENTIALS: Final = frozenset({"authorization", "proxy-authorization", "cookie"})
_MEDIA_TYPES: Final = mimetypes.MimeTypes()
"""Python's own table: that of the machine would make names differ from one executor to the next."""
_TEXT_SUBTYPES: Final = ("json", "xml", "javascript", "x-www-form-urlencoded", "yaml", "graphql")
_TEXT_MARKS: Final = ("{", "[", "<", "function", "var", "const", "let")
_DECLARED_CHARSET: Final = re.compile(
    rb"<(?:meta[^>]{1,200}charset|\?xml[^>]{1,100}encoding)\s*=\s*[\"']?([\w.:-]{2,40})"
)

Render = Callable[[str], str]
File = Mapping[str, JsonValue]


class _Refused(Exception):
    """The request cannot be made, or its answer not be used: text for people, and the contract's class name."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


@dataclass(frozen=True, slots=True)
class _Part:
    """One field of a form: a text or a file."""

    name: str
    text: str = ""
    file: File | None = None


@dataclass(frozen=True, slots=True)
class _Content:
    """At most one of the three is set."""

    text: str | None = None
    file: File | None = None
    parts: tuple[_Part, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """The request as assembled; once with plain values to be sent, once with masked ones to be recorded."""

    method: str
    url: str
    headers: dict[str, str]
    body: _Content
    credentials: frozenset[str] = field(default=_CREDENTIALS)
    """Names of headers, lower case, whose values no record shows."""


class HttpRequestHandler(Handler):
    effect = True
    slot = "wait"

    def __init__(self, http: GuardedHttp, files: FileStore | None = None) -> None:
        self._http = http
        self._files = files

    async def run(self, attempt: Attempt) -> Outcome:
        node, pool = attempt.node, attempt.pool
        masked = Masking(pool)
        process_data: Values | None = None
        shown = ""
        try:
            plan = _assemble(node.config, pool, lambda template: templates.render_text(template, pool))
            record = _assemble(node.config, pool, masked.render, checked=False)
            shown, process_data = _address(record), {"request": _dump(record)}
            outputs = await self._exchange(attempt, plan)
        except _Refused as refused:
            return Failed(masked.text(str(refused)), refused.error_type, process_data=process_data)
        except httpx.InvalidURL:  # its own words quote a piece of the URL, and that may be a piece of a secret
            return Failed(f"the URL cannot be used: {shown}", "InvalidURLError", process_data=process_data)
        except httpx.HTTPError as error:
            text = masked.text(_transport_error(error))
            return Failed(text, "HttpRequestNodeError", process_data=process_data)
        if _fails_on_status(node) and not 200 <= int(str(outputs["status_code"])) < 300:
            text = f"Request failed with status code {outputs['status_code']}"
            return Failed(text, "HTTPResponseCodeError", process_data=process_data, outputs=outputs)
        return Succeeded(outputs, process_data=process_data, output_types={"files": "array[file]"})

    async def _exchange(self, attempt: Attempt, plan: _Plan) -> Values:
        config: HttpRequestConfig = attempt.node.config
        headers = dict(plan.headers)
        if plan.method in _CHANGING and not any(name.lower() == "idempotency-key" for name in headers):
            headers["Idempotency-Key"] = quote(attempt.key, safe="/:,@~")
        request = httpx.Request(
            plan.method,
            plan.url,
            headers=_encoded(headers),
            extensions={"timeout": _timeouts(config.timeout)},
            **await self._content(plan.body, reader(self._files, attempt)),
        )
        async with self._http.open(request, verify=config.ssl_verify is not False) as response:
            content, response_is_file = await self._receive(response)
            name, media_type = _named(response)
        outputs: Values = {
            "status_code": response.status_code,
            "body": "" if response_is_file else _as_text(content, response),
            "headers": {name.lower(): value for name, value in response.headers.items()},
            "files": [],
        }
        if response_is_file and self._files is not None:
            try:
                outputs["files"] = [await self._files.save(attempt, name, media_type, content)]
            except OSError as error:
                raise _Refused("FileSaveError", f"the response is a file and cannot be kept: {error}") from error
        return outputs

    async def _content(self, body: _Content, kept: FileReader | None) -> dict[str, Any]:
        """The body as arguments of httpx.Request."""
        if body.text is not None:
            return {"content": body.text.encode("utf-8", "replace")}
        if body.file is not None:
            return {"content": await self._load(body.file, kept)}
        if not body.parts:
            return {}
        # Parts without a file name are plain fields; as `files` they make the body multipart in any case.
        parts: list[tuple[str, tuple[Any, ...]]] = []
        for part in body.parts:
            if part.file is None:
                parts.append((part.name, (None, part.text.encode("utf-8", "replace"))))
            else:
                name = str(part.file.get("filename") or "file")
                kind = str(part.file.get("mime_type") or "application/octet-stream")
                parts.append((part.name, (name, await self._load(part.file, kept), kind)))
        return {"files": parts}

    async def _load(self, file: File, kept: FileReader | None) -> bytes:
        label = str(file.get("filename") or file.get("related_id") or "without a name")
        try:
            content, _ = await content_of(file, kept, self._http, MAX_FILE_BYTES)
        except NotFetched as error:
            raise _Refused("FileFetchError", f"file {label}: {error}") from error
        return content

    async def _receive(self, response: httpx.Response) -> tuple[bytes, bool]:
        """The body, and whether it is a file. Stops at the limit of its kind."""
        if response.request.method == "HEAD" or response.headers.get("content-length") == "0":
            return b"", False
        kind = _is_file_by_headers(response.headers)
        self._check(0, response, is_file=kind is not False)
        content = bytearray()
        async with aclosing(decoded(response)) as pieces:
            async for piece in pieces:
                content += piece
                if kind is None and len(content) >= 1024:
                    kind = not _looks_like_text(content[:1024])
                if kind is not None:
                    self._check(len(content), response, is_file=kind)
        if kind is None and content:
            kind = not _looks_like_text(content)
            self._check(len(content), response, is_file=kind)
        return bytes(content), bool(kind and content)

    def _check(self, size: int, response: httpx.Response, *, is_file: bool) -> None:
        if is_file and self._files is None and size:
            media = response.headers.get("content-type", "unknown type")
            text = f"the response is a file ({media}), and this server keeps no files; ask the server for text"
            raise _Refused("HttpRequestNodeError", text)
        limit, what = (MAX_FILE_BYTES, "file") if is_file else (MAX_TEXT_BYTES, "text")
        _check_size(size, limit, f"the response ({what})", response)


# --- assembling -------------------------------------------------------------------------------------------------------


def _assemble(config: HttpRequestConfig, pool: Pool, render: Render, *, checked: bool = True) -> _Plan:
    """The request. Not `checked`: for a record of masked values, which need be neither a URL nor JSON any more."""
    method = config.method.upper()
    if method not in _METHODS:
        expected = ", ".join(sorted(_METHODS))
        raise _Refused("InvalidHttpMethodError", f"Invalid http method {method.lower()}: expected one of {expected}")
    headers, credential = _headers(config, render)
    body = _body(config.body, pool, render, headers, checked=checked)
    names = _CREDENTIALS | {credential.lower()} if credential else _CREDENTIALS
    return _Plan(method, _url(config, render, checked=checked), headers, body, frozenset(names))


def _url(config: HttpRequestConfig, render: Render, *, checked: bool) -> str:
    url = render(config.url).strip()
    if checked and not url:
        raise _Refused("InvalidURLError", "the URL is empty")
    if checked and not url.lower().startswith(("http://", "https://")):
        raise _Refused("InvalidURLError", f"the URL has to start with http:// or https://, got {url}")
    params = _params(config.params, render)
    if not params:
        return url
    address, mark, fragment = url.partition("#")
    return f"{address}{'&' if '?' in address else '?'}{urlencode(params, safe='*')}{mark}{fragment}"


def _params(text: str, render: Render) -> list[tuple[str, str]]:
    found = []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        name = render(key.strip()) if key.strip() else ""
        if name:
            found.append((name, render(value.strip()) if value.strip() else ""))
    return found


def _headers(config: HttpRequestConfig, render: Render) -> tuple[dict[str, str], str | None]:
    """The headers (names as written, unique without regard to case), and the name of the one for authorisation."""
    headers: dict[str, str] = {}
    for line in config.headers.splitlines():
        if line.strip():
            key, _, value = render(line).partition(":")
            _set_header(headers, key.strip(), value.strip())
    credential = _authorization(config.authorization, render)
    if credential is not None:
        _set_header(headers, *credential)
    return headers, credential[0] if credential else None


def _set_header(headers: dict[str, str], name: str, value: str) -> None:
    if not _TOKEN.match(name):
        text = f"header {name!r}: not a header name; one line of `headers` is one `name: value`"
        raise _Refused("HttpRequestNodeError", text)
    if _UNSENDABLE.search(value):
        text = f"header {name}: the value contains a line break or control character, which no header can carry"
        raise _Refused("HttpRequestNodeError", text)
    if name.lower() in _OURS:
        return
    for existing in [existing for existing in headers if existing.lower() == name.lower()]:
        del headers[existing]
    headers[name] = value


def _authorization(authorization: Authorization, render: Render) -> tuple[str, str] | None:
    if authorization.type != "api-key":
        return None
    config = authorization.config
    key = render(config.api_key).strip() if config is not None else ""
    if config is None or not key:
        raise _Refused("AuthorizationConfigError", "authorization by API key: the key is missing or empty")
    name = config.header or "Authorization"
    if config.type == "bearer":
        return name, f"Bearer {key}"
    if config.type == "basic":
        return name, f"Basic {base64.b64encode(key.encode()).decode() if ':' in key else key}"
    return name, key


def _body(body: Body, pool: Pool, render: Render, headers: dict[str, str], *, checked: bool) -> _Content:
    match body.type:
        case "none":
            return _Content()
        case "raw-text":
            _default_type(headers, "text/plain")
            return _Content(text=render(_only(body).value))
        case "json":
            _default_type(headers, "application/json")
            return _Content(text=_json(render(_only(body).value), checked=checked))
        case "x-www-form-urlencoded":
            _default_type(headers, "application/x-www-form-urlencoded")
            fields = {render(item.key): render(item.value) for item in body.data}
            return _Content(text=urlencode(fields, safe="*"))
        case "form-data":
            for name in [name for name in headers if name.lower() == "content-type"]:
                del headers[name]  # it would lack the boundary
            return _Content(parts=tuple(part for item in body.data for part in _parts(item, pool, render)))
        case "binary":
            file = _file(_only(body), pool)
            _default_type(headers, str(file.get("mime_type") or "application/octet-stream"))
            return _Content(file=file)


def _only(body: Body) -> BodyItem:
    if len(body.data) != 1:
        raise _Refused("RequestBodyError", f"{body.type} body: expected exactly one item, got {len(body.data)}")
    return body.data[0]


def _default_type(headers: dict[str, str], value: str) -> None:
    if not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = value


def _json(text: str, *, checked: bool) -> str:
    try:
        return json.dumps(parse_leniently(text), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        if not checked:
            return text
        raise _Refused("RequestBodyError", f"Failed to parse JSON: {error}") from error


def _parts(item: BodyItem, pool: Pool, render: Render) -> list[_Part]:
    name = render(item.key)
    if item.type != "file":
        return [_Part(name, render(item.value))]
    segment = pool.get(item.file)
    value = segment.value if segment is not None else None
    candidates = value if isinstance(value, list) else [value]
    return [_Part(name, file=file) for file in candidates if isinstance(file, dict) and is_file(file)]


def _file(item: BodyItem, pool: Pool) -> File:
    segment = pool.get(item.file)
    value = segment.value if segment is not None else None
    if not isinstance(value, dict) or not is_file(value):
        where = ".".join(item.file) or "no variable"
        raise _Refused("FileFetchError", f"binary body: expected one file in {where}")
    return value


def _encoded(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    defaults = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate", "User-Agent": "flowledger"}
    names = {name.lower() for name in headers}
    chosen = {**{name: value for name, value in defaults.items() if name.lower() not in names}, **headers}
    return {name.encode(): value.encode("utf-8", "replace") for name, value in chosen.items()}


def _timeouts(timeout: Timeout | None) -> dict[str, float | None]:
    chosen: dict[str, float | None] = {"pool": None}
    for name, longest in MAX_TIMEOUT_S.items():
        wanted = getattr(timeout, name, None) or longest
        chosen[name] = min(float(wanted), longest)
    return chosen


# --- recording --------------------------------------------------------------------------------------------------------


def _dump(plan: _Plan) -> str:
    """The request as text, near to what goes over the wire."""
    lines = [f"{plan.method} {_address(plan)} HTTP/1.1"]
    for name, value in plan.headers.items():
        lines.append(f"{name}: {'*' * len(value) if name.lower() in plan.credentials else value}")
    return "\r\n".join([*lines, "", _dump_body(plan.body)])


def _address(plan: _Plan) -> str:
    return _USER_INFO.sub("//***@", plan.url)


def _dump_body(body: _Content) -> str:
    if body.file is not None:
        return _file_summary(body.file)
    if body.parts is not None:
        return "\r\n".join(
            f"{part.name}: {_file_summary(part.file) if part.file else part.text}" for part in body.parts
        )
    text = body.text or ""
    if len(text) <= _MAX_DUMP_CHARACTERS:
        return text
    return f"{text[:_MAX_DUMP_CHARACTERS]}... ({len(text) - _MAX_DUMP_CHARACTERS} more characters)"


def _file_summary(file: File) -> str:
    return (
        f"<file {file.get('filename') or ''}, {file.get('mime_type') or 'unknown type'}, {file.get('size', -1)} bytes>"
    )


def _transport_error(error: Exception) -> str:
    """What the client says; some of its time-outs say nothing."""
    if isinstance(error, httpx.TimeoutException) and not str(error):
        return f"no answer in time ({type(error).__name__})"
    return str(error) or type(error).__name__


# --- receiving --------------------------------------------------------------------------------------------------------


def _fails_on_status(node: Node) -> bool:
    return node.strategy is not None or node.retry is not None


def _check_size(size: int, limit: int, what: str, response: httpx.Response) -> None:
    declared = response.headers.get("content-length", "")
    expected = int(declared) if declared.isdigit() and "content-encoding" not in response.headers else 0
    if max(size, expected) > limit:
        raise _Refused("ResponseSizeError", f"{what} is larger than {limit / 1024 / 1024:g} MB, the most a node takes")


def _is_file_by_headers(headers: httpx.Headers) -> bool | None:
    """Whether the body is a file; None when only the body itself can tell."""
    disposition = headers.get("content-disposition", "").lower()
    if disposition.startswith("attachment") or "filename" in disposition:
        return True
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    group, _, subtype = media.partition("/")
    if group == "text":
        return "csv" in subtype
    if "openxmlformats" in subtype:
        return True  # office documents: archives, whatever their name says of XML
    if group == "application":
        return False if any(word in subtype for word in _TEXT_SUBTYPES) else None
    return group in ("image", "audio", "video")


def _looks_like_text(start: bytes | bytearray) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # incremental: the cut may split a character
    except UnicodeDecodeError:
        return False
    return any(mark in text for mark in _TEXT_MARKS)


def _as_text(content: bytes, response: httpx.Response) -> str:
    declared = _DECLARED_CHARSET.search(content[:1024])
    for charset in (response.charset_encoding, "utf-8-sig", declared[1].decode() if declared else None):
        try:
            if charset:
                return content.decode(charset)
        except (LookupError, ValueError):
            continue
    return content.decode("utf-8", "replace")


def _named(response: httpx.Response) -> tuple[str, str]:
    """Name and media type of a response that is a file.

    The name that the server gives says more of its type than a `Content-Type` that is often `octet-stream`. A name
    without an extension gets that of its type: by the extension nodes know images from documents.
    """
    head = Message()
    head["Content-Disposition"] = response.headers.get("content-disposition", "")
    given = head.get_filename() or ""
    declared = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    name = fit_name((given or response.url.path.rpartition("/")[2]).strip()) or "response"
    known = _MEDIA_TYPES.guess_type(name, strict=False)[0]
    media_type = (known if given else None) or declared or known or "application/octet-stream"
    if "." not in name.strip("."):
        name += EXTENSIONS.get(media_type) or _MEDIA_TYPES.guess_extension(media_type, strict=False) or ""
    return name, media_type
