"""How changes of a row come together, and what values look like in it. Pure.

A change is a dict of columns for one row. Changes of a batch are folded per row before anything is written, by the
same three rules that the upsert applies in SQL (`services/projector/writer.py`):

  kept      the first value stays: where and when the row began;
  replaced  the last change decides, also when it says None: a retry that succeeds takes the error away;
  others    a None leaves the column as it is.
"""

from typing import Any

from pydantic import JsonValue
from pydantic_core import to_json

Row = dict[str, Any]

KEPT = frozenset({"created_at", "first_seq", "first_offset", "predecessor_node_id", "initial"})
REPLACED = {
    "workflow_runs": frozenset[str](),
    "message_feedbacks": frozenset({"rating", "content"}),
    "workflow_node_executions": frozenset(
        {"error", "error_type", "outputs", "process_data", "execution_metadata", "finished_at"}
    ),
}


def fold(rows: dict[Any, Row], change: Row, replaced: frozenset[str], key: Any = None) -> None:
    """Put a change over those of its row before it; `key`: what tells rows apart, if not their `id`."""
    key = change["id"] if key is None else key
    row = rows.get(key)
    if row is None:
        rows[key] = change
        return
    for column, value in change.items():
        if column in KEPT:
            if row.get(column) is None:
                row[column] = value
        elif value is not None or column in replaced:
            row[column] = value


def clean(text: str | None) -> str | None:
    """`text` without NUL characters, which PostgreSQL cannot store."""
    return text.replace("\0", "") if text is not None and "\0" in text else text


def as_json(value: JsonValue) -> str | None:
    """JSON text, or None for None. A NUL inside a string stays visible as its escape."""
    return None if value is None else to_json(value).decode()
