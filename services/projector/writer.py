"""Writes row changes: one upsert per table and batch, by the rules of `services/projector/rows.py`.

PostgreSQL: COPY into a temporary table, then one INSERT ... SELECT ... ON CONFLICT (about ten times the speed of an
executemany upsert). SQLite: executemany upsert. Both inside the caller's transaction; nothing here commits.
"""

import io
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Table
from sqlalchemy.engine import Connection

from libs.events.codec import rfc3339
from libs.tables import Moment
from services.projector.rows import KEPT, REPLACED, Row

_COPY_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class TableWriter:
    """Upserts rows of one table. `table` may be a copy under another name; `rules_of` is the original's name."""

    def __init__(self, table: Table, rules_of: str | None = None) -> None:
        self.table = table
        rules = REPLACED.get(rules_of or table.name, frozenset())
        names = [column.name for column in table.columns]
        keys = [column.name for column in table.primary_key.columns]
        self._names = names
        self._moments = frozenset(c.name for c in table.columns if isinstance(c.type, Moment))
        columns = ", ".join(map(_quote, names))
        updates = ", ".join(_update(table.name, name, rules) for name in names if name not in keys)
        conflict = f"ON CONFLICT ({', '.join(map(_quote, keys))}) DO UPDATE SET {updates}"
        target = f"INSERT INTO {_quote(table.name)} ({columns})"
        incoming = _quote(f"incoming_{table.name}")
        self._sqlite = f"{target} VALUES ({', '.join('?' * len(names))}) {conflict}"
        # LIKE without INCLUDING: column types only. Its rows go when the transaction ends: one write in each.
        self._stage = f"CREATE TEMP TABLE IF NOT EXISTS {incoming} (LIKE {_quote(table.name)}) ON COMMIT DELETE ROWS"
        self._copy = f"COPY {incoming} ({columns}) FROM STDIN"
        self._merge = f"{target} SELECT {columns} FROM {incoming} {conflict}"

    def write(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Upsert `rows`, each row id at most once. At most one call per table and transaction."""
        if not rows:
            return
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(self._sqlite, [self._values(row) for row in rows])
            return
        cursor = connection.connection.cursor()
        try:
            cursor.execute(self._stage)
            lines = "".join([_copy_line(self._values(row)) for row in rows])
            # psycopg2 encodes text by the connection's encoding; bytes spare it the guess.
            cursor.copy_expert(self._copy, io.BytesIO(lines.encode()))
            cursor.execute(self._merge)
        finally:
            cursor.close()

    def _values(self, row: Row) -> tuple[Any, ...]:
        moments = self._moments
        return tuple(
            [
                rfc3339(value, 6) if name in moments and (value := row.get(name)) is not None else row.get(name)
                for name in self._names
            ]
        )


def _quote(name: str) -> str:
    return f'"{name}"'


def _update(table: str, name: str, replaced: Iterable[str]) -> str:
    old, new = f"{_quote(table)}.{_quote(name)}", f"excluded.{_quote(name)}"
    if name in KEPT:
        return f"{_quote(name)} = COALESCE({old}, {new})"
    if name in replaced:
        return f"{_quote(name)} = {new}"
    return f"{_quote(name)} = COALESCE({new}, {old})"


def _copy_line(values: tuple[Any, ...]) -> str:
    return "\t".join(["\\N" if v is None else str(v).translate(_COPY_ESCAPES) for v in values]) + "\n"
