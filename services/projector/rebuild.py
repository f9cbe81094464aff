"""Makes the tables anew from the log: copies are filled beside the old tables and take their place in one transaction.

Readers see the old rows until the flip and the new ones after it; a running projector notices the new generation and
goes on from the positions that came with the new tables. Rows are the same as before, because they are a function of
the log alone (tests/contract/test_projector.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import func, inspect, select, update
from sqlalchemy.engine import Connection, Engine

from libs.events.log import Log, Topic
from libs.tables import FILLED, SCHEMA_VERSION, check_ours, dead_letters, metadata, schema, writing
from services.projector.batch import BatchWriter, TableSet
from services.projector.position import Position, RebuildNeeded, check

_SUFFIX = "_rebuild"
_BATCH = 4_000
_CLOSE_ENOUGH = 1_000
"""Records that may be missing at the flip: less than a second's work for the projector, which adds them."""

_ROUNDS = 20
"""Catching up with live traffic ends after this many passes, however busy the log is."""


@dataclass(slots=True, frozen=True)
class Rebuilt:
    events: int
    dead_letters: int
    ignored: int
    generation: int


def rebuild(log: Log, engine: Engine, progress: Callable[[int, int], None] = lambda done, total: None) -> Rebuilt:
    """Fill new tables from the whole log and put them in the place of the old ones. Blocking.

    `progress` gets records done and records there, as of the call. Raises RebuildNeeded when the log does not begin
    at its beginning, LogError, and what the database raises; the old tables are untouched then.
    """
    tables = TableSet.beside(_SUFFIX)
    _make_room(engine, tables)
    writer = BatchWriter(engine, tables)
    topic_id = log.topic_id(Topic.EVENTS)
    at = {p: Position(p, topic_id) for p in range(log.partitions)}
    for position in at.values():
        check(position, log)
    events = 0
    for _ in range(_ROUNDS):
        ends = {p: log.bounds(Topic.EVENTS, p)[1] for p in at}
        for partition, end in ends.items():
            for records in log.read(Topic.EVENTS, partition, at[partition].next_offset, end, batch=_BATCH):
                batch = writer.apply(records, at)
                events += len(batch.events)
                progress(sum(p.next_offset for p in at.values()), sum(ends.values()))
        if sum(log.bounds(Topic.EVENTS, p)[1] - at[p].next_offset for p in at) <= _CLOSE_ENOUGH:
            break
    with writing(engine) as connection:
        made = _flip(connection, tables)
        dead = int(connection.execute(select(func.count()).select_from(dead_letters)).scalar_one())
    return Rebuilt(events, dead, sum(position.ignored for position in at.values()), made)


def _make_room(engine: Engine, tables: TableSet) -> None:
    with writing(engine) as connection:
        check_ours(connection)
        for table in tables.all():
            table.drop(connection, checkfirst=True)  # left by a rebuild that did not end
            table.create(connection)
        schema.create(connection, checkfirst=True)
        if connection.execute(select(schema.c.version)).first() is None:
            connection.execute(schema.insert().values(id=1, version=SCHEMA_VERSION, generation=0))


def _flip(connection: Connection, tables: TableSet) -> int:
    """Old tables out, new ones in. Locks in the projector's order, so that the two cannot deadlock."""
    postgresql = connection.dialect.name == "postgresql"
    there = set(inspect(connection).get_table_names())
    by_name = {copy.name.removesuffix(_SUFFIX): copy for copy in tables.all()}
    names = ["projection_positions", *(table.name for table in FILLED if table.name != "projection_positions")]
    if postgresql and (old := [f'"{name}"' for name in names if name in there]):
        connection.exec_driver_sql(f"LOCK TABLE {', '.join(old)} IN ACCESS EXCLUSIVE MODE")
    for name in names:
        copy = by_name[name].name
        connection.exec_driver_sql(f'DROP TABLE IF EXISTS "{name}"')
        connection.exec_driver_sql(f'ALTER TABLE "{copy}" RENAME TO "{name}"')
        if postgresql:
            connection.exec_driver_sql(f'ALTER TABLE "{name}" RENAME CONSTRAINT "{copy}_pkey" TO "{name}_pkey"')
    for table in FILLED:
        for index in sorted(metadata.tables[table.name].indexes, key=lambda index: str(index.name)):
            index.create(connection)
    connection.execute(update(schema).values(version=SCHEMA_VERSION, generation=schema.c.generation + 1))
    return int(connection.execute(select(schema.c.generation)).scalar_one())


__all__ = ["RebuildNeeded", "Rebuilt", "rebuild"]
