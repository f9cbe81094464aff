"""The reference's paths for what a chatflow's users have said: conversations, messages, variables, feedback."""

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.codec import rfc3339
from services.api import dialogues, schemas, talk_records
from services.api.access import ANYBODY, Principal, required_user
from services.api.chat import require_chat
from services.api.dialogues import Speaker, whole
from services.api.frames import Json
from services.api.parts import Parts
from services.api.requests import read_json
from services.api.schemas import answers, errors, json_body, parameters, secured
from services.api.talk_records import Row
from services.api.talks import ask

MAX_FEEDBACK_LIMIT: Final = 101
MAX_PAGE: Final = 99_999

_KEY = secured("app_key")


def conversation_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["Chatflows (Dify-compatible)"])
    _add_conversations(router, parts)
    _add_variables(router, parts)
    _add_messages(router, parts)
    return router


def _add_conversations(router: APIRouter, parts: Parts) -> None:
    @router.get(
        "/conversations",
        summary="A user's conversations",
        responses=answers(schemas.ConversationList, 400, 401, 404, 503),
        openapi_extra=_KEY | parameters("user", "last_id", "limit", "sort_by"),
    )
    async def conversations(request: Request) -> Response:
        return await dialogues.list_conversations(parts, await _asked(parts, request), request.query_params)

    @router.delete(
        "/conversations/{conversation_id}",
        summary="Delete a conversation",
        status_code=204,
        responses=errors(400, 401, 404, 413, 415, 503),
        openapi_extra=json_body(schemas.AnybodyBody, required=False) | _KEY,
    )
    async def delete(request: Request, conversation_id: str) -> Response:
        speaker, _ = await _told(parts, request)
        return await dialogues.delete_conversation(parts, speaker, conversation_id)

    @router.post(
        "/conversations/{conversation_id}/name",
        summary="Name a conversation",
        responses=answers(schemas.Conversation, 400, 401, 404, 413, 415, 503),
        openapi_extra=json_body(schemas.NameBody) | _KEY,
    )
    async def rename(request: Request, conversation_id: str) -> Response:
        speaker, body = await _told(parts, request)
        return await dialogues.rename_conversation(parts, speaker, conversation_id, body)


def _add_variables(router: APIRouter, parts: Parts) -> None:
    @router.get(
        "/conversations/{conversation_id}/variables",
        summary="Variables of a conversation",
        responses=answers(schemas.VariableList, 400, 401, 404, 503),
        openapi_extra=_KEY | parameters("user", "last_id", "limit", "variable_name"),
    )
    async def variables(request: Request, conversation_id: str) -> Response:
        speaker = await _asked(parts, request)
        return await dialogues.list_variables(parts, speaker, conversation_id, request.query_params)

    @router.put(
        "/conversations/{conversation_id}/variables/{variable_id}",
        summary="Set a variable of a conversation",
        responses=answers(schemas.ConversationVariable, 400, 401, 404, 413, 415, 503),
        openapi_extra=json_body(schemas.ValueBody) | _KEY,
    )
    async def set_variable(request: Request, conversation_id: str, variable_id: str) -> Response:
        speaker, body = await _told(parts, request)
        return await dialogues.set_variable(parts, speaker, conversation_id, variable_id, body)


def _add_messages(router: APIRouter, parts: Parts) -> None:
    @router.get(
        "/messages",
        summary="Messages of a conversation, the newest page first",
        responses=answers(schemas.MessageList, 400, 401, 404, 503),
        openapi_extra=_KEY | parameters("conversation_id", "user", "first_id", "limit", required=("conversation_id",)),
    )
    async def messages(request: Request) -> Response:
        return await dialogues.list_messages(parts, await _asked(parts, request), request.query_params)

    @router.post(
        "/messages/{message_id}/feedbacks",
        summary="Say what you think of an answer",
        responses=answers(schemas.Result, 400, 401, 404, 413, 415, 503),
        openapi_extra=json_body(schemas.FeedbackBody) | _KEY,
    )
    async def feedback(request: Request, message_id: str) -> Response:
        app = await parts.access.app_key(request)
        body = await read_json(request, parts.limits.max_body_bytes)
        speaker = Speaker(app, Principal(app).caller(required_user(body.get("user"))))
        await dialogues.rate(parts, speaker, message_id, body)
        return JSONResponse({"result": "success"})

    @router.get(
        "/messages/{message_id}/suggested",
        summary="Questions that could come next",
        description="Those of the document that were not asked yet; no model is asked for them.",
        responses=answers(schemas.Suggested, 400, 401, 404, 503),
        openapi_extra=_KEY | parameters("user", required=("user",)),
    )
    async def suggested(request: Request, message_id: str) -> Response:
        app = await parts.access.app_key(request)
        speaker = Speaker(app, Principal(app).caller(required_user(request.query_params.get("user"))))
        questions = await dialogues.suggested(parts, speaker, message_id)
        return JSONResponse({"result": "success", "data": questions})

    @router.get(
        "/app/feedbacks",
        summary="What users think of answers, newest first",
        responses=answers(schemas.FeedbackList, 400, 401, 503),
        openapi_extra=_KEY | parameters("page", "limit"),
    )
    async def feedbacks(request: Request) -> Response:
        app = await parts.access.app_key(request)
        page = whole(request.query_params, "page", 1, MAX_PAGE)
        limit = whole(request.query_params, "limit", 20, MAX_FEEDBACK_LIMIT)
        tables = await parts.talks.tables()
        rows = await ask(tables, talk_records.feedback_page, app.app_id, page, limit)
        return JSONResponse({"data": [_feedback(row) for row in rows]})


async def _asked(parts: Parts, request: Request) -> Speaker:
    """The user that a query names. Raises ApiError."""
    app = await parts.access.app_key(request)
    require_chat(app)
    return Speaker(app, Principal(app).caller(request.query_params.get("user") or ANYBODY))


async def _told(parts: Parts, request: Request) -> tuple[Speaker, Json]:
    """As `_asked`, of a request with a body."""
    app = await parts.access.app_key(request)
    body = await read_json(request, parts.limits.max_body_bytes, optional=True)
    require_chat(app)
    user = body.get("user")
    return Speaker(app, Principal(app).caller(ANYBODY if user in (None, "") else str(user))), body


def _feedback(row: Row) -> Json:
    times = {name: rfc3339(row[name]) for name in ("created_at", "updated_at")}
    names = ("id", "app_id", "conversation_id", "message_id", "rating", "content", "from_source", "from_end_user_id")
    return {name: row[name] for name in names} | {"from_account_id": row["from_account_id"]} | times
