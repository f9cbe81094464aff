"""A small real HTTP server that speaks the OpenAI-compatible form. What it does is chosen by the model's name:

    echo             answers "echo: " and the last user message, in pieces (so does every name not listed)
    json             has a JSON object as its answer: {"answer": 42}
    choose-<id>      has a category as its answer, as question classifiers ask for
    call             calls the function that it is given, with {"city": "Rome", "count": 2}; without one as `json`
    thinking         <think> block in the text, then "done"; `reasoning` sends it in a field of its own
    drawing          answers with a picture between two words; `drawing-blocking` without streaming, `drawing-beside`
                     with the picture beside the text, `drawing-url` with the address of a picture of this server,
                     `drawing-lost` with one that is not there, `drawing-file` with a document that has a name
    speaking         answers with a sound, in pieces, and its words beside it
    blocking         never streams: one JSON answer
    no-usage         streams without usage
    odd-stream       comments, keep-alives, CRLF, an event in two data lines, bytes cut one by one
    broken           closes the connection in the middle of the stream
    unfinished       ends the stream in order, but before the answer is complete
    garbage          streams something that is not JSON
    stream-error     reports an error inside the stream
    slow-<seconds>   says nothing for so long, then answers as echo
    status-<code>    refuses with that status, quoting the key it was sent
    quoting-<n>      refuses with 401, quoting the key behind n characters
    refuse-<option>  status 400 naming the option, as long as a request has it
    newer-bound      status 400 that asks for `max_completion_tokens`, as long as a request has `max_tokens`
    text-only        status 400 when a message has parts
    busy-<n>         status 429 with `Retry-After: 0` for the first n requests, then answers as echo; `busy-later` says
                     to come back in an hour
    no-stream        status 400 for a request that streams, as OpenAI refuses it to some accounts
    no-system        status 400 as long as there is a system message
    kimi             streams its usage inside the choice
    no-schema        status 400 naming response_format when it is a JSON schema
    empty            answers without choices; `empty-blocking` without streaming
    mislabelled      does not stream, and calls its JSON text/plain
    refusing         refuses in the field of its own
    cut-off          stops at the bound of its length
    calling          calls a function that nobody offered
    limited          reports a rate limit inside the stream
    gateway          status 502 with what stands behind in `metadata.raw`
    flaky-<n>        status 500 for the first n requests, then answers as echo

`POST /v1/embeddings` answers with vectors of letters; `status-`, `slow-`, `quoting-`, `flaky-` as above, and

    few-<n>          status 400 for more than n texts at once
    dying-<n>        status 503 behind the first n requests
    lacking          a vector less than there were texts

`GET /requests` lists what came in, `GET /cat.png` is a picture. Run it: `python -m tests.model_server --port 0`; in a
test, `async with ModelServer()` inside the test's loop, or `with serving()` in a thread of its own.
"""

import argparse
import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

PICTURE = b"\x89PNG\r\n\x1a\n a picture"
SOUND = bytes(range(8))
"""Four samples of 16 bits."""


