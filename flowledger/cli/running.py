"""Verbs that run: run, watch, stop."""

import json
import mimetypes
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

from flowledger.cli import output
from flowledger.cli.documents import import_file
from flowledger.cli.exits import BY_STATUS, INTERRUPTED, INVALID, PAUSED, RUN_FAILED, USAGE, Problem
from flowledger.cli.follow import Frame, Started, deadline_of, follow, return_to, start
from flowledger.cli.lookup import complete_run, find_app, find_run, rows
from flowledger.cli.output import problem_line, talk
from flowledger.cli.parameters import NODE, RUN, Filled, target_options, timeout_option
from flowledger.cli.progress import progress
from flowledger.cli.target import TRIES, ConnectionLost, Server, server

_RESULT_KEYS = ("status", "outputs", "error", "elapsed_time", "total_steps", "total_tokens")
_TEXT_TYPES = frozenset({"text-input", "paragraph", "select"})
_FILE_KINDS = {
    f".{extension}": kind
    for kind, extensions in {
        "image": "jpg jpeg png webp gif svg",
        "video": "mp4 mov mpeg webm",
        "audio": "mp3 m4a wav amr mpga",
        "document": "txt markdown md mdx pdf html htm xlsx xls vtt properties doc docx csv eml msg ppt pptx xml epub",
    }.items()
    for extension in extensions.split()
}
_MODEL_TYPES = ("llm", "question-classifier", "parameter-extractor", "agent")


