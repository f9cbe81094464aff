"""What an event means for the tables of conversations: conversations, messages, feedback, variables, hits. Pure.

A conversation's row begins with its first message, a message's with the acceptance of its run. Variables have the
value that the first run which had them began with, until one is written: by a run, which leaves it when it ends, or
from outside. An annotation is hit by each message that it answers; a fork of such a message is no message.
"""

from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue
from pydantic_core import to_json

from libs.events.blobs import is_ref, member_text
from libs.events.codec import Recorded
from libs.events.ids import execution_id, message_id_of
from libs.events.model import (
    ConversationDeleted,
    ConversationPinned,
    ConversationRenamed,
    ConversationVariableSet,
    MessageRated,
    RunAccepted,
    RunFailed,
    RunPartiallySucceeded,
    RunPaused,
    RunStarted,
    RunStopped,
    RunSucceeded,
    VariableForm,
    VariableUpdate,
)
from libs.tables import TENANT_ID
from libs.workflow.segments import is_file
from libs.workflow.variables import VariableKey, variable_key
from services.projector.rows import REPLACED, Row, as_json, clean, fold

_NONE = frozenset[str]()


@dataclass(slots=True)
class TalkChanges:
    """Row changes of a batch, by what tells rows apart."""

    conversations: dict[str, Row] = field(default_factory=dict)
    messages: dict[str, Row] = field(default_factory=dict)
    feedbacks: dict[str, Row] = field(default_factory=dict)
    variables: dict[tuple[str | None, ...], Row] = field(default_factory=dict)
    hits: dict[str, Row] = field(default_factory=dict)


def project_talk(changes: TalkChanges, recorded: Recorded) -> None:
    """The row changes that one event causes."""
    event = recorded.event
    match event:
        case RunAccepted() if event.mode == "advanced-chat" and event.conversation_id is not None:
            _on_accepted(changes, event, event.conversation_id, recorded)
        case RunStarted() if event.conversation_id is not None:
            for place, form in (event.forms or {}).items():
                if form.id and form.value_type:  # older records have forms that say less
                    _on_found(changes, event, event.conversation_id, place, form, recorded)
        case RunSucceeded() | RunPartiallySucceeded() | RunFailed() | RunStopped() if event.conversation_id is not None:
            _on_ended(changes, event, recorded)
            for update in event.updates or ():
                _on_written(changes, event.conversation_id, update.selector[1], update, recorded)
        case RunPaused() if event.answer is not None:  # of what a message waits with
            paused = {"id": message_id_of(recorded.run_id), **_place(recorded), "answer": _json(event.answer)}
            fold(changes.messages, paused, _NONE)
        case ConversationVariableSet():
            _on_written(changes, event.conversation_id, event.name, event, recorded)
            _change(changes, event.conversation_id, recorded, changed_by=event.command_offset)
        case ConversationRenamed():
            _change(changes, event.conversation_id, recorded, name=clean(event.name), updated_at=recorded.at_us)
        case ConversationPinned():
            _change(changes, event.conversation_id, recorded, pinned=int(event.pinned))
        case ConversationDeleted():
            _change(changes, event.conversation_id, recorded, deleted_at=recorded.at_us)
        case MessageRated():
            _on_rated(changes, event, recorded)
        case _:
            pass


def _place(recorded: Recorded) -> Row:
    return {"tenant_id": TENANT_ID, "partition": recorded.partition, "last_offset": recorded.offset}


def _change(changes: TalkChanges, conversation_id: str, recorded: Recorded, **columns: Any) -> None:
    row = {"id": clean(conversation_id), **_place(recorded), **columns}
    fold(changes.conversations, row, _NONE)


