"""The tables of an embedded log: in its folder, or in the database of the settings."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from libs.events.log import Log
from libs.settings import Settings, SettingsError
from libs.tables import TablesError, create_tables, make_fit, open_engine, sqlite_url
from services.projector.position import RebuildNeeded, check, load

_log = logging.getLogger(__name__)


def open_embedded_tables(data: Path, settings: Settings, log: Log) -> Engine:
    """Open them, made where they are missing. Where Kafka is set, too, the database belongs to Kafka's log: left alone.

    Raises SettingsError when the database is none, or is filled from another log. Blocking.
    """
    given = settings.database_url if settings.kafka is None else None
    if given is not None:
        return _open_given(given, log)
    # They are this process's alone, so what another release has made of them, or a broken disk, is filled anew while it
    # works already.
    engine = open_engine(sqlite_url(data / "tables.db"))
    try:
        reason = make_fit(engine)
    except SQLAlchemyError:  # where the file is not damaged, the projector tries for as long as it takes
        engine.dispose()
        reason = remove_damaged(data)
        if reason is not None:
            make_fit(engine)
    if reason is not None:
        _log.warning("tables_made_anew", extra={"reason": reason})
    return engine


def remove_damaged(data: Path) -> str | None:
    """Take away the file of the folder's own tables when it is no database; why, or None. Only without a server."""
    file = data / "tables.db"
    if not file.is_file():
        return None
    try:
        with closing(sqlite3.connect(file)) as found:
            found.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return None
        for suffix in ("", "-wal", "-shm"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
        return f"{file}: {error}"
    return None


def _open_given(url: str, log: Log) -> Engine:
    hint = "Without this setting the tables are in the data folder"
    try:
        engine = open_engine(url)
    except TablesError as error:
        raise SettingsError(f"FLOWLEDGER_DATABASE_URL: {error}. {hint}") from error
    try:
        create_tables(engine)
        check_tables(engine, log)
    except (TablesError, RebuildNeeded) as error:
        engine.dispose()
        raise SettingsError(f"FLOWLEDGER_DATABASE_URL: {error}. {hint}") from error
    except SQLAlchemyError as error:
        if engine.dialect.name == "sqlite":  # a file is not away for a while
            engine.dispose()
            reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
            raise SettingsError(f"FLOWLEDGER_DATABASE_URL: {reason}. {hint}") from error
        # The projector tries on, and says so.
    return engine


def check_tables(engine: Engine, log: Log) -> None:
    """Raises RebuildNeeded when the tables are not of this log, and what the database raises."""
    with engine.connect() as connection:
        saved = load(connection)
    for position in saved.values():
        check(position, log)
