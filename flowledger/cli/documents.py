"""Verbs on documents and apps: validate, import, apps, versions, keys."""

import shlex
from pathlib import Path
from typing import Any

import click

from flowledger.cli.exits import INVALID, NOT_FOUND, USAGE, Problem
from flowledger.cli.lookup import find_app, rows
from flowledger.cli.output import ago, data, problem_line, table, talk
from flowledger.cli.parameters import APP, KEY, Filled, target_options
from flowledger.cli.target import Server, server

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("files", nargs=-1, required=True, type=_FILE, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="A list with one object per file.")
def validate(files: tuple[Path, ...], as_json: bool) -> int:
    """Check documents without running anything. All mistakes at once.

    \b
    Examples:
      flowledger validate examples/*.yml
      flowledger validate flow.yml --json
    """
    results = [check_file(file) for file in files]
    if as_json:
        data(results)
    else:
        for result in results:
            _print_result(result)
    return 0 if all(result["valid"] for result in results) else INVALID


def check_file(file: Path) -> dict[str, Any]:
    """The `validate` object of one document."""
    from libs.workflow.definition import examine

    definition, problems, counts = examine(file.read_bytes())
    told = [{"at": one.at, "problem": one.problem, "hint": one.hint, "severity": one.severity} for one in problems]
    return {"file": str(file), "valid": definition is not None, **counts, "problems": told}


def _print_result(result: dict[str, Any]) -> None:
    if result["valid"]:
        click.echo(f"{result['file']}: valid ({result['mode']}, {result['nodes']} nodes, {result['edges']} edges)")
    else:
        click.echo(f"{result['file']}: invalid")
    for one in result["problems"]:
        click.echo(f"  {problem_line(one)}")


@click.command(name="import")
@click.argument("file", type=_FILE)
@click.option(
    "--app",
    type=Filled("an app's id or name, or leave the option out for a new app"),
    help="Publish a new version of this app (id, prefix of an id, or name).",
)
@click.option("--key", is_flag=True, help="With --app: make a key, too. A new app always gets one.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@target_options
def import_(file: Path, app: str | None, key: bool, as_json: bool, url: str | None, data: Path | None) -> None:
    """Bring a document: a new app with a key, or a new version of --app.

    \b
    Examples:
      flowledger import flow.yml
      flowledger import flow.yml --app "My flow"
    """
    with server(url, data, executor=False) as target:
        app_id = None if app is None else find_app(target, app)["app_id"]
        made = import_file(target, file, app_id=app_id, key=key)
    _print_import(target, made, as_json=as_json)


def import_file(target: Server, file: Path, *, app_id: str | None = None, key: bool = False) -> dict[str, Any]:
    """Import a document; the answer has the keys of `import --json`. Raises Problem, which names the file."""
    try:
        made: dict[str, Any] = target.request(
            "POST",
            "/v1/apps/import",
            content=file.read_bytes(),
            headers={"Content-Type": "application/yaml"},
            params=({} if app_id is None else {"app_id": app_id}) | ({"key": "true"} if key else {}),
        ).json()
    except Problem as problem:
        if problem.exit_code != INVALID:
            raise
        raise Problem(f"{file}: {problem.message}", INVALID) from problem
    return made


def _print_import(target: Server, made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        data(made)
        return
    for warning in made.get("warnings", ()):
        talk(problem_line(warning))
    click.echo(f"app      {made['app_id']}  {made['name']} ({made['mode']})")
    click.echo(f"version  {made['workflow_id']}  {made['version']}")
    if made.get("api_key"):
        click.echo(f"key      {made['api_key']}")
        talk(f"The key is shown once. Run it: {target.command('run ' + made['app_id'])}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A list.")
@target_options
def apps(as_json: bool, url: str | None, data: Path | None) -> None:
    """List apps.

    \b
    Examples:
      flowledger apps
      flowledger apps --json
    """
    with server(url, data, executor=False) as target:
        found = rows(target.get("/v1/apps"))
    if as_json:
        _data(found)
        return
    lines = [[app["app_id"], app["name"], app["mode"], _count(app.get("versions"))] for app in found]
    table(["app", "name", "mode", "versions"], lines, f"No apps yet. Bring one: {target.command('import FILE')}")


@click.command()
@click.argument("app", type=APP)
@click.option("--json", "as_json", is_flag=True, help="A list.")
@target_options
def versions(app: str, as_json: bool, url: str | None, data: Path | None) -> None:
    """List the published versions of an app, oldest first.

    \b
    Examples:
      flowledger versions "My flow"
    """
    with server(url, data, executor=False) as target:
        found = target.get(f"/v1/apps/{find_app(target, app)['app_id']}")
    listed = found.get("versions") or []
    if as_json:
        _data(listed)
        return
    lines = [[one["workflow_id"], one["version"], ago(one.get("published_at"))] for one in listed]
    hint = f"Nothing published. Publish: {target.command(f'import FILE --app {shlex.quote(app)}')}"
    table(["version id", "version", "published"], lines, hint)


@click.command()
@click.argument("app", type=APP)
@click.argument("action", required=False, type=click.Choice(["create", "revoke", "add"]))
@click.argument("key", type=KEY, required=False)
@click.option("--json", "as_json", is_flag=True, help="A list, or the one key that was made.")
@target_options
def keys(app: str, action: str | None, key: str | None, as_json: bool, url: str | None, data: Path | None) -> None:
    """List, create, add or revoke the keys of an app.

    `add` brings an existing `app-...` key, so that clients need not change; `revoke` takes a key's id or its prefix.

    \b
    Examples:
      flowledger keys "My flow"
      flowledger keys "My flow" create
      flowledger keys "My flow" add app-0123456789abcdefghijklmn
      flowledger keys "My flow" revoke app-0123
    """
    if (action in ("add", "revoke")) != (key is not None):
        raise Problem(f"keys {action or ''}: {'a KEY is needed' if key is None else 'takes no KEY'}", USAGE)
    with server(url, data, executor=False) as target:
        path = f"/v1/apps/{find_app(target, app)['app_id']}/keys"
        if action == "revoke":
            _revoke(target, path, app, str(key))
            return
        if action is not None:
            made = target.post(path, {} if key is None else {"key": key})
            _data(made) if as_json else click.echo(made.get("key") or made["id"])
            return
        found = rows(target.get(path))
    if as_json:
        _data(found)
        return
    lines = [[one["id"], one["prefix"], one["created_at"]] for one in found]
    hint = f"No keys. Make one: {target.command(f'keys {shlex.quote(app)} create')}"
    table(["key id", "prefix", "created"], lines, hint)


def _revoke(target: Server, path: str, app: str, key: str) -> None:
    listed = rows(target.get(path))
    found = [one["id"] for one in listed if one["id"].startswith(key) or key.startswith(one["prefix"])]
    found = found or [one["id"] for one in listed if one["prefix"].startswith(key)]
    if len(found) != 1:
        hint = f"List them: {target.command(f'keys {shlex.quote(app)}')}"
        raise Problem(f'key "{key}": {len(found) or "none"} match. {hint}', USAGE if found else NOT_FOUND)
    target.request("DELETE", f"{path}/{found[0]}")
    talk(f"key {found[0]} revoked")


def _count(versions: Any) -> Any:
    return len(versions) if isinstance(versions, list) else versions


_data = data
"""Under another name, because verbs have a parameter `data` (the folder)."""

COMMANDS: dict[str, click.Command] = {
    "validate": validate,
    "import": import_,
    "apps": apps,
    "versions": versions,
    "keys": keys,
}
