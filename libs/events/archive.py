"""A whole log in one file: what `flowledger log export -o` writes and `flowledger log import` reads.

It is the file of an embedded log in which large values and uploaded files stand in the blobs topic, so nothing lies
beside it. It is written by `libs.events.transfer`, and renamed to its name when it is whole.
"""

from pathlib import Path

from libs.events.local import LocalLog, wall_ms
from libs.events.log import LogError
from libs.events.sqlite import SqliteLog, SqliteStore

IMPORTING = "importing"
"""Folder in a data folder in which an import grows."""


def open_archive(path: Path) -> LocalLog:
    """For reading. Raises LogError."""
    if not path.is_file():
        raise LogError(f"{path} is no file. Make one: flowledger log export -o FILE")
    try:
        return LocalLog(SqliteStore(path, 1, read_only=True), now_ms=wall_ms, writable=False)
    except KeyError as error:
        raise LogError(f"{path} holds no log. Make one: flowledger log export -o FILE") from error


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
