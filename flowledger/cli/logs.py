"""`log` and `quarantine`: records as they stand in the log, and runs that cannot be folded from them.

Reads the log itself, no server: the data folder, or with FLOWLEDGER_KAFKA the broker. What the validity rule does not
admit is shown too: this is where one looks when something is wrong.
"""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import click

from flowledger.cli import output
from flowledger.cli.exits import NOT_FOUND, UNREACHABLE, USAGE, Problem
from flowledger.cli.lookup import complete_run, find_run
from flowledger.cli.parameters import data_option, target_options
from flowledger.cli.target import server, settings
from flowledger.cli.transfers import export_, import_
from flowledger.cli.upkeep import open_log, own_blobs

if TYPE_CHECKING:
    from libs.events.log import Log, Record, Topic

TOPICS = ("events", "commands", "definitions", "index", "blobs", "dead-letters", "chunks")
_GIST = 160

_topic = click.option("--topic", default="events", show_default=True, type=click.Choice(TOPICS))
_partition = click.option("--partition", type=click.IntRange(0), help="Only this one.")
_json = click.option("--json", "as_json", is_flag=True, help="One object a line.")


@click.group()
def log() -> None:
    """Records as they stand in the log, read without a server.

    \b
    Examples:
      flowledger log tail -n 50
      flowledger log tail --follow --json
      flowledger log grep 0193 --topic commands
    """


@log.command()
@click.option("-n", "count", default=20, show_default=True, type=click.IntRange(0), help="Records per partition.")
@click.option("--follow", is_flag=True, help="And what comes, until Ctrl-C.")
@_topic
@_partition
@_json
@data_option
def tail(count: int, follow: bool, topic: str, partition: int | None, as_json: bool, data: Path | None) -> None:
    """The last records of each partition, oldest first.

    \b
    Examples:
      flowledger log tail
      flowledger log tail --topic definitions -n 5
    """
    from libs.events.log import LogError, Topic

    given = settings(data)
    wanted = Topic(topic)
    try:
        with closing(open_log(given)) as opened:
            ends = {}
            for number in _partitions(opened, wanted, partition):
                first, end = opened.bounds(wanted, number)
                ends[number] = end
                for record in _read(opened, wanted, number, max(first, end - count), end):
                    _show(record, as_json=as_json)
            if follow:
                for record in _coming(opened, wanted, ends):
                    _show(record, as_json=as_json)
    except LogError as error:
        raise Problem(f"log tail: {error}", UNREACHABLE) from error


