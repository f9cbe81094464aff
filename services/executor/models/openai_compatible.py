"""Models behind the OpenAI-compatible HTTP form: `/chat/completions` and `/completions`, streamed.

Servers differ in what they understand, so an option that one names in its refusal, or a parameter of the document that
it says it does not know, is left out and the call is made again: a refused call has done nothing. Only the bound of an
answer's length is never left out, because somebody pays for it. A server that says when to come back is asked again
then. One that does not stream is read whole. A stream that ends before the model said why it stopped is an error,
never a short answer.

The key goes into one header and nowhere else: every text of an error is cleaned of it.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx

from services.executor.models.answers import AnswerReader, AnswerUnusable
from services.executor.models.known import USUAL_PARTS, Auth
from services.executor.models.parts import content_of
from services.executor.models.port import Delta, ModelError, ModelRequest
from services.executor.models.sse import EventReader, StreamTooLong

# Between two bytes, not in all: a model may think for minutes before its first word.
SILENCE_S: Final = 600.0

_MAX_WHOLE_BYTES: Final = 64 * 1024 * 1024
"""An answer may hold pictures."""
_MAX_ERROR_BYTES: Final = 64 * 1024
_MOST_WAITS: Final = 2
_LONGEST_WAIT_S: Final = 60.0
"""For a server that says when to come back; longer waits are for the node's own retries."""
_FORM: Final = "response_format"
_OPTIONAL: Final = ("stream_options", _FORM, "tool_choice", "tools")
_UNKNOWN: Final = re.compile(
    r"unsupported|unrecogni[sz]ed|unknown|unexpected|not support(ed)?\b|not permitted", re.IGNORECASE
)
"""How servers say that they do not know a parameter; one whose value is wrong is the author's mistake."""
_NO_STREAM: Final = re.compile(r"['\"`(]stream['\"`)]")
_NO_SYSTEM: Final = re.compile(r"\brole\b.*\bsystem\b|\bsystem (role|message|prompt)", re.IGNORECASE)
_BOUND: Final = "max_tokens"
_NEWER_BOUND: Final = "max_completion_tokens"
_OTHER_BOUNDS: Final = ("max_output_tokens", "max_tokens_to_sample", "num_predict")
"""Names of Gemini, Claude and Ollama, which their own servers do not know in this form, or ignore."""
_OURS: Final = frozenset({"model", "messages", "prompt", "stream", "stream_options"})


