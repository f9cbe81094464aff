"""`log export` and `log import`: a whole log into Kafka, into a file, out of a file."""

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowledger.cli import output
from flowledger.cli.exits import INVALID, UNREACHABLE, USAGE, Problem
from flowledger.cli.output import own_name, talk
from flowledger.cli.parameters import data_option
from flowledger.cli.target import settings
from flowledger.cli.upkeep import agreed, counted, open_log, own_blobs

if TYPE_CHECKING:
    from libs.events.blobs import Blobs
    from libs.events.log import Log
    from libs.events.transfer import Transferred
    from libs.settings import Settings

_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_json = click.option("--json", "as_json", is_flag=True, help="One object.")


@click.command(name="export")
@click.option("-o", "--output", "file", type=click.Path(path_type=Path), help="Into this file, which must be new.")
@_yes
@_json
@data_option
def export_(file: Path | None, yes: bool, as_json: bool, data: Path | None) -> None:
    """Bring a log elsewhere: apps, keys, drafts, all runs, uploaded files.

    Into the Kafka of FLOWLEDGER_KAFKA goes the embedded log of the data folder. The topics must be new (`flowledger
    topics create`) and no executor may run on them meanwhile. Unfinished runs go on there.

    With -o the log (of Kafka where FLOWLEDGER_KAFKA is set, else of the folder) goes into one file, as of now, whatever
    runs on it meanwhile. `flowledger log import` reads it.

    What is sealed stays sealed: the services need the same secret key. Done again after it broke off, it goes on where
    it was.

    \b
    Examples:
      FLOWLEDGER_KAFKA=localhost:9092 flowledger log export --data .flowledger
      flowledger log export -o backup.ledger
    """
    given = settings(data)
    if file is not None:
        _show(_into_file(given, file), as_json=as_json)
        return
    if given.kafka is None:
        problem = "log export: set FLOWLEDGER_KAFKA to the brokers that the log is to be brought to, or name a file: -o"
        raise Problem(problem, USAGE)
    if not yes and not agreed("log export", f"Bring the runs of {given.data} to {given.kafka}?"):
        return
    from libs.events.blobs import FolderBlobs
    from libs.events.sqlite import SqliteLog
    from libs.storage import blobs_by_setting

    with _problems("log export"), ExitStack() as opened:
        source = opened.enter_context(closing(SqliteLog(given.data, read_only=True)))
        blobs = opened.enter_context(closing(blobs_by_setting(given, FolderBlobs(given.data / "blobs"))))
        _show(_moved(source, blobs, *_kafka(given, opened)), as_json=as_json)


def _into_file(given: "Settings", file: Path) -> "Transferred":
    from libs.events.archive import make_archive, partial
    from libs.events.blobs import LogBlobs
    from libs.storage import blobs_by_setting

    if file.exists():
        raise Problem(f"log export: {file} is there already. Name a new file", USAGE)
    growing = partial(file)
    with _problems("log export"):
        with _begun_in(growing), ExitStack() as opened:
            source = opened.enter_context(closing(open_log(given)))
            blobs = opened.enter_context(closing(blobs_by_setting(given, own_blobs(given, source))))
            target = opened.enter_context(closing(make_archive(growing, source.partitions)))
            done = _moved(source, blobs, target, LogBlobs(target))
        os.replace(growing, file)
    return done


