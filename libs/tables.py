"""The SQL tables that the projector fills and the API reads: SQLAlchemy Core metadata, and how an engine is opened.

Promises: every column of the tables of runs, node executions, conversations, messages, feedback, variables, end
users, hits of annotations and dead letters is a function of the log's records and their positions. No default,
sequence or clock of the database takes part, so dropping the tables and reading the log again gives the same rows.
Record shapes follow the reference's; JSON columns are text.

Does not: know events. What a record means for a row is in `services/projector/projection.py`.

Conventions: times are microseconds since the epoch (UTC) in Python, `timestamptz` in PostgreSQL, RFC 3339 text with
microseconds in SQLite. A JSON column may hold blob references (`{"$blob": {...}}`) in place of large values; who reads
resolves them. Columns that an update may leave alone are nullable, because an upsert names all columns.
"""

from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    event,
    inspect,
    select,
)
from sqlalchemy.engine import Connection, Dialect, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.types import TypeEngine

from libs.events.codec import from_rfc3339, rfc3339

TENANT_ID = "00000000-0000-0000-0000-000000000001"
"""The only tenant there is; records carry it because the reference's do."""

SCHEMA_VERSION = 6

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class TablesError(Exception):
    """The tables cannot be used as they are. The text says what was found and what to do."""


