"""Verbs for runs that wait: pause, resume; and how a form is shown to a person."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from flowledger.cli import output
from flowledger.cli.exits import PAUSED
from flowledger.cli.lookup import complete_run, find_run
from flowledger.cli.output import talk
from flowledger.cli.parameters import Filled, target_options, timeout_option
from flowledger.cli.target import Server, server


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--reason", help="Why, for whoever looks at the run.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@target_options
def pause(run: str, reason: str | None, as_json: bool, url: str | None, data: Path | None) -> None:
    """Pause a run: nodes that run end, nothing new begins until it is resumed.

    \b
    Examples:
      flowledger pause 0193
      flowledger pause 0193 --reason "the report server is down"
    """
    with server(url, data) as there:
        run_id = find_run(there, run)
        answer = there.post(f"/v1/runs/{run_id}/pause", {"reason": reason, "user": "cli"})
    if as_json:
        output.data(answer)
        return
    what = "pause requested" if answer.get("pause_requested") else "somebody has paused it already"
    talk(f"run {run_id}: {what}. Let it go on: {there.command(f'resume {run_id}')}")


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option(
    "--action",
    type=Filled("an action of the form, or leave the option out"),
    help="Answer the form that the run waits for by this action.",
)
@click.option("-i", "--input", "pairs", multiple=True, metavar="K=V", help="One field; K=@FILE reads the value.")
@click.option("--inputs", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Fields, JSON or YAML.")
@click.option("--file", "files", multiple=True, metavar="K=PATH|URL", help="One file field; again for a list.")
@click.option(
    "--form",
    type=Filled("a form's id or its node's, or leave the option out"),
    help="Which form, when the run waits for several: its id, or its node's.",
)
@click.option("--user", default="cli", show_default=True, help="Who answers.")
@click.option("--watch/--detach", "watching", default=None, help="Follow the run (default), or leave it.")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="The result as one object; with --watch every frame first.")
@target_options
def resume(
    run: str,
    action: str | None,
    pairs: tuple[str, ...],
    inputs: Path | None,
    files: tuple[str, ...],
    form: str | None,
    user: str,
    watching: bool | None,
    timeout_s: float | None,
    as_json: bool,
    url: str | None,
    data: Path | None,
) -> int:
    """Let a paused run go on: answer its form, or take a pause back.

    Without --action a run that waits for a form shows it.

    \b
    Examples:
      flowledger resume 0193
      flowledger resume 0193 --action publish -i note="well done"
    """
    with server(url, data) as there:
        run_id = find_run(there, run)
        state = there.get(f"/v1/runs/{run_id}")
        if action is None and form is None and not _held(state) and forms_of(state):
            return _still_waits(there, state, as_json=as_json)
        body: dict[str, Any] = {"user": user}
        if action is not None or form is not None:
            values = _values(there, state, form, pairs, inputs, files)
            body |= {"action": action, "form": form, "inputs": values}
        answer = there.post(f"/v1/runs/{run_id}/resume", {k: v for k, v in body.items() if v is not None})
        if watching is False:
            _say(there, answer, run_id, as_json=as_json)
            return 0
        if answer.get("resumed") == "pause" and forms_of(state):
            state = there.get(f"/v1/runs/{run_id}")
            if state["status"] == "paused":
                return _still_waits(there, state, as_json=as_json)
        return _follow(there, run_id, state, watching=watching, timeout_s=timeout_s, as_json=as_json)


def _follow(
    there: Server,
    run_id: str,
    state: Mapping[str, Any],
    *,
    watching: bool | None,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    import sys

    from flowledger.cli.follow import deadline_of
    from flowledger.cli.running import follow_to_end

    quiet = as_json or not (watching or sys.stdout.isatty())
    return follow_to_end(
        there, run_id, after=str(state["seq"]), quiet=quiet, frames=as_json and bool(watching), as_json=as_json,
        deadline=deadline_of(timeout_s),
    )  # fmt: skip


def _say(there: Server, answer: Mapping[str, Any], run_id: str, *, as_json: bool) -> None:
    if as_json:
        output.data(answer)
    else:
        talk(f"run {run_id} goes on. Follow it: {there.command(f'watch {run_id}')}")


def _values(
    there: Server,
    state: Mapping[str, Any],
    form: str | None,
    pairs: Iterable[str],
    inputs: Path | None,
    files: Iterable[str],
) -> dict[str, Any]:
    from functools import partial

    from flowledger.cli.running import read_inputs, upload

    meant = [one for one in forms_of(state) if form in (None, one["form_id"], one["form_token"], one["node_id"])]
    if len(meant) != 1:
        return read_inputs(pairs, inputs, {}, files, partial(upload, there, state["app_id"]))
    types = {one["output_variable_name"]: one["type"] for one in meant[0]["inputs"]}
    return _defaults(meant[0]) | read_inputs(pairs, inputs, types, files, partial(upload, there, state["app_id"]))


def _defaults(form: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the fields before somebody writes."""
    found = {
        one["output_variable_name"]: one["default"].get("value")
        for one in form["inputs"]
        if isinstance(one.get("default"), dict) and one["default"].get("type") == "constant"
    }
    return found | dict(form.get("resolved_default_values") or {})


def _held(state: Mapping[str, Any]) -> bool:
    return any(one["kind"] == "pause" for one in state["waiting_for"])


def _still_waits(there: Server, state: Mapping[str, Any], *, as_json: bool) -> int:
    if as_json:
        output.data({"id": state["id"], "status": state["status"], "waiting_for": state["waiting_for"]})
    else:
        for one in forms_of(state):
            show_form(there, state["id"], one, several=len(forms_of(state)) > 1)
    return PAUSED


# --- forms -----------------------------------------------------------------------------------------------------------


def forms_of(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The forms that a run waits for."""
    return [one for one in state.get("waiting_for") or () if one["kind"] == "form"]


def show_form(there: Server, run_id: str, form: Mapping[str, Any], *, several: bool) -> None:
    """What is asked, and the commands that answer it, on stderr. `form`: of `waiting_for`, or of a pause's reasons."""
    talk(f"‖ {form.get('node_title') or form['node_id']} waits for a person until {_until(form)}")
    content = re.sub(r"\{\{#\$output\.(\w+)#\}\}", r"[\1]", str(form.get("form_content") or ""))
    for line in content.strip().splitlines():
        talk(f"    {line}".rstrip())
    fields = [one for one in form.get("inputs") or () if isinstance(one, dict)]
    for field in fields:
        talk(f"  {field.get('output_variable_name')} ({_kind(field)})")
    given = "".join(
        f" {'--file' if str(field.get('type')).startswith('file') else '-i'} {field.get('output_variable_name')}=..."
        for field in fields
    )
    which = f" --form {form['form_id']}" if several else ""
    for action in form.get("actions") or ():
        talk(f"  {action['title'] or action['id']}:")
        answer = f"resume {run_id} --action {action['id']}{given}{which}"
        talk(f"    {there.command(answer)}")
    if not form.get("actions"):
        talk("  The form has no action: the run goes on when it expires.")


def _kind(field: Mapping[str, Any]) -> str:
    source = field.get("option_source")
    options = source.get("value") if isinstance(source, dict) else None
    return f"one of: {', '.join(map(str, options))}" if isinstance(options, list) else str(field.get("type"))


def _until(form: Mapping[str, Any]) -> str:
    if form.get("expires_at"):
        return str(form["expires_at"])[:16].replace("T", " ") + " UTC"
    moment = datetime.fromtimestamp(int(form.get("expiration_time") or 0), UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


COMMANDS: dict[str, click.Command] = {"pause": pause, "resume": resume}
