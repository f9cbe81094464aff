"""Questions to the tables that only the console has. Each takes a connection; `Tables.ask` runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Text, and_, case, func, or_, select, type_coerce
from sqlalchemy.engine import Connection

from libs.tables import TENANT_ID, workflow_node_executions, workflow_runs

RUN_COLUMNS: Final = (
    "id", "version", "status", "elapsed_time", "total_tokens", "total_steps", "created_by_role", "created_by",
    "created_by_user", "invoke_from", "created_at", "finished_at", "exceptions_count", "conversation_id",
)  # fmt: skip

SHOWN_AS: Final = {"pending": "running"}
"""The reference has no name for a run that waits to be admitted."""

MOST_EXECUTIONS: Final = 1_000
"""Of the draft, newest first: how far back values of its nodes are looked for."""


@dataclass(slots=True, frozen=True)
class Runs:
    """Which runs of an app are asked for."""

    app_id: str
    triggered_from: str
    status: str | None = None
    from_us: int | None = None
    to_us: int | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        table = workflow_runs.c
        found = [table.app_id == self.app_id, table.triggered_from == self.triggered_from]
        if self.status is not None:
            named = [name for name, shown in SHOWN_AS.items() if shown == self.status]
            found.append(table.status.in_([self.status, *named]))
        if self.from_us is not None:
            found.append(table.created_at >= self.from_us)
        if self.to_us is not None:
            found.append(table.created_at < self.to_us)
        return found


def page_of_runs(connection: Connection, runs: Runs, last_id: str | None, limit: int) -> Sequence[Any] | None:
    """Rows, newest first, behind the run `last_id`; None: the app has no such run."""
    table = workflow_runs.c
    conditions = runs.conditions()
    if last_id is not None:
        of_last = select(table.created_at).where(table.id == last_id, table.app_id == runs.app_id)
        at_us = connection.execute(of_last).scalar()
        if at_us is None:
            return None
        conditions.append(or_(table.created_at < at_us, and_(table.created_at == at_us, table.id < last_id)))
    columns = [workflow_runs.c[name] for name in RUN_COLUMNS]
    query = select(*columns).where(*conditions).order_by(table.created_at.desc(), table.id.desc()).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def count_of_runs(connection: Connection, runs: Runs) -> Mapping[str, int]:
    """Status -> how many runs."""
    table = workflow_runs.c
    query = select(table.status, func.count()).where(*runs.conditions()).group_by(table.status)
    counts: dict[str, int] = {}
    for status, count in connection.execute(query):
        shown = SHOWN_AS.get(status or "", status or "")
        counts[shown] = counts.get(shown, 0) + count
    return counts


@dataclass(slots=True, frozen=True)
class Day:
    date: str
    runs: int
    users: int
    tokens: int


def days_of_runs(connection: Connection, runs: Runs) -> Sequence[Day]:
    """Runs by day (UTC), oldest first; days without runs are left out.

    Tokens of events that a fork shares are counted where they were spent.
    """
    table = workflow_runs.c
    if connection.dialect.name == "postgresql":
        date: ColumnElement[str] = func.to_char(func.timezone("UTC", table.created_at), "YYYY-MM-DD")
    else:
        date = func.substr(type_coerce(table.created_at, Text), 1, 10)
    date = date.label("date")
    spent = table.total_tokens - table.forked_tokens
    query = (
        select(
            date,
            func.count(),
            func.count(table.created_by.distinct()),
            # A run has no total before it ends.
            func.coalesce(func.sum(case((spent > 0, spent), else_=0)), 0),
        )
        .where(*runs.conditions())
        .group_by(date)
        .order_by(date)
    )
    return [Day(day, count, users, int(tokens)) for day, count, users, tokens in connection.execute(query)]


def last_execution(connection: Connection, app_id: str, workflow_id: str, node_id: str) -> tuple[str, str] | None:
    """(run id, execution id) of the node's newest execution in the main graph."""
    table = workflow_node_executions.c
    query = (
        select(table.workflow_run_id, table.id)
        .where(
            table.tenant_id == TENANT_ID,
            table.app_id == app_id,
            table.workflow_id == workflow_id,
            table.node_id == node_id.replace("\0", ""),
        )
        .order_by(table.created_at.desc(), table.id.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    return None if row is None else (row[0], row[1])


def last_outputs(connection: Connection, app_id: str, workflow_id: str) -> Mapping[str, Mapping[str, Any]]:
    """Node id -> its newest execution in the main graph that left values (`outputs`, `finished_at`, its run)."""
    table = workflow_node_executions.c
    query = (
        select(table.node_id, table.outputs, table.finished_at, table.workflow_run_id)
        .where(
            table.tenant_id == TENANT_ID,
            table.app_id == app_id,
            table.workflow_id == workflow_id,
            table.path == "",
            table.status.in_(("succeeded", "exception")),
        )
        .order_by(table.created_at.desc(), table.id.desc())
        .limit(MOST_EXECUTIONS)
    )
    found: dict[str, Mapping[str, Any]] = {}
    for row in connection.execute(query).mappings():
        found.setdefault(row["node_id"], dict(row))
    return found


def last_run_inputs(connection: Connection, app_id: str, workflow_id: str) -> tuple[str | None, int]:
    """The inputs (JSON text, with `sys.*`) of the newest run of this workflow, and when it was made (microseconds)."""
    table = workflow_runs.c
    query = (
        select(table.inputs, table.created_at)
        .where(table.app_id == app_id, table.workflow_id == workflow_id, table.triggered_from == "debugging")
        .order_by(table.created_at.desc(), table.id.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    return (None, 0) if row is None else (row.inputs, row.created_at or 0)