class OpenAICompatible:
    """One provider. The client is shared with other providers and belongs to whoever made it."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        name: str,
        base_url: str,
        api_key: str | None = None,
        *,
        auth: Auth = "bearer",
        path: str = "",
        models: Mapping[str, str] | None = None,
        parts: Mapping[str, str] = USUAL_PARTS,
        silence_s: float = SILENCE_S,
    ) -> None:
        """`name`: how error texts call it, e.g. `openai`. `path`: what a base URL without a path gets.

        `models`: the server's own names of models that documents call otherwise. `parts`: type of a file -> the part
        of a message that it goes into. `silence_s`: how long to wait for the next byte.
        """
        self._client = client
        self._name = name
        self._auth = auth
        self._models = models or {}
        self._parts = parts
        self._timeout = httpx.Timeout(connect=10, read=silence_s, write=60, pool=None)
        address, mark, query = base_url.strip().partition("?")
        address = re.sub(r"/(chat/)?completions/*\Z", "", address).rstrip("/")
        self._base_url = address + path if re.fullmatch(r"[a-z]+://[^/]*", address) else address
        self._query = mark + query
        self._key = (api_key or "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise ModelError("InvokeAuthorizationError", f"{name}: the API key has characters that no key has")

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta, None]:
        path = "/chat/completions" if request.mode == "chat" else "/completions"
        url = self._base_url + path + self._query
        payload = _payload(request, self._parts) | {"model": self._models.get(request.model, request.model)}
        waits = 0
        while True:
            wait_s: float | None = None
            try:
                async with self._client.stream(
                    "POST", url, json=payload, headers=self._headers(request), timeout=self._timeout
                ) as response:
                    if response.is_success:
                        reader = AnswerReader(_sound_asked_for(payload))
                        async with aclosing(self._deltas(response, reader)) as deltas:
                            async for delta in deltas:
                                yield delta
                        return
                    refusal = await self._refusal(response)
                    wait_s = _wait_s(response) if refusal.retryable and waits < _MOST_WAITS else None
            except httpx.TimeoutException as error:
                raise self._error(
                    "InvokeConnectionError", f"no answer in time ({type(error).__name__})", retryable=True
                ) from None
            except httpx.HTTPError as error:
                raise self._error("InvokeConnectionError", str(error) or type(error).__name__, retryable=True) from None
            except (httpx.InvalidURL, UnicodeError):
                raise self._error("InvokeBadRequestError", "its base URL cannot be used") from None
            # Outside of the response: its connection is free again.
            if wait_s is not None:
                waits += 1
                await asyncio.sleep(wait_s)
                continue
            if refusal.error_type != "InvokeBadRequestError" or not _without_refused(payload, request, str(refusal)):
                raise self._about_files(refusal, request)

    def _headers(self, request: ModelRequest) -> dict[str, str]:
        headers = {"Accept": "text/event-stream, application/json"}
        if self._key:
            name, value = ("Authorization", f"Bearer {self._key}") if self._auth == "bearer" else ("api-key", self._key)
            headers[name] = value
        if request.key.isascii() and request.key:
            headers["Idempotency-Key"] = request.key
        return headers

    async def _deltas(self, response: httpx.Response, reader: AnswerReader) -> AsyncGenerator[Delta, None]:
        pieces = response.aiter_bytes()
        start = await _start(pieces)
        # Some that do not stream say nothing of it in the type.
        if "json" in response.headers.get("content-type", "") or start.lstrip().startswith(b"{"):
            for delta in self._read(await self._whole(start, pieces), reader):
                yield delta
            self._check_answered(reader)
            for delta in reader.finish():
                yield delta
            return
        done = False
        async for data in _events(start, pieces):
            done = data.strip() == "[DONE]"
            if done:
                break
            for delta in self._read(data, reader):
                yield delta
        if not done and not reader.finished:
            raise self._error("InvokeConnectionError", "the stream ended before the answer did", retryable=True)
        self._check_answered(reader)
        for delta in reader.finish():
            yield delta

    async def _whole(self, start: bytes, pieces: AsyncIterator[bytes]) -> str:
        body = bytearray(start)
        async for piece in pieces:
            body += piece
            if len(body) > _MAX_WHOLE_BYTES:
                raise self._error("InvokeError", f"the answer is larger than {_MAX_WHOLE_BYTES} bytes")
        return body.decode("utf-8", "replace")

    def _read(self, data: str, reader: AnswerReader) -> Iterator[Delta]:
        """What one event of a stream, or a whole answer, says."""
        try:
            said = json.loads(data)
        except ValueError:
            raise self._error(
                "InvokeServerUnavailableError", "it sent something that is not JSON", retryable=True
            ) from None
        if not isinstance(said, dict):
            return
        if said.get("error"):
            kind, retryable = _kind_said(said["error"])
            raise self._error(kind, _message_of(said) or "it reported an error", retryable=retryable)
        try:
            yield from reader.read(said)
        except AnswerUnusable as error:
            raise self._error("InvokeError", str(error)) from None

    def _check_answered(self, reader: AnswerReader) -> None:
        if not reader.answered:
            raise self._error("InvokeServerUnavailableError", "it sent no answer: no choices", retryable=True)

    async def _refusal(self, response: httpx.Response) -> ModelError:
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > _MAX_ERROR_BYTES:
                break
        status = response.status_code
        try:
            said = _message_of(json.loads(body))
        except ValueError:
            said = ""
        if not said and not response.headers.get("content-type", "").startswith("text/html"):
            said = bytes(body).decode("utf-8", "replace").strip()[:500]
        kind, retryable = _kind_of(status)
        if response.is_redirect:
            said = "it answers with a redirect, which is not followed because of the key; set the base URL it points to"
        return self._error(kind, f"status {status}{': ' if said else ''}{said}", retryable=retryable)

    def _about_files(self, refusal: ModelError, request: ModelRequest) -> ModelError:
        """The refusal, and what can be done if it was for the files in the prompt."""
        kinds = sorted({each.kind for message in request.messages for each in message.media})
        if refusal.error_type != "InvokeBadRequestError" or not kinds:
            return refusal
        advice = (
            f"the prompt has files ({', '.join(kinds)}): where a model takes none of a type, say so in "
            "FLOWLEDGER_PROVIDER_<NAME>_FILES, and they are left out"
        )
        return ModelError(refusal.error_type, f"{refusal}; {advice}")

    def _error(self, kind: str, message: str, *, retryable: bool = False) -> ModelError:
        clean = message.replace(self._key, "***") if self._key else message
        return ModelError(kind, f"{self._name}: {clean}", retryable=retryable)


def _payload(request: ModelRequest, parts: Mapping[str, str]) -> dict[str, Any]:
    payload: dict[str, Any] = {
        name: value for name, value in request.parameters.items() if value is not None and name not in _OURS
    }
    _translate_form(payload)
    _translate_bound(payload)
    if request.schema is not None and request.mode == "chat":
        named = {"name": "structured_output", "schema": dict(request.schema)}
        payload["response_format"] = {"type": "json_schema", "json_schema": named}
    if request.function is not None and request.mode == "chat":
        function = request.function
        described = {"name": function.name, "description": function.description}
        payload["tools"] = [{"type": "function", "function": {**described, "parameters": dict(function.parameters)}}]
        payload["tool_choice"] = {"type": "function", "function": {"name": function.name}}
    payload |= {"model": request.model, "stream": True, "stream_options": {"include_usage": True}}
    if request.mode == "chat":
        payload["messages"] = [{"role": each.role, "content": content_of(each, parts)} for each in request.messages]
    else:
        payload["prompt"] = "\n".join(message.text for message in request.messages)
    return payload


def _translate_form(payload: dict[str, Any]) -> None:
    """`response_format` as documents hold it, the bare type and the schema beside it, as servers take it."""
    form, schema = payload.get(_FORM), payload.pop("json_schema", None)
    if not isinstance(form, str):
        return
    del payload[_FORM]
    kind = "json_object" if form.lower() == "json" else form
    if kind == "json_schema":
        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
        except ValueError:
            schema = None
        if not isinstance(schema, dict):
            text = (
                "`json_schema` among the parameters has to be a JSON object, because `response_format` is json_schema"
            )
            raise ModelError("InvokeBadRequestError", text)
        named = schema if isinstance(schema.get("schema"), dict) else {"schema": schema}
        payload[_FORM] = {"type": kind, kind: {"name": "answer"} | named}
    elif kind in ("json_object", "text"):
        payload[_FORM] = {"type": kind}


def _translate_bound(payload: dict[str, Any]) -> None:
    """The bound of an answer's length under the one name that servers of this form know."""
    for name in _OTHER_BOUNDS:
        bound = payload.pop(name, None)
        if isinstance(bound, int) and bound > 0:
            payload.setdefault(_BOUND, bound)


