"""Language models: the port, providers behind the OpenAI-compatible HTTP form, and an offline stand-in."""

from services.executor.models.port import (
    Delta,
    Function,
    Media,
    Message,
    ModelError,
    ModelProvider,
    ModelRequest,
    Usage,
)
from services.executor.models.providers import Models
from services.executor.models.reasoning import ReasoningSplitter, Split, split_reasoning

__all__ = [
    "Delta",
    "Function",
    "Media",
    "Message",
    "ModelError",
    "ModelProvider",
    "ModelRequest",
    "Models",
    "ReasoningSplitter",
    "Split",
    "Usage",
    "split_reasoning",
]