class Moment(TypeDecorator[int]):
    """An instant: an integer of microseconds since the epoch in Python, readable and sortable in SQL."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        kind: TypeEngine[Any] = DateTime(timezone=True) if dialect.name == "postgresql" else Text()
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        return _EPOCH + value * _MICROSECOND if dialect.name == "postgresql" else rfc3339(value, 6)

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        if value is None:
            return None
        return (value - _EPOCH) // _MICROSECOND if isinstance(value, datetime) else from_rfc3339(value)


metadata = MetaData()

workflow_runs = Table(
    "workflow_runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text),
    Column("app_id", Text),
    Column("workflow_id", Text),
    Column("type", Text, comment="workflow, or chat for a chatflow"),
    Column("triggered_from", Text),
    Column("invoke_from", Text),
    Column("version", Text),
    Column("digest", Text, comment="key of the document in the registry"),
    Column("inputs", Text, comment="JSON: start inputs and sys.* values"),
    Column("status", Text),
    Column("outputs", Text, comment="JSON"),
    Column("error", Text),
    Column("error_code", Text, comment="of a failed run: node_failed, limit_exceeded, ..."),
    Column("error_node_id", Text, comment="the node that made the run fail"),
    Column("elapsed_time", Float, comment="seconds; 0 until the run ends"),
    Column("total_tokens", BigInteger),
    Column("total_steps", BigInteger),
    Column("exceptions_count", BigInteger),
    Column("created_by_role", Text),
    Column("created_by", Text, comment="id of the end user or account"),
    Column("created_by_user", Text, comment="the caller's own name for its user"),
    Column("created_at", Moment, comment="accepted"),
    Column("started_at", Moment, comment="admitted"),
    Column("begun_at", Moment, comment="the first node behind its root began"),
    Column("finished_at", Moment),
    Column("task_id", Text),
    Column("query", Text),
    Column("conversation_id", Text),
    Column("idempotency_key", Text),
    Column("only", Text, comment="the node that ran alone; null: the whole graph"),
    Column("forked_from", Text, comment="the run whose beginning it shares"),
    Column("forked_at", BigInteger, comment="up to this event of it"),
    Column("forked_tokens", BigInteger, comment="of total_tokens, those of the events it shares: spent by that run"),
    Column("set_aside", Text, comment='why executors leave it alone; "": it was released'),
    Column("seq", BigInteger, comment="sequence of the run's last event that is in this row"),
    Column("partition", Integer),
    Column("first_offset", BigInteger),
    Column("last_offset", BigInteger),
    Column("epoch", BigInteger, comment="of the owner that wrote the last event"),
    Index("workflow_runs_by_app", "tenant_id", "app_id", "triggered_from"),
    Index("workflow_runs_by_end_user", "created_by", "app_id"),
    Index("workflow_runs_by_time", "created_at", "id"),
    Index("workflow_runs_by_app_and_time", "app_id", "created_at", "id"),
    Index("workflow_runs_by_status_and_time", "status", "created_at", "id"),
)

workflow_node_executions = Table(
    "workflow_node_executions",
    metadata,
    Column("id", Text, primary_key=True, comment="libs.events.ids.execution_id: one per (run, path, node)"),
    Column("tenant_id", Text),
    Column("app_id", Text),
    Column("workflow_id", Text),
    Column("triggered_from", Text),
    Column("workflow_run_id", Text),
    Column("index", BigInteger, comment="order of first starts in the run, from 1"),
    Column("predecessor_node_id", Text),
    Column("node_execution_id", Text),
    Column("node_id", Text),
    Column("node_type", Text),
    Column("title", Text),
    Column("path", Text, comment="rounds around the node, outermost first; empty in the main graph"),
    Column("attempt", Integer, comment="the last attempt, from 1"),
    Column("inputs", Text, comment="JSON"),
    Column("process_data", Text, comment="JSON"),
    Column("outputs", Text, comment="JSON"),
    Column("status", Text),
    Column("error", Text),
    Column("error_type", Text),
    Column("elapsed_time", Float, comment="seconds, of the last attempt"),
    Column("execution_metadata", Text, comment="JSON"),
    Column("created_at", Moment, comment="start of the first attempt"),
    Column("created_by_role", Text),
    Column("created_by", Text),
    Column("finished_at", Moment),
    Column("seq", BigInteger, comment="sequence of the last event that is in this row"),
    Column("first_seq", BigInteger, comment="sequence of the first start"),
    Column("partition", Integer),
    Column("first_offset", BigInteger),
    Column("last_offset", BigInteger),
    Column("epoch", BigInteger, comment="of the owner that wrote the last event"),
    Index("node_executions_by_run", "workflow_run_id", "index"),
    Index("node_executions_by_node", "tenant_id", "app_id", "workflow_id", "triggered_from", "node_id"),
    Index("node_executions_by_node_and_time", "tenant_id", "workflow_id", "node_id", "created_at"),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text),
    Column("app_id", Text),
    Column("name", Text),
    Column("inputs", Text, comment="JSON: start inputs of the first message"),
    Column("introduction", Text),
    Column("status", Text, comment="normal"),
    Column("invoke_from", Text),
    Column("dialogue_count", BigInteger, comment="messages so far"),
    Column("created_by_role", Text),
    Column("created_by", Text, comment="id of the end user or account"),
    Column("created_by_user", Text, comment="the caller's own name for its user"),
    Column("created_at", Moment),
    Column("updated_at", Moment, comment="last message or change of the name"),
    Column("deleted_at", Moment),
    Column("pinned", Integer, comment="1: among the pinned ones of its user"),
    Column("changed_by", BigInteger, comment="offset of the last command that set a variable from outside"),
    Column("partition", Integer),
    Column("first_offset", BigInteger),
    Column("last_offset", BigInteger),
    Index("conversations_by_user_and_update", "app_id", "created_by", "updated_at", "id"),
    Index("conversations_by_user_and_time", "app_id", "created_by", "created_at", "id"),
)

messages = Table(
    "messages",
    metadata,
    Column("id", Text, primary_key=True, comment="libs.events.ids.message_id_of its run"),
    Column("tenant_id", Text),
    Column("app_id", Text),
    Column("conversation_id", Text),
    Column("workflow_run_id", Text),
    Column("number", BigInteger, comment="of the conversation's messages, from 1"),
    Column("inputs", Text, comment="JSON: start inputs"),
    Column("query", Text),
    Column("files", Text, comment="JSON: files given with the message"),
    Column("answer", Text, comment="JSON: a text; absent until the run ends"),
    Column("answer_files", Text, comment="JSON: files that belong to the answer"),
    Column("status", Text, comment="normal, or error"),
    Column("error", Text),
    Column("total_tokens", BigInteger),
    Column("invoke_from", Text),
    Column("created_by_role", Text),
    Column("created_by", Text),
    Column("created_by_user", Text),
    Column("created_at", Moment),
    Column("finished_at", Moment),
    Column("partition", Integer),
    Column("first_offset", BigInteger),
    Column("last_offset", BigInteger),
    Index("messages_by_conversation", "conversation_id", "created_at", "id"),
)

message_feedbacks = Table(
    "message_feedbacks",
    metadata,
    Column("id", Text, primary_key=True, comment="one per message and who rates it"),
    Column("tenant_id", Text),
    Column("app_id", Text),
    Column("conversation_id", Text),
    Column("message_id", Text),
    Column("rating", Text, comment="like or dislike; absent: taken back"),
    Column("content", Text),
    Column("from_source", Text, comment="user or admin"),
    Column("from_end_user_id", Text),
    Column("from_account_id", Text),
    Column("created_at", Moment),
    Column("updated_at", Moment),
    Column("partition", Integer),
    Column("last_offset", BigInteger),
    Index("message_feedbacks_by_app", "app_id", "created_at", "id"),
    Index("message_feedbacks_by_message", "message_id"),
)

workflow_conversation_variables = Table(
    "workflow_conversation_variables",
    metadata,
    Column("conversation_id", Text, primary_key=True),
    Column("id", Text, primary_key=True, comment="of the variable in the document"),
    Column(
        "family", Text, primary_key=True, comment='of its type; "": written by a record without ids, `id` is a name'
    ),
    Column("tenant_id", Text),
    Column("name", Text),
    Column("value_type", Text),
    Column("description", Text),
    Column("declared_offset", BigInteger, comment="of the newest run with it that knew of none with its name or id"),
    Column("initial", Text, comment="JSON: what its first message began with; or blobs.member_text"),
    Column("value", Text, comment="JSON: what was written since; absent: nothing was"),
    Column("created_at", Moment),
    Column("updated_at", Moment, comment="of `value`"),
    Column("written_offset", BigInteger, comment="of `value`"),
    Column("partition", Integer),
    Column("last_offset", BigInteger),
)

end_users = Table(
    "end_users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("tenant_id", Text),
    Column("app_id", Text),
    Column("invoke_from", Text),
    Column("external_user", Text, comment="the caller's own name for its user"),
    Column("created_at", Moment, comment="seen first, as far as no run tells"),
    Column("updated_at", Moment),
    Column("last_offset", BigInteger),
)

annotation_hits = Table(
    "annotation_hits",
    metadata,
    Column("id", Text, primary_key=True, comment="of the message that was answered"),
    Column("tenant_id", Text),
    Column("app_id", Text),
    Column("annotation_id", Text),
    Column("conversation_id", Text),
    Column("question", Text, comment="the message"),
    Column("annotation_question", Text, comment="as it was then, like the answer"),
    Column("annotation_content", Text),
    Column("score", Float, comment="how much the two questions are alike, 0 to 1"),
    Column("created_at", Moment),
    Column("partition", Integer),
    Column("last_offset", BigInteger),
    Index("annotation_hits_by_annotation", "app_id", "annotation_id"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("run_id", Text),
    Column("type", Text, comment="event type by the record's headers"),
    Column("reason", Text),
    Column("size_bytes", BigInteger, comment="of the record's value; the value itself stays in the log"),
)

positions = Table(
    "projection_positions",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("topic_id", Text, nullable=False),
    Column("next_offset", BigInteger, nullable=False, comment="every record below it is in the tables"),
    Column("epoch", BigInteger, nullable=False, comment="state of the validity rule after that record"),
    Column("n", BigInteger, nullable=False),
    Column("ignored", BigInteger, nullable=False, comment="records that the validity rule did not admit"),
    Column("last_record", Text, nullable=False, comment="identity of the record at next_offset - 1"),
    Column("last_at", Moment, comment="time of the last event that is in the tables"),
)

schema = Table(
    "projection_schema",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="1"),
    Column("version", Integer, nullable=False),
    Column("generation", BigInteger, nullable=False, comment="counts rebuilds; a change restarts projectors"),
)

FILLED = (
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
"""The tables that a rebuild fills anew."""


_MARK = "partition"
"""A column that every table of `FILLED` has, and no table of those names elsewhere."""

_PATIENCE = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""Seconds, for PostgreSQL: a host that has vanished without a word is noticed within half a minute, not two hours."""

