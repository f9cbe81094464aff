"""Verbs that read: runs, show, history."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from flowledger.cli import output
from flowledger.cli.exits import UNREACHABLE, USAGE, Problem
from flowledger.cli.lookup import complete_run, find_app, find_run, pages
from flowledger.cli.output import ago, seconds, state, table
from flowledger.cli.parameters import FILTER_APP, SINCE, target_options
from flowledger.cli.target import Server, server
from flowledger.lines import broken_off
from libs.gist import gist

STATUSES = ("pending", "running", "paused", "succeeded", "partial-succeeded", "failed", "stopped")
_LIST_KEYS = (
    "id", "app_id", "workflow_id", "version", "status", "error", "created_at", "started_at", "finished_at",
    "elapsed_time", "total_steps", "total_tokens", "seq", "triggered_from",
)  # fmt: skip


@click.command()
@click.option("--status", type=click.Choice(STATUSES), help="Only runs in this state.")
@click.option("--app", type=FILTER_APP, help="Only runs of this app (id, prefix of an id, or name).")
@click.option("--since", type=SINCE, help="Only runs made since: 10m, 2h, 3d, or an RFC 3339 instant.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="A list.")
@target_options
def runs(
    status: str | None,
    app: str | None,
    since: str | None,
    limit: int,
    as_json: bool,
    url: str | None,
    data: Path | None,
) -> None:
    """List runs, newest first.

    \b
    Examples:
      flowledger runs --status failed --since 1d
      flowledger runs --app "My flow" --json
    """
    moment = since_instant(since, datetime.now(UTC)) if since is not None else None
    with server(url, data, executor=False) as target:
        app_id = None if app is None else find_app(target, app)["app_id"]
        found = list(pages(target, limit, status=status, app_id=app_id, since=moment))
    if as_json:
        output.data([{key: run.get(key) for key in _LIST_KEYS} | run for run in found])
        return
    lines = [
        [run["id"], state(run["status"]), ago(run.get("created_at")), seconds(run.get("elapsed_time")), _short(run)]
        for run in found
    ]
    hint = f"No runs match. Start one: {target.command('run FILE')}"
    table(["run", "state", "made", "took", "error"], lines, hint)


def since_instant(text: str, now: datetime) -> str:
    """RFC 3339 of `10m`, `2h`, `3d` before `now`, or of an instant. Raises Problem."""
    try:
        return _instant(text, now)
    except (ValueError, OverflowError) as error:  # the second: beyond what a calendar holds
        raise Problem(f"--since {text!r}: expected 10m, 2h, 3d, or 2026-05-02T09:00:00Z", USAGE) from error


def _instant(text: str, now: datetime) -> str:
    relative = re.fullmatch(r"(\d+)\s*([smhd])", text)
    if relative:
        size = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[relative[2]]
        moment = now - timedelta(**{size: int(relative[1])})
    else:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        moment = moment if moment.tzinfo else moment.astimezone()
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--at", type=click.IntRange(1), help="As of this sequence instead of now.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@target_options
def show(run: str, at: int | None, as_json: bool, url: str | None, data: Path | None) -> None:
    """Show a run: state, nodes, outputs; now, or as of sequence N.

    \b
    Examples:
      flowledger show 0193
      flowledger show 0193 --at 12 --json
    """
    with server(url, data, executor=False) as target:
        run_id = find_run(target, run)
        found = target.get(f"/v1/runs/{run_id}/state", at=at) if at else target.get(f"/v1/runs/{run_id}")
    if as_json:
        output.data(found)
        return
    print_run(found)


def print_run(run: dict[str, Any]) -> None:
    """A run for a person, on stdout."""
    click.echo(f"run      {run['id']}")
    click.echo(f"state    {state(run['status'])}" + (f"  at sequence {run['seq']}" if run.get("seq") else ""))
    click.echo(f"app      {run.get('app_id')}  version {run.get('version')}")
    if run.get("only"):
        click.echo(f"only     {run['only']}")
    elif run.get("triggered_from") in ("webhook", "schedule"):
        click.echo(f"begun    at {run['root']}, by a {run['triggered_from']}")
    if run.get("forked_from"):
        click.echo(f"forked   from {run['forked_from']} behind event {run['forked_at']}")
    click.echo(f"made     {run.get('created_at')}  took {seconds(run.get('elapsed_time'))}")
    for one in run.get("waiting_for") or ():
        click.echo(f"waits    {_wait(one)}")
    if run.get("error"):
        click.echo(f"error    {run['error']}")
    lines = []
    for node_id, node in (run.get("nodes") or {}).items():
        for one in node.get("executions") or [{"status": node.get("status")}]:
            place = f"{node_id} [{one['path']}]" if one.get("path") else node_id
            took = seconds(one.get("elapsed_time"))
            lines.append([place, state(one["status"]), one.get("attempt"), took, _short(one)])
    if lines:
        click.echo()
        table(["node", "state", "attempt", "took", "error"], lines, "")
    if run.get("outputs"):
        click.echo()
        output.pretty(run["outputs"])


def _wait(one: dict[str, Any]) -> str:
    """One thing that a run waits for."""
    place = f"{one.get('node_id')} [{one['path']}]" if one.get("path") else one.get("node_id")
    match one.get("kind"):
        case "form":
            actions = " | ".join(action["id"] for action in one["actions"])
            return f"for a person at {place} until {one['expires_at']}: {actions}"
        case "pause":
            return f"to be resumed: {one['reason']}"
        case "node":
            return f"for {place}, attempt {one['attempt']}"
        case "retry":
            return f"for the next attempt of {place} at {one['due_at']}"
        case _:
            return json.dumps(one, ensure_ascii=False)


def history_lines(target: Server, run_id: str, bounds: Mapping[str, int | None] | None = None) -> list[str]:
    """The events of a run, a JSON object each. Raises Problem: also when the answer breaks off."""
    answer = target.request(
        "GET",
        f"/v1/runs/{run_id}/history",
        params={name: value for name, value in (bounds or {}).items() if value},
        headers={"Accept": "application/x-ndjson"},
    )
    lines = [line for line in answer.text.split("\n") if line]
    if lines and (why := broken_off(json.loads(lines[-1]))) is not None:
        raise Problem(f"the history of run {run_id} breaks off behind {len(lines) - 1} events: {why}", UNREACHABLE)
    return lines


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--from", "first", type=click.IntRange(1), help="First sequence.")
@click.option("--to", "last", type=click.IntRange(1), help="Last sequence.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
@target_options
def history(run: str, first: int | None, last: int | None, as_json: bool, url: str | None, data: Path | None) -> None:
    """The events of a run, read from the log.

    \b
    Examples:
      flowledger history 0193
      flowledger history 0193 --from 5 --to 9 --json
    """
    if first is not None and last is not None and first > last:
        raise Problem(f"--from {first} --to {last}: nothing is between them. Give --to {first} or more", USAGE)
    with server(url, data, executor=False) as target:
        run_id = find_run(target, run)
        lines = history_lines(target, run_id, {"from": first, "to": last})
    if as_json:
        for line in lines:
            click.echo(line)
        return
    for event in map(json.loads, lines):
        where = f"{event['node_id']}" if event.get("node_id") else ""
        where += f" [{event['path']}]" if event.get("path") else ""
        where += f" #{event['attempt']}" if event.get("attempt", 1) > 1 else ""
        click.echo(f"{event['seq']:>5}  {event['at'][11:23]}  {event['type']:<22}  {where}  {_gist(event)}".rstrip())


def _gist(event: dict[str, Any]) -> str:
    if event.get("cause") == "copied":
        return "(copied)"
    facts = event.get("data") or {}
    for key in ("error", "message", "handle", "reason"):
        if facts.get(key):
            return gist(str(facts[key]), 100)
    return ""


def _short(item: dict[str, Any]) -> str:
    return gist(str(item.get("error") or ""), 60)


COMMANDS: dict[str, click.Command] = {"runs": runs, "show": show, "history": history}
