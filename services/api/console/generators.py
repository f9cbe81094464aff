"""Generators of the console: prompts, code and schemas that a model writes for whoever edits.

An answer that is no use is said in `error`, in the shape that editors read; a model that cannot be asked is an error.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.responses import Response

from libs.events.registry import AppCreated
from services.api.bodies import Body
from services.api.console import shapes
from services.api.console.apps import CONSOLE
from services.api.console.asked import answered, optional_text, text
from services.api.console.block_configs import CODE
from services.api.console.draft_runs import newest_execution
from services.api.console.generator_prompts import (
    CHANGE_CODE,
    CHANGE_PROMPT,
    CHANGE_SCHEMA,
    PROMPT,
    PROMPT_WITH_VARIABLES,
    RULE_SCHEMA,
    SCHEMA,
    SCHEMA_SCHEMA,
    TEMPLATES,
)
from services.api.console.generator_prompts import CODE as CODE_PROMPTS
from services.api.console.session import Account
from services.api.errors import invalid_param
from services.api.frames import Json
from services.api.generating import Model, Unusable, ask_model
from services.api.parts import Parts
from services.api.schemas import answers, json_body

MOST_SHOWN: Final = 20_000
"""Characters of a last run that a model is told of."""

_LANGUAGES: Final = {"python": "python3", "python3": "python3", "javascript": "javascript"}
_FENCED: Final = re.compile(r"```[\w+-]*[ \t]*\n(.*?)\n?```", re.DOTALL)


def generator_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/console/api", tags=["Console"])
    refused = (400, 401, 403, 413, 415, 429, 503)

    @router.post(
        "/rule-generate",
        summary="Have a model write a prompt",
        responses=answers(shapes.GeneratedRule, *refused),
        openapi_extra=CONSOLE | json_body(shapes.RuleGenerateBody),
    )
    async def rule_generate(_: Account, body: Body) -> Response:
        return answered(await _rule(parts, body, plain=body.get("no_variable") is True))

    @router.post(
        "/rule-code-generate",
        summary="Have a model write the code of a node",
        responses=answers(shapes.GeneratedCode, *refused),
        openapi_extra=CONSOLE | json_body(shapes.CodeGenerateBody),
    )
    async def rule_code_generate(_: Account, body: Body) -> Response:
        return answered(await _code(parts, body, optional_text(body, "code_language") or "javascript"))

    @router.post(
        "/rule-structured-output-generate",
        summary="Have a model write the schema of a structured output",
        responses=answers(shapes.GeneratedSchema, *refused),
        openapi_extra=CONSOLE | json_body(shapes.GenerateBody),
    )
    async def rule_structured_output_generate(_: Account, body: Body) -> Response:
        model, instruction = _model(body), text(body, "instruction")
        try:
            made = await ask_model(parts, model, SCHEMA, instruction, dict(SCHEMA_SCHEMA))
        except Unusable as unusable:
            return answered({"output": "", "error": str(unusable)})
        return answered({"output": json.dumps(made, indent=2, ensure_ascii=False), "error": ""})

    @router.post(
        "/instruction-generate",
        summary="Have a model write, or change, the prompt or the code of a node",
        description="With an empty `current` it is written anew, else changed by what the node's last run was.",
        responses=answers(shapes.GeneratedRule | shapes.GeneratedCode | shapes.Changed, *refused),
        openapi_extra=CONSOLE | json_body(shapes.InstructionGenerateBody),
    )
    async def instruction_generate(_: Account, body: Body) -> Response:
        return answered(await _instruction(parts, body))

    @router.post(
        "/instruction-generate/template",
        summary="What stands in the field for an instruction at first",
        responses=answers(shapes.InstructionTemplate, 400, 401, 403, 413, 415),
        openapi_extra=CONSOLE | json_body(shapes.InstructionTemplateBody),
    )
    async def instruction_template(_: Account, body: Body) -> Response:
        kind = body.get("type")
        if not isinstance(kind, str) or kind not in TEMPLATES:
            raise invalid_param(f"type: expected one of {', '.join(TEMPLATES)}", "type")
        return answered({"data": TEMPLATES[kind]})

    return router


async def _rule(parts: Parts, body: Json, *, plain: bool) -> Json:
    """A prompt; unless `plain`, with variables and an opening. Raises ApiError."""
    model, instruction = _model(body), text(body, "instruction")
    nothing: Json = {"prompt": "", "variables": [], "opening_statement": "", "error": ""}
    try:
        if plain:
            made = await ask_model(parts, model, PROMPT, instruction)
            return nothing | {"prompt": _unwrapped(made)}
        rule: Json = await ask_model(parts, model, PROMPT_WITH_VARIABLES, instruction, dict(RULE_SCHEMA))
    except Unusable as unusable:
        return nothing | {"error": str(unusable)}
    return nothing | rule


async def _code(parts: Parts, body: Json, language: str) -> Json:
    """Raises ApiError."""
    model, instruction = _model(body), text(body, "instruction")
    try:
        made = await ask_model(parts, model, CODE_PROMPTS[_language(language)], instruction)
    except Unusable as unusable:
        return {"code": "", "language": language, "error": str(unusable)}
    fenced = _FENCED.search(made)
    return {"code": fenced[1] if fenced else made.strip(), "language": language, "error": ""}


async def _instruction(parts: Parts, body: Json) -> Json:
    """Raises ApiError."""
    model, instruction = _model(body), text(body, "instruction")
    current = optional_text(body, "current") or ""
    ideal = optional_text(body, "ideal_output") or ""
    language = optional_text(body, "language") or "javascript"
    node_id = optional_text(body, "node_id") or ""
    if not node_id:
        if not current:
            raise invalid_param("current is required without node_id: there is nothing to change", "current")
        return await _changed(parts, model, CHANGE_PROMPT, instruction, current, ideal, None)
    app, kind = await _node(parts, text(body, "flow_id"), node_id)
    if current in ("", *CODE.values()):
        if kind == "code":
            return await _code(parts, body, language)
        if kind in ("llm", "agent"):
            return await _rule(parts, body, plain=True)
        raise invalid_param(f"node_id: nothing is written for a node of type {kind[:64]}", "node_id")
    system = CHANGE_CODE if kind == "code" else CHANGE_PROMPT
    last = await newest_execution(parts, app, node_id)
    return await _changed(parts, model, system, instruction, current, ideal, last)


async def _changed(
    parts: Parts, model: Model, system: str, instruction: str, current: str, ideal: str, last: Json | None
) -> Json:
    """Raises ApiError."""
    run = None if last is None else {name: last.get(name) for name in ("inputs", "outputs", "status", "error")}
    shown = _shown(run)
    placed = {"last_run": shown, "current": current, "error_message": str((run or {}).get("error") or "null")}
    for name, value in placed.items():
        instruction = instruction.replace(f"{{{{#{name}#}}}}", value)
    question = {"current": current, "last_run": shown, "instruction": instruction, "ideal_output": ideal}
    try:
        made: Json = await ask_model(
            parts, model, system, json.dumps(question, ensure_ascii=False), dict(CHANGE_SCHEMA)
        )
    except Unusable as unusable:
        return {"modified": "", "message": "", "error": str(unusable)}
    return made | {"error": ""}


def _shown(run: Json | None) -> str:
    told = json.dumps(run, ensure_ascii=False)
    return told if len(told) <= MOST_SHOWN else f"{told[:MOST_SHOWN]}..."


async def _node(parts: Parts, app_id: str, node_id: str) -> tuple[AppCreated, str]:
    """The app, and the type of the node in its draft. Raises ApiError 400."""
    await parts.access.catch_up()
    app = parts.registry.app(app_id)
    draft = await parts.drafting.find(app) if app is not None else None
    if app is None or draft is None:
        raise invalid_param(f'flow_id: app "{app_id[:64]}" does not exist, or has no draft', "flow_id")
    for node in draft.workflow["graph"].get("nodes") or ():
        data = node.get("data") if isinstance(node, Mapping) and node.get("id") == node_id else None
        if isinstance(data, Mapping):
            return app, str(data.get("type"))
    raise invalid_param(f'node_id: the draft has no node "{node_id[:64]}"', "node_id")


def _language(name: str) -> str:
    """Raises ApiError 400."""
    if name not in _LANGUAGES:
        raise invalid_param(f"code_language: expected one of {', '.join(_LANGUAGES)}", "code_language")
    return _LANGUAGES[name]


def _model(body: Json) -> Model:
    """Raises ApiError 400."""
    given: Any = body.get("model_config")
    if not isinstance(given, Mapping):
        raise invalid_param("model_config: expected an object with provider and name of a model", "model_config")
    provider, name, mode = (given.get(each) for each in ("provider", "name", "mode"))
    parameters = given.get("completion_params") or {}
    if not isinstance(provider, str) or not isinstance(name, str) or not name.strip():
        raise invalid_param("model_config: provider and name must be texts that are not empty", "model_config")
    if mode not in (None, "", "chat", "completion"):
        raise invalid_param("model_config.mode: expected chat or completion", "model_config")
    if not isinstance(parameters, Mapping):
        raise invalid_param("model_config.completion_params: expected an object", "model_config")
    return Model(provider, name, mode or "chat", dict(parameters))


def _unwrapped(made: str) -> str:
    """Without the fence that a model has put around all of it."""
    fenced = _FENCED.fullmatch(made.strip())
    return fenced[1] if fenced else made.strip()
