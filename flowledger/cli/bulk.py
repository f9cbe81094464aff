"""`bulk`: what is done to all runs that match, counted first."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from flowledger.cli import output
from flowledger.cli.exits import RUN_FAILED
from flowledger.cli.lookup import find_app
from flowledger.cli.output import talk
from flowledger.cli.parameters import FILTER_APP, SINCE, target_options
from flowledger.cli.reading import since_instant
from flowledger.cli.target import server
from flowledger.cli.upkeep import agreed

_STATES = {"stop": ("pending", "running", "paused"), "retry": ("failed",)}


@click.command()
@click.argument("action", type=click.Choice(list(_STATES)))
@click.option("--status", type=click.Choice(_STATES["stop"]), help="With stop: only runs in this state.")
@click.option("--app", type=FILTER_APP, help="Only runs of this app (id, prefix of an id, or name).")
@click.option("--since", type=SINCE, help="Only runs made since: 10m, 2h, 3d, or an RFC 3339 instant.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@target_options
def bulk(
    action: str,
    status: str | None,
    app: str | None,
    since: str | None,
    yes: bool,
    as_json: bool,
    url: str | None,
    data: Path | None,
) -> int:
    """Stop all unfinished runs that match, or retry all failed ones. Says how many, and asks.

    \b
    Examples:
      flowledger bulk stop --app "My flow" --since 1h
      flowledger bulk retry --since 1d --yes
    """
    if status is not None and action != "stop":
        raise click.UsageError("--status goes with stop: only failed runs are retried")
    moment = since_instant(since, datetime.now(UTC)) if since is not None else None
    with server(url, data) as there:
        wanted = {"status": status, "since": moment, "app": None if app is None else find_app(there, app)["app_id"]}
        body: dict[str, Any] = {"action": action, "filter": {name: one for name, one in wanted.items() if one}}
        done = there.post("/v1/runs/bulk", body)
        count = done["count"]
        if count and not yes and not agreed(f"bulk {action}", f"{action} {count} runs?"):
            return 0
        if count:
            # The number that was agreed to: if it has changed meanwhile, nothing is done.
            done = there.post("/v1/runs/bulk", body | {"expect": count})
    if as_json:
        output.data(done)
    else:
        for one in done["changed"]:
            click.echo(f"{one['id']}  {one.get('retried_as') or ''}".rstrip())
        for one in done["already"]:
            talk(
                f"run {one['id']}: an earlier bulk retry made {one['retried_as']} of it. To try again: "
                f"flowledger retry {one['id']}"
            )
        for one in done["failed"]:
            talk(f"run {one['id']}: {one['message']}")
        talk(f"{len(done['changed'])} of {count} runs: {action} asked for" if count else "No runs match")
    return RUN_FAILED if done["failed"] else 0


COMMANDS: dict[str, click.Command] = {"bulk": bulk}
