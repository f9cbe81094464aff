"""Whether the tables are what the log says: the log is folded anew beside them, and every row is compared.

Changes nothing. Both sides are taken as of the tables' own saved positions, in one transaction of the database, so a
projector may go on meanwhile. The fold needs room for a second copy of the tables in a temporary folder.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Table, func, select, tuple_
from sqlalchemy.engine import Connection, Engine, RowMapping

from libs.events.ids import partition_of
from libs.events.log import Log, Topic
from libs.tables import (
    FILLED,
    check_complete,
    create_tables,
    open_engine,
    positions,
    sqlite_url,
    workflow_runs,
)
from services.projector.batch import BatchWriter
from services.projector.position import Position, check, load

_BATCH = 4_000
_COMPARED = 500
MOST_DIFFERENCES = 100
"""More of them say nothing new."""

Row = RowMapping
_T = TypeVar("_T")


@dataclass(slots=True, frozen=True)
class Difference:
    """One row that is not what the log says. `columns` are those that differ; empty: the row is there on one side."""

    table: str
    key: str
    problem: str
    columns: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class Verified:
    rows: int
    """That were compared."""
    behind: int
    """Records of the log that the tables do not have yet."""
    differences: tuple[Difference, ...]


def verify(
    log: Log,
    engine: Engine,
    run_id: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verified:
    """Compare all rows, or those of one run, with a fold of the log. Blocking.

    Raises TablesError when some are missing, RebuildNeeded when they are of another log, LogError, and what the
    database raises.
    """
    with engine.connect() as connection:
        check_complete(connection)
    with tempfile.TemporaryDirectory(prefix="flowledger-verify-") as folder:
        beside = open_engine(sqlite_url(Path(folder) / "tables.db"))
        try:
            create_tables(beside)
            return _Fold(log, beside, run_id, progress).compare(engine)
        finally:
            beside.dispose()


def find_runs(engine: Engine, prefix: str) -> list[str]:
    """Ids of runs in the tables that begin so; at most a few."""
    table = workflow_runs.c
    query = select(table.id).where(table.id.startswith(prefix, autoescape=True)).order_by(table.id).limit(6)
    with engine.connect() as connection:
        check_complete(connection)
        return [str(row[0]) for row in connection.execute(query)]


class _Fold:
    def __init__(self, log: Log, engine: Engine, run_id: str | None, progress: Callable[[int, int], None]) -> None:
        self._log = log
        self._engine = engine
        self._run_id = run_id
        self._progress = progress
        self._writer = BatchWriter(engine)
        topic_id = log.topic_id(Topic.EVENTS)
        partitions = range(log.partitions) if run_id is None else [partition_of(run_id)]
        self._at = {partition: Position(partition, topic_id) for partition in partitions}

    def compare(self, engine: Engine) -> Verified:
        with engine.connect() as connection:
            saved = load(connection)
        for position in saved.values():
            check(position, self._log)
        self._read_to(saved)  # what comes meanwhile is little
        with _snapshot(engine) as connection, self._engine.connect() as mine:
            saved = load(connection)
            self._read_to(saved)
            differences: list[Difference] = []
            rows = 0
            for table in FILLED:
                if table is positions:
                    continue
                compared, found = self._compare(table, connection, mine)
                rows, differences = rows + compared, differences + found
        ends = {partition: self._log.bounds(Topic.EVENTS, partition)[1] for partition in self._at}
        behind = sum(end - saved[p].next_offset if p in saved else end for p, end in ends.items())
        return Verified(rows, behind, tuple(differences[:MOST_DIFFERENCES]))

    def _read_to(self, saved: Mapping[int, Position]) -> None:
        total = sum(position.next_offset for partition, position in saved.items() if partition in self._at)
        for partition in self._at:
            stop = saved[partition].next_offset if partition in saved else 0
            first = self._at[partition].next_offset
            if first >= stop:
                continue
            for records in self._log.read(Topic.EVENTS, partition, first, stop, batch=_BATCH):
                self._writer.apply(records, self._at)
                self._progress(sum(position.next_offset for position in self._at.values()), total)

    def _compare(self, table: Table, live: Connection, mine: Connection) -> tuple[int, list[Difference]]:
        only = self._of_run(table)
        if self._run_id is not None and only is None:
            return 0, []
        found: list[Difference] = []
        compared = 0
        keys = list(table.primary_key.columns)
        for rows in batched(_rows(mine, table, only)):
            compared += len(rows)
            wanted = [tuple(row[key.name] for key in keys) for row in rows]
            there = live.execute(select(table).where(tuple_(*keys).in_(wanted))).mappings()
            by_key = {tuple(row[key.name] for key in keys): row for row in there}
            found += [one for row, key in zip(rows, wanted, strict=True) if (one := _differs(table, key, row, by_key))]
        count = select(func.count()).select_from(table)
        if live.execute(count if only is None else count.where(only)).scalar_one() != compared - _missing(found):
            found += self._unexpected(table, live, mine, only)
        return compared, found

    def _of_run(self, table: Table) -> ColumnElement[bool] | None:
        """Which rows are the run's; None: all, or when one run is asked for, none."""
        if self._run_id is None:
            return None
        if table is workflow_runs:
            return table.c.id == self._run_id
        return table.c.workflow_run_id == self._run_id if "workflow_run_id" in table.c else None

    def _unexpected(
        self, table: Table, live: Connection, mine: Connection, only: ColumnElement[bool] | None
    ) -> list[Difference]:
        """Rows of the tables that no event has made."""
        keys = list(table.primary_key.columns)
        query = select(*keys) if only is None else select(*keys).where(only)
        found = []
        for rows in batched(live.execute(query)):
            wanted = [tuple(row) for row in rows]
            known = {tuple(row) for row in mine.execute(select(*keys).where(tuple_(*keys).in_(wanted)))}
            found += [Difference(table.name, _name(key), "no event has made it") for key in wanted if key not in known]
        return found


def batched(rows: Iterable[_T], size: int = _COMPARED) -> Iterator[list[_T]]:
    """In lists of at most `size`."""
    left = iter(rows)
    while batch := list(islice(left, size)):
        yield batch


def _rows(connection: Connection, table: Table, only: ColumnElement[bool] | None) -> Iterator[Row]:
    query = select(table).order_by(*table.primary_key.columns)
    yield from connection.execute(query if only is None else query.where(only)).mappings()


def _differs(table: Table, key: tuple[Any, ...], row: Row, there: Mapping[tuple[Any, ...], Row]) -> Difference | None:
    live = there.get(key)
    if live is None:
        return Difference(table.name, _name(key), "missing in the tables")
    columns = tuple(name for name in row if row[name] != live[name])
    return Difference(table.name, _name(key), "differs", columns) if columns else None


def _missing(found: Sequence[Difference]) -> int:
    return sum(not each.columns for each in found)


def _name(key: tuple[Any, ...]) -> str:
    return "/".join(map(str, key))


def _snapshot(engine: Engine) -> Connection:
    """A connection that sees the database as of its first statement."""
    if engine.dialect.name == "postgresql":
        return engine.connect().execution_options(isolation_level="REPEATABLE READ")
    return engine.connect()  # SQLite in WAL mode: a transaction sees what was there when it began