@log.command()
@click.argument("pattern")
@click.option("-i", "--ignore-case", is_flag=True)
@_topic
@_partition
@_json
@data_option
def grep(pattern: str, ignore_case: bool, topic: str, partition: int | None, as_json: bool, data: Path | None) -> None:
    """Records whose key, headers or value match a regular expression. Exit code 3 when none does.

    \b
    Examples:
      flowledger log grep 01930000-0000-7000-8000-000000000001
      flowledger log grep 'NodeFailed|RunFailed' --json
    """
    from libs.events.log import LogError, Topic

    try:
        wanted = re.compile(pattern.encode(), re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise Problem(f"log grep {pattern!r}: no regular expression: {error}", USAGE) from error
    found = 0
    try:
        with closing(open_log(settings(data))) as opened:
            for number in _partitions(opened, Topic(topic), partition):
                first, end = opened.bounds(Topic(topic), number)
                for record in _read(opened, Topic(topic), number, first, end):
                    if _matches(wanted, record):
                        found += 1
                        _show(record, as_json=as_json)
    except LogError as error:
        raise Problem(f"log grep: {error}", UNREACHABLE) from error
    if not found:
        raise Problem(f"log grep: nothing in {topic} matches {pattern!r}", NOT_FOUND)


def _partitions(opened: "Log", topic: "Topic", only: int | None) -> list[int]:
    """Those of the topic; some topics have one partition whatever the log has."""
    from libs.events.log import Topic

    count = 1 if topic in (Topic.DEFINITIONS, Topic.INDEX, Topic.DEAD_LETTERS) else opened.partitions
    if only is not None and only >= count:
        raise Problem(f"--partition {only}: {topic} has partitions 0 to {count - 1}", USAGE)
    return list(range(count)) if only is None else [only]


def _read(opened: "Log", topic: "Topic", partition: int, start: int, stop: int) -> "Iterator[Record]":
    for batch in opened.read(topic, partition, start, stop):
        yield from batch


def _coming(opened: "Log", topic: "Topic", starts: dict[int, int]) -> "Iterator[Record]":
    """New records, for ever."""
    arrived: SimpleQueue[Any] = SimpleQueue()
    with closing(opened.tail(topic, starts, arrived.put, arrived.put)):
        while True:
            batch = arrived.get()
            if isinstance(batch, Exception):
                raise batch
            yield from batch


def _matches(wanted: "re.Pattern[bytes]", record: "Record") -> bool:
    parts = [
        record.key or b"",
        record.value or b"",
        *(name.encode() + b": " + value for name, value in record.headers.items()),
    ]
    return any(wanted.search(part) for part in parts)


def _show(record: "Record", *, as_json: bool) -> None:
    from libs.events.codec import run_of, stamp_of, type_of

    headers = {name: value.decode("utf-8", "replace") for name, value in record.headers.items()}
    value = _value(record.value)
    if as_json:
        key = None if record.key is None else record.key.decode("utf-8", "replace")
        line = {"topic": str(record.topic), "partition": record.partition, "offset": record.offset}
        output.data(line | {"timestamp_ms": record.timestamp_ms, "key": key, "headers": headers, "value": value})
        return
    stamp = stamp_of(record)
    place = f"{record.topic}[{record.partition}]@{record.offset}"
    owner = "" if stamp is None else f"{stamp.epoch}/{stamp.n}"
    about = run_of(record) or ("" if record.key is None else record.key.decode("utf-8", "replace"))
    seq = f"#{headers['ce_sequence']}" if "ce_sequence" in headers else ""
    gist = "" if value is None else json.dumps(value, ensure_ascii=False)
    gist = gist if len(gist) <= _GIST else gist[:_GIST] + "..."
    kind = type_of(record) or headers.get("ce_type", "?")
    click.echo(f"{place:<16} {owner:<8} {kind:<22} {about}{seq}  {gist}".rstrip())


def _value(value: bytes | None) -> Any:
    from pydantic_core import from_json

    if value is None:
        return None
    try:
        return from_json(value)
    except ValueError:  # nested too deeply among them
        return {"bytes": len(value)}


log.add_command(export_)
log.add_command(import_)


@click.group()
def quarantine() -> None:
    """Runs that executors set aside, because their history cannot be folded.

    \b
    Examples:
      flowledger quarantine list
      flowledger quarantine release 0193
    """


@quarantine.command(name="list")
@_json
@data_option
def list_(as_json: bool, data: Path | None) -> None:
    """Name the runs that were set aside, and those that the next owner would set aside. Changes nothing.

    Such a run can still be stopped. Where this program can fold it, it goes on when it is released.

    \b
    Examples:
      flowledger quarantine list --json
    """
    from libs.events.log import LogError
    from libs.events.registry import read_registry
    from libs.events.sealing import Vault, stored_key
    from libs.storage import blobs_by_setting
    from libs.workflow.catalog import Catalog
    from services.executor.quarantine import set_aside

    given = settings(data)
    vault = Vault(stored_key(given.secret_key, given.data, make=False))
    try:
        with closing(open_log(given)) as opened:
            catalog = Catalog(read_registry(opened, vault).document)
            with closing(blobs_by_setting(given, own_blobs(given, opened))) as blobs:
                found = list(set_aside(opened, blobs, vault, catalog.get))
    except LogError as error:
        raise Problem(f"quarantine: {error}", UNREACHABLE) from error
    if as_json:
        for one in found:
            output.data(one._asdict())
    else:
        lines = [[one.run_id, one.seq, "yes" if one.foldable else "no", one.reason[:_GIST]] for one in found]
        output.table(["run", "seq", "can be folded", "why"], lines, "No run is set aside")


@quarantine.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--json", "as_json", is_flag=True, help="One object.")
@target_options
def release(run: str, as_json: bool, url: str | None, data: Path | None) -> None:
    """Try again with a run that was set aside, after an upgrade or a mend.

    The owner folds its history once more. When that works the run goes on where it was; else it stays set aside, and
    the reason is named.

    \b
    Examples:
      flowledger quarantine release 0193
    """
    with server(url, data) as there:
        run_id = find_run(there, run)
        answer = there.post(f"/v1/runs/{run_id}/release", {"user": "cli"})
    if as_json:
        output.data(answer)
    else:
        output.talk(f"run {run_id} goes on. Follow it: {there.command(f'watch {run_id}')}")


COMMANDS: dict[str, click.Command] = {"log": log, "quarantine": quarantine}
