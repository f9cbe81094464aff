"""Verbs of upkeep: rebuild, verify, topics, doctor."""

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowledger.cli import output
from flowledger.cli.exits import NOT_FOUND, RUN_FAILED, UNREACHABLE, USAGE, Problem
from flowledger.cli.output import talk
from flowledger.cli.parameters import RUN, data_option
from flowledger.cli.target import address_in, data_options, settings

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from libs.events.blobs import Blobs
    from libs.events.log import Log
    from libs.settings import Settings


_KEY_CHARACTERS = 32


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_option
@click.option("--json", "as_json", is_flag=True, help="One object.")
def rebuild(yes: bool, data: Path | None, as_json: bool) -> None:
    """Drop the tables and make them anew from the log. Readers see the old ones until the new ones are complete.

    \b
    Examples:
      flowledger rebuild
      flowledger rebuild --yes
    """
    from dataclasses import asdict

    from sqlalchemy.exc import SQLAlchemyError

    from libs.events.log import LogError
    from libs.tables import TablesError
    from services.projector.embedded import remove_damaged
    from services.projector.position import ProjectorError
    from services.projector.rebuild import rebuild as rebuild_tables

    given = settings(data)
    engine = open_tables(_database_url(given))
    if not yes and not agreed("rebuild", f"Make all tables of {_shown(engine)} anew from the log?"):
        return
    if given.kafka is None and given.database_url is None and address_in(given.data) is None:
        remove_damaged(given.data)
    try:
        with closing(open_log(given)) as log, counted() as shown:
            done = rebuild_tables(log, engine, shown)
    except (LogError, ProjectorError, TablesError) as error:
        raise Problem(f"rebuild: {error}", UNREACHABLE) from error
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        raise Problem(f"rebuild: {_shown(engine)}: {reason}", UNREACHABLE) from error
    finally:
        engine.dispose()
    if as_json:
        output.data(asdict(done))
    else:
        talk(f"tables made anew from {done.events} events; {done.dead_letters} dead letters, {done.ignored} ignored")


def agreed(verb: str, question: str) -> bool:
    """Whether the person says yes. Raises Problem when there is nobody to ask."""
    if not sys.stdin.isatty():
        raise Problem(f"{verb}: stdin is no terminal, so nobody can be asked. Say --yes", USAGE)
    return click.confirm(question, err=True)