def _without_refused(payload: dict[str, Any], request: ModelRequest, said: str) -> bool:
    """Leave out of the payload what a refusal says is not understood; False when it names nothing of that kind."""
    form = payload.get(_FORM)
    if isinstance(form, dict) and form.get("type") == "json_schema" and re.search(rf"{_FORM}|json_schema", said):
        # More servers know JSON than schemas; the prompt has the schema in words.
        payload[_FORM] = {"type": "json_object"}
        return True
    option = next((name for name in _OPTIONAL if name in payload and name in said), None)
    if option is not None:
        del payload[option]
        if option == "tools":
            payload.pop("tool_choice", None)
        return True
    if payload["stream"] and _NO_STREAM.search(said):
        payload["stream"] = False
        payload.pop("stream_options", None)
        return True
    if not _UNKNOWN.search(said):
        return False
    if _NO_SYSTEM.search(said) and any(each["role"] == "system" for each in payload.get("messages", ())):
        payload["messages"] = [
            each | ({"role": "user"} if each["role"] == "system" else {}) for each in payload["messages"]
        ]
        return True
    if _BOUND in payload and _NEWER_BOUND in said:
        payload[_NEWER_BOUND] = payload.pop(_BOUND)
        return True
    for name in request.parameters:
        # A name that is a common word ("stop") counts only in quotes.
        quoted = rf"['\"`]{re.escape(name)}['\"`]"
        named = rf"{quoted}|\b{re.escape(name)}\b" if "_" in name else quoted
        if name in payload and name not in (_BOUND, _NEWER_BOUND) and re.search(named, said):
            del payload[name]
            return True
    return False


