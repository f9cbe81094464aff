"""A whole log in one file: what `flowledger log export -o` writes and `flowledger log import` reads.

It is the file of an embedded log in which large values and uploaded files stand in the blobs topic, so nothing lies
beside it. It is written by `libs.events.transfer`, and renamed to its name when it is whole.
"""

import sqlite3
from pathlib import Path

from libs.events.local import LocalLog, wall_ms
from libs.events.log import LogError
from libs.events.sqlite import LogDamaged, SqliteLog, SqliteStore

IMPORTING = "importing"
"""Folder in a data folder in which an import grows."""

_MAKE_ONE = "Make one: flowledger log export -o FILE"


class NoArchive(LogError):
    """The file is not what `flowledger log export -o` writes, or is not whole."""


def open_archive(path: Path) -> LocalLog:
    """For reading. Raises NoArchive, or LogError when the file cannot be read now."""
    if not path.is_file():
        raise NoArchive(f"{path} is no file. {_MAKE_ONE}")
    try:
        return LocalLog(SqliteStore(path, 1, read_only=True), now_ms=wall_ms, writable=False)
    except KeyError as error:
        raise NoArchive(f"{path} is no exported log. {_MAKE_ONE}") from error
    except LogDamaged as error:
        raise NoArchive(f"{path} is damaged ({error.__cause__}). Copy it anew, or export again") from error
    except LogError as error:
        # Another format, or a database of something else.
        if getattr(error.__cause__, "sqlite_errorcode", None) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            raise NoArchive(f"{path} is no exported log. {_MAKE_ONE}") from error
        raise


def partial(path: Path) -> Path:
    """Where the archive grows until it is whole."""
    return path.with_name(path.name + ".partial")


def make_archive(path: Path, partitions: int) -> LocalLog:
    """For writing; what was begun there goes on. Raises LogError."""
    return LocalLog(SqliteStore(path, partitions, read_only=False), now_ms=wall_ms, writable=True)


def partitions_of(folder: Path) -> int:
    """Of the embedded log in the folder, or that will be made there."""
    try:
        log = SqliteLog(folder, read_only=True)
    except (LogError, KeyError):
        return 1  # it is not there, or another process is making it
    log.close()
    return log.partitions


def import_under_way(folder: Path) -> bool:
    """Whether an import into the folder has begun and not ended."""
    return (folder / IMPORTING).exists() and not (folder / "log.db").exists()
