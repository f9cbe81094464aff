"""From log records to one transaction: validity rule, decoding, folding, writing, all or nothing.

Steps of a transaction: 1 move the positions (compare-and-set), 2 look up what node rows repeat of their runs, 3 fold,
4 write. A record that cannot be decoded, or that the database refuses for what it holds, becomes a dead letter with
its place and reason; the projector goes on behind it. So does a foreign record; records of owners that had lost their
partition are only counted: what they say was done again by the next one.
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import psycopg2  # type: ignore[import-untyped]  # it ships no types
from sqlalchemy import MetaData, Table, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from libs.events.codec import CodecError, Recorded, decode_event, run_of, stamp_of, type_of
from libs.events.log import Record
from libs.tables import (
    FILLED,
    annotation_hits,
    conversations,
    dead_letters,
    end_users,
    message_feedbacks,
    messages,
    positions,
    workflow_conversation_variables,
    workflow_node_executions,
    workflow_runs,
    writing,
)
from services.projector.position import Position, advance
from services.projector.projection import Changes, RunContext, project, unknown_runs
from services.projector.rows import Row, clean
from services.projector.writer import TableWriter

DATABASE_ERRORS = (SQLAlchemyError, psycopg2.Error)
"""What a database operation here may raise; COPY goes past SQLAlchemy, so both families."""

FOREIGN = "it has no epoch and number: no executor wrote it"

_KNOWN_RUNS = 20_000
"""Run contexts kept in memory; a miss costs one look-up by primary key."""


@dataclass(slots=True, frozen=True)
class DeadLetter:
    record: Record
    reason: str

    def row(self) -> Row:
        return {
            "partition": self.record.partition,
            "offset": self.record.offset,
            "run_id": clean(run_of(self.record)) or None,
            "type": clean(type_of(self.record)) or None,
            "reason": clean(self.reason),
            "size_bytes": len(self.record.value or b""),
        }


@dataclass(slots=True)
class Batch:
    """What a run of records comes to: decoded events, dead letters, positions before and after."""

    events: list[Recorded] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    foreign: list[DeadLetter] = field(default_factory=list)
    """Records that no executor wrote. They get a row that keeps their place, and nothing more: nobody lost anything."""
    before: dict[int, Position] = field(default_factory=dict)
    after: dict[int, Position] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class TableSet:
    """The tables to fill: the live ones, or copies under other names beside them."""

    runs: Table
    nodes: Table
    conversations: Table
    messages: Table
    feedbacks: Table
    variables: Table
    end_users: Table
    hits: Table
    dead: Table
    positions: Table

    @classmethod
    def live(cls) -> "TableSet":
        return cls(*_LIVE)

    @classmethod
    def beside(cls, suffix: str) -> "TableSet":
        """Copies named with `suffix`, without secondary indexes (those come when the copy becomes live)."""
        beside = MetaData()
        copies = {table.name: table.to_metadata(beside, name=table.name + suffix) for table in FILLED}
        for copy in copies.values():
            copy.indexes.clear()
        return cls(*(copies[table.name] for table in _LIVE))

    def all(self) -> tuple[Table, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)


_LIVE = (
    workflow_runs,
    workflow_node_executions,
    conversations,
    messages,
    message_feedbacks,
    workflow_conversation_variables,
    end_users,
    annotation_hits,
    dead_letters,
    positions,
)
"""In the order of `TableSet`."""


def read(records: Sequence[Record], at: Mapping[int, Position]) -> Batch:
    """Decode `records` (in offset order per partition). Records below their position are left out. Pure."""
    batch = Batch()
    by_partition: dict[int, list[Record]] = {}
    for record in records:
        if record.offset >= at[record.partition].next_offset:
            by_partition.setdefault(record.partition, []).append(record)
    for partition, mine in by_partition.items():
        position = at[partition]
        validity, last_at = position.validity(), position.last_at
        for record in mine:
            stamp = stamp_of(record)
            if stamp is None:
                batch.foreign.append(DeadLetter(record, FOREIGN))
            if validity.admit(stamp):
                try:
                    recorded = decode_event(record)
                except CodecError as error:
                    batch.dead.append(DeadLetter(record, str(error)))
                else:
                    last_at = recorded.at_us
                    batch.events.append(recorded)
        batch.before[partition] = position
        batch.after[partition] = position.after(mine[-1], validity, last_at)
    return batch


class BatchWriter:
    """Applies records to a set of tables. One thread."""

    def __init__(self, engine: Engine, tables: TableSet | None = None) -> None:
        self._engine = engine
        self._tables = tables or TableSet.live()
        made = dict(zip(TableSet.__slots__, _LIVE, strict=True))
        self._writers = {
            name: TableWriter(getattr(self._tables, name), table.name)
            for name, table in made.items()
            if table is not positions
        }
        self._known: dict[str, RunContext] = {}

    def apply(self, records: Sequence[Record], at: dict[int, Position]) -> Batch:
        """Write what `records` cause and move `at`, in one transaction. Returns what was written.

        When the database refuses a value, the records are written in halves until the one at fault is alone; that one
        becomes a dead letter. Raises PositionTaken; DATABASE_ERRORS when the database itself cannot (nothing is
        written then that `at` does not tell: call again).
        """
        batch = read(records, at)
        if not batch.after:
            return batch
        try:
            self._commit(batch)
        except (*DATABASE_ERRORS, ValueError, OverflowError) as error:
            if not _refused(error):
                raise
            left = [r for r in records if r.offset >= at[r.partition].next_offset]
            if len(left) > 1:
                return self._apply_halves(left, at)
            batch.dead = [DeadLetter(left[0], f"the database refused it: {_reason(error)}")]
            batch.events, batch.foreign = [], []
            self._commit(batch)
        at.update(batch.after)
        return batch

    def _apply_halves(self, records: Sequence[Record], at: dict[int, Position]) -> Batch:
        middle = len(records) // 2
        first = self.apply(records[:middle], at)
        second = self.apply(records[middle:], at)
        return Batch(
            first.events + second.events,
            first.dead + second.dead,
            first.foreign + second.foreign,
            first.before,
            first.after | second.after,
        )

    def _commit(self, batch: Batch) -> None:
        with writing(self._engine) as connection:
            for partition in sorted(batch.after):  # one order everywhere: two projectors cannot deadlock
                advance(connection, batch.before[partition], batch.after[partition], self._tables.positions)
            looked_up = self._look_up(connection, unknown_runs(batch.events, self._known))
            changes = project(batch.events, ChainMap(looked_up, self._known))
            for name, rows in _rows(changes).items():
                self._writers[name].write(connection, rows)
            self._writers["dead"].write(connection, [letter.row() for letter in (*batch.dead, *batch.foreign)])
        self._remember(looked_up | changes.contexts)

    def _look_up(self, connection: Connection, run_ids: set[str]) -> dict[str, RunContext]:
        runs = self._tables.runs
        found: dict[str, RunContext] = {}
        wanted = sorted(run_ids)
        for start in range(0, len(wanted), 500):  # SQLite bounds the number of parameters
            rows = connection.execute(
                select(
                    runs.c.id, runs.c.app_id, runs.c.workflow_id, runs.c.created_by_role, runs.c.created_by, runs.c.only
                ).where(runs.c.id.in_(wanted[start : start + 500]))
            )
            found |= {row[0]: RunContext(*row[1:]) for row in rows}
        return found

    def _remember(self, contexts: dict[str, RunContext]) -> None:
        """Only after the commit: what was rolled back may end as a dead letter, and a restart would not know it."""
        self._known |= contexts
        excess = len(self._known) - _KNOWN_RUNS
        for run_id in list(islice(self._known, excess)) if excess > 0 else ():
            del self._known[run_id]


def _rows(changes: Changes) -> dict[str, list[Row]]:
    """Changed rows by table, in one order everywhere: two projectors cannot deadlock."""
    talks = changes.talks
    return {
        "runs": list(changes.runs.values()),
        "nodes": list(changes.nodes.values()),
        "conversations": list(talks.conversations.values()),
        "messages": list(talks.messages.values()),
        "feedbacks": list(talks.feedbacks.values()),
        "variables": list(talks.variables.values()),
        "end_users": list(changes.end_users.values()),
        "hits": list(talks.hits.values()),
    }


def _refused(error: Exception) -> bool:
    """Whether the database will never take this data, as opposed to being unable to work just now."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    code = getattr(cause, "pgcode", None) or ""
    # 22: data exception, 23: constraint, 54: program limit (an index entry too long).
    if code[:2] in ("22", "23", "54"):
        return True
    # Both drivers use these names; the last two come from Python before anything is sent.
    names = {cls.__name__ for cls in type(cause).__mro__}
    return bool(names & {"DataError", "IntegrityError", "ValueError", "OverflowError"})


def _reason(error: Exception) -> str:
    """The first line of the message: later ones may quote the row."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"[:500]
