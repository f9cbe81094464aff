"""What an editor puts into a node that somebody has just drawn, by type."""

import json
from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from services.api.console import shapes
from services.api.console.apps import CONSOLE
from services.api.console.asked import answered
from services.api.console.session import App
from services.api.errors import invalid_param, not_found
from services.api.frames import Json
from services.api.schemas import answers, parameters

CODE: Final[Mapping[str, str]] = {
    "python3": 'def main(arg1: str, arg2: str):\n    return {\n        "result": arg1 + arg2,\n    }\n',
    "javascript": "function main({arg1, arg2}) {\n    return {\n        result: arg1 + arg2\n    }\n}\n",
}
_TWO_ARGUMENTS: Final[list[Json]] = [{"variable": name, "value_selector": []} for name in ("arg1", "arg2")]
_PROMPTS: Final[Json] = {
    "chat_model": {"prompts": [{"role": "system", "text": "You are a helpful AI assistant.", "edition_type": "basic"}]},
    "completion_model": {
        "conversation_histories_role": {"user_prefix": "Human", "assistant_prefix": "Assistant"},
        "prompt": {"text": "{{#sys.query#}}", "edition_type": "basic"},
        "stop": ["Human:"],
    },
}


def _code(language: str) -> Json:
    return {
        "variables": _TWO_ARGUMENTS,
        "code_language": language,
        "code": CODE[language],
        "outputs": {"result": {"type": "string", "children": None}},
    }


_RETRY: Final[Json] = {"retry_enabled": False, "max_retries": 3, "retry_interval": 1000}
DEFAULTS: Final[Mapping[str, Json]] = {
    "llm": {"prompt_templates": _PROMPTS},
    "code": _code("python3"),
    "template-transform": {
        "variables": [{"variable": "arg1", "value_selector": []}],
        "template": "{{ arg1 }}",
    },
    "question-classifier": {"instructions": ""},
    "http-request": {
        "method": "get",
        "authorization": {"type": "no-auth"},
        "body": {"type": "none"},
        "retry_config": _RETRY,
    },
    "parameter-extractor": {"model": {"prompt_templates": {"completion_model": _PROMPTS["completion_model"]}}},
    "iteration": {"is_parallel": False, "parallel_nums": 10, "error_handle_mode": "terminated", "flatten_output": True},
    "loop": {"loop_count": 10, "break_conditions": [], "logical_operator": "and", "loop_variables": []},
    "trigger-webhook": {
        "method": "post",
        "content_type": "application/json",
        "headers": [],
        "params": [],
        "body": [],
        "status_code": 200,
        "response_body": "",
    },
    "trigger-schedule": {
        "mode": "visual",
        "frequency": "daily",
        "visual_config": {"time": "12:00 AM", "weekdays": ["sun"], "on_minute": 0, "monthly_days": [1]},
        "timezone": "UTC",
    },
    "human-input": {"form_content": "", "inputs": [], "user_actions": [], "timeout": 36, "timeout_unit": "hour"},
}


def block_config_routes() -> APIRouter:
    router = APIRouter(prefix="/console/api/apps/{app_id}/workflows", tags=["Console"])

    @router.get(
        "/default-workflow-block-configs",
        summary="What new nodes hold, by type",
        responses=answers(list[shapes.BlockConfig], 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def block_configs(_: App) -> Response:
        return answered([{"type": block_type, "config": config} for block_type, config in DEFAULTS.items()])

    @router.get(
        "/default-workflow-block-configs/{block_type}",
        summary="What a new node of one type holds",
        description='`q`: JSON that says more, of a code node `{"code_language": "javascript"}`.',
        responses=answers(shapes.BlockConfig, 400, 401, 403, 404, 503),
        openapi_extra=CONSOLE | parameters("q"),
    )
    async def block_config(request: Request, _: App, block_type: str) -> Response:
        if block_type not in DEFAULTS:
            raise not_found(f'there are no defaults for nodes of type "{block_type[:64]}"')
        language = _filters(request).get("code_language")
        if block_type == "code" and language is not None:
            if not isinstance(language, str) or language not in CODE:
                raise invalid_param(f"q.code_language: expected one of {', '.join(CODE)}", "q")
            return answered({"type": block_type, "config": _code(language)})
        return answered({"type": block_type, "config": DEFAULTS[block_type]})

    return router


def _filters(request: Request) -> Json:
    """Raises ApiError 400."""
    text = request.query_params.get("q")
    if not text:
        return {}
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid_param("q: expected a JSON object", "q") from error
    if not isinstance(found, dict):
        raise invalid_param("q: expected a JSON object", "q")
    return found
