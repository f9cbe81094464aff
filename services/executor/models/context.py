"""How much a model can take in: the size of its context, and how much of it a text fills. In tokens.

Both are estimates that need no tokenizer: sizes by the names of models, as their makers publish them, and text by its
characters, some four of ASCII or one of Chinese to a token. They decide what is left out of a memory, nothing else.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import JsonValue

from services.executor.models.port import Message

UNKNOWN_TOKENS: Final = 32_768
"""Context of a model that is not known; most of those that people serve themselves have as much."""

KNOWN_TOKENS: Final[Mapping[str, int]] = {
    "chatgpt-4o": 128_000,
    "claude": 200_000,
    "codestral": 262_144,
    "command-r": 128_000,
    "deepseek": 65_536,
    "doubao": 32_768,
    "gemini": 1_048_576,
    "gemma": 8_192,
    "gemma3": 131_072,
    "gemma-3": 131_072,
    "glm-4": 128_000,
    "gpt-3.5": 16_385,
    "gpt-3.5-turbo-instruct": 4_096,
    "gpt-4": 8_192,
    "gpt-4-turbo": 128_000,
    "gpt-4.1": 1_047_576,
    "gpt-4.5": 128_000,
    "gpt-4o": 128_000,
    "gpt-5": 400_000,
    "gpt-oss": 131_072,
    "grok": 131_072,
    "kimi": 131_072,
    "llama2": 4_096,
    "llama-2": 4_096,
    "llama3": 8_192,
    "llama-3": 8_192,
    "llama3.1": 131_072,
    "llama-3.1": 131_072,
    "llama3.2": 131_072,
    "llama-3.2": 131_072,
    "llama3.3": 131_072,
    "llama-3.3": 131_072,
    "mistral-large": 131_072,
    "o1": 200_000,
    "o1-mini": 128_000,
    "o3": 200_000,
    "o4": 200_000,
    "qwen-long": 10_000_000,
    "qwen-plus": 131_072,
    "qwen-turbo": 131_072,
    "qwq": 131_072,
    "yi": 16_384,
}
"""By the beginning of a model's name; the longest one counts."""

_IN_NAME: Final = re.compile(r"(?<![a-z0-9.])(\d{1,4})k(?![a-z0-9])")
"""`moonshot-v1-32k`: the name says it."""
_FREE: Final = 0.1
"""Of the context; kept free because all of this is estimated."""
_OF_A_MESSAGE: Final = 4
_OF_A_FILE: Final = 1_000
_BOUNDS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
_SIZE: Final = "num_ctx"
"""Ollama's parameter: the context that the model is loaded with."""


def context_tokens(model: str, said: Mapping[str, int]) -> int:
    """The context of a model. `said`: what the operator says, by the document's name of a model, `*` for the rest."""
    own = said.get(model) or said.get("*")
    if own is not None:
        return own
    name = model.rpartition("/")[2].lower()
    in_name = _IN_NAME.search(name)
    if in_name is not None:
        return int(in_name[1]) * 1024
    known = max((each for each in KNOWN_TOKENS if _begins(name, each)), key=len, default=None)
    return KNOWN_TOKENS[known] if known is not None else UNKNOWN_TOKENS


def room_tokens(context: int, parameters: Mapping[str, JsonValue]) -> int:
    """What a prompt may fill of a context, beside the answer that the parameters allow for. May be negative."""
    size = parameters.get(_SIZE)
    if isinstance(size, int) and size > 0:
        context = size
    bounds = [bound for name in _BOUNDS if isinstance(bound := parameters.get(name), int)]
    return int(context * (1 - _FREE)) - max(bounds, default=0)


def tokens_of(text: str) -> int:
    plain = len(text.encode("ascii", "ignore"))
    other = len(text.encode("utf-8", "replace")) - plain
    return math.ceil(plain / 4 + other / 3)


def tokens_in(messages: Iterable[Message]) -> int:
    return sum(_OF_A_MESSAGE + tokens_of(each.text) + _OF_A_FILE * len(each.media) for each in messages)


def _begins(name: str, beginning: str) -> bool:
    """Whether a name begins so, and not with a longer word."""
    return name.startswith(beginning) and not name[len(beginning) : len(beginning) + 1].isalpha()
