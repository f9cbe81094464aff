"""The reference's paths for what a chatflow's users have said: conversations, messages, variables, feedback.

Everything is read from tables that are as new as the request; changes are commands, and the answer to one is read
behind it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import JsonValue
from starlette.responses import JSONResponse, Response

from libs.events.codec import rfc3339
from libs.events.commands import DeleteConversation, RateMessage, RenameConversation, SetConversationVariable
from libs.events.ids import run_id_of_message
from libs.events.registry import AppCreated
from libs.workflow.segments import NUMBER_TYPES
from libs.workflow.variables import MAX_VARIABLE_BYTES, fits
from services.api import schemas, talk_records
from services.api.about import enabled, published
from services.api.access import ANYBODY, Principal, end_user_id, required_user
from services.api.asked import OPEN, SUBMITTED, AskedForm
from services.api.chat import require_chat
from services.api.errors import bad_request, invalid_param, not_found
from services.api.forms import asking
from services.api.frames import Json, encode
from services.api.from_models import FromModels
from services.api.parts import Parts
from services.api.requests import read_json
from services.api.schemas import answers, errors, json_body, parameters, secured
from services.api.tables import Tables
from services.api.talk_records import SORTS, ConversationPage, Row
from services.api.talks import ask, name_of

MAX_LIMIT: Final = 100
MAX_FEEDBACK_LIMIT: Final = 101
MAX_PAGE: Final = 99_999
MAX_NAME: Final = 255
MAX_OPINION: Final = 10_000
SUGGESTED: Final = 3

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
        app, user = await _asked(parts, request)
        query = request.query_params
        sort = query.get("sort_by") or "-updated_at"
        if sort not in SORTS:
            raise invalid_param(f"sort_by: expected one of {', '.join(SORTS)}", "sort_by")
        limit = _whole(query, "limit", 20, MAX_LIMIT)
        last = None
        if query.get("last_id"):
            _, last = await parts.talks.found(query["last_id"], app.app_id, user)
        tables = await parts.talks.tables()
        page = ConversationPage(app.app_id, user, sort, last, limit)
        rows = await ask(tables, talk_records.conversation_page, page)
        return await _page(parts, limit, rows, _conversation)

    @router.delete(
        "/conversations/{conversation_id}",
        summary="Delete a conversation",
        status_code=204,
        responses=errors(400, 401, 404, 413, 415, 503),
        openapi_extra=json_body(schemas.AnybodyBody, required=False) | _KEY,
    )
    async def delete(request: Request, conversation_id: str) -> Response:
        app, user, _ = await _told(parts, request)
        await parts.talks.found(conversation_id, app.app_id, user)
        await parts.talks.change(DeleteConversation(conversation_id=conversation_id))
        return Response(status_code=204)

    @router.post(
        "/conversations/{conversation_id}/name",
        summary="Name a conversation",
        responses=answers(schemas.Conversation, 400, 401, 404, 413, 415, 503),
        openapi_extra=json_body(schemas.NameBody) | _KEY,
    )
    async def rename(request: Request, conversation_id: str) -> Response:
        app, user, body = await _told(parts, request)
        name, generated = body.get("name"), body.get("auto_generate")
        if generated is not None and not isinstance(generated, bool):
            raise invalid_param("auto_generate: expected true or false", "auto_generate")
        if not generated and not (isinstance(name, str) and name.strip()):
            raise invalid_param("name is required unless auto_generate is true", "name")
        tables, _ = await parts.talks.found(conversation_id, app.app_id, user)
        if generated:
            name = name_of(await ask(tables, talk_records.first_query, conversation_id))
        await parts.talks.change(RenameConversation(conversation_id=conversation_id, name=str(name)[:MAX_NAME]))
        _, row = await parts.talks.found(conversation_id, app.app_id, user)
        return _json(await parts.threads.run(_conversation, parts, row))


def _add_variables(router: APIRouter, parts: Parts) -> None:
    @router.get(
        "/conversations/{conversation_id}/variables",
        summary="Variables of a conversation",
        responses=answers(schemas.VariableList, 400, 401, 404, 503),
        openapi_extra=_KEY | parameters("user", "last_id", "limit", "variable_name"),
    )
    async def variables(request: Request, conversation_id: str) -> Response:
        app, user = await _asked(parts, request)
        query = request.query_params
        limit = _whole(query, "limit", 20, MAX_LIMIT)
        tables, _ = await parts.talks.found(conversation_id, app.app_id, user)
        rows = list(await ask(tables, talk_records.variables, conversation_id))
        if query.get("variable_name"):
            rows = [row for row in rows if row["name"] == query["variable_name"]]
        if query.get("last_id"):
            places = [number for number, row in enumerate(rows) if row["id"] == query["last_id"]]
            if not places:
                raise not_found("last_id: there is no such variable")
            rows = rows[places[0] + 1 :]
        return await _page(parts, limit, rows, _variable)

    @router.put(
        "/conversations/{conversation_id}/variables/{variable_id}",
        summary="Set a variable of a conversation",
        responses=answers(schemas.ConversationVariable, 400, 401, 404, 413, 415, 503),
        openapi_extra=json_body(schemas.ValueBody) | _KEY,
    )
    async def set_variable(request: Request, conversation_id: str, variable_id: str) -> Response:
        app, user, body = await _told(parts, request)
        if "value" not in body:
            raise invalid_param("value is required", "value")
        value: JsonValue = body["value"]
        tables, _ = await parts.talks.found(conversation_id, app.app_id, user)
        row = await _variable_row(tables, conversation_id, variable_id)
        if not fits(value, row["value_type"]):
            raise bad_request(f"value: the variable {row['name']} is a {row['value_type']}. Send a value of that type")
        if len(encode(value)) > MAX_VARIABLE_BYTES:
            raise bad_request(f"value: a variable holds at most {MAX_VARIABLE_BYTES} bytes")
        await parts.talks.change(
            SetConversationVariable(
                conversation_id=conversation_id, name=row["name"], value=value, value_type=row["value_type"]
            )
        )
        tables, _ = await parts.talks.found(conversation_id, app.app_id, user)
        row = await _variable_row(tables, conversation_id, variable_id)
        return _json(await parts.threads.run(_variable, parts, row))


def _add_messages(router: APIRouter, parts: Parts) -> None:
    @router.get(
        "/messages",
        summary="Messages of a conversation, the newest page first",
        responses=answers(schemas.MessageList, 400, 401, 404, 503),
        openapi_extra=_KEY | parameters("conversation_id", "user", "first_id", "limit", required=("conversation_id",)),
    )
    async def messages(request: Request) -> Response:
        app, user = await _asked(parts, request)
        query = request.query_params
        if not query.get("conversation_id"):
            raise invalid_param("conversation_id is required", "conversation_id")
        limit = _whole(query, "limit", 20, MAX_LIMIT)
        tables, talk = await parts.talks.found(query["conversation_id"], app.app_id, user)
        before = None
        if query.get("first_id"):
            first = await _first(tables, query["first_id"])
            if first is None or first["conversation_id"] != talk["id"]:
                raise not_found("first_id: there is no such message in the conversation")
            before = first["number"]
        rows = await ask(tables, talk_records.message_page, talk["id"], before, limit)
        ids = [row["id"] for row in rows]
        thoughts = await ask(tables, talk_records.ratings, ids, user) if ids else {}
        runs = [row["workflow_run_id"] for row in rows]
        asking_runs = await ask(tables, talk_records.asking_runs, runs)
        from_models = await ask(tables, talk_records.model_nodes, runs)
        contents = {run_id: await _asked_of_people(parts, run_id) for run_id in asking_runs}
        return _json(await parts.threads.run(_messages, parts, rows, limit, thoughts, contents, from_models))

    @router.post(
        "/messages/{message_id}/feedbacks",
        summary="Say what you think of an answer",
        responses=answers(schemas.Result, 400, 401, 404, 413, 415, 503),
        openapi_extra=json_body(schemas.FeedbackBody) | _KEY,
    )
    async def feedback(request: Request, message_id: str) -> Response:
        app = await parts.access.app_key(request)
        body = await read_json(request, parts.limits.max_body_bytes)
        user = required_user(body.get("user"))
        rating, content = body.get("rating"), body.get("content")
        if rating not in ("like", "dislike", None):
            raise invalid_param("rating: expected like, dislike or null", "rating")
        if content is not None and not (isinstance(content, str) and len(content) <= MAX_OPINION):
            raise invalid_param(f"content: expected a text of at most {MAX_OPINION} characters", "content")
        row = await _message_row(parts, app, end_user_id(app.app_id, user), message_id)
        await parts.talks.change(
            RateMessage(
                conversation_id=row["conversation_id"],
                app_id=app.app_id,
                message_id=message_id,
                rating=rating,
                content=content,
                caller=Principal(app).caller(user),
            )
        )
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
        user = required_user(request.query_params.get("user"))
        require_chat(app)
        row = await _message_row(parts, app, end_user_id(app.app_id, user), message_id)
        definition = await published(parts, app)
        if not enabled(definition, "suggested_questions_after_answer"):
            raise bad_request("suggested questions are not switched on in this app")
        tables = await parts.talks.tables(row["conversation_id"])
        said = await ask(tables, talk_records.message_page, row["conversation_id"], None, MAX_LIMIT)
        asked = {each["query"].strip() for each in said}
        listed = definition.features.get("suggested_questions")
        questions = [each for each in listed or () if isinstance(each, str) and each.strip() not in asked]
        return JSONResponse({"result": "success", "data": questions[:SUGGESTED]})

    @router.get(
        "/app/feedbacks",
        summary="What users think of answers, newest first",
        responses=answers(schemas.FeedbackList, 400, 401, 503),
        openapi_extra=_KEY | parameters("page", "limit"),
    )
    async def feedbacks(request: Request) -> Response:
        app = await parts.access.app_key(request)
        page = _whole(request.query_params, "page", 1, MAX_PAGE)
        limit = _whole(request.query_params, "limit", 20, MAX_FEEDBACK_LIMIT)
        tables = await parts.talks.tables()
        rows = await ask(tables, talk_records.feedback_page, app.app_id, page, limit)
        return JSONResponse({"data": [_feedback(row) for row in rows]})


# --- who asks ---------------------------------------------------------------------------------------------------------


async def _asked(parts: Parts, request: Request) -> tuple[AppCreated, str]:
    """The chat app and the id of the user that a query names. Raises ApiError."""
    app = await parts.access.app_key(request)
    require_chat(app)
    return app, end_user_id(app.app_id, request.query_params.get("user") or ANYBODY)


async def _told(parts: Parts, request: Request) -> tuple[AppCreated, str, Json]:
    """As `_asked`, of a request with a body."""
    app = await parts.access.app_key(request)
    body = await read_json(request, parts.limits.max_body_bytes, optional=True)
    require_chat(app)
    user = body.get("user")
    return app, end_user_id(app.app_id, ANYBODY if user in (None, "") else str(user)), body


async def _message_row(parts: Parts, app: AppCreated, user: str, message_id: str) -> Row:
    try:
        run_id = run_id_of_message(message_id)
    except ValueError:
        raise not_found("Message does not exist") from None
    tables = await parts.talks.tables(run_id)
    row: Row | None = await ask(tables, talk_records.message, message_id)
    if row is None or row["app_id"] != app.app_id or row["created_by"] != user:
        raise not_found("Message does not exist")
    return row


async def _first(tables: Tables, message_id: str) -> Row | None:
    try:
        run_id_of_message(message_id)
    except ValueError:  # no id of ours, and maybe nothing that a database would take
        return None
    row: Row | None = await ask(tables, talk_records.message, message_id)
    return row


async def _variable_row(tables: Tables, conversation_id: str, variable_id: str) -> Row:
    for row in await ask(tables, talk_records.variables, conversation_id):
        if row["id"] == variable_id:
            return dict(row)
    raise not_found("Conversation variable does not exist")


def _whole(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    raw = query.get(name)
    if raw is None or raw == "":
        return default
    if not (raw.isascii() and raw.isdecimal() and len(raw) < 16 and 1 <= int(raw) <= most):
        raise invalid_param(f"{name}: expected a whole number from 1 to {most}", name)
    return int(raw)


# --- rows as JSON. Blocking: large values are fetched from the blobs --------------------------------------------------


async def _page(parts: Parts, limit: int, rows: Sequence[Row], shown: Any) -> Response:
    """A page of rows, of which there are more than fit when there are more."""
    data = await parts.threads.run(lambda: [shown(parts, row) for row in rows[:limit]])
    return _json({"limit": limit, "has_more": len(rows) > limit, "data": data})


def _json(value: Any) -> Response:
    return Response(encode(value), media_type="application/json")


def _seconds(at_us: int | None) -> int | None:
    return None if at_us is None else at_us // 1_000_000


def _conversation(parts: Parts, row: Row) -> Json:
    return {
        "id": row["id"],
        "name": row["name"],
        "inputs": parts.talks.values(row["inputs"]),
        "status": row["status"],
        "introduction": row["introduction"],
        "created_at": _seconds(row["created_at"]),
        "updated_at": _seconds(row["updated_at"]),
    }


def _variable(parts: Parts, row: Row) -> Json:
    value = parts.talks.value(row)
    return {
        "id": row["id"],
        "name": row["name"],
        "value_type": "number" if row["value_type"] in NUMBER_TYPES else row["value_type"],
        "value": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        "description": row["description"] or "",
        "created_at": _seconds(row["created_at"]),
        "updated_at": _seconds(row["updated_at"] or row["created_at"]),
    }


async def _asked_of_people(parts: Parts, run_id: str) -> list[Json]:
    """What a run has asked people, as contents of its message."""
    maker = await asking(parts, run_id)
    return [_human_input(run_id, form) for form in maker.asked.forms.values()] if maker is not None else []


def _human_input(run_id: str, form: AskedForm) -> Json:
    return {
        "type": "human_input",
        "workflow_run_id": run_id,
        "submitted": form.status == SUBMITTED,
        "form_definition": form.required() if form.status == OPEN else None,
        "form_submission_data": form.closed()[1] if form.status == SUBMITTED else None,
    }


def _messages(
    parts: Parts,
    rows: Sequence[Row],
    limit: int,
    thoughts: Mapping[str, str],
    contents: Mapping[str, list[Json]],
    model_nodes: Sequence[Row],
) -> Json:
    """`rows`: newest first; each follows the next one. `thoughts` by message, `contents` by run."""
    followed = [*(row["id"] for row in rows[1:]), None]
    from_models = {row["workflow_run_id"]: FromModels() for row in rows}
    for node in model_nodes:
        restored = parts.reads.restored
        from_models[node["workflow_run_id"]].take(restored(node["outputs"]), restored(node["process_data"]))
    data = [
        _message(parts, row, parent, thoughts, from_models[row["workflow_run_id"]])
        | {"extra_contents": contents.get(row["workflow_run_id"], [])}
        for row, parent in zip(rows, followed, strict=True)
    ]
    return {"limit": limit, "has_more": len(rows) > limit, "data": data[:limit][::-1]}


def _message(parts: Parts, row: Row, parent: str | None, thoughts: Mapping[str, str], from_models: FromModels) -> Json:
    rating = thoughts.get(row["id"])
    return {
        "id": row["id"],
        "conversation_id": row["conversation_id"],
        "parent_message_id": parent,
        "inputs": parts.talks.values(row["inputs"]),
        "query": row["query"],
        "answer": parts.talks.answer(row),
        "feedback": {"rating": rating} if rating is not None else None,
        "retriever_resources": from_models.resources,
        "created_at": _seconds(row["created_at"]),
        "agent_thoughts": [],
        "message_files": [
            *(_file(row["id"], each, "user") for each in json.loads(row["files"] or "[]") if each),
            *(
                _file(row["id"], each, "assistant")
                for each in from_models.files_with(json.loads(row["answer_files"] or "[]"))
            ),
        ],
        "status": "paused" if row["run_status"] == "paused" else row["status"],
        "error": row["error"],
        "workflow_run_id": row["workflow_run_id"],
        "total_tokens": row["total_tokens"] or 0,
    }


def _file(message_id: str, file: Json, owner: str) -> Json:
    return {
        "id": file.get("id") or file.get("related_id") or message_id,
        "filename": file.get("filename"),
        "type": file.get("type"),
        "url": file.get("url") or file.get("remote_url"),
        "mime_type": file.get("mime_type"),
        "size": file.get("size"),
        "transfer_method": file.get("transfer_method"),
        "belongs_to": owner,
        "upload_file_id": file.get("related_id"),
    }


def _feedback(row: Row) -> Json:
    times = {name: rfc3339(row[name]) for name in ("created_at", "updated_at")}
    names = ("id", "app_id", "conversation_id", "message_id", "rating", "content", "from_source", "from_end_user_id")
    return {name: row[name] for name in names} | {"from_account_id": row["from_account_id"]} | times
