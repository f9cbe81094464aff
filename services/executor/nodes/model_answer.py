"""An answer of a model as nodes collect it: text, reasoning, arguments of a function, usage, times."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from pydantic import JsonValue

from libs.workflow.outcome import Values
from libs.workflow.segments import Segment, as_markdown
from services.executor.models import Delta, Message, ReasoningSplitter, Usage
from services.executor.nodes.masking import Masking
from services.executor.nodes.prompt_files import PromptFiles

CURRENCY: Final = "USD"


class ModelAnswer:
    """Collects an answer: text and reasoning apart (`separated`), or reasoning as a `<think>` block of the text."""

    def __init__(self, *, separated: bool) -> None:
        self._splitter = ReasoningSplitter() if separated else None
        self._parts: dict[str, list[str]] = {"text": [], "reasoning_content": []}
        self._arguments: list[str] = []
        self._files: list[JsonValue] = []
        self._thinking = False
        """Tagged: a block was opened for reasoning that the provider keeps apart."""
        self._usage = Usage()
        self._started = time.monotonic()
        self._first: float | None = None
        self._ended: float | None = None
        self.finish_reason: str | None = None

    @property
    def text(self) -> str:
        return "".join(self._parts["text"])

    @property
    def arguments(self) -> str:
        """Of the function that the model called; empty when it called none."""
        return "".join(self._arguments)

    async def collect(self, deltas: AsyncGenerator[Delta, None]) -> None:
        """Take a whole answer, for nodes that do not stream. Raises ModelError."""
        async with aclosing(deltas):
            async for delta in deltas:
                self.take(delta)
        self.end()

    def take(self, delta: Delta) -> list[tuple[str, str]]:
        """What to stream for a delta: (output, text) pairs, none empty."""
        self._arguments.append(delta.arguments)
        if self._first is None and (delta.text or delta.reasoning or delta.arguments):
            self._first = time.monotonic()
        self._usage = delta.usage or self._usage
        self.finish_reason = delta.finish_reason or self.finish_reason
        if self._splitter is None:
            return self._kept([("text", self._tagged(delta))])
        split = self._splitter.feed(delta.text)
        return self._kept([("reasoning_content", delta.reasoning + split.reasoning), ("text", split.text)])

    def add(self, file: Values) -> list[tuple[str, str]]:
        """What to stream for a file of the answer: a link to it, as answers show files."""
        self._files.append(file)
        return self.take(Delta(as_markdown(Segment("file", file))))

    def end(self) -> list[tuple[str, str]]:
        """What was held back."""
        self._ended = time.monotonic()
        if self._splitter is None:
            return self._kept([("text", "\n</think>" if self._thinking else "")])
        split = self._splitter.finish()
        return self._kept([("reasoning_content", split.reasoning), ("text", split.text)])

    def outputs(self) -> Values:
        reasoning = "".join(self._parts["reasoning_content"])
        return {
            "text": self.text,
            "reasoning_content": reasoning,
            "usage": self.usage(),
            "finish_reason": self.finish_reason,
            "files": list(self._files),
        }

    def metadata(self) -> Values:
        return {"total_tokens": self._usage.total_tokens, "total_price": "0", "currency": CURRENCY}

    def _tagged(self, delta: Delta) -> str:
        text = ""
        if delta.reasoning:
            text = delta.reasoning if self._thinking else f"<think>\n{delta.reasoning}"
            self._thinking = True
        if delta.text and self._thinking:
            text += "\n</think>\n"
            self._thinking = False
        return text + delta.text

    def _kept(self, pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
        found = [(name, piece) for name, piece in pieces if piece]
        for name, piece in found:
            self._parts[name].append(piece)
        return found

    def usage(self) -> Values:
        """Tokens, prices and times. No price is known here: all are 0, as texts, which clients of the format expect."""
        usage, ended = self._usage, self._ended or time.monotonic()
        first = self._first
        record: Values = {}
        for side, tokens in (("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)):
            record |= {
                f"{side}_tokens": tokens,
                f"{side}_unit_price": "0",
                f"{side}_price_unit": "0",
                f"{side}_price": "0",
            }
        return record | {
            "total_tokens": usage.total_tokens,
            "total_price": "0",
            "currency": CURRENCY,
            "latency": round(ended - self._started, 3),
            "time_to_first_token": round(first - self._started, 3) if first is not None else None,
            "time_to_generate": round(ended - first, 3) if first is not None else None,
        }


def recorded(messages: tuple[Message, ...], files: PromptFiles, masked: Masking) -> Values:
    """What records show of a prompt: the messages, and the names of the files that the model did not get."""
    left_out: Values = {"files_left_out": list(files.left_out)} if files.left_out else {}
    return {"prompts": masked.json(_serialised(messages))} | left_out


def _serialised(messages: tuple[Message, ...]) -> JsonValue:
    """Messages as records show them; the content of files is left out."""
    return [
        {
            "role": message.role,
            "text": message.text,
            "files": [
                each.url.partition(",")[0] if each.url.startswith("data:") else each.url for each in message.media
            ],
        }
        for message in messages
    ]
