"""What a node asks of a language model, whoever provides it.

A provider streams `Delta`s: pieces of text, pieces of reasoning that it keeps apart, and at the end why it stopped and
what was used. An error is a `ModelError`; its text is for people and never holds a key.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import JsonValue


class ModelError(Exception):
    """A model call failed. `retryable`: the same call may succeed later without any change."""

    def __init__(self, error_type: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.error_type = error_type
        """Class name of the contract: `InvokeRateLimitError`, `InvokeAuthorizationError`, ..."""
        self.retryable = retryable


MediaKind = Literal["image", "audio", "video", "document"]


@dataclass(frozen=True, slots=True)
class Media:
    """A file of a prompt or of an answer."""

    kind: MediaKind
    url: str
    """Where the server finds it, or a `data:` URL with its content."""
    name: str = ""
    format: str = ""
    """Its extension: lower case, without dot."""
    detail: str = "high"
    """How closely to look at an image: `high` or `low`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a prompt: text, and the files that belong to it, in front of it."""

    role: Literal["system", "user", "assistant"]
    text: str
    media: tuple[Media, ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    """A function that the model is told to call; nobody runs it, its arguments are the answer."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments, an object."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    model: str
    messages: tuple[Message, ...]
    mode: Literal["chat", "completion"] = "chat"
    parameters: Mapping[str, JsonValue] = field(default_factory=dict)
    """`temperature`, `max_tokens`, `stop`, ... as the document names them."""
    schema: Mapping[str, Any] | None = None
    """The answer has to be JSON of this schema."""
    function: Function | None = None
    """Chat only. A server that knows no functions is asked without: the answer then comes as text, if at all."""
    shape: Mapping[str, Any] | None = None
    """JSON schema of what the prompt asks for in words. No server is told; a stand-in answers in this shape."""
    key: str = ""
    """Idempotency key of the attempt."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What came since the last one. `finish_reason` and `usage` come once, near the end, or not at all."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    arguments: str = ""
    """Of the call of the request's function: a piece of JSON."""
    files: tuple[Media, ...] = ()
    """Behind the text."""


class ModelProvider(Protocol):
    def stream(self, request: ModelRequest) -> AsyncGenerator[Delta, None]:
        """The answer as it comes. Closing the generator, or cancelling its reader, ends the call at once.

        Raises ModelError.
        """
        ...
