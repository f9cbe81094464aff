"""The read side of the tables: runs by id and in lists. Blocking; call it from a thread.

What is read here may be behind the log. Who needs certainty compares `Found.next_offset` with the log.
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic_core import from_json
from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from libs.tables import end_users, positions, workflow_runs

T = TypeVar("T")

LIST_COLUMNS = (
    "id", "app_id", "workflow_id", "version", "status", "error", "created_at", "started_at", "begun_at",
    "finished_at", "elapsed_time", "total_steps", "total_tokens", "seq", "triggered_from", "only",
    "forked_from", "forked_at",
)  # fmt: skip


LOG_COLUMNS = (
    "id", "version", "status", "triggered_from", "invoke_from", "error", "elapsed_time", "total_tokens", "total_steps",
    "created_at", "finished_at", "exceptions_count", "created_by_role", "created_by", "created_by_user",
)  # fmt: skip

LOGGED_FROM = ("service-api", "web-app", "explore", "openapi")
"""Callers whose runs an app's log shows; others try something out or are triggers."""


class RecordsUnavailable(Exception):
    """The database cannot be asked now."""


@dataclass(slots=True, frozen=True)
class Found:
    """A run's row, and how far its partition was projected when it was read."""

    row: Mapping[str, Any] | None
    next_offset: int
    """Every record of the partition below it is in the tables; 0 when none is."""


@dataclass(slots=True, frozen=True)
class Filter:
    app_id: str | None = None
    status: str | None = None
    since_us: int | None = None
    id_prefix: str | None = None
    after: tuple[int, str] | None = None
    """Created at and id of the run behind which the page begins."""


@dataclass(slots=True, frozen=True)
class LogFilter:
    """What the reference's log of an app is asked for. Bounds are inclusive."""

    app_id: str
    keyword: str | None = None
    """In the inputs, the outputs or the user's name."""
    run_id: str | None = None
    """Beside what the keyword finds."""
    status: str | None = None
    from_us: int | None = None
    to_us: int | None = None
    user: str | None = None
    account_id: str | None = None
    """Two different wishes: runs of this end user, and runs of this account."""


@dataclass(slots=True, frozen=True)
class EndUser:
    user: str
    invoke_from: str
    """Where its runs were started; a browser's user is never one of the service API, too."""
    created_us: int
    updated_us: int