@click.command()
@click.argument("target", type=Filled("a document's file, or an app's id or name"), metavar="FILE|APP")
@click.option("-i", "--input", "pairs", multiple=True, metavar="K=V", help="One input; K=@FILE reads the value.")
@click.option("--inputs", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Inputs, JSON or YAML.")
@click.option("--file", "files", multiple=True, metavar="K=PATH|URL", help="One file input; again for a list.")
@click.option("--query", help="The user's message, for chatflows.")
@click.option(
    "--conversation",
    type=Filled("its id, or leave the option out"),
    metavar="ID",
    help="Chatflows: go on with this conversation; else a new one begins.",
)
@click.option("--pin", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Pinned answers (YAML).")
@click.option("--root", type=NODE, metavar="NODE", help="Begin at this trigger (id or title); else at the start node.")
@click.option("--only", type=NODE, metavar="NODE", help="Run one node alone (id or title); a container with its body.")
@click.option("--from-run", type=RUN, metavar="RUN", help="With --only: begin with the variables of this run.")
@click.option("--user", default="cli", show_default=True, help="The caller's name for its user.")
@click.option("--offline", is_flag=True, help="No model is called: answers come from a stand-in.")
@click.option("--watch/--detach", "watching", default=None, help="Follow the run (default on a terminal), or leave it.")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="The result as one object; with --watch every frame first.")
@target_options
def run(
    target: str,
    pairs: tuple[str, ...],
    inputs: Path | None,
    files: tuple[str, ...],
    query: str | None,
    conversation: str | None,
    pin: Path | None,
    root: str | None,
    only: str | None,
    from_run: str | None,
    user: str,
    offline: bool,
    watching: bool | None,
    timeout_s: float | None,
    as_json: bool,
    url: str | None,
    data: Path | None,
) -> int:
    """Run a document or an app.

    A FILE becomes an app unless this very document is one already; a changed FILE is another app, so that no key in
    use starts to mean something else (publish a version by `flowledger import FILE --app APP`). Values that parse as
    JSON are JSON unless the input is declared text. With --only, an input is a value that the node reads from another
    one: -i node.output=VALUE. With --root, the inputs are those of that node.

    \b
    Examples:
      flowledger run examples/hello.yml -i name=Ada
      flowledger run examples/hello.yml --only greet --from-run 0193
      flowledger run flow.yml --root "Order webhook" -i webhook_data=@order.json
      flowledger run flow.yml -i report=@report.txt --pin pins.yml --json
      flowledger run "My flow" --detach
    """
    if root and only:
        raise Problem("--root: goes without --only, which runs one node and nothing that leads to it", USAGE)
    if from_run and not only:
        raise Problem("--from-run: goes with --only NODE, which begins with that run's variables", USAGE)
    with server(url, data, offline=offline) as there:
        app_id, types = _app_to_run(there, target)
        body: dict[str, Any] = {
            "app_id": app_id,
            "inputs": read_inputs(
                pairs, inputs, types, files, partial(upload, there, app_id), of_a_node=bool(only or root)
            ),
            "user": user,
            "query": query,
            "conversation_id": conversation,
            "pins": _pins(there, pin, offline=offline),
            "root": root,
            "only": only,
            "from_run": find_run(there, from_run) if from_run else None,
        }
        deadline = deadline_of(timeout_s)
        given = {key: value for key, value in body.items() if value is not None}
        started = _start(there, given, types, deadline)
        if watching is False:
            return _detach(there, started, as_json=as_json)
        quiet = as_json or not (watching or sys.stdout.isatty())
        return follow_to_end(
            there, started.run_id, started, quiet=quiet, frames=as_json and bool(watching), as_json=as_json,
            deadline=deadline,
        )  # fmt: skip


def _start(there: Server, body: dict[str, Any], types: Mapping[str, str], deadline: float | None) -> Started:
    """As `start`; wrong inputs are answered with those that the document declares, or with how to give them."""
    try:
        return start(there, body, deadline)
    except Problem as problem:
        about_inputs = problem.about == "inputs"
        if about_inputs and body.get("only"):
            hint = "Give values by -i NODE.NAME=VALUE, or take an earlier run's by --from-run RUN"
            raise Problem(f"{problem.message}\n{hint}", USAGE) from problem
        if not about_inputs or not types or body.get("root"):
            raise
        declared = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        files = ", files by --file NAME=PATH" if {"file", "file-list"} & set(types.values()) else ""
        raise Problem(f"{problem.message}\nInputs: {declared}. Give them by -i NAME=VALUE{files}", USAGE) from problem


def _app_to_run(there: Server, target: str) -> tuple[str, Mapping[str, str]]:
    """The app's id and its inputs' declared types."""
    file = Path(target)
    if file.is_file():
        try:
            types = declared_types(file.read_text("utf-8", "replace"))
        except OSError as error:
            hint = "Make it readable, or name another document"
            raise Problem(f"{target}: {error.strerror}. {hint}", USAGE) from error
        return app_of_file(there, file), types
    if file.suffix in (".yml", ".yaml", ".json"):
        raise Problem(f"{target}: no such file", USAGE)
    app = find_app(there, target)
    inputs = app.get("inputs") or there.get(f"/v1/apps/{app['app_id']}").get("inputs") or []
    return app["app_id"], {one["variable"]: one["type"] for one in inputs}


def app_of_file(there: Server, file: Path) -> str:
    """The id of the app that `file` was imported as; imports it if this document is not there yet."""
    import hashlib

    digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    for left in reversed(range(TRIES)):
        for app in rows(there.get("/v1/apps")):
            if app.get("digest") == digest:
                return str(app["app_id"])
        try:
            made = import_file(there, file)
            break
        except ConnectionLost:  # whether it was imported is seen by looking again
            if not left or not there.find_again():
                raise
    for warning in made.get("warnings", ()):
        talk(f"{file}: {problem_line(warning)}")
    return str(made["app_id"])


def declared_types(document: str) -> dict[str, str]:
    """Input types by name as the document's start node declares them; empty when it cannot be read."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # both are safe; C is ten times faster
    try:
        nodes = yaml.load(document, Loader=loader)["workflow"]["graph"]["nodes"]
        start = next(node["data"] for node in nodes if node["data"].get("type") == "start")
        return {one["variable"]: one["type"] for one in start.get("variables") or ()}
    except (yaml.YAMLError, KeyError, TypeError, StopIteration, AttributeError):
        return {}  # the server says what is wrong with it


def read_inputs(
    pairs: Iterable[str],
    file: Path | None,
    types: Mapping[str, str],
    files: Iterable[str] = (),
    upload: Callable[[Path], str] | None = None,
    *,
    of_a_node: bool = False,
) -> dict[str, Any]:
    """Inputs from a file, then from K=V and K=PATH|URL pairs, which win. `upload`: keeps a file, answers its id.

    `of_a_node`: for a node that was named: there may be values among them that no start node declares.
    """
    values: dict[str, Any] = dict(_mapping(file)) if file else {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise Problem(f"-i {pair}: expected K=V or K=@FILE", USAGE)
        if text.startswith("@"):
            try:
                text = Path(text[1:]).read_text("utf-8")
            except OSError as error:
                raise Problem(f"-i {name}: cannot read {text[1:]}: {error.strerror}", USAGE) from error
            except UnicodeDecodeError as error:
                hint = f"Give it as a file: --file {name}={text[1:]}"
                raise Problem(f"-i {name}: {text[1:]} is not text in UTF-8. {hint}", USAGE) from error
        values[name] = parse_value(text, types.get(name))
    values |= _files(files, types, upload)
    for name in values.keys() - types.keys() if types and not of_a_node else ():
        talk(f'input "{name}" is not declared, so it changes nothing. Declared: {", ".join(types)}')
    return values


def _files(
    pairs: Iterable[str], types: Mapping[str, str], upload: Callable[[Path], str] | None = None
) -> dict[str, Any]:
    """File values; an input that takes one file gets one, any other gets a list.

    For a node alone, `start.scan` is the input `scan`: files of other nodes are hardly ever given by hand.
    """
    found: dict[str, list[dict[str, str]]] = {}
    single = {name for name, kind in types.items() if kind == "file"}
    for pair in pairs:
        name, _, place = pair.partition("=")
        if not name or not place:
            raise Problem(f"--file {pair}: expected K=PATH, or K=URL with http:// or https://", USAGE)
        remote = place.startswith(("http://", "https://"))
        if not remote and (upload is None or not Path(place).is_file()):
            raise Problem(
                f"--file {pair}: neither a file here nor a URL; expected K=PATH, or K=URL with http(s)://", USAGE
            )
        kind = _FILE_KINDS.get(Path(place.partition("?")[0] if remote else place).suffix.lower(), "custom")
        found.setdefault(name, []).append({"type": kind, "place": place})
    for name, files in found.items():
        if len(files) > 1 and name.rpartition(".")[2] in single:
            raise Problem(f"--file {name}: this input takes one file, {len(files)} were given", USAGE)
    given = {name: [_file(one, upload) for one in files] for name, files in found.items()}
    return {name: files[0] if name.rpartition(".")[2] in single else files for name, files in given.items()}


def _file(found: Mapping[str, str], upload: Callable[[Path], str] | None) -> dict[str, str]:
    kind, place = found["type"], found["place"]
    if upload is None or place.startswith(("http://", "https://")):
        return {"type": kind, "transfer_method": "remote_url", "url": place}
    return {"type": kind, "transfer_method": "local_file", "upload_file_id": upload(Path(place))}


def upload(there: Server, app_id: str, file: Path) -> str:
    """Keep the file for runs of the app; its id."""
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Problem(f"--file: cannot read {file}: {error.strerror}", USAGE) from error
    sent = {"file": (file.name, content, media_type)}
    answer = there.request("POST", "/v1/files/upload", params={"app_id": app_id}, files=sent)
    return str(answer.json()["id"])


def parse_value(text: str, declared: str | None) -> Any:
    """JSON where it parses and the input is not declared text; else the text itself."""
    if declared in _TEXT_TYPES:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _mapping(file: Path) -> Mapping[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Problem(f"{file}: neither JSON nor YAML: {error}", USAGE) from error
    if not isinstance(found, dict):
        raise Problem(f"{file}: expected a mapping of names to values, found {type(found).__name__}", USAGE)
    return found


def _pins(there: Server, file: Path | None, *, offline: bool) -> dict[str, Any] | None:
    """The pins to send. Offline against a server that calls models: every model node is pinned to its default."""
    pins: dict[str, Any] = dict(_mapping(file)) if file else {}
    if offline and not there.embedded and there.get("/healthz").get("models") != "offline":
        pins["types"] = {kind: {} for kind in _MODEL_TYPES} | (pins.get("types") or {})
    return pins or None


def _detach(there: Server, started: Started, *, as_json: bool) -> int:
    started.response.close()
    if as_json:
        output.data({"workflow_run_id": started.run_id, "task_id": started.task_id, "status": "pending"})
    else:
        click.echo(started.run_id)
        talk(return_to(there, started.run_id))
    return 0


def follow_to_end(
    there: Server,
    run_id: str,
    started: Started | None = None,
    *,
    quiet: bool,
    frames: bool = False,
    as_json: bool = False,
    compact: bool = False,
    deadline: float | None = None,
    after: str = "0",
) -> int:
    """Follow a run from the event `after` until it ends or pauses; print its result; the exit code."""
    shown = progress(compact=compact, quiet=quiet)
    last: Frame | None = None
    place = ""
    try:
        with closing(shown), closing(_frames(there, run_id, started, deadline, after)) as stream:
            for frame in stream:
                last = frame
                place = _failed_in(frame) or place
                shown.show(frame)
                if frames:
                    output.data(frame.data)
    except KeyboardInterrupt:
        talk("\n" + return_to(there, run_id))
        return INTERRUPTED
    if last is None or last.event == "error":
        message = last.data.get("message") if last else "the stream ended without a result"
        code = INVALID if last and last.data.get("code") == "definition_invalid" else RUN_FAILED
        raise Problem(f"run {run_id}: {message}. See what happened: {there.command(f'history {run_id}')}", code)
    return _print_result(there, last, run_id, place, as_json=as_json, quiet=quiet)


def _failed_in(frame: Frame) -> str:
    """` in node "<title>" (<id>)` of a frame that tells of a failure, else nothing."""
    node = frame.data.get("data") or {}
    if frame.event != "node_finished" or node.get("status") != "failed":
        return ""
    title, node_id = node.get("title"), node.get("node_id")
    return f' in node "{title}" ({node_id})' if title not in (None, "", node_id) else f' in node "{node_id}"'


def _frames(there: Server, run_id: str, started: Started | None, deadline: float | None, after: str) -> Any:
    return follow(there, run_id, started.response if started else None, deadline, after)


def _print_result(there: Server, last: Frame, run_id: str, place: str, *, as_json: bool, quiet: bool) -> int:
    end = last.data.get("data") or (there.get(f"/v1/runs/{run_id}") if last.event == "message_end" else {})
    talk_id = last.data.get("conversation_id")
    if as_json:
        result = {"workflow_run_id": run_id, "task_id": last.data.get("task_id")}
        if talk_id:
            result["conversation_id"] = talk_id
        result |= {key: end.get(key) for key in _RESULT_KEYS}
        output.data(result | ({"reasons": end.get("reasons")} if end.get("status") == "paused" else {}))
    elif end.get("outputs"):
        output.pretty(end["outputs"])
    status = str(end.get("status"))
    code = BY_STATUS.get(status, RUN_FAILED)
    if code == PAUSED and end.get("reasons") and not as_json:
        _print_pause(there, run_id, end["reasons"])
    elif code and not as_json:
        why = f": {end['error']}" if end.get("error") else ""
        where = place if code == RUN_FAILED else ""
        talk(f"run {run_id} {status}{where}{why}. See what happened: {there.command(f'history {run_id}')}")
    elif not quiet:
        talk(f"See all of it: {there.command(f'show {run_id}')}")
    if talk_id and not code and not as_json:
        talk(f"Go on talking: the same command with another --query and --conversation {talk_id}")
    return code


def _print_pause(there: Server, run_id: str, reasons: list[dict[str, Any]]) -> None:
    """What a paused run waits for, and what lets it go on."""
    from flowledger.cli.pausing import show_form

    forms = [reason for reason in reasons if reason.get("form_id")]
    for form in forms:
        show_form(there, run_id, form, several=len(forms) > 1)
    for reason in reasons:
        if reason.get("message"):
            talk(f"‖ paused: {reason['message']}. Let it go on: {there.command(f'resume {run_id}')}")


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--compact", is_flag=True, help="Only what failed, is repeated, or still runs.")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="One object a line: every frame, then the result.")
@target_options
def watch(run: str, compact: bool, timeout_s: float | None, as_json: bool, url: str | None, data: Path | None) -> int:
    """Follow a run until it ends. Ctrl-C detaches; the run goes on.

    \b
    Examples:
      flowledger watch 0193
      flowledger watch 0193 --compact
    """
    with server(url, data) as there:
        run_id = find_run(there, run)
        return follow_to_end(
            there,
            run_id,
            quiet=as_json,
            frames=as_json,
            as_json=as_json,
            compact=compact,
            deadline=deadline_of(timeout_s),
        )


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--json", "as_json", is_flag=True, help="One object.")
@target_options
def stop(run: str, as_json: bool, url: str | None, data: Path | None) -> None:
    """Stop a run: running nodes are cancelled, the run ends as stopped.

    \b
    Examples:
      flowledger stop 0193
    """
    with server(url, data) as there:
        run_id = find_run(there, run)
        answer = there.post(f"/v1/runs/{run_id}/stop", {})
    if as_json:
        output.data({"id": run_id} | answer)
    elif answer.get("stop_requested"):
        talk(f"run {run_id}: stop requested. See it end: {there.command(f'watch {run_id}')}")
    else:
        talk(f"run {run_id} has ended already. See it: {there.command(f'show {run_id}')}")


COMMANDS: dict[str, click.Command] = {"run": run, "watch": watch, "stop": stop}
