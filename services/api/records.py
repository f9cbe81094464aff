"""The read side of the tables: runs by id and in lists. Blocking; call it from a thread.

What is read here may be behind the log. Who needs certainty compares `Found.next_offset` with the log.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from libs.tables import positions, workflow_runs

LIST_COLUMNS = (
    "id", "app_id", "workflow_id", "version", "status", "error", "created_at", "started_at", "finished_at",
    "elapsed_time", "total_steps", "total_tokens", "seq", "triggered_from",
)  # fmt: skip


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


def make_cursor(row: Mapping[str, Any]) -> str:
    """Where the page behind `row` begins; opaque to clients."""
    return base64.urlsafe_b64encode(json.dumps([row["created_at"], row["id"]]).encode()).decode()


def read_cursor(text: str) -> tuple[int, str]:
    """What `make_cursor` wrote. Raises ValueError."""
    try:
        at_us, run_id = json.loads(base64.urlsafe_b64decode(text.encode()))
    except (ValueError, TypeError, binascii.Error) as error:
        raise ValueError("cursor is not one that a list gave out") from error
    if not isinstance(at_us, int) or not isinstance(run_id, str):
        raise ValueError("cursor is not one that a list gave out")
    return at_us, run_id


def _text(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
