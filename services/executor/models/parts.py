"""Messages with files, in the parts that OpenAI-compatible servers take them in.

Which server takes which part: OpenAI and most others `image_url`, `input_audio` (content only) and `file`; vLLM,
SiliconFlow, Volcengine, OpenRouter and others `video_url`; SiliconFlow `audio_url`; DashScope `input_audio` whose data
is a URL; Zhipu `file_url`; Mistral `document_url`. Ollama, LM Studio, Gemini and Moonshot take `image_url` with content
only, which is `image_data` here.
"""

from collections.abc import Mapping
from typing import Final

from pydantic import JsonValue

from services.executor.models.port import Media, Message

BY_CONTENT: Final = frozenset({"input_audio", "file", "image_data", "video_data"})
"""Parts that hold a file's content, never an address."""

IN_ANY_FORM: Final[Mapping[str, str]] = {
    "image": "image_url",
    "audio": "audio_url",
    "video": "video_url",
    "document": "file_url",
}
"""For a stand-in, which needs no content."""


def content_of(message: Message, parts: Mapping[str, str]) -> JsonValue:
    """`content` of a message; `parts`: type of a file -> its part."""
    if not message.media:
        return message.text
    content: list[JsonValue] = [_part(each, parts[each.kind]) for each in message.media if each.kind in parts]
    return [*content, {"type": "text", "text": message.text}] if message.text else content


def _part(media: Media, part: str) -> JsonValue:
    match part:
        case "image_url" | "image_data":
            return {"type": "image_url", "image_url": {"url": media.url, "detail": media.detail}}
        case "video_data":
            return {"type": "video_url", "video_url": {"url": media.url}}
        case "input_audio":
            return {"type": part, part: {"data": media.url.partition(",")[2], "format": media.format}}
        case "input_audio_url":
            # DashScope takes content under the same member as addresses: as a data URL without a type.
            url = f"data:;base64,{media.url.partition(',')[2]}" if media.url.startswith("data:") else media.url
            return {"type": "input_audio", "input_audio": {"data": url, "format": media.format}}
        case "file":
            return {"type": part, part: {"filename": media.name, "file_data": media.url}}
        case "document_url":
            return {"type": part, part: media.url}
        case _:
            return {"type": part, part: {"url": media.url}}
