"""How far the tables are: one saved position per partition, in the same transaction as the rows.

A position is moved by compare-and-set, so of two projectors on one partition one fails its transaction. On start the
record at the saved position is read again and must be the one that was projected; otherwise the log is another one
and the tables must be made anew.
"""

import hashlib
from dataclasses import dataclass, replace

from sqlalchemy import Executable, Table, select, update
from sqlalchemy.engine import Connection

from libs.events.log import Log, LogTruncated, Record, Topic
from libs.events.validity import Validity
from libs.tables import positions, schema


class ProjectorError(Exception):
    """Root of what stops a projector. The text says what was found and what to do."""


class RebuildNeeded(ProjectorError):
    """The tables do not belong to this log. Reading on would mix two histories."""


class PositionTaken(ProjectorError):
    """The saved position is not where this projector left it; its transaction was rolled back."""


@dataclass(slots=True, frozen=True)
class Position:
    """Everything below `next_offset` of the partition is in the tables."""

    partition: int
    topic_id: str
    next_offset: int = 0
    epoch: int = 0
    n: int = 0
    ignored: int = 0
    last_record: str = ""
    last_at: int | None = None

    def validity(self) -> Validity:
        return Validity(self.epoch, self.n, self.ignored)

    def after(self, record: Record, validity: Validity, last_at: int | None) -> "Position":
        return replace(
            self,
            next_offset=record.offset + 1,
            epoch=validity.epoch,
            n=validity.n,
            ignored=validity.ignored,
            last_record=identity(record),
            last_at=last_at,
        )


def identity(record: Record) -> str:
    """What tells this record from any other at its offset: its stamp's id and a digest of its content."""
    digest = hashlib.blake2b(digest_size=12)
    for name, value in sorted(record.headers.items()):
        digest.update(name.encode() + b"\0" + (value or b"") + b"\0")
    digest.update(record.value or b"")
    return f"{record.headers.get('ce_id', b'').decode('utf-8', 'replace')} {digest.hexdigest()}".replace("\0", "")


def load(connection: Connection, table: Table = positions) -> dict[int, Position]:
    """The saved positions, by partition."""
    return {row["partition"]: Position(**row) for row in connection.execute(select(table)).mappings()}


def generation(connection: Connection) -> int:
    """Counts rebuilds of the tables."""
    return int(connection.execute(select(schema.c.generation)).scalar_one())


def _insert_if_absent(connection: Connection, table: Table, values: dict[str, object]) -> Executable:
    # Only the dialect at hand is imported: the other costs every embedded command 50 ms.
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table).values(values).on_conflict_do_nothing()
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table).values(values).on_conflict_do_nothing()


def advance(connection: Connection, before: Position, after: Position, table: Table = positions) -> None:
    """Move a saved position. First statement of a transaction: its row lock makes a second projector wait and fail.

    Raises PositionTaken when the saved position is not `before`.
    """
    values = {name: getattr(after, name) for name in Position.__slots__}
    if before.next_offset == 0:
        moved = connection.execute(_insert_if_absent(connection, table, values))
    else:
        moved = connection.execute(
            update(table)
            .where(
                table.c.partition == before.partition,
                table.c.topic_id == before.topic_id,
                table.c.next_offset == before.next_offset,
                table.c.last_record == before.last_record,
            )
            .values(values)
        )
    if moved.rowcount != 1:
        raise PositionTaken(
            f"partition {before.partition}: the saved position is not {before.next_offset}, where this projector left "
            "it. Another projector writes these tables: stop one of the two"
        )


def check(position: Position, log: Log) -> None:
    """Raises RebuildNeeded unless the record before the position is the one that was projected. Blocking."""
    partition, hint = position.partition, "Make the tables anew: flowledger rebuild"
    topic_id = log.topic_id(Topic.EVENTS)
    if position.topic_id != topic_id:
        raise RebuildNeeded(
            f"partition {partition}: tables are of events topic {position.topic_id}, the log has {topic_id}. {hint}"
        )
    first, end = log.bounds(Topic.EVENTS, partition)
    if position.next_offset == 0:
        if first > 0:
            raise RebuildNeeded(
                f"partition {partition}: the log begins at offset {first}, not 0: older events were deleted. "
                "Set retention.ms=-1 on the events topic (flowledger topics check) and restore the deleted records"
            )
        return
    offset = position.next_offset - 1
    if not first <= offset < end:
        raise RebuildNeeded(
            f"partition {partition}: tables are at offset {offset}, the log holds {first} to {end - 1}. {hint}"
        )
    try:
        there = log.read(Topic.EVENTS, partition, offset, offset + 1)
        found = [identity(record) for batch in there for record in batch]
    except LogTruncated as error:
        raise RebuildNeeded(f"partition {partition}: {error}. {hint}") from error
    if found != [position.last_record]:
        raise RebuildNeeded(
            f"partition {partition}: the record at offset {offset} is not the one that was projected "
            f"(expected {position.last_record!r}, found {found}). {hint}"
        )
