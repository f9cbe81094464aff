"""The reference's paths for messages to a chatflow: send one, stop its answer."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.ids import run_id_of_task
from libs.events.registry import AppCreated
from services.api import schemas
from services.api.access import Principal, required_user
from services.api.errors import ApiError, invalid_param
from services.api.frames import Json
from services.api.parts import Parts
from services.api.requests import RunRequest, body_digest, check_trace_session, is_uuid, read_json
from services.api.schemas import answers, errors, json_body, secured, streamed
from services.api.starting import Wanted
from services.api.workflows import chosen_version, last_event_id


def chat_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["Chatflows (Dify-compatible)"])

    @router.post(
        "/chat-messages",
        summary="Send a message",
        description="A blocking answer to a message whose run fails is 400 `invalid_param`.",
        responses=streamed(schemas.MessageAnswer) | errors(400, 401, 403, 404, 413, 415, 422, 429, 503),
        openapi_extra=json_body(schemas.ChatBody) | secured("app_key"),
    )
    async def send_message(request: Request) -> Response:
        app = await parts.access.app_key(request)
        body = await read_json(request, parts.limits.max_body_bytes)
        user = required_user(body.get("user"))
        require_chat(app)
        wanted = RunRequest.parse(request, body)
        check_trace_session(request, body)
        query = query_of(body)
        conversation_id = conversation_of(body)
        version = await chosen_version(parts, app, _version_id(body))
        return await parts.starter.start(
            Wanted(
                Principal(app),
                app,
                version,
                user,
                wanted,
                body_digest(body),
                query=query,
                conversation_id=conversation_id,
                named=asked_flag(body, "auto_generate_name", default=True),
                as_message=True,
                annotations=True,
            ),
            last_event_id(request),
        )

    @router.post(
        "/chat-messages/{task_id}/stop",
        summary="Stop an answer by its task id",
        responses=answers(schemas.Result, 400, 401, 413, 415, 503),
        openapi_extra=json_body(schemas.UserBody) | secured("app_key"),
    )
    async def stop_message(request: Request, task_id: str) -> Response:
        app = await parts.access.app_key(request)
        body = await read_json(request, parts.limits.max_body_bytes)
        user = required_user(body.get("user"))
        require_chat(app)
        await _stop(parts, app, task_id, user)
        return JSONResponse({"result": "success"})

    return router


def require_chat(app: AppCreated) -> None:
    """Raises ApiError 400 `not_chat_app`."""
    if app.mode != "advanced-chat":
        raise ApiError(400, "not_chat_app", f"this app is a {app.mode} app, not a chat app")


def conversation_of(body: Json) -> str | None:
    """The conversation that a body wants to continue. Raises ApiError 400."""
    given = body.get("conversation_id")
    if given is None or (isinstance(given, str) and not given.strip()):
        return None
    if not isinstance(given, str) or not is_uuid(given.strip()):
        raise invalid_param("conversation_id: expected a UUID, or nothing for a new conversation", "conversation_id")
    return given.strip().lower()


def query_of(body: Json) -> str:
    """The message. Raises ApiError 400."""
    query = body.get("query")
    if not isinstance(query, str) or not query:
        raise invalid_param("query is required: the text of the message", "query")
    return query.replace("\x00", "")


def _version_id(body: Json) -> str | None:
    given = body.get("workflow_id")
    if given is None or given == "":
        return None
    if not isinstance(given, str):
        raise invalid_param("workflow_id: expected a string", "workflow_id")
    return given


def asked_flag(body: Json, name: str, *, default: bool) -> bool:
    """Raises ApiError 400."""
    given: Any = body.get(name)
    if given is None:
        return default
    if not isinstance(given, bool):
        raise invalid_param(f"{name}: expected true or false", name)
    return given


async def _stop(parts: Parts, app: AppCreated, task_id: str, user: str) -> None:
    """Ask for a stop if the task answers a message of this user; nobody learns whether it does."""
    try:
        run_id = run_id_of_task(task_id)
    except ValueError:
        return
    summary = await parts.reads.summary(run_id)
    if summary is not None and Principal(app).began(summary, user) and not summary.ended:
        await parts.submitter.stop(run_id, "User requested stop", user)
