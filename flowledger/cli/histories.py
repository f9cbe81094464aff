"""Verbs on a run's history as a file: export it, and fold it again where no server is.

The file has one JSON object a line: a head (`{"flowledger": "history", ...}` with the document, its secrets left out),
then the events as `flowledger history --json` prints them.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowledger.cli import output
from flowledger.cli.exits import INVALID, USAGE, Problem
from flowledger.cli.lookup import complete_run, find_run
from flowledger.cli.output import talk
from flowledger.cli.parameters import target_options
from flowledger.cli.reading import history_lines, print_run
from flowledger.cli.target import Server, server

if TYPE_CHECKING:
    from libs.events.codec import Recorded
    from libs.workflow.definition import Definition

KIND, FORMAT = "history", 1


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option(
    "-o", "--output", "file", required=True, type=click.Path(dir_okay=False, path_type=Path), help="- : stdout."
)
@target_options
def export(run: str, file: Path, url: str | None, data: Path | None) -> None:
    """Write a run's history and its document to a file. Secrets are masked in it.

    \b
    Examples:
      flowledger export 0193 -o run.jsonl
      flowledger export 0193 -o - | gzip > run.jsonl.gz
    """
    with server(url, data, executor=False) as there:
        run_id = find_run(there, run)
        events = history_lines(there, run_id)
        accepted = json.loads(events[0])["data"]
        head = {"flowledger": KIND, "format": FORMAT, "run_id": run_id, "document": _document(there, accepted)}
    text = "\n".join([json.dumps(head, ensure_ascii=False), *events, ""])
    if str(file) == "-":
        click.echo(text, nl=False)
    else:
        try:
            file.write_text(text, "utf-8")
        except OSError as error:
            hint = "Make its folder, or name another file: -o FILE"
            raise Problem(f"{file}: {error.strerror}. {hint}", USAGE) from error
        talk(f"{len(events)} events in {file}. Fold them anywhere: {output.own_name()} replay {file}")


def _document(there: Server, accepted: dict[str, Any]) -> str | None:
    """The document that the run ran, without its secrets; None when the version is gone."""
    try:
        path = f"/console/api/apps/{accepted['app_id']}/export"
        return str(there.get(path, workflow_id=accepted["workflow_id"])["data"])
    except Problem:
        return None


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path, allow_dash=True))
@click.option("--at", type=click.IntRange(1), help="As of this sequence instead of the last.")
@click.option("--json", "as_json", is_flag=True, help="One object, as `show --json` prints it.")
def replay(file: Path, at: int | None, as_json: bool) -> None:
    """Fold an exported history and show the run, as of any of its events. Needs no server and no data folder.

    \b
    Examples:
      flowledger replay run.jsonl
      flowledger replay run.jsonl --at 12 --json
    """
    from services.api.views import show

    head, history = read_history(file)
    if at is not None and at > len(history):
        raise Problem(f"--at {at}: the history has events 1 to {len(history)}", USAGE)
    found = show(head["run_id"], history[:at], _definition(head))
    if as_json:
        output.data(found)
    else:
        print_run(found or {})


def read_history(file: Path) -> "tuple[dict[str, Any], list[Recorded]]":
    """(head, events) of an exported file. Raises Problem: what is wrong with it, by line."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {error.start}, so no exported history. Make one: flowledger export RUN -o FILE"
        raise Problem(f"{file}: {problem}", INVALID) from error
    lines = list(_objects(file, text))
    head = lines[0][1] if lines else {}
    if head.get("flowledger") != KIND or head.get("format") != FORMAT:
        problem = "its first line is not the head of an exported history. Make one: flowledger export RUN -o FILE"
        raise Problem(f"{file}: {problem}", INVALID)
    events: list[Recorded] = []
    for number, line in lines[1:]:
        recorded = _recorded(file, number, line)
        if recorded.seq != len(events) + 1 or recorded.run_id != head["run_id"]:
            expected = f"event {len(events) + 1} of run {head['run_id']}"
            raise Problem(f"{file}:{number}: expected {expected}, found {recorded.seq} of {recorded.run_id}", INVALID)
        events.append(recorded)
    if not events:
        raise Problem(f"{file}: it has no events", INVALID)
    return head, events


def _objects(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise Problem(f"{file}:{number}: not JSON: {error}", INVALID) from error
        if not isinstance(found, dict):
            raise Problem(f"{file}:{number}: expected an object, found {type(found).__name__}", INVALID)
        yield number, found


def _recorded(file: Path, number: int, line: dict[str, Any]) -> "Recorded":
    from pydantic import ValidationError

    from libs.events.codec import Recorded, from_rfc3339
    from libs.events.model import RUN_EVENT_TYPES

    model = RUN_EVENT_TYPES.get(str(line.get("type")))
    if model is None:
        raise Problem(f"{file}:{number}: unknown event type {line.get('type')!r}. Upgrade this program", INVALID)
    about = {name: line[name] for name in ("node_id", "path", "attempt") if name in line}
    try:
        return Recorded(
            model.model_validate(about | (line.get("data") or {})),
            str(line["run_id"]),
            int(line["seq"]),
            int(line.get("epoch", 1)),
            0,
            from_rfc3339(line["at"]),
            str(line.get("cause", "")),
            int(line.get("partition", 0)),
            int(line.get("offset", 0)),
        )
    except (KeyError, ValueError, TypeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise Problem(f"{file}:{number}: {line['type']} cannot be read: {first}", INVALID) from error


def _definition(head: dict[str, Any]) -> "Definition | None":
    from libs.workflow.definition import DefinitionInvalid, compile_document

    try:
        return compile_document(head["document"]) if head.get("document") else None
    except DefinitionInvalid as error:
        talk(f"the document in the file cannot be compiled, so there are no variables: {error}")
        return None


COMMANDS: dict[str, click.Command] = {"export": export, "replay": replay}