@contextmanager
def counted() -> Iterator[Callable[[int, int], None]]:
    """Takes how many of how many events are done, and shows a bar on a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with click.progressbar(length=1, label="events", file=sys.stderr, show_pos=True) as bar:

        def show(done: int, total: int) -> None:
            bar.length = max(total, 1)
            bar.update(done - bar.pos)

        yield show


def open_log(given: "Settings") -> "Log":
    """The log of these settings, for reading. Raises LogError."""
    from libs.events.log import LogError

    if given.kafka is not None:
        from libs.events.kafka import KafkaLog

        log = KafkaLog(given.kafka, given.kafka_options, given.topic_prefix, given.partitions)
        try:
            log.check_partitions()
        except LogError:
            log.close()
            raise
        return log
    from libs.events.sqlite import SqliteLog

    return SqliteLog(given.data, read_only=True)


def own_blobs(given: "Settings", log: "Log") -> "Blobs":
    """What `log` has for large values and files when no bucket is set."""
    from libs.events.blobs import FolderBlobs, LogBlobs

    return LogBlobs(log) if given.kafka is not None else FolderBlobs(given.data / "blobs")


def _database_url(given: "Settings") -> str:
    from libs.tables import sqlite_url

    if given.database_url is None and given.kafka is not None:
        raise Problem("FLOWLEDGER_KAFKA is set, so FLOWLEDGER_DATABASE_URL must be, too", USAGE)
    return given.database_url or sqlite_url(given.data / "tables.db")


def open_tables(database_url: str) -> "Engine":
    """The engine of these tables; a URL that is none is wrong usage. Does not connect."""
    from libs.tables import TablesError, open_engine

    try:
        return open_engine(database_url)
    except TablesError as error:
        raise Problem(f"FLOWLEDGER_DATABASE_URL: {error}", USAGE) from error


def _shown(engine: "Engine") -> str:
    return engine.url.render_as_string(hide_password=True)


@click.command()
@click.argument("run", type=RUN, required=False)
@data_option
@click.option("--json", "as_json", is_flag=True, help="One object.")
def verify(run: str | None, data: Path | None, as_json: bool) -> int:
    """Compare the tables with a fold of the log: all rows, or those of one run. Changes nothing.

    \b
    Examples:
      flowledger verify
      flowledger verify 0193 --json
    """
    from dataclasses import asdict

    from sqlalchemy.exc import SQLAlchemyError

    from libs.events.log import LogError
    from libs.tables import TablesError
    from services.projector.position import ProjectorError
    from services.projector.verify import find_runs
    from services.projector.verify import verify as verify_tables

    given = settings(data)
    engine = open_tables(_database_url(given))
    try:
        with closing(open_log(given)) as log:
            run_id = None if run is None else _one_run(run, find_runs(engine, run.lower()), data)
            with counted() as shown:
                found = verify_tables(log, engine, run_id, shown)
    except (LogError, ProjectorError, TablesError) as error:
        raise Problem(f"verify: {error}", UNREACHABLE) from error
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        raise Problem(f"verify: {_shown(engine)}: {reason}", UNREACHABLE) from error
    finally:
        engine.dispose()
    if as_json:
        output.data(asdict(found) | {"equal": not found.differences})
    else:
        for one in found.differences:
            columns = f": {', '.join(one.columns)}" if one.columns else ""
            click.echo(f"{one.table} {one.key}: {one.problem}{columns}")
        anew = f"make them anew: {output.own_name()} rebuild{data_options(data)}"
        said = anew if found.differences else "the tables are what the log says"
        talk(f"{found.rows} rows compared, {found.behind} records still to come; {said}")
    return RUN_FAILED if found.differences else 0


def _one_run(text: str, found: list[str], data: Path | None) -> str:
    if not found:
        hint = f"List runs: {output.own_name()} runs{data_options(data)}"
        raise Problem(f'run "{text}": not found in the tables. {hint}', NOT_FOUND)
    if len(found) > 1:
        raise Problem(f'run "{text}": several match: {", ".join(found)}. Give more of the id', USAGE)
    return found[0]


@click.group()
def topics() -> None:
    """Create or check the Kafka topics of FLOWLEDGER_KAFKA.

    \b
    Examples:
      flowledger topics create
      flowledger topics check
    """


@topics.command()
def create() -> None:
    """Create what is missing and set what differs. Does nothing the second time."""
    from libs.events.log import LogError
    from libs.events.topics import create_topics

    given = settings()
    try:
        done = create_topics(
            _kafka(given), given.kafka_options, given.topic_prefix, given.partitions, given.replication
        )
    except LogError as error:
        raise Problem(f"topics: {error}", UNREACHABLE) from error
    for line in done:
        click.echo(line)
    talk("all topics are as specified")


@topics.command()
@click.option("--json", "as_json", is_flag=True, help="A list of what does not hold.")
def check(as_json: bool) -> int:
    """Fail when a topic is missing or is not as specified. Changes nothing."""
    from dataclasses import asdict

    from libs.events.log import LogError
    from libs.events.topics import check_topics

    given = settings()
    try:
        problems = check_topics(
            _kafka(given), given.kafka_options, given.topic_prefix, given.partitions, given.replication
        )
    except LogError as error:
        raise Problem(f"topics: {error}", UNREACHABLE) from error
    if as_json:
        output.data([asdict(problem) for problem in problems])
    else:
        for problem in problems:
            click.echo(str(problem))
        if not problems:
            talk("all topics are as specified")
    return RUN_FAILED if problems else 0


def _kafka(given: "Settings") -> str:
    if given.kafka is None:
        raise Problem("topics: FLOWLEDGER_KAFKA is not set, so there is no Kafka. Embedded mode has no topics", USAGE)
    return given.kafka


@click.command()
@data_option
@click.option("--json", "as_json", is_flag=True, help="A list of {check, ok, seen, hint}.")
def doctor(data: Path | None, as_json: bool) -> int:
    """Check what this machine and its settings offer. Changes nothing.

    \b
    Examples:
      flowledger doctor
      flowledger doctor --json
    """
    given = settings(data)
    checks = [
        _check_python(),
        _check_data(given),
        _check_storage(given),
        _check_server(given),
        _check_kafka(given),
        _check_database(given),
    ]
    checks += [_check_models(given), _check_sandbox(given), _check_secrets(given)]
    if as_json:
        output.data(checks)
    else:
        for one in checks:
            hint = f". {one['hint']}" if one["hint"] else ""
            click.echo(f"{'ok ' if one['ok'] else 'BAD'}  {one['check']:<9} {one['seen']}{hint}")
    return 0 if all(one["ok"] for one in checks) else RUN_FAILED


def _result(check: str, ok: bool, seen: str, hint: str = "") -> dict[str, Any]:
    """`hint`: what to do when it is not ok."""
    return {"check": check, "ok": ok, "seen": seen, "hint": "" if ok else hint}


def _check_python() -> dict[str, Any]:
    seen = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()}"
    return _result("python", sys.version_info >= (3, 11), seen, "Python 3.11 or later is needed")


def _check_data(given: "Settings") -> dict[str, Any]:
    folder, there = _data_folder(given)
    ok = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    seen = str(folder) if folder.exists() else f"{folder} (made at the first start)"
    return _result("data", ok, seen, f"{there} cannot be written to. Set FLOWLEDGER_DATA")


def _data_folder(given: "Settings") -> tuple[Path, Path]:
    """The data folder, and what of its path is there already."""
    folder = given.data.absolute()
    return folder, next(parent for parent in (folder, *folder.parents) if parent.exists())


LEAST_FREE_BYTES = 1_000_000_000
"""Below it a disk counts as nearly full: a commit needs little, a large value or a rebuild of the tables does not."""


def _check_storage(given: "Settings") -> dict[str, Any]:
    """What the data folder holds, and what room there is; nothing in it is ever deleted by itself."""
    import shutil

    folder, there = _data_folder(given)
    free = shutil.disk_usage(there).free
    parts = [("log", size_of(folder, "log.db*")), ("tables", size_of(folder, "tables.db*"))]
    parts.append(("large values and files", size_of(folder, "blobs/**/*")))
    held = ", ".join(f"{name} {_size(size)}" for name, size in parts if size) or "nothing here"
    hint = "Make room: see docs/architecture.md, What is kept"
    return _result("storage", free >= LEAST_FREE_BYTES, f"{held}; {_size(free)} free", hint)


def size_of(folder: Path, pattern: str) -> int:
    """Bytes of the files that match; one that vanishes meanwhile counts for nothing."""
    total = 0
    for path in folder.glob(pattern):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _size(size_bytes: int) -> str:
    size, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _check_server(given: "Settings") -> dict[str, Any]:
    import httpx

    from flowledger.cli.target import ADDRESS_FILE, Server, address_in

    url = given.url or address_in(given.data)
    if url is None and given.kafka is not None:
        return _result("server", True, "none known; verbs need FLOWLEDGER_URL, the address of the API")
    if url is None:
        left = " (its address file is of one that has ended)" if (given.data / ADDRESS_FILE).exists() else ""
        return _result("server", True, f"none{left}; verbs open the data folder themselves")
    try:
        there = Server(url, None)
    except Problem as problem:
        return _result("server", False, problem.message)
    try:
        answer = there.http.get("/readyz", timeout=3.0)
        return _result("server", answer.is_success, f"{url} answers {answer.status_code}", answer.text[:200])
    except httpx.HTTPError as error:
        return _result("server", False, f"{url}: {error}", "Start it (flowledger api), or correct FLOWLEDGER_URL")
    finally:
        there.close()


def _check_kafka(given: "Settings") -> dict[str, Any]:
    if given.kafka is None:
        return _result("kafka", True, "not set: embedded log")
    from libs.events.log import LogError
    from libs.events.topics import check_topics

    try:
        problems = check_topics(
            given.kafka, given.kafka_options, given.topic_prefix, given.partitions, given.replication, 5.0
        )
    except LogError as error:
        return _result("kafka", False, f"{given.kafka}: {error}", "Correct FLOWLEDGER_KAFKA or start the broker")
    seen = f"{given.kafka}, topics " + ("as specified" if not problems else f"with {len(problems)} differences")
    return _result("kafka", not problems, seen, "Run: flowledger topics create")


def _check_database(given: "Settings") -> dict[str, Any]:
    if given.database_url is None:
        ok = given.kafka is None
        seen = "SQLite in the data folder" if ok else "not set"
        return _result("database", ok, seen, "With Kafka, set FLOWLEDGER_DATABASE_URL")
    from sqlalchemy.exc import SQLAlchemyError

    from libs.events.log import LogError
    from libs.tables import TablesError, check_fit, positions
    from services.projector.embedded import check_tables
    from services.projector.position import RebuildNeeded

    hint = "Correct FLOWLEDGER_DATABASE_URL"
    try:
        engine = open_tables(given.database_url)
    except Problem as problem:
        return _result("database", False, problem.message, hint)
    try:
        with engine.connect() as connection:
            there = check_fit(connection)
        if positions.name in there:
            with closing(open_log(given)) as log:
                check_tables(engine, log)
    except SQLAlchemyError as error:
        return _result("database", False, f"{_shown(engine)}: {str(error).splitlines()[0]}", hint)
    except (TablesError, RebuildNeeded) as error:
        return _result("database", False, f"{_shown(engine)}: {error}", hint)
    except LogError:
        pass  # there is none yet, or its own check tells
    finally:
        engine.dispose()
    return _result("database", True, _shown(engine))


def _check_models(given: "Settings") -> dict[str, Any]:
    if given.models == "offline":
        return _result("models", True, "offline: a stand-in answers")
    names = ", ".join(sorted(given.providers)) or "none; model nodes need one, or --offline"
    return _result("models", True, f"providers: {names}")


def _check_sandbox(given: "Settings") -> dict[str, Any]:
    """Whether code nodes can be run here: it is tried once."""
    import asyncio

    from services.executor.sandbox import Sandbox, SandboxUnavailable

    async def tried() -> None:
        sandbox = Sandbox(given.sandbox, given.sandbox_packages)
        try:
            await sandbox.check()
        finally:
            sandbox.close()

    try:
        asyncio.run(tried())
    except SandboxUnavailable as error:
        return _result("sandbox", False, str(error), "Code nodes and templates cannot run here")
    contained = "contained" if given.sandbox == "strict" else "process: not contained, for development"
    return _result("sandbox", True, f"code nodes run {contained}")


def _check_secrets(given: "Settings") -> dict[str, Any]:
    """Whether documents with secrets can be opened here."""
    from libs.events.log import LogError
    from libs.events.registry import read_registry
    from libs.events.sealing import SealError, Vault, key_id_of, stored_key

    find = stored_key(given.secret_key, given.data, make=False)
    try:
        key = find()
        seen = "no key yet (made by dev or api)" if key is None else f"key {key_id_of(key)}"
        if key is not None and len(key) < _KEY_CHARACTERS:
            seen += f", which can be guessed: it has {len(key)} characters. Take {_KEY_CHARACTERS} or more, at random"
        if given.kafka is not None or (given.data / "log.db").exists():
            with closing(open_log(given)) as log:
                read_registry(log, Vault(find)).check_sealed()
    except SealError as error:
        return _result("secrets", False, str(error), "Documents with secrets cannot run here")
    except LogError as error:
        # Of a broker that does not answer its own check tells.
        seen = f"not looked at, as the log cannot be read: {error}"
        return _result("secrets", given.kafka is not None, seen, "Another copy of it: flowledger log import FILE")
    return _result("secrets", True, seen)


COMMANDS: dict[str, click.Command] = {"rebuild": rebuild, "verify": verify, "topics": topics, "doctor": doctor}
