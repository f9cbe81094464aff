"""Verbs about a run's past: fork, retry, diff, why."""

import json
from pathlib import Path
from typing import Any

import click

from flowledger.cli import output
from flowledger.cli.exits import USAGE, Problem
from flowledger.cli.lookup import complete_run, find_run
from flowledger.cli.output import talk
from flowledger.cli.parameters import NODE, target_options
from flowledger.cli.running import follow_to_end, parse_value
from flowledger.cli.target import Server, server

_SHOWN = 100
"""Characters of a value that a line shows."""


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--at", required=True, type=click.IntRange(1), help="Share the run's events up to this sequence.")
@click.option("--set", "pairs", multiple=True, metavar="NODE.OUTPUT=VALUE", help="Another value, of the same type.")
@click.option("--watch", "watching", is_flag=True, help="Follow the new run to its end.")
@click.option("--json", "as_json", is_flag=True, help="One object; with --watch the result after it.")
@target_options
def fork(
    run: str, at: int, pairs: tuple[str, ...], watching: bool, as_json: bool, url: str | None, data: Path | None
) -> int:
    """Make a new run that shares a run's events up to one of them; what follows runs again.

    What was done before that is not done again; attempts that were under way there begin anew. The run itself stays
    as it is. With --set, nodes that run again read another value. VALUE is JSON where it parses, unless the value is a
    text; NODE=start edits inputs.

    \b
    Examples:
      flowledger history 0193
      flowledger fork 0193 --at 8
      flowledger fork 0193 --at 8 --set llm.text="a better summary" --watch
    """
    with server(url, data) as there:
        run_id = find_run(there, run)
        body = {"at": at, "set": _edits(there, run_id, at, pairs)}
        made = there.post(f"/v1/runs/{run_id}/fork", body)
        return _made(there, made, watching=watching, as_json=as_json)


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--set", "pairs", multiple=True, metavar="NODE.OUTPUT=VALUE", help="Another value, of the same type.")
@click.option("--watch", "watching", is_flag=True, help="Follow the new run to its end.")
@click.option("--json", "as_json", is_flag=True, help="One object; with --watch the result after it.")
@target_options
def retry(run: str, pairs: tuple[str, ...], watching: bool, as_json: bool, url: str | None, data: Path | None) -> int:
    """Try again what made a run fail: a new run, forked at the failed node. Prints its id.

    \b
    Examples:
      flowledger retry 0193
      flowledger retry 0193 --watch
    """
    with server(url, data) as there:
        run_id = find_run(there, run)
        made = there.post(f"/v1/runs/{run_id}/retry", {"set": _edits(there, run_id, None, pairs)})
        return _made(there, made, watching=watching, as_json=as_json)


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--from", "first", default=1, show_default=True, type=click.IntRange(1), help="Sequence to begin at.")
@click.option("--to", "last", type=click.IntRange(1), help="Sequence to end at; default: the run's last.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@target_options
def diff(run: str, first: int, last: int | None, as_json: bool, url: str | None, data: Path | None) -> None:
    """Show what changed in a run between two of its events: status, nodes, variables.

    \b
    Examples:
      flowledger diff 0193 --from 5 --to 9
      flowledger diff 0193 --from 5 --json
    """
    with server(url, data, executor=False) as there:
        run_id = find_run(there, run)
        found = there.get(f"/v1/runs/{run_id}/diff", from_=first, to=last)
    if as_json:
        output.data(found)
        return
    changes = [("status", found["status"])] if found["status"]["from"] != found["status"]["to"] else []
    changes += [(f"node {name}", change) for name, change in found["nodes"].items()]
    changes += found["variables"].items()
    changes += [(f"output {name}", change) for name, change in found["outputs"].items()]
    for name, change in changes:
        sign = "~" if len(change) > 1 else "+" if "to" in change else "-"
        click.echo(f"{sign} {name}: {' -> '.join(_short(change[side]) for side in ('from', 'to') if side in change)}")
    if not changes:
        talk(f"Nothing changed between events {found['from']} and {found['to']}")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.argument("node", type=NODE, required=False)
@click.option("--json", "as_json", is_flag=True, help="One object.")
@target_options
def why(run: str, node: str | None, as_json: bool, url: str | None, data: Path | None) -> None:
    """Say in one sentence what a run waits for, or why it or one of its nodes (id or title) ended as it did.

    \b
    Examples:
      flowledger why 0193
      flowledger why 0193 "Formal?"
    """
    with server(url, data, executor=False) as there:
        run_id = find_run(there, run)
        found = there.get(f"/v1/runs/{run_id}/why", node=node)
    if as_json:
        output.data(found)
    else:
        click.echo(found["why"])


def _edits(there: Server, run_id: str, at: int | None, pairs: tuple[str, ...]) -> dict[str, Any]:
    """Values by `node.output`; a text stays one, also when it could be read as JSON."""
    if not pairs:
        return {}
    there_is = there.get(f"/v1/runs/{run_id}/state", at=at).get("variables") or {}
    edits: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or "." not in name:
            raise Problem(f"--set {pair}: expected NODE.OUTPUT=VALUE", USAGE)
        node, _, value = name.partition(".")
        is_text = isinstance((there_is.get(node) or {}).get(value), str)
        edits[name] = parse_value(text, "text-input" if is_text else None)
    return edits


def _made(there: Server, made: dict[str, Any], *, watching: bool, as_json: bool) -> int:
    new = made["id"]
    if as_json:
        output.data(made)
    else:
        click.echo(new)
        names = ", ".join(made["again"])
        again = f", unless a branch decides otherwise: {names}" if names else ": no node that had run before"
        talk(f"forked behind event {made['forked_at']} of {made['forked_from']}. Runs again{again}")
    if watching:
        return follow_to_end(there, new, quiet=as_json, as_json=as_json)
    if not as_json:
        rests = "rests until its folder is opened again" if there.embedded else "runs"
        talk(f"It {rests}. Follow it: {there.command(f'watch {new}')}")
    return 0


COMMANDS: dict[str, click.Command] = {"fork": fork, "retry": retry, "diff": diff, "why": why}
