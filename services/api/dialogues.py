"""What a user has said in a chatflow, read and changed: by the service API, or on an app's page.

Everything is read from tables that are as new as the request; changes are commands, and the answer to one is read
behind it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import JsonValue
from starlette.responses import Response

from libs.events.commands import (
    Caller,
    DeleteConversation,
    PinConversation,
    RateMessage,
    RenameConversation,
    SetConversationVariable,
)
from libs.events.ids import execution_id, run_id_of_message
from libs.events.registry import AppCreated
from libs.workflow.segments import NUMBER_TYPES
from libs.workflow.variables import MAX_VARIABLE_BYTES, fits
from services.api import talk_records
from services.api.about import enabled, published
from services.api.asked import OPEN, SUBMITTED, AskedForm
from services.api.chat import require_chat
from services.api.errors import bad_request, invalid_param, not_found
from services.api.forms import asking
from services.api.frames import Json, encode
from services.api.from_models import FromModels
from services.api.parts import Parts
from services.api.tables import Tables
from services.api.talk_records import SORTS, ConversationPage, Row
from services.api.talks import ask, name_of

MAX_LIMIT: Final = 100
MAX_NAME: Final = 255
MAX_OPINION: Final = 10_000
SUGGESTED: Final = 3


@dataclass(slots=True, frozen=True)
class Speaker:
    """A user of an app."""

    app: AppCreated
    caller: Caller


# --- conversations ----------------------------------------------------------------------------------------------------


async def list_conversations(
    parts: Parts, speaker: Speaker, query: Mapping[str, str], *, pinned: bool | None = None
) -> Response:
    """Raises ApiError."""
    sort = query.get("sort_by") or "-updated_at"
    if sort not in SORTS:
        raise invalid_param(f"sort_by: expected one of {', '.join(SORTS)}", "sort_by")
    limit = whole(query, "limit", 20, MAX_LIMIT)
    last = None
    if query.get("last_id"):
        _, last = await _found(parts, speaker, query["last_id"])
    tables = await parts.talks.tables()
    page = ConversationPage(speaker.app.app_id, speaker.caller.id, sort, last, limit, pinned)
    rows = await ask(tables, talk_records.conversation_page, page)
    return await _page(parts, limit, rows, _conversation)


async def delete_conversation(parts: Parts, speaker: Speaker, conversation_id: str) -> Response:
    """Raises ApiError."""
    await _found(parts, speaker, conversation_id)
    await parts.talks.change(DeleteConversation(conversation_id=conversation_id))
    return Response(status_code=204)


async def pin_conversation(parts: Parts, speaker: Speaker, conversation_id: str, *, pinned: bool) -> None:
    """Raises ApiError."""
    await _found(parts, speaker, conversation_id)
    await parts.talks.change(PinConversation(conversation_id=conversation_id, pinned=pinned))


async def rename_conversation(parts: Parts, speaker: Speaker, conversation_id: str, body: Json) -> Response:
    """Raises ApiError."""
    name, generated = body.get("name"), body.get("auto_generate")
    if generated is not None and not isinstance(generated, bool):
        raise invalid_param("auto_generate: expected true or false", "auto_generate")
    if not generated and not (isinstance(name, str) and name.strip()):
        raise invalid_param("name is required unless auto_generate is true", "name")
    tables, _ = await _found(parts, speaker, conversation_id)
    if generated:
        name = name_of(await ask(tables, talk_records.first_query, conversation_id))
    await parts.talks.change(RenameConversation(conversation_id=conversation_id, name=str(name)[:MAX_NAME]))
    _, row = await _found(parts, speaker, conversation_id)
    return _json(await parts.threads.run(_conversation, parts, row))


async def list_variables(parts: Parts, speaker: Speaker, conversation_id: str, query: Mapping[str, str]) -> Response:
    """Raises ApiError."""
    limit = whole(query, "limit", 20, MAX_LIMIT)
    tables, _ = await _found(parts, speaker, conversation_id)
    rows = talk_records.listed(await ask(tables, talk_records.variables, conversation_id))
    if query.get("variable_name"):
        rows = [row for row in rows if row["name"] == query["variable_name"]]
    if query.get("last_id"):
        places = [number for number, row in enumerate(rows) if row["id"].lower() == query["last_id"].lower()]
        if not places:
            raise not_found("last_id: there is no such variable")
        rows = rows[places[0] + 1 :]
    return await _page(parts, limit, rows, _variable)


async def set_variable(parts: Parts, speaker: Speaker, conversation_id: str, variable_id: str, body: Json) -> Response:
    """Raises ApiError."""
    if "value" not in body:
        raise invalid_param("value is required", "value")
    value: JsonValue = body["value"]
    tables, _ = await _found(parts, speaker, conversation_id)
    row = await _variable_row(tables, conversation_id, variable_id)
    if row["value_type"] == "secret":
        raise bad_request(f"value: {row['name']} is a secret. Only the workflow changes it")
    if not fits(value, row["value_type"]):
        raise bad_request(f"value: the variable {row['name']} is a {row['value_type']}. Send a value of that type")
    if len(encode(value)) > MAX_VARIABLE_BYTES:
        raise bad_request(f"value: a variable holds at most {MAX_VARIABLE_BYTES} bytes")
    await parts.talks.change(
        SetConversationVariable(
            conversation_id=conversation_id, name=row["name"], value=value, value_type=row["value_type"], id=row["id"]
        )
    )
    tables, _ = await _found(parts, speaker, conversation_id)
    row = await _variable_row(tables, conversation_id, variable_id)
    return _json(await parts.threads.run(_variable, parts, row))


# --- messages ---------------------------------------------------------------------------------------------------------


async def list_messages(parts: Parts, speaker: Speaker, query: Mapping[str, str]) -> Response:
    """Raises ApiError."""
    if not query.get("conversation_id"):
        raise invalid_param("conversation_id is required", "conversation_id")
    limit = whole(query, "limit", 20, MAX_LIMIT)
    tables, talk = await _found(parts, speaker, query["conversation_id"])
    before = None
    if query.get("first_id"):
        first = await _first(tables, query["first_id"])
        if first is None or first["conversation_id"] != talk["id"]:
            raise not_found("first_id: there is no such message in the conversation")
        before = first["number"]
    rows = await ask(tables, talk_records.message_page, talk["id"], before, limit)
    ids = [row["id"] for row in rows]
    thoughts = await ask(tables, talk_records.ratings, ids, speaker.caller.id) if ids else {}
    runs = [row["workflow_run_id"] for row in rows]
    asking_runs = await ask(tables, talk_records.asking_runs, runs)
    from_models = await ask(tables, talk_records.model_nodes, runs)
    contents = {run_id: await _asked_of_people(parts, run_id) for run_id in asking_runs}
    return _json(await parts.threads.run(_messages, parts, rows, limit, thoughts, contents, from_models))


async def rate(parts: Parts, speaker: Speaker, message_id: str, body: Json) -> None:
    """Raises ApiError."""
    rating, content = body.get("rating"), body.get("content")
    if rating not in ("like", "dislike", None):
        raise invalid_param("rating: expected like, dislike or null", "rating")
    if content is not None and not (isinstance(content, str) and len(content) <= MAX_OPINION):
        raise invalid_param(f"content: expected a text of at most {MAX_OPINION} characters", "content")
    row = await _message_row(parts, speaker, message_id)
    await parts.talks.change(
        RateMessage(
            conversation_id=row["conversation_id"],
            app_id=speaker.app.app_id,
            message_id=message_id,
            rating=rating,
            content=content,
            caller=speaker.caller,
        )
    )


async def suggested(parts: Parts, speaker: Speaker, message_id: str) -> list[str]:
    """Questions of the document that were not asked yet. Raises ApiError."""
    require_chat(speaker.app)
    row = await _message_row(parts, speaker, message_id)
    definition = await published(parts, speaker.app)
    if not enabled(definition, "suggested_questions_after_answer"):
        raise bad_request("suggested questions are not switched on in this app")
    tables = await parts.talks.tables(row["conversation_id"])
    said = await ask(tables, talk_records.message_page, row["conversation_id"], None, MAX_LIMIT)
    asked = {each["query"].strip() for each in said}
    listed = definition.features.get("suggested_questions")
    questions = [each for each in listed or () if isinstance(each, str) and each.strip() not in asked]
    return questions[:SUGGESTED]


# --- rows -------------------------------------------------------------------------------------------------------------


async def _found(parts: Parts, speaker: Speaker, conversation_id: str) -> tuple[Tables, Row]:
    return await parts.talks.found(conversation_id, speaker.app.app_id, speaker.caller.id)


async def _message_row(parts: Parts, speaker: Speaker, message_id: str) -> Row:
    try:
        run_id = run_id_of_message(message_id)
    except ValueError:
        raise not_found("Message does not exist") from None
    tables = await parts.talks.tables(run_id)
    row: Row | None = await ask(tables, talk_records.message, message_id)
    if row is None or row["app_id"] != speaker.app.app_id or row["created_by"] != speaker.caller.id:
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
    for row in talk_records.listed(await ask(tables, talk_records.variables, conversation_id)):
        if row["id"].lower() == variable_id.lower():  # a document's own ids stay as they are written there
            return dict(row)
    raise not_found("Conversation variable does not exist")


def whole(query: Mapping[str, str], name: str, default: int, most: int, *, cut: bool = False) -> int:
    """A whole number of the query, from 1; `cut`: one above `most` counts as `most`. Raises ApiError 400."""
    raw = query.get(name)
    if raw is None or raw == "":
        return default
    given = int(raw) if raw.isascii() and raw.isdecimal() and len(raw) < 16 else 0
    if given < 1 or (given > most and not cut):
        raise invalid_param(f"{name}: expected a whole number from 1 to {most}", name)
    return min(given, most)


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
    followed = [*(row["id"] for row in rows[1:]), None][: len(rows)]
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
            *_files(row["id"], json.loads(row["files"] or "[]"), "user"),
            *_files(row["id"], from_models.files_with(json.loads(row["answer_files"] or "[]")), "assistant"),
        ],
        "status": "paused" if row["run_status"] == "paused" else row["status"],
        "error": row["error"],
        "workflow_run_id": row["workflow_run_id"],
        "total_tokens": row["total_tokens"] or 0,
    }


def _files(message_id: str, files: Sequence[Json], owner: str) -> Iterator[Json]:
    for position, file in enumerate(files):
        if file:
            yield _file(file, owner, execution_id(message_id, owner, str(position)))


def _file(file: Json, owner: str, own_id: str) -> Json:
    """`own_id`: for a file that is not kept here, so that nothing else names it."""
    return {
        "id": file.get("id") or file.get("related_id") or own_id,
        "filename": file.get("filename"),
        "type": file.get("type"),
        "url": file.get("url") or file.get("remote_url"),
        "mime_type": file.get("mime_type"),
        "size": file.get("size"),
        "transfer_method": file.get("transfer_method"),
        "belongs_to": owner,
        "upload_file_id": file.get("related_id"),
    }
