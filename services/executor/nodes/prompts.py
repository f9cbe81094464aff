"""Prompts of model nodes: from templates and values to messages.

Text that comes from outside (the context, the user's query, the history) is put in as it is and never read as a
template: a document found by a search could otherwise ask for `env` variables by their placeholder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from pydantic import JsonValue

from libs.workflow import templates
from libs.workflow.configs.models import (
    LlmConfig,
    Memory,
    ModelSettings,
    ParameterExtractorConfig,
    PromptMessage,
    PromptText,
    QuestionClassifierConfig,
    RolePrefix,
    Vision,
)
from libs.workflow.outcome import Values
from libs.workflow.pool import Pool
from libs.workflow.segments import as_text, files_in, for_display
from services.executor.models.context import room_tokens, tokens_in, tokens_of
from services.executor.models.port import Media, Message
from services.executor.nodes.memory import fitting
from services.executor.nodes.port import Attempt
from services.executor.nodes.prompt_context import PromptError, context_of
from services.executor.nodes.prompt_files import KINDS, FileUnavailable, PromptFiles

Role = Literal["system", "user", "assistant"]
File = Mapping[str, JsonValue]

MAX_PROMPT_CHARS: Final = 2_000_000
RENDER_TIMEOUT_S: Final = 60.0
_MAX_PARAMETER_CHARS: Final = 1024
_CONTEXT: Final = "{{#context#}}"
_HISTORIES: Final = ("{{#histories#}}", "#histories#")
_QUERIES: Final = ("{{#sys.query#}}", "#sys.query#")
_QUERY: Final = ("sys", "query")


class Render(Protocol):
    """Renders a Jinja template in the sandbox."""

    async def __call__(
        self, template: str, variables: Mapping[str, JsonValue], *, limit_chars: int, timeout_s: float
    ) -> str: ...


class History(Protocol):
    """The conversation so far, for chatflows."""

    async def recent(self, attempt: Attempt, limit: int | None) -> Sequence[Message]:
        """The last `limit` messages of the user with their answers (None: as many as are kept), oldest first.

        Without this run's own.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Draft:
    """A message before its template is rendered and its files are fetched."""

    role: Role
    text: str = ""
    jinja: str | None = None
    files: tuple[File, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is taken from the pool; made before the first `await`."""

    drafts: tuple[_Draft, ...]
    completion: bool
    jinja_values: Values
    query: _Draft | None
    """The user's message that follows the history; chatflows with memory only."""
    memory: Memory | None
    vision: tuple[File, ...]
    detail: str
    inputs: Values = field(default_factory=dict)
    parameters: Values = field(default_factory=dict)
    sources: tuple[Values, ...] = ()
    """What of the context was found in knowledge bases, in the form of citations."""
    room: int = 0
    """Tokens that the whole prompt may fill."""


def plan(config: LlmConfig, pool: Pool, *, chatflow: bool, context_tokens: int) -> Plan:
    """Read everything the prompt needs. `context_tokens`: of the model. Raises PromptError."""
    context = context_of(config.context, pool)
    inputs: Values = {}
    jinja_values: Values = {}
    for binding in config.prompt_config.jinja2_variables:
        if not binding.value_selector:
            continue  # an empty row of the editor
        segment = pool.get(binding.value_selector)
        if segment is None:
            raise _not_found(binding.variable)
        jinja_values[binding.variable] = "" if segment.value is None else segment.value
        inputs[binding.variable] = for_display(segment)
    memory = config.memory if chatflow else None
    template = config.prompt_template
    drafts: tuple[_Draft, ...]
    query: _Draft | None = None
    if isinstance(template, PromptText):
        drafts = (_completion(template, memory, pool, context.text, inputs),)
    else:
        drafts = tuple(draft for each in template for draft in _chat(each, pool, context.text, inputs))
        query = _memory_query(memory, pool, inputs) if memory is not None else None
    parameters = _parameters(config.model, pool)
    chosen = _vision_files(config.vision, pool) if config.vision.enabled else ()
    attached = context.files if config.vision.enabled else ()
    if context.text:
        inputs["#context#"] = context.text
    if chosen:
        inputs["#files#"] = [dict(file) for file in chosen]
    if attached:
        inputs["#context_files#"] = [dict(file) for file in attached]
    return Plan(
        drafts=drafts,
        completion=isinstance(template, PromptText),
        jinja_values=jinja_values,
        query=query,
        memory=memory,
        vision=chosen + attached,
        detail=config.vision.configs.detail,
        inputs=inputs,
        parameters=parameters,
        sources=context.sources,
        room=room_tokens(context_tokens, parameters),
    )


async def assemble(
    made: Plan, attempt: Attempt, render: Render, history: History | None, files: PromptFiles
) -> tuple[Message, ...]:
    """The messages, in order; none is empty. Raises PromptError and what `render` raises."""
    messages = []
    for draft in made.drafts:
        messages.append(await _message(draft, made, render, files))
    query = [await _message(made.query, made, render, files)] if made.query is not None else []
    media = await _media(made.vision, files, made.detail)
    rest = [*messages, *query, Message("user", "", media)]
    past = fitting(await _past(made, attempt, history), made.room - tokens_in(rest))
    messages = [_with_history(messages[0], past, made.memory)] if made.completion else [*messages, *past, *query]
    messages = _with_media(messages, media)
    kept = tuple(message for message in messages if message.text or message.media)
    if not kept:
        raise PromptError("NoPromptFoundError", "the prompt is empty: no message of it has any text")
    return kept


@dataclass(frozen=True, slots=True)
class Extras:
    """What goes with finished texts; read from the pool before the first `await`."""

    completion: bool
    vision: tuple[File, ...]
    detail: str
    parameters: Values
    room: int
    """Tokens that the whole prompt may fill."""


def extras(config: QuestionClassifierConfig | ParameterExtractorConfig, pool: Pool, *, context_tokens: int) -> Extras:
    """`context_tokens`: of the model. Raises PromptError."""
    parameters = _parameters(config.model, pool)
    return Extras(
        completion=config.model.mode == "completion",
        vision=_vision_files(config.vision, pool) if config.vision.enabled else (),
        detail=config.vision.configs.detail,
        parameters=parameters,
        room=room_tokens(context_tokens, parameters),
    )


async def finished(texts: Sequence[tuple[Role, str]], extra: Extras, files: PromptFiles) -> tuple[Message, ...]:
    """Messages of texts in which no placeholder is looked for. Raises PromptError when a file cannot be had."""
    messages = [Message(role, text) for role, text in texts if text]
    if extra.completion:
        messages = [Message("user", "\n\n".join(message.text for message in messages))]
    return tuple(_with_media(messages, await _media(extra.vision, files, extra.detail)))


async def told_history(
    attempt: Attempt, memory: Memory | None, history: History | None, extra: Extras, beside: Sequence[tuple[Role, str]]
) -> str:
    """The conversation so far as text, a line per message; empty outside of chatflows and without memory.

    It fills what `beside`, the texts of the prompt without it, leave of the room for the whole.
    """
    if memory is None or history is None or attempt.definition.mode != "advanced-chat":
        return ""
    past = await history.recent(attempt, memory.window.size if memory.window.enabled else None)
    room = extra.room - sum(tokens_of(text) for _, text in beside)
    return _told(fitting(past, room), memory)


# --- reading the pool -------------------------------------------------------------------------------------------------


def _chat(template: PromptMessage, pool: Pool, context: str, inputs: Values) -> list[_Draft]:
    if template.edition_type == "jinja2":
        return [_Draft(template.role, jinja=template.jinja2_text or None)]
    text, files = _filled(template.text, pool, {_CONTEXT: context}, inputs)
    return [_Draft(template.role, text), *([_Draft(template.role, files=files)] if files else [])]


def _completion(template: PromptText, memory: Memory | None, pool: Pool, context: str, inputs: Values) -> _Draft:
    if template.edition_type == "jinja2":
        return _Draft("user", jinja=template.jinja2_text or None)
    if memory is not None and memory.role_prefix is None:
        text = "memory of a completion model needs `role_prefix`: how user and assistant are called in the text"
        raise PromptError("MemoryRolePrefixRequiredError", text)
    query = pool.get(_QUERY)
    # In a workflow there is no query; the editor's completion template names it all the same.
    given = {_CONTEXT: context, **dict.fromkeys(_QUERIES, as_text(query) if query is not None else "")}
    text, files = _filled(template.text, pool, given, inputs)
    return _Draft("user", text, files=files)


def _memory_query(memory: Memory, pool: Pool, inputs: Values) -> _Draft:
    if memory.query_prompt_template:
        text, files = _filled(memory.query_prompt_template, pool, {}, inputs)
        return _Draft("user", text, files=files)
    query = pool.get(_QUERY)
    return _Draft("user", as_text(query) if query is not None else "")


def _filled(template: str, pool: Pool, given: Mapping[str, str], inputs: Values) -> tuple[str, tuple[File, ...]]:
    """The text with values in it, and the files that its placeholders name. `given` replaces markers, unread."""
    for marker, text in given.items():
        if marker in template:
            others = {each: value for each, value in given.items() if each != marker}
            parts = [_filled(part, pool, others, inputs) for part in template.split(marker)]
            return text.join(part for part, _ in parts), tuple(file for _, files in parts for file in files)
    files: list[File] = []
    for selector in templates.placeholders(template):
        segment = pool.get(selector)
        if segment is None:
            raise _not_found(".".join(selector))
        inputs[f"#{'.'.join(selector)}#"] = for_display(segment)
        files += files_in(segment.value)
    return templates.render_text(template, pool), tuple(file for file in files if file.get("type") in KINDS)


def _not_found(name: str) -> PromptError:
    return PromptError("VariableNotFoundError", f"Variable {name} not found")


def _vision_files(vision: Vision, pool: Pool) -> tuple[File, ...]:
    selector = vision.configs.variable_selector
    segment = pool.get(selector)
    if segment is None or segment.type in ("none", "array[any]"):
        return ()
    if segment.type not in ("file", "array[file]"):
        text = f"vision: {'.'.join(selector)} is of type {segment.type}; expected a file or a list of files"
        raise PromptError("InvalidVariableTypeError", text)
    return tuple(files_in(segment.value))


def _parameters(model: ModelSettings, pool: Pool) -> Values:
    return {name: _parameter(value, pool) for name, value in model.completion_params.items()}


def _parameter(value: Any, pool: Pool) -> JsonValue:
    """A parameter of the model; a text with placeholders becomes the number or boolean that it spells."""
    if not isinstance(value, str) or not templates.placeholders(value):
        return value  # type: ignore[no-any-return]  # JSON: it comes from the parsed document
    text = templates.render_text(value, pool)[:_MAX_PARAMETER_CHARS]
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    return parsed if isinstance(parsed, int | float) else text


# --- making messages --------------------------------------------------------------------------------------------------


async def _message(draft: _Draft, made: Plan, render: Render, files: PromptFiles) -> Message:
    text = draft.text
    if draft.jinja is not None:
        text = await render(draft.jinja, made.jinja_values, limit_chars=MAX_PROMPT_CHARS, timeout_s=RENDER_TIMEOUT_S)
    return Message(draft.role, text, await _media(draft.files, files, made.detail))


async def _media(chosen: Sequence[File], files: PromptFiles, detail: str) -> tuple[Media, ...]:
    try:
        return await files.media(chosen, detail)
    except FileUnavailable as error:
        raise PromptError("LLMNodeError", str(error)) from error


async def _past(made: Plan, attempt: Attempt, history: History | None) -> list[Message]:
    if made.memory is None or history is None:
        return []
    window = made.memory.window
    return list(await history.recent(attempt, window.size if window.enabled else None))


def _with_history(message: Message, past: Sequence[Message], memory: Memory | None) -> Message:
    """A completion prompt has one text: the history goes where it says, else in front."""
    told = _told(past, memory)
    for marker in _HISTORIES:
        if marker in message.text:
            return Message("user", told.join(message.text.split(marker)), message.media)
    return Message("user", f"{told}\n{message.text}" if told else message.text, message.media)


def _told(past: Sequence[Message], memory: Memory | None) -> str:
    prefix = memory.role_prefix if memory is not None and memory.role_prefix is not None else RolePrefix()
    names = {"user": prefix.user or "Human", "assistant": prefix.assistant or "Assistant"}
    return "\n".join(f"{names.get(each.role, each.role)}: {each.text}" for each in past)


def _with_media(messages: list[Message], media: tuple[Media, ...]) -> list[Message]:
    """The files in front of what the last message of the user shows."""
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].role == "user":
            old = messages[at]
            return [*messages[:at], Message("user", old.text, media + old.media), *messages[at + 1 :]]
    return [*messages, Message("user", "", media)] if media else messages