def _on_accepted(changes: TalkChanges, event: RunAccepted, conversation_id: str, recorded: Recorded) -> None:
    common: Row = {
        "app_id": clean(event.app_id),
        "invoke_from": clean(event.invoke_from),
        "created_by_role": event.caller.role,
        "created_by": clean(event.caller.id),
        "created_by_user": clean(event.caller.user),
        "created_at": recorded.at_us,
        "first_offset": recorded.offset,
    }
    number = event.dialogue_count or 1
    begins: Row = {}
    if number == 1 or event.forked_from is not None:  # a fork is a conversation of its own
        begins = {
            "name": clean(event.conversation_name) or "",
            "introduction": clean(event.introduction) or "",
            "inputs": as_json(event.inputs),
            "status": "normal",
            **common,
        }
    _change(changes, conversation_id, recorded, **begins, dialogue_count=number, updated_at=recorded.at_us)
    message = {
        "id": message_id_of(recorded.run_id),
        **_place(recorded),
        **common,
        "conversation_id": clean(conversation_id),
        "workflow_run_id": recorded.run_id,
        "number": number,
        "inputs": as_json(event.inputs),
        "query": clean(event.query) or "",
        "files": as_json(list(event.files)),
        "status": "normal",
        "total_tokens": 0,
    }
    fold(changes.messages, message, _NONE)
    if event.annotation is not None and event.forked_from is None:
        hit = {
            "id": message["id"],
            **_place(recorded),
            "app_id": clean(event.app_id),
            "annotation_id": clean(event.annotation.id),
            "conversation_id": clean(conversation_id),
            "question": message["query"],
            "annotation_question": clean(event.annotation.question),
            "annotation_content": clean(event.annotation.answer),
            "score": event.annotation.score,
            "created_at": recorded.at_us,
        }
        fold(changes.hits, hit, _NONE)


def _on_found(
    changes: TalkChanges, event: RunStarted, conversation_id: str, place: str, form: VariableForm, recorded: Recorded
) -> None:
    values = event.variables or {}
    # Many small values leave their event together.
    initial = member_text(values, place) if is_ref(values) else _json(values.get(place))
    row: Row = {
        "name": clean(form.name or place),
        "value_type": clean(form.value_type),
        "description": clean(form.description) or "",
        "initial": initial,
        "created_at": recorded.at_us,
    }
    if form.name is None:
        row["declared_offset"] = recorded.offset
    if place in (event.renewed or ()):  # older records, whose writes went by name
        row |= _written(initial, recorded)
    _variable(changes, conversation_id, variable_key(form.id, form.value_type), row, recorded)


def _on_written(
    changes: TalkChanges,
    conversation_id: str,
    name: str,
    said: VariableUpdate | ConversationVariableSet,
    recorded: Recorded,
) -> None:
    key = (name, "") if said.id is None else variable_key(said.id, said.value_type)
    _variable(changes, conversation_id, key, _written(_json(said.value), recorded), recorded)


def _written(value: str, recorded: Recorded) -> Row:
    return {"value": value, "updated_at": recorded.at_us, "written_offset": recorded.offset}


def _variable(
    changes: TalkChanges, conversation_id: str, variable: VariableKey, columns: Row, recorded: Recorded
) -> None:
    key = {"conversation_id": clean(conversation_id), "id": clean(variable[0]), "family": clean(variable[1])}
    fold(changes.variables, {**key, **_place(recorded), **columns}, _NONE, tuple(key.values()))


def _on_ended(
    changes: TalkChanges, event: RunSucceeded | RunPartiallySucceeded | RunFailed | RunStopped, recorded: Recorded
) -> None:
    outputs: Any = event.outputs
    found = outputs.get("files")
    files = [each for each in found if is_file(each)] if isinstance(found, list) else []
    row = {
        "id": message_id_of(recorded.run_id),
        **_place(recorded),
        "answer": _json(outputs if is_ref(outputs) else outputs.get("answer", "")),
        "answer_files": as_json(files) if files else None,
        "status": "error" if isinstance(event, RunFailed) else "normal",
        "error": clean(event.error) if isinstance(event, RunFailed) else None,
        "total_tokens": event.total_tokens,
        "finished_at": recorded.at_us,
    }
    fold(changes.messages, row, _NONE)


def _on_rated(changes: TalkChanges, event: MessageRated, recorded: Recorded) -> None:
    end_user = event.caller.role == "end_user"
    row = {
        "id": execution_id(event.message_id, event.caller.role, event.caller.id),
        **_place(recorded),
        "app_id": clean(event.app_id),
        "conversation_id": clean(event.conversation_id),
        "message_id": clean(event.message_id),
        "rating": event.rating,
        "content": clean(event.content) if event.rating is not None else None,
        "from_source": "user" if end_user else "admin",
        "from_end_user_id": clean(event.caller.id) if end_user else None,
        "from_account_id": None if end_user else clean(event.caller.id),
        "created_at": recorded.at_us,
        "updated_at": recorded.at_us,
    }
    fold(changes.feedbacks, row, REPLACED["message_feedbacks"])


def _json(value: JsonValue) -> str:
    """As `as_json`; None is a value of its own here."""
    return to_json(value).decode()