@click.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_yes
@_json
@data_option
def import_(file: Path, yes: bool, as_json: bool, data: Path | None) -> None:
    """Bring what `flowledger log export -o FILE` wrote into a new data folder, or into the Kafka of FLOWLEDGER_KAFKA.

    The target must be new: a folder without a log, or topics that nobody has used. Histories stay what they are,
    unfinished runs go on there, tables are made from the log. Done again after it broke off, it goes on where it was;
    until then nothing opens the folder.

    \b
    Examples:
      flowledger log import backup.ledger --data restored
      FLOWLEDGER_KAFKA=localhost:9092 flowledger log import backup.ledger
    """
    from libs.events.archive import open_archive
    from libs.events.blobs import LogBlobs

    given = settings(data)
    place = given.kafka or str(given.data)
    if given.kafka is None and (given.data / "log.db").exists():
        raise Problem(f"log import: {given.data} holds a log already. Name a new folder: --data DIR", USAGE)
    if not yes and not agreed("log import", f"Bring the runs of {file} to {place}?"):
        return
    with _problems("log import"), ExitStack() as opened:
        source = opened.enter_context(closing(open_archive(file)))
        blobs = LogBlobs(source)
        if given.kafka is None:
            done = _into_folder(given, source, blobs)
        else:
            done = _moved(source, blobs, *_kafka(given, opened))
        _say_key(given, source)
    _show(done, as_json=as_json)
    if given.kafka is None:
        talk(f"Start it: {own_name()} dev --data {shlex.quote(str(given.data))}")


def _into_folder(given: "Settings", source: "Log", source_blobs: "Blobs") -> "Transferred":
    """Everything grows in a folder of its own; the log, which makes a folder one that can be opened, comes last."""
    from libs.events.archive import IMPORTING
    from libs.events.blobs import FolderBlobs
    from libs.events.sqlite import SqliteLog
    from libs.storage import blobs_by_setting

    growing = given.data / IMPORTING
    with _begun_in(growing), ExitStack() as opened:
        target = opened.enter_context(closing(SqliteLog(growing, source.partitions)))
        blobs = opened.enter_context(closing(blobs_by_setting(given, FolderBlobs(growing / "blobs"))))
        done = _moved(source, source_blobs, target, blobs)
    for name in ("blobs", "log.db"):
        if (growing / name).exists():
            os.replace(growing / name, given.data / name)
    shutil.rmtree(growing)
    return done


def _say_key(given: "Settings", source: "Log") -> None:
    from libs.events.registry import read_registry
    from libs.events.sealing import SealError, Vault, stored_key

    try:
        read_registry(source, Vault(stored_key(given.secret_key, given.data, make=False))).check_sealed()
    except SealError as error:
        talk(f"The services will need another secret key: {error}")


def _kafka(given: "Settings", opened: ExitStack) -> "tuple[Log, Blobs]":
    from libs.storage import blobs_by_setting

    log = opened.enter_context(closing(open_log(given)))
    return log, opened.enter_context(closing(blobs_by_setting(given, own_blobs(given, log))))


def _moved(source: "Log", source_blobs: "Blobs", target: "Log", target_blobs: "Blobs") -> "Transferred":
    from libs.events.transfer import transfer

    with counted() as shown:
        return transfer(
            source, source_blobs, target, target_blobs, now_us=lambda: time.time_ns() // 1000, progress=shown
        )


@contextmanager
def _begun_in(growing: Path) -> Iterator[None]:
    from libs.events.sqlite import OtherPartitions
    from libs.events.transfer import TransferRefused

    try:
        yield
    except OtherPartitions as error:
        raise TransferRefused(
            f"another log was begun in {growing}. Bring that one again, or delete {growing} to begin anew"
        ) from error
    except TransferRefused as error:
        raise TransferRefused(f"{error}, or delete {growing} to begin anew") from error


@contextmanager
def _problems(verb: str) -> Iterator[None]:
    from libs.events.archive import NoArchive
    from libs.events.log import LogError
    from libs.events.sqlite import LogDamaged

    try:
        yield
    except (NoArchive, LogDamaged) as error:
        raise Problem(f"{verb}: {error}", INVALID) from error
    except LogError as error:
        raise Problem(f"{verb}: {error}", UNREACHABLE) from error
    except OSError as error:
        raise Problem(f"{verb}: {error}. Make room or name another place, then do it again", UNREACHABLE) from error


def _show(done: Any, *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        output.data(asdict(done))
    else:
        talk(
            f"{done.runs} runs in {done.events} events, {done.definitions} definitions, {done.files} files; "
            f"{done.skipped} were there"
        )
        talk(f"All of it is there: {done.there}")
