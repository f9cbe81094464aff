"""Conversations, messages, variables, feedback and hits of annotations, as the tables hold them.

Questions for `Records.ask`. Blocking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.engine import Connection

from libs.tables import (
    annotation_hits,
    conversations,
    message_feedbacks,
    messages,
    workflow_conversation_variables,
    workflow_node_executions,
    workflow_runs,
)
from libs.workflow.segments import FILE_IDENTITY

Row = Mapping[str, Any]

SORTS: Final = ("created_at", "-created_at", "updated_at", "-updated_at")


def conversation(connection: Connection, conversation_id: str) -> Row | None:
    """The row, unless the conversation was deleted."""
    table = conversations.c
    query = select(conversations).where(
        table.id == conversation_id, table.app_id.is_not(None), table.deleted_at.is_(None)
    )
    found = connection.execute(query).mappings().first()
    return dict(found) if found is not None else None


@dataclass(slots=True, frozen=True)
class ConversationPage:
    """A page of an app's user's conversations: those behind `last`, in the order of `sort`."""

    app_id: str
    caller_id: str
    sort: str
    last: Row | None
    limit: int
    pinned: bool | None = None
    """Only those that are pinned, or only the others; None: all."""


def conversation_page(connection: Connection, wanted: ConversationPage) -> Sequence[Row]:
    """One more than the page holds, when there are more."""
    table = conversations.c
    conditions: list[ColumnElement[bool]] = [
        table.app_id == wanted.app_id,
        table.created_by == wanted.caller_id,
        table.deleted_at.is_(None),
    ]
    if wanted.pinned is not None:
        conditions.append(func.coalesce(table.pinned, 0) == int(wanted.pinned))
    column = table[wanted.sort.removeprefix("-")]
    falling = wanted.sort.startswith("-")
    if wanted.last is not None:
        at, last_id = wanted.last[column.name], wanted.last["id"]
        beyond = column < at if falling else column > at
        beside = table.id < last_id if falling else table.id > last_id
        conditions.append(or_(beyond, and_(column == at, beside)))
    order = (column.desc(), table.id.desc()) if falling else (column, table.id)
    query = select(conversations).where(*conditions).order_by(*order).limit(wanted.limit + 1)
    return [dict(row) for row in connection.execute(query).mappings()]


_MESSAGE = (*messages.c, workflow_runs.c.status.label("run_status"))


def message(connection: Connection, message_id: str) -> Row | None:
    """The row, unless its conversation was deleted."""
    query = (
        select(*_MESSAGE)
        .join(workflow_runs, workflow_runs.c.id == messages.c.workflow_run_id)
        .join(conversations, conversations.c.id == messages.c.conversation_id)
        .where(messages.c.id == message_id, conversations.c.deleted_at.is_(None))
    )
    found = connection.execute(query).mappings().first()
    return dict(found) if found is not None else None


def message_page(connection: Connection, conversation_id: str, before: int | None, limit: int) -> Sequence[Row]:
    """The newest messages with a number below `before`, newest first; one more when there are more."""
    conditions = [messages.c.conversation_id == conversation_id]
    if before is not None:
        conditions.append(messages.c.number < before)
    query = (
        select(*_MESSAGE)
        .join(workflow_runs, workflow_runs.c.id == messages.c.workflow_run_id)
        .where(*conditions)
        .order_by(messages.c.number.desc())
        .limit(limit + 1)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def asking_runs(connection: Connection, run_ids: Sequence[str]) -> set[str]:
    """Those of the runs that have asked a person something."""
    table = workflow_node_executions.c
    query = (
        select(table.workflow_run_id)
        .where(table.workflow_run_id.in_(run_ids), table.node_type == "human-input")
        .distinct()
    )
    return set(connection.execute(query).scalars())


def model_nodes(connection: Connection, run_ids: Sequence[str]) -> Sequence[Row]:
    """What the `llm` nodes of the runs have left that may hold files or sources, in order of their starts."""
    table = workflow_node_executions.c
    holds = [
        column.contains(word)
        for column, word in (
            (table.outputs, FILE_IDENTITY),
            (table.outputs, "$blob"),
            (table.process_data, "retriever_resources"),
            (table.process_data, "$blob"),
        )
    ]
    query = (
        select(table.workflow_run_id, table.outputs, table.process_data)
        .where(table.workflow_run_id.in_(run_ids), table.node_type == "llm", or_(*holds))
        .order_by(table.workflow_run_id, table["index"])
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def first_query(connection: Connection, conversation_id: str) -> str:
    """What the conversation began with."""
    query = (
        select(messages.c.query)
        .where(messages.c.conversation_id == conversation_id)
        .order_by(messages.c.number)
        .limit(1)
    )
    return connection.execute(query).scalar() or ""


def ended_messages(connection: Connection, conversation_id: str, limit: int) -> Sequence[Row]:
    """The messages that were answered last, in the order of their ends."""
    query = (
        select(messages.c.query, messages.c.answer)
        .where(messages.c.conversation_id == conversation_id, messages.c.finished_at.is_not(None))
        .order_by(messages.c.last_offset.desc())
        .limit(limit)
    )
    return [dict(row) for row in connection.execute(query).mappings()][::-1]


def variables(connection: Connection, conversation_id: str) -> Sequence[Row]:
    """Everything that the conversation holds, the newest first: what the last run that began has declared, then the
    rest. A value under a name alone, of records from before they told ids, is in the rows of that name.
    """
    table = workflow_conversation_variables.c
    query = (
        select(workflow_conversation_variables)
        .where(table.conversation_id == conversation_id)
        .order_by(table.declared_offset.desc().nulls_last(), table.created_at, table.name)
    )
    rows = [dict(row) for row in connection.execute(query).mappings()]
    named = {row["id"]: row for row in rows if not row["family"]}
    found = []
    for row in rows:
        if not row["family"] or row["name"] is None:
            continue
        older = named.get(row["name"])
        if older is not None and (row["written_offset"] or -1) < older["written_offset"]:
            row |= {name: older[name] for name in ("value", "updated_at", "written_offset")}
        found.append(row)
    return found


def listed(variables: Sequence[Row]) -> list[Row]:
    """Of those, all variables of the newest version that answered, and of earlier ones whose name and id no other has,
    in the order in which they came."""
    found: list[Row] = []
    for row in variables:
        hidden = any(row["id"] == each["id"] or row["name"] == each["name"] for each in found)
        if row["declared_offset"] is not None and not hidden:
            found.append(row)
    return sorted(found, key=lambda row: (row["created_at"], row["name"]))


def ratings(connection: Connection, message_ids: Sequence[str], caller_id: str) -> dict[str, str]:
    """Message -> what this user thinks of it."""
    table = message_feedbacks.c
    query = select(table.message_id, table.rating).where(
        table.message_id.in_(message_ids),
        table.rating.is_not(None),
        or_(table.from_end_user_id == caller_id, table.from_account_id == caller_id),
    )
    return {row.message_id: row.rating for row in connection.execute(query)}


def feedback_page(connection: Connection, app_id: str, page: int, limit: int) -> Sequence[Row]:
    """What users think, newest first; not of deleted conversations."""
    table = message_feedbacks.c
    query = (
        select(message_feedbacks)
        .join(conversations, conversations.c.id == table.conversation_id)
        .where(table.app_id == app_id, table.rating.is_not(None), conversations.c.deleted_at.is_(None))
        .order_by(table.created_at.desc(), table.id.desc())
        .limit(limit)
        .offset((page - 1) * limit)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def annotation_hit_counts(connection: Connection, app_id: str, annotation_ids: Sequence[str]) -> dict[str, int]:
    """Annotation -> how many messages it has answered; without those that answered none."""
    table = annotation_hits.c
    query = (
        select(table.annotation_id, func.count())
        .where(table.app_id == app_id, table.annotation_id.in_(annotation_ids))
        .group_by(table.annotation_id)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def value_of(row: Row) -> str:
    """JSON of the value of a variable's row."""
    return str(row["value"] if row["value"] is not None else row["initial"] or "null")