_DRIVERS = frozenset({"postgresql+psycopg2", "sqlite", "sqlite+pysqlite"})
_EXPECTED_URL = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or sqlite:///FILE"


def open_engine(url: str) -> Engine:
    """An engine for `url`. SQLite files get WAL, a busy time-out and transactions that begin where SQLAlchemy says.

    Does not connect. `url` is an SQLAlchemy URL; see `sqlite_url` for a file. Raises TablesError when it is none, or
    names a database that the tables are not made for.
    """
    # SQLAlchemy 2.1 took another default driver; what people write must go on meaning psycopg2.
    scheme, colon, rest = url.partition(":")
    if scheme in ("postgresql", "postgres"):
        url = "postgresql+psycopg2" + colon + rest
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError) as error:  # ValueError: a port that is no number
        raise TablesError(f"not a database URL. Expected {_EXPECTED_URL}") from error
    if parsed.drivername not in _DRIVERS:
        raise TablesError(f"{parsed.drivername}: not a database for the tables. Expected {_EXPECTED_URL}")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise TablesError(f"names no file. Expected {_EXPECTED_URL}")
    if parsed.get_backend_name() == "postgresql":
        return create_engine(
            parsed, pool_pre_ping=True, pool_recycle=1800, client_encoding="utf8", connect_args=_PATIENCE
        )
    engine = create_engine(parsed)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def writing(engine: Engine) -> AbstractContextManager[Connection]:
    """A transaction that will write.

    SQLite takes its write lock at once: a transaction that reads first and finds at its first write that another one
    was committed in between fails without waiting.
    """
    return engine.execution_options(sqlite_begin="IMMEDIATE").begin()