class ModelServer:
    """Serves inside the running loop. `requests`: every call as `{path, headers, body}`."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        self.arrived = asyncio.Event()
        """The first call came in."""
        self.hung_up = asyncio.Event()
        """A client closed its connection while an answer was under way."""
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "ModelServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
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
        task.add_done_callback(self._tasks.discard)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            pass  # the server is closing
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False to close the connection."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET" and path.endswith("/cat.png"):
            await _send_bytes(writer, 200, PICTURE, "image/png")
            return True
        if method == "GET":
            await _send(writer, 404 if path == "/lost.png" else 200, self.requests)
            return True
        request = json.loads(body)
        self.requests.append({"path": path, "headers": headers, "body": request})
        self.arrived.set()
        answering = asyncio.create_task(self._answer(writer, path, headers, request))
        gone = asyncio.create_task(reader.read(1))  # a client does not speak again before it has its answer
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.hung_up.set()
                return False
            return answering.result()
        finally:
            for each in (answering, gone):
                each.cancel()
            await asyncio.gather(answering, gone, return_exceptions=True)

    async def _answer(
        self, writer: asyncio.StreamWriter, path: str, headers: dict[str, str], request: dict[str, Any]
    ) -> bool:
        model, _, argument = str(request["model"]).partition("-")
        if model == "status":
            said = f"refused with {argument}; you sent {headers.get('authorization', 'no key')}"
            await _send(writer, int(argument), {"error": {"message": said, "type": "test"}})
            return True
        if model == "quoting":
            said = "x" * int(argument) + headers.get("authorization", "no key")
            await _send(writer, 401, {"error": {"message": said}})
            return True
        if model == "refuse" and argument in request:
            await _send(writer, 400, {"error": {"message": f"Unrecognized request argument: {argument}"}})
            return True
        if model == "newer" and "max_tokens" in request:
            said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
            await _send(writer, 400, {"error": {"message": said}})
            return True
        if model == "text" and any(isinstance(each["content"], list) for each in request["messages"]):
            said = "messages[0]: unknown variant `input_audio`, expected `text`"
            await _send(writer, 400, {"error": {"message": said}})
            return True
        if model == "busy" and (argument == "later" or len(self.requests) <= int(argument)):
            wait = "3600" if argument == "later" else "0"
            await _send(writer, 429, {"error": {"message": "too many"}}, **{"Retry-After": wait})
            return True
        if request["model"] == "no-stream" and request.get("stream"):
            said = "Your organization must be verified to do that with this model."
            await _send(writer, 400, {"error": {"message": said, "param": "stream", "code": "unsupported_value"}})
            return True
        if request["model"] == "no-system" and any(each["role"] == "system" for each in request["messages"]):
            said = "Unsupported value: 'messages[0].role' does not support 'system' with this model."
            await _send(writer, 400, {"error": {"message": said}})
            return True
        if request["model"] == "no-schema" and request.get("response_format", {}).get("type") == "json_schema":
            await _send(writer, 400, {"error": {"message": "This response_format type is unavailable now"}})
            return True
        if model == "gateway":
            behind = {"raw": "model is warming up", "provider_name": "x"}
            await _send(writer, 502, {"error": {"message": "Provider returned error", "metadata": behind}})
            return True
        if model == "mislabelled":
            await _send_bytes(writer, 200, json.dumps(_whole(path, request)).encode(), "text/plain")
            return True
        if request["model"] == "empty-blocking":
            await _send(writer, 200, {"id": "1", "choices": []})
            return True
        if model == "flaky" and len(self.requests) <= int(argument):
            await _send(writer, 500, {"message": "not yet"})
            return True
        if model == "slow":
            await asyncio.sleep(float(argument))
        if path.endswith("/embeddings"):
            return await _embeddings(writer, request, len(self.requests))
        if model in ("drawing", "speaking"):
            request = {**request, "server": f"http://{headers['host']}"}
        if not request.get("stream") or model == "blocking" or request["model"] == "drawing-blocking":
            await _send(writer, 200, _whole(path, request))
            return True
        return await _stream(writer, path, request)


async def _embeddings(writer: asyncio.StreamWriter, request: dict[str, Any], number: int) -> bool:
    """A text is how often each letter is in it; the vectors come in the opposite order. `number`: of the request."""
    texts, (model, _, argument) = request["input"], request["model"].partition("-")
    if model == "few" and len(texts) > int(argument):
        await _send(writer, 400, {"error": {"message": f"batch size is larger than {argument}"}})
        return True
    if model == "dying" and number > int(argument):
        await _send(writer, 503, {"error": {"message": "gone"}})
        return True
    vectors = [[float(text.lower().count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    await _send(writer, 200, {"data": data[1:] if model == "lacking" else data[::-1], "model": request["model"]})
    return True


async def _stream(writer: asyncio.StreamWriter, path: str, request: dict[str, Any]) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    name = str(request["model"])
    async for piece in _frames(name, path, request):
        writer.write(piece)
        await writer.drain()
        if name == "odd-stream":
            await asyncio.sleep(0)
    if name == "broken":
        writer.transport.abort()
    return False


async def _frames(name: str, path: str, request: dict[str, Any]) -> AsyncIterator[bytes]:
    deltas = _deltas(name, path, request)
    if name == "odd-stream":
        for byte in b": keep-alive\r\n\r\nretry: 1\r\n\r\n" + b"".join(
            b"event: chunk\r\nid: 1\r\ndata: " + _cut(delta) + b"\r\n\r\n: ping\r\n\r\n" for delta in deltas
        ):
            yield bytes((byte,))
        yield b"data: [DONE]"  # without its blank line
        return
    for number, delta in enumerate(deltas):
        if number == 2 and name in ("broken", "unfinished"):
            return
        if number == 1 and name == "garbage":
            yield b"data: <html>\n\n"
        if number == 1 and name == "limited":
            yield _event({"error": {"message": "slow down", "code": 429}})
        if number == 1 and name == "stream-error":
            yield _event({"error": {"message": "the model fell over", "code": 500}})
        yield _event(delta)
    yield b"data: [DONE]\n\n"


def _cut(delta: dict[str, Any]) -> bytes:
    """The JSON in two data lines: a line break between two members means nothing to JSON."""
    return json.dumps(delta, ensure_ascii=False).encode().replace(b', "choices"', b',\r\ndata: "choices"')


def _deltas(name: str, path: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    pieces: list[dict[str, Any]] = [{"content": piece} for piece in _pieces(answer_of(request))]
    if name == "call" and request.get("tools"):
        function = request["tools"][0]["function"]["name"]
        pieces = [{"tool_calls": [{"index": 0, "id": "c", "function": {"name": function, "arguments": ""}}]}]
        for piece in _pieces('{"city": "Rome", "count": 2}'):
            pieces.append({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    if name.startswith("drawing"):
        pieces = _drawing(name, request["server"])
    if name == "speaking":
        pieces = [
            {"audio": {"id": "a", "transcript": words, "data": base64.b64encode(SOUND[at : at + 4]).decode()}}
            for words, at in (("good ", 0), ("day", 4))
        ]
    if name == "reasoning":
        pieces = [{"reasoning_content": "let me "}, {"reasoning_content": "see"}, {"content": "done"}]
    if name == "refusing":
        pieces = [{"content": None, "refusal": piece} for piece in ("I will ", "not")]
    if name == "calling":
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        pieces = [{"content": "wait"}, {"content": None, "tool_calls": [call]}, {"tool_calls": None}]
    if name == "empty":
        return [{"id": "1", "choices": [], "usage": usage_of(request)}]
    reason = {"cut-off": "length", "calling": "tool_calls"}.get(name, "stop")
    made: list[dict[str, Any]] = [{"id": "1", "choices": [_choice(path, piece)]} for piece in pieces]
    made.append({"id": "1", "choices": [{**_choice(path, {}), "finish_reason": reason}]})
    if name == "kimi":
        made[-1]["choices"][0]["usage"] = usage_of(request)
    elif request.get("stream_options", {}).get("include_usage") and name != "no-usage":
        made.append({"id": "1", "choices": [], "usage": usage_of(request)})
    return made


def _drawing(name: str, server: str) -> list[dict[str, Any]]:
    url = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
    if name in ("drawing-url", "drawing-lost"):
        url = f"{server}/{'cat' if name == 'drawing-url' else 'lost'}.png"
    picture = {"type": "image_url", "image_url": {"url": url}}
    if name == "drawing-file":
        named = {"filename": "../plan\n.pdf", "file_data": "data:application/pdf;base64,MTIz"}
        return [{"content": [{"type": "file", "file": named}]}]
    if name == "drawing-beside":
        return [{"content": "a "}, {"content": "", "images": [picture]}, {"content": " b"}]
    return [{"content": [{"type": "text", "text": "a "}, picture]}, {"content": " b"}]


def _choice(path: str, piece: dict[str, Any]) -> dict[str, Any]:
    if path.endswith("/chat/completions"):
        return {"index": 0, "delta": piece, "finish_reason": None}
    return {"index": 0, "text": piece.get("content", ""), "finish_reason": None}


def _whole(path: str, request: dict[str, Any]) -> dict[str, Any]:
    answer = answer_of(request)
    chat = path.endswith("/chat/completions")
    said: dict[str, Any] = {"message": {"role": "assistant", "content": answer}} if chat else {"text": answer}
    if request["model"] == "drawing-blocking":
        first, last = _drawing("drawing", "")
        said["message"]["content"] = [*first["content"], {"type": "text", "text": last["content"]}]
    return {"id": "1", "choices": [{"index": 0, "finish_reason": "stop", **said}], "usage": usage_of(request)}


def answer_of(request: dict[str, Any]) -> str:
    name, _, argument = str(request["model"]).partition("-")
    if name == "choose":
        return json.dumps({"category_id": argument, "category_name": "?"})
    if name == "refuse" and argument == "tools":
        return '{"city": "Oslo", "count": 3}'
    if request["model"] in ("json", "call", "no-schema"):
        return '{"answer": 42}'
    if request["model"] == "cut-off":
        return '{"answer": '
    if request["model"] == "thinking":
        return "<think>let me see</think>\n\ndone"
    if "prompt" in request:
        return f"echo: {request['prompt']}"
    content = next((each["content"] for each in reversed(request["messages"]) if each["role"] == "user"), "")
    return f"echo: {content if isinstance(content, str) else json.dumps(content)}"


def usage_of(request: dict[str, Any]) -> dict[str, int]:
    asked, answered = len(json.dumps(request.get("messages", request.get("prompt")))), len(answer_of(request))
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def _pieces(answer: str) -> list[str]:
    return [answer[start : start + 3] for start in range(0, len(answer), 3)]


def _event(data: object) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


async def _send(writer: asyncio.StreamWriter, status: int, body: object, **headers: str) -> None:
    await _send_bytes(writer, status, json.dumps(body, ensure_ascii=False).encode(), "application/json", **headers)


async def _send_bytes(writer: asyncio.StreamWriter, status: int, data: bytes, kind: str, **headers: str) -> None:
    lines = {"Content-Type": kind, "Content-Length": str(len(data)), **headers}
    head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    writer.write(head.encode() + data)
    await writer.drain()


@contextmanager
def serving() -> Iterator[ModelServer]:
    """The server in a thread of its own, for tests without a loop."""
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    server = ModelServer()

    async def serve() -> None:
        async with server:
            ready.set()
            await stop.wait()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run, name="model-server")
    thread.start()
    try:
        if not ready.wait(10):
            raise RuntimeError("the model server did not start within 10 s")
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


async def _main(port: int) -> None:
    async with ModelServer(port) as server:
        print(f"model server ready on {server.url}", flush=True)  # noqa: T201  # the ready line is data
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A small OpenAI-compatible server for tests.")
    parser.add_argument("--port", type=int, default=0)
    try:
        asyncio.run(_main(parser.parse_args().port))
    except KeyboardInterrupt:
        pass
