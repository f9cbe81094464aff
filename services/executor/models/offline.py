"""A model that needs no network: the same question always gets the same answer. For trying things out and for tests."""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator
from typing import Final

from libs.workflow.stubs import from_schema
from services.executor.models.port import Delta, ModelRequest, Usage

_FEWEST_PIECES: Final = 8
_MOST_PIECES: Final = 20
_QUOTED_WORDS: Final = 40


class Offline:
    """Answers with a few words of the question, in pieces, so that progress can be seen."""

    def __init__(self, delay_s: float = 0.01) -> None:
        self._delay_s = delay_s

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta, None]:
        answer = answer_of(request)
        for piece in pieces_of(answer):
            await asyncio.sleep(self._delay_s)
            yield Delta(text=piece) if request.function is None else Delta(arguments=piece)
        asked = sum(len(message.text.split()) for message in request.messages)
        answered = len(answer.split())
        yield Delta(finish_reason="stop", usage=Usage(asked, answered, asked + answered))


def answer_of(request: ModelRequest) -> str:
    """The whole answer, or the arguments of the function: a pure function of the request without its key."""
    expected = request.function.parameters if request.function is not None else request.schema or request.shape
    if expected is not None:
        return json.dumps(from_schema(dict(expected)), ensure_ascii=False)
    told = json.dumps(
        [request.model, [[m.role, m.text, *(each.url for each in m.media)] for m in request.messages]],
        ensure_ascii=False,
    )
    mark = hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[:8]
    question = next((m.text for m in reversed(request.messages) if m.role == "user" and m.text.strip()), "")
    words = question.split() or ["nothing"]
    more = " ..." if len(words) > _QUOTED_WORDS else ""
    quoted = " ".join(words[:_QUOTED_WORDS]) + more
    return (
        f"This is the offline stand-in for {request.model or 'a model'}, not a real answer. "
        f"You asked: {quoted} (answer {mark})"
    )


def pieces_of(text: str) -> list[str]:
    """The text in 8 to 20 pieces, at least one character each; the number depends on the length only."""
    count = max(_FEWEST_PIECES, min(_MOST_PIECES, len(text) // 12))
    size = max(1, -(-len(text) // count))
    return [text[start : start + size] for start in range(0, len(text), size)]
