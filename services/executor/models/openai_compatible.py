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
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Final

import httpx

from libs.providers import USUAL_PARTS, Auth, endpoint, key_header
from services.executor.models.answers import AnswerReader, AnswerUnusable
from services.executor.models.payload import leave_out, payload_of, sound_asked_for
from services.executor.models.port import Delta, ModelError, ModelRequest
from services.executor.models.refusals import kind_of, kind_said, message_of, wait_of
from services.executor.models.sse import EventReader, StreamTooLong

# Between two bytes, not in all: a model may think for minutes before its first word.
SILENCE_S: Final = 600.0

_MAX_WHOLE_BYTES: Final = 64 * 1024 * 1024
"""An answer may hold pictures."""
_MAX_ERROR_BYTES: Final = 64 * 1024
_MAX_ERROR_CHARS: Final = 520
"""Of what a server says."""
_MOST_WAITS: Final = 2


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
        self._chat = endpoint(base_url, path, "/chat/completions")
        self._completion = endpoint(base_url, path, "/completions")
        self._key = (api_key or "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise ModelError("InvokeAuthorizationError", f"{name}: the API key has characters that no key has")

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta, None]:
        url = self._chat if request.mode == "chat" else self._completion
        payload = payload_of(request, self._parts) | {"model": self._models.get(request.model, request.model)}
        waits = 0
        while True:
            wait_s: float | None = None
            body = await _encoded(payload, request)
            try:
                async with self._client.stream(
                    "POST", url, content=body, headers=self._headers(request), timeout=self._timeout
                ) as response:
                    if response.is_success:
                        reader = AnswerReader(sound_asked_for(payload))
                        async with aclosing(self._deltas(response, reader)) as deltas:
                            async for delta in deltas:
                                yield delta
                        return
                    refusal = await self._refusal(response)
                    wait_s = wait_of(response) if refusal.retryable and waits < _MOST_WAITS else None
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
            if refusal.error_type != "InvokeBadRequestError" or not leave_out(payload, request, str(refusal)):
                raise self._about_files(refusal, request)

    def _headers(self, request: ModelRequest) -> dict[str, str]:
        headers = {"Accept": "text/event-stream, application/json", "Content-Type": "application/json"}
        if self._key:
            name, value = key_header(self._key, self._auth)
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
            kind, retryable = kind_said(said["error"])
            raise self._error(kind, message_of(said) or "it reported an error", retryable=retryable)
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
            said = message_of(json.loads(body))
        except ValueError:
            said = ""
        if not said and not response.headers.get("content-type", "").startswith("text/html"):
            said = bytes(body).decode("utf-8", "replace").strip()
        kind, retryable = kind_of(status)
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
        # Before it is cut: half a key is much of a key.
        clean = message.replace(self._key, "***") if self._key else message
        return ModelError(kind, f"{self._name}: {clean[:_MAX_ERROR_CHARS]}", retryable=retryable)


async def _encoded(payload: dict[str, Any], request: ModelRequest) -> bytes:
    """The body; with files in it, which may be tens of megabytes, in a thread: the loop does not wait for it."""

    def encode() -> bytes:
        return json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(
            "utf-8", "replace"
        )

    if any(message.media for message in request.messages):
        return await asyncio.to_thread(encode)
    return encode()


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
