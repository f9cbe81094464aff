"""What a request says to a server of OpenAI's form, and what is left out of it where a server does not take it."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from services.executor.models.parts import content_of
from services.executor.models.port import ModelError, ModelRequest

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


def payload_of(request: ModelRequest, parts: Mapping[str, str]) -> dict[str, Any]:
    payload: dict[str, Any] = {
        name: value for name, value in request.parameters.items() if value is not None and name not in _OURS
    }
    if not payload.get("stop", True):
        del payload["stop"]  # an empty list, which editors leave, is refused by some
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


def leave_out(payload: dict[str, Any], request: ModelRequest, said: str) -> bool:
    """Leave out of the payload what a refusal says is not understood; False when it names nothing of that kind.

    `said`: the refusal. Each call leaves less, so asking again comes to an end.
    """
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


def sound_asked_for(payload: Mapping[str, Any]) -> str:
    """The format of the sound that a request asks for."""
    audio = payload.get("audio")
    return str(audio.get("format") or "") if isinstance(audio, Mapping) else ""
