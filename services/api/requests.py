"""Request bodies: read within a limit, decoded, and checked field by field with the contract's codes."""

import asyncio
import hashlib
import json
import math
import re
import uuid
from codecs import BOM_UTF8
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from services.api.errors import ApiError, bad_request, invalid_param
from services.api.frames import Json

MAX_KEY_LENGTH = 255

BODY_S = 300.0
"""How long a body may take to arrive: a client that sends a byte now and then must not hold a connection for ever."""

DROP_BYTES = 64 * 1024 * 1024
DROP_S = 2.0


async def read_body(request: Request, limit_bytes: int, what: str = "the body", *, within_s: float = BODY_S) -> bytes:
    """The body, called `what` in messages.

    Raises ApiError: 413 when it is too large, without keeping it; 408 when it has not come within `within_s`.
    """
    arriving = request.stream()
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        if "expect" not in request.headers:  # else the client waits to be asked for the body, and reads the answer
            await _drop(arriving)
        raise _too_large(limit_bytes, what)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(within_s):
            async for part in arriving:
                size += len(part)
                if size > limit_bytes:
                    break
                parts.append(part)
    except TimeoutError as error:
        message = f"{what} has not arrived within {within_s:g} s. Send it faster, or less of it"
        raise ApiError(408, "request_timeout", message, headers={"Connection": "close"}) from error
    if size > limit_bytes:
        parts.clear()
        await _drop(arriving)
        raise _too_large(limit_bytes, what)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _drop(arriving: AsyncIterator[bytes]) -> None:
    """Take in what is left of a body, within bounds, and forget it.

    A connection that is closed on bytes nobody read is reset, and the client never sees why it was refused.
    """
    dropped = 0
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DROP_S):
            async for part in arriving:
                dropped += len(part)
                if dropped > DROP_BYTES:
                    return


async def read_json(request: Request, limit_bytes: int, *, optional: bool = False, beacon: bool = False) -> Json:
    """The JSON object in the body. Raises ApiError 413, 415, 400. `optional`: no body counts as `{}`.

    `beacon`: a browser may have sent it when a page was left, and then calls it plain text.
    """
    body = await read_body(request, limit_bytes)
    if optional and not body:
        return {}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    if not is_json and not (beacon and kind == "text/plain"):
        raise ApiError(415, "unsupported_media_type", "Content-Type must be application/json")
    value = parsed(body)
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object")
    return value


def parsed(body: bytes) -> Any:
    """The JSON of a body. Raises ApiError 400."""
    try:
        value = from_json(body.removeprefix(BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {error}") from error
    if _MAYBE_INFINITE.search(body) and not _is_finite(value):
        raise bad_request("the body has a number that is too large: at most 1.7e308, up or down")
    return value


_MAYBE_INFINITE = re.compile(rb"[0-9][eE]\+?[0-9]{2}|[0-9]{200}")
"""Spares most bodies the look at every value: the parser makes infinity of what is too large for a float."""


def _is_finite(value: Any) -> bool:
    work = [value]
    while work:
        each = work.pop()
        if type(each) is float and not math.isfinite(each):
            return False
        if type(each) is dict:
            work.extend(each.values())
        elif type(each) is list:
            work.extend(each)
    return True


@dataclass(slots=True, frozen=True)
class RunRequest:
    """What all requests for a run have in common."""

    inputs: dict[str, JsonValue]
    files: tuple[JsonValue, ...]
    streaming: bool
    idempotency_key: str | None

    @classmethod
    def parse(cls, request: Request, body: Json) -> "RunRequest":
        """Raises ApiError 400."""
        return cls(_inputs(body), _files(body), response_mode(body) == "streaming", idempotency_key(request))


def response_mode(body: Json) -> Literal["blocking", "streaming"]:
    mode = body.get("response_mode")
    if mode is None or mode == "blocking":
        return "blocking"
    if mode == "streaming":
        return "streaming"
    raise invalid_param(f"response_mode: expected blocking or streaming, got {_shown(mode)}", "response_mode")


def whole_number(request: Request, name: str, default: int | None) -> int | None:
    """The query parameter `name`. Raises ApiError 400 when it is no whole number."""
    raw = request.query_params.get(name)
    if raw is None or raw == "":
        return default
    if not (raw.isascii() and raw.isdecimal() and len(raw) < 16):
        raise invalid_param(f"{name}: expected a whole number", name)
    return int(raw)


def idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key.strip()) <= MAX_KEY_LENGTH:
        raise invalid_param(f"Idempotency-Key: expected 1 to {MAX_KEY_LENGTH} characters, got {len(key.strip())}")
    return key.strip()


def body_digest(body: Json, *more: str) -> str:
    """What tells two requests with one idempotency key apart: everything but how the answer is delivered."""
    meant = {name: value for name, value in body.items() if name not in _DELIVERY}
    text = json.dumps([meant, *more], sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_DELIVERY = frozenset({"response_mode", "trace_id", "trace_session_id"})


def check_trace_session(request: Request, body: Json) -> None:
    """Raises ApiError 400 for a session id that the contract forbids; it is not kept."""
    given = request.headers.get("x-trace-session-id") or request.query_params.get("trace_session_id")
    value = given if given is not None else body.get("trace_session_id")
    if value is not None and not (isinstance(value, str) and 1 <= len(value.strip()) <= 200):
        raise bad_request("trace_session_id: expected 1 to 200 characters")


def is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def canonical_id(text: str) -> str:
    """An id as it is kept: of a UUID, upper case means the same. Anything else stays as it is."""
    return text.lower() if is_uuid(text) else text


_KEY = re.compile(r"app-[A-Za-z0-9_-]{8,120}")


def is_app_key(text: object) -> bool:
    """Whether it can be an app key: ours have 24 letters and digits behind the prefix, others' may differ."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def _inputs(body: Json) -> dict[str, JsonValue]:
    if "inputs" not in body:
        raise invalid_param("inputs is required (it may be {})", "inputs")
    inputs = body["inputs"]
    if not isinstance(inputs, dict):
        raise invalid_param(f"inputs: expected an object, got {_shown(inputs)}", "inputs")
    return inputs


def _files(body: Json) -> tuple[JsonValue, ...]:
    files = body.get("files")
    if files is None:
        return ()
    if not isinstance(files, list) or not all(isinstance(each, dict) for each in files):
        raise invalid_param("files: expected a list of objects", "files")
    return tuple(files)


def _shown(value: Any) -> str:
    """A short form of a value for a message; never a whole payload."""
    return f'"{value[:40]}"' if isinstance(value, str) else type(value).__name__


def _too_large(limit_bytes: int, what: str) -> ApiError:
    message = f"{what} is larger than {limit_bytes} bytes, the most that is taken. Make it smaller"
    return ApiError(413, "request_entity_too_large", message, headers={"Connection": "close"})