def sqlite_url(path: Path) -> str:
    """The URL of the SQLite file at `path`."""
    return f"sqlite:///{path.absolute()}"


def check_ours(connection: Connection) -> list[str]:
    """Names of the tables that are there.

    Raises TablesError when some have names of ours and we did not make them: a rebuild would drop them. Every version
    of ours had a column for the partition in each of them.
    """
    seen = inspect(connection)
    there = seen.get_table_names()
    named = [] if schema.name in there else [table.name for table in FILLED if table.name in there]
    foreign = [name for name in named if _MARK not in {column["name"] for column in seen.get_columns(name)}]
    if foreign:
        raise TablesError(f"holds tables of something else ({', '.join(foreign)}). Name another database")
    return there


def create_tables(engine: Engine) -> None:
    """Make the tables in a database that has none.

    Raises TablesError when they were made by another schema version, or when one of them is gone: made empty, it would
    look as if its rows had never been, because the saved positions are behind them.
    """
    with writing(engine) as connection:
        there = check_fit(connection)
        metadata.create_all(connection)
        if schema.name not in there:
            connection.execute(schema.insert().values(id=1, version=SCHEMA_VERSION, generation=1))


def check_fit(connection: Connection) -> list[str]:
    """Names of the tables that are there.

    Raises TablesError when they are not ours, another version's, or incomplete.
    """
    there = check_ours(connection)
    found = connection.execute(select(schema.c.version)).scalar() if schema.name in there else None
    if found not in (None, SCHEMA_VERSION):
        raise TablesError(
            f"tables have schema version {found}, this process needs {SCHEMA_VERSION}. "
            "Run the matching release, or make them anew from the log: flowledger rebuild"
        )
    if any(table.name in there for table in FILLED):
        _check_none_gone(there)
    return there


def make_fit(engine: Engine) -> str | None:
    """Make the tables as this release needs them: anew and without rows where another's cannot be used.

    Whoever projects the log then fills them from its beginning. Returns why they were made anew, None if they were not.
    Raises what a database raises that cannot be asked.
    """
    try:
        create_tables(engine)
    except TablesError as error:
        with writing(engine) as connection:
            metadata.drop_all(connection)
        create_tables(engine)
        return str(error).partition(". ")[0]
    return None


def check_complete(connection: Connection) -> None:
    """Raises TablesError when tables are missing, not ours, or another version's."""
    _check_none_gone(check_fit(connection))


def _check_none_gone(there: list[str]) -> None:
    if gone := [table.name for table in FILLED if table.name not in there]:
        problem = f"missing here: {', '.join(gone)}" if len(gone) < len(FILLED) else "there are no tables here yet"
        raise TablesError(f"{problem}. Make the tables from the log: flowledger rebuild")


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver's own BEGIN comes too late (not before DDL or SELECT); with None we send it ourselves.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "busy_timeout = 10000"):
        # NORMAL: rows and position share a transaction, so a power loss takes both back and the log refills them.
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', '')}")
