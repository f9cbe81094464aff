"""What an answer in OpenAI's form says: one reader for the events of a stream and for an answer in one piece.

Files come in the places that servers put them: parts of a message's `content`, `images` beside it, and `audio`, which
a stream sends in pieces. Calls of functions that were not asked for say nothing; a refusal in a field of its own is
the answer's text.
"""

import base64
import binascii
import io
import json
import wave
from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.executor.models.port import Delta, Media, MediaKind, Usage

MAX_AUDIO_BYTES: Final = 64 * 1024 * 1024
_RATE_HZ: Final = 24_000
"""Of samples without a header, as OpenAI and DashScope stream them: 16 bit, one channel."""

_MEDIA: Final[Mapping[str, MediaKind]] = {
    "image_url": "image",
    "image": "image",
    "output_image": "image",
    "audio_url": "audio",
    "audio": "audio",
    "output_audio": "audio",
    "video_url": "video",
    "video": "video",
    "file": "document",
    "file_url": "document",
    "document_url": "document",
}
"""Types of parts that are files, and what they are where nothing else says it."""


class AnswerUnusable(Exception):
    """The answer cannot be taken. The text says why."""


class AnswerReader:
    """Of one answer: `read` every event of its stream, or all of it, then `finish`."""

    def __init__(self, audio_format: str = "") -> None:
        """`audio_format`: what the request asks for; empty where it asks for no sound."""
        self._audio_format = audio_format or "wav"
        self._audio = bytearray()
        self.answered = False
        """There was a choice."""
        self.finished = False
        """The model said why it stopped."""

    def read(self, said: Mapping[str, Any]) -> Iterator[Delta]:
        """Raises AnswerUnusable."""
        choices = said.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        self.answered = self.answered or bool(choice)
        part = choice.get("delta") or choice.get("message")
        part = part if isinstance(part, Mapping) else {}
        text, reasoning = "", _text_of(part.get("reasoning_content")) or _text_of(part.get("reasoning"))
        for piece in (*_pieces(part.get("content")), *_pieces(part.get("images"))):
            if isinstance(piece, Media):
                yield Delta(text, reasoning, files=(piece,))
                text = reasoning = ""
            else:
                text, reasoning = text + piece.text, reasoning + piece.reasoning
        text += _text_of(part.get("refusal")) + self._spoken(part.get("audio"), silent=not text)
        text = text or _text_of(choice.get("text"))
        reason = choice.get("finish_reason")
        self.finished = self.finished or bool(reason)
        usage = _usage_of(said.get("usage")) or _usage_of(choice.get("usage"))  # Moonshot: inside of the choice
        arguments = _arguments_of(part)
        if text or reasoning or arguments or reason or usage:
            yield Delta(text, reasoning, str(reason) if reason else None, usage, arguments)

    def finish(self) -> Iterator[Delta]:
        """What was said in pieces that mean something only together: a sound."""
        if self._audio:
            content, extension = _playable(bytes(self._audio), self._audio_format)
            url = f"data:audio/{extension};base64,{base64.b64encode(content).decode()}"
            yield Delta(files=(Media("audio", url, format=extension),))

    def _spoken(self, audio: Any, *, silent: bool) -> str:
        """Keep the sound; its words, where nothing else says them."""
        if not isinstance(audio, Mapping):
            return ""
        try:
            self._audio += base64.b64decode(_text_of(audio.get("data")))
        except (binascii.Error, ValueError) as error:
            raise AnswerUnusable("it sent a sound that is not base64") from error
        if len(self._audio) > MAX_AUDIO_BYTES:
            raise AnswerUnusable(f"it sent a sound of more than {MAX_AUDIO_BYTES} bytes")
        return _text_of(audio.get("transcript")) if silent else ""


def _pieces(content: Any) -> Iterator[Delta | Media]:
    """Text, reasoning and files, in the order of the parts."""
    if isinstance(content, str):
        yield Delta(content)
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            yield Delta(part)
        elif isinstance(part, Mapping):
            media = _media_of(part)
            if media is not None:
                yield media
            elif part.get("type") == "thinking":
                yield Delta(reasoning=_text_of(part.get("thinking")))
            else:
                yield Delta(_text_of(part.get("text")))


def _media_of(part: Mapping[str, Any]) -> Media | None:
    """The file that a part is; None when it is something else, or holds none."""
    kind = str(part.get("type"))
    if kind not in _MEDIA:
        return None
    value = part.get(kind)
    if not isinstance(value, Mapping):
        value = {"url": value}
    extension = _text_of(value.get("format"))
    url = _text_of(value.get("url")) or _text_of(value.get("file_data"))
    content = _text_of(value.get("data")) or _text_of(value.get("b64_json"))
    if content and not url:
        url = f"data:;base64,{content}"
    if not url.startswith(("https://", "http://", "data:")):
        return None
    return Media(_MEDIA[kind], url, _text_of(value.get("filename")), extension)


def _text_of(content: Any) -> str:
    """Text, also when it comes as a list of parts."""
    if isinstance(content, list):
        return "".join(_text_of(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _arguments_of(part: Mapping[str, Any]) -> str:
    """Arguments, or a piece of them, of the first function that is called: more were not asked for."""
    calls = part.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, Mapping) and not call.get("index") and isinstance(call.get("function"), Mapping):
            arguments = call["function"].get("arguments")
            return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else _text_of(arguments)
    return ""


def _usage_of(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    return Usage(prompt, completion, _count(usage.get("total_tokens")) or prompt + completion)


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and value > 0 else 0


def _playable(content: bytes, form: str) -> tuple[bytes, str]:
    """A sound as players take it, and its extension: samples without a header get one."""
    if form not in ("pcm16", "pcm", "wav") or content.startswith(b"RIFF"):
        return content, "wav" if form.startswith("pcm") else form
    made = io.BytesIO()
    with wave.open(made, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(_RATE_HZ)
        sound.writeframes(content)
    return made.getvalue(), "wav"