async def _start(pieces: AsyncIterator[bytes]) -> bytes:
    """What comes first, up to something other than white space."""
    start = b""
    async for piece in pieces:
        start += piece
        if start.strip() or len(start) > _MAX_ERROR_BYTES:
            break
    return start


async def _events(start: bytes, pieces: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    reader = EventReader()
    try:
        for data in reader.feed(start):
            yield data
        async for piece in pieces:
            for data in reader.feed(piece):
                yield data
        for data in reader.finish():
            yield data
    except StreamTooLong as error:
        raise httpx.RemoteProtocolError(str(error)) from error


def _wait_s(response: httpx.Response) -> float | None:
    """When the server says to come back, if that is soon; None: it does not, or later."""
    said = response.headers.get("retry-after", "").strip()
    in_ms = response.headers.get("retry-after-ms", "").strip()
    try:
        if in_ms:
            wait_s = float(in_ms) / 1000
        elif said[:1].isdigit():
            wait_s = float(said)
        else:
            wait_s = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None
    return max(wait_s, 0.0) if wait_s <= _LONGEST_WAIT_S else None


def _sound_asked_for(payload: Mapping[str, Any]) -> str:
    """The format of the sound that a request asks for."""
    audio = payload.get("audio")
    return str(audio.get("format") or "") if isinstance(audio, Mapping) else ""


def _message_of(said: Any) -> str:
    """The sentence of an error body, in the forms that servers use."""
    if not isinstance(said, Mapping):
        return ""
    error = said.get("error")
    behind = error.get("metadata") if isinstance(error, Mapping) else None
    if isinstance(error, Mapping) and isinstance(behind, Mapping) and isinstance(behind.get("raw"), str):
        return f"{error.get('message') or 'error'}: {behind['raw']}"[:500]  # a gateway's word says nothing
    named = error.get("param") if isinstance(error, Mapping) else None
    for candidate in (
        error.get("message") if isinstance(error, Mapping) else error,
        said.get("message"),
        said.get("detail"),
    ):
        if candidate:
            text = (candidate if isinstance(candidate, str) else json.dumps(candidate, ensure_ascii=False))[:500]
            return f"{text} ({named})" if isinstance(named, str) and named not in text else text
    return ""


def _kind_said(error: Any) -> tuple[str, bool]:
    """As `_kind_of`, of an error that comes in an answer; its code is a status, a word, or missing."""
    code = error.get("code") if isinstance(error, Mapping) else None
    if isinstance(code, str) and "rate_limit" in code:
        return _kind_of(429)
    status = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()) else 500
    return _kind_of(status if 400 <= status < 600 else 500)


def _kind_of(status: int) -> tuple[str, bool]:
    """The contract's class of a status, and whether to try again."""
    if status in (401, 403):
        return "InvokeAuthorizationError", False
    if status == 429:
        return "InvokeRateLimitError", True
    if status == 408 or status >= 500:
        return "InvokeServerUnavailableError", True
    return "InvokeBadRequestError", False