class Records:
    """Reads through `engine`. `topic_id`: of the events topic; rows made from another one do not count as progress."""

    def __init__(self, engine: Engine, topic_id: str) -> None:
        self._engine = engine
        self._topic_id = topic_id

    def run(self, run_id: str, partition: int) -> Found:
        """The run's row. The position is read first, so the row is at least as new. Raises RecordsUnavailable."""
        progress = select(positions.c.next_offset).where(
            positions.c.partition == partition, positions.c.topic_id == self._topic_id
        )
        try:
            with self._engine.connect() as connection:
                next_offset = connection.execute(progress).scalar()
                row = connection.execute(select(workflow_runs).where(workflow_runs.c.id == run_id)).mappings().first()
        except SQLAlchemyError as error:
            raise RecordsUnavailable(_text(error)) from error
        return Found(dict(row) if row is not None and row["app_id"] is not None else None, next_offset or 0)

    def runs(self, wanted: Filter, limit: int) -> Sequence[Mapping[str, Any]]:
        """Runs, newest first. Raises RecordsUnavailable."""
        table = workflow_runs.c
        conditions: list[ColumnElement[bool]] = [table.app_id.is_not(None)]
        if wanted.app_id is not None:
            conditions.append(table.app_id == wanted.app_id)
        if wanted.status is not None:
            conditions.append(table.status == wanted.status)
        if wanted.since_us is not None:
            conditions.append(table.created_at >= wanted.since_us)
        if wanted.id_prefix is not None:
            conditions.append(table.id.startswith(wanted.id_prefix, autoescape=True))
        if wanted.after is not None:
            at_us, run_id = wanted.after
            conditions.append(or_(table.created_at < at_us, and_(table.created_at == at_us, table.id < run_id)))
        columns = [workflow_runs.c[name] for name in LIST_COLUMNS]
        query = select(*columns).where(*conditions).order_by(table.created_at.desc(), table.id.desc()).limit(limit)
        try:
            with self._engine.connect() as connection:
                return [dict(row) for row in connection.execute(query).mappings()]
        except SQLAlchemyError as error:
            raise RecordsUnavailable(_text(error)) from error

    def progress(self) -> dict[int, int]:
        """Partition -> offset below which every record is in the tables. Raises RecordsUnavailable."""
        query = select(positions.c.partition, positions.c.next_offset).where(positions.c.topic_id == self._topic_id)
        with self._connected() as connection:
            return {row.partition: row.next_offset for row in connection.execute(query)}

    def logs(self, wanted: LogFilter, page: int, limit: int) -> tuple[Sequence[Mapping[str, Any]], int]:
        """One page of an app's log, newest first, and how many entries there are. Raises RecordsUnavailable."""
        table = workflow_runs.c
        conditions = _logged(wanted)
        columns = [workflow_runs.c[name] for name in LOG_COLUMNS]
        order = (table.created_at.desc(), table.id.desc())
        rows = select(*columns).where(*conditions).order_by(*order).limit(limit).offset((page - 1) * limit)
        count = select(func.count()).select_from(workflow_runs).where(*conditions)
        with self._connected() as connection:
            total = connection.execute(count).scalar() or 0
            return [dict(row) for row in connection.execute(rows).mappings()], total

    def end_user(self, app_id: str, user_id: str) -> EndUser | None:
        """Who is known under this id by its runs, or by what it did without one. Raises RecordsUnavailable."""
        runs, others = workflow_runs.c, end_users.c
        ran = select(
            func.max(runs.created_by_user),
            func.max(runs.invoke_from),
            func.min(runs.created_at),
            func.max(runs.created_at),
        ).where(runs.app_id == app_id, runs.created_by == user_id, runs.created_by_role == "end_user")
        seen = select(
            func.max(others.external_user),
            func.max(others.invoke_from),
            func.min(others.created_at),
            func.max(others.updated_at),
        ).where(others.app_id == app_id, others.id == user_id)
        with self._connected() as connection:
            rows = [connection.execute(query).one() for query in (ran, seen)]
        found = [row for row in rows if row[2] is not None]
        if not found:
            return None
        user, invoke_from, _, _ = found[0]
        return EndUser(user or "", invoke_from or "", min(row[2] for row in found), max(row[3] for row in found))

    def ask(self, question: Callable[[Connection], T]) -> T:
        """The answer to a question of somebody else's. Raises RecordsUnavailable."""
        with self._connected() as connection:
            return question(connection)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise RecordsUnavailable(_text(error)) from error


def _logged(wanted: LogFilter) -> list[ColumnElement[bool]]:
    """Runs that the log of an app shows: published ones of workflow apps, started from outside."""
    table = workflow_runs.c
    conditions = [
        table.app_id == wanted.app_id,
        table.type == "workflow",
        table.triggered_from == "app-run",
        table.invoke_from.in_(LOGGED_FROM),
    ]
    if wanted.keyword is not None:
        text = wanted.keyword
        places = (table.inputs, table.outputs, table.created_by_user)
        found = [place.icontains(text, autoescape=True) for place in places]
        conditions.append(or_(*found, table.id == wanted.run_id))
    if wanted.status is not None:
        conditions.append(table.status == wanted.status)
    if wanted.from_us is not None:
        conditions.append(table.created_at >= wanted.from_us)
    if wanted.to_us is not None:
        conditions.append(table.created_at <= wanted.to_us)
    if wanted.user is not None:
        conditions += [table.created_by_role == "end_user", table.created_by_user == wanted.user]
    if wanted.account_id is not None:
        conditions += [table.created_by_role == "account", table.created_by == wanted.account_id]
    return conditions


def row_place(row: Mapping[str, Any]) -> tuple[int, str]:
    """Where the page behind `row` begins."""
    return row["created_at"], row["id"]


def make_cursor(row: Mapping[str, Any]) -> str:
    """Where the page behind `row` begins; opaque to clients."""
    return base64.urlsafe_b64encode(json.dumps(row_place(row)).encode()).decode()


def read_cursor(text: str) -> tuple[int, str]:
    """What `make_cursor` wrote. Raises ValueError."""
    try:
        at_us, run_id = from_json(base64.urlsafe_b64decode(text.encode()))
    except (ValueError, TypeError, binascii.Error) as error:
        raise ValueError("cursor is not one that a list gave out") from error
    if not isinstance(at_us, int) or not isinstance(run_id, str):
        raise ValueError("cursor is not one that a list gave out")
    return at_us, run_id


def _text(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
