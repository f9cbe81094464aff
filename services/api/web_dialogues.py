"""What a visitor of a chatflow's page has said: its own conversations, their messages, and what it thinks of them."""

from collections.abc import Mapping

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from services.api import dialogues, schemas
from services.api.bodies import Body
from services.api.chat import require_chat
from services.api.errors import invalid_param
from services.api.parts import Parts
from services.api.schemas import answers, json_body, nothing, parameters
from services.api.visitors import BY_PASSPORT, FromPage


def web_dialogue_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["Public page"])

    @router.get(
        "/conversations",
        summary="The visitor's conversations",
        description="`pinned`: only those that are pinned (true), or only the others (false).",
        responses=answers(schemas.ConversationList, 400, 401, 404, 503),
        openapi_extra=BY_PASSPORT | parameters("last_id", "limit", "sort_by", "pinned"),
    )
    async def conversations(request: Request, visitor: FromPage) -> Response:
        require_chat(visitor.app)
        query = request.query_params
        return await dialogues.list_conversations(parts, visitor.speaker, query, pinned=_pinned(query))

    @router.delete(
        "/conversations/{conversation_id}",
        summary="Delete a conversation",
        status_code=204,
        responses=nothing(400, 401, 404, 503),
        openapi_extra=BY_PASSPORT,
    )
    async def delete(visitor: FromPage, conversation_id: str) -> Response:
        require_chat(visitor.app)
        return await dialogues.delete_conversation(parts, visitor.speaker, conversation_id)

    for verb, pinned in (("pin", True), ("unpin", False)):
        _pin(router, parts, verb, pinned=pinned)

    @router.post(
        "/conversations/{conversation_id}/name",
        summary="Name a conversation",
        responses=answers(schemas.Conversation, 400, 401, 404, 413, 415, 503),
        openapi_extra=BY_PASSPORT | json_body(schemas.WebNameBody),
    )
    async def rename(visitor: FromPage, conversation_id: str, body: Body) -> Response:
        require_chat(visitor.app)
        return await dialogues.rename_conversation(parts, visitor.speaker, conversation_id, body)

    @router.get(
        "/messages",
        summary="Messages of a conversation, the newest page first",
        responses=answers(schemas.MessageList, 400, 401, 404, 503),
        openapi_extra=BY_PASSPORT | parameters("conversation_id", "first_id", "limit", required=("conversation_id",)),
    )
    async def messages(request: Request, visitor: FromPage) -> Response:
        require_chat(visitor.app)
        return await dialogues.list_messages(parts, visitor.speaker, request.query_params)

    @router.post(
        "/messages/{message_id}/feedbacks",
        summary="Say what you think of an answer",
        responses=answers(schemas.Result, 400, 401, 404, 413, 415, 503),
        openapi_extra=BY_PASSPORT | json_body(schemas.WebFeedbackBody),
    )
    async def feedback(visitor: FromPage, message_id: str, body: Body) -> Response:
        await dialogues.rate(parts, visitor.speaker, message_id, body)
        return JSONResponse({"result": "success"})

    @router.get(
        "/messages/{message_id}/suggested-questions",
        summary="Questions that could come next",
        responses=answers(schemas.SuggestedQuestions, 400, 401, 404, 503),
        openapi_extra=BY_PASSPORT,
    )
    async def suggested_questions(visitor: FromPage, message_id: str) -> Response:
        return JSONResponse({"data": await dialogues.suggested(parts, visitor.speaker, message_id)})

    return router


def _pin(router: APIRouter, parts: Parts, verb: str, *, pinned: bool) -> None:
    @router.patch(
        f"/conversations/{{conversation_id}}/{verb}",
        summary=f"{verb.title()} a conversation",
        responses=answers(schemas.Result, 400, 401, 404, 503),
        openapi_extra=BY_PASSPORT,
    )
    async def change(visitor: FromPage, conversation_id: str) -> Response:
        require_chat(visitor.app)
        await dialogues.pin_conversation(parts, visitor.speaker, conversation_id, pinned=pinned)
        return JSONResponse({"result": "success"})


def _pinned(query: Mapping[str, str]) -> bool | None:
    """Raises ApiError 400."""
    given = query.get("pinned", "").lower()
    if given not in ("", "true", "false"):
        raise invalid_param("pinned: expected true or false", "pinned")
    return None if given == "" else given == "true"
