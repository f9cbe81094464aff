"""Verbs that serve until they are asked to stop: dev, api, executor, projector."""

import errno
import logging
import shlex
import signal
import threading
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import click

from flowledger.cli.exits import INTERRUPTED, UNREACHABLE, USAGE, Problem
from flowledger.cli.output import talk
from flowledger.cli.parameters import data_option
from flowledger.cli.target import Server, data_options, quick_imports, settings

_HOST = click.option("--host", default="127.0.0.1", show_default=True)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="[FILE...]")
@data_option
@_HOST
@click.option("--port", default=5001, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@click.option("--offline", is_flag=True, help="No model is called: answers come from a stand-in.")
@click.option("--run", "run_first", is_flag=True, help="Run the first FILE once, with live progress, and keep serving.")
def dev(
    files: tuple[Path, ...],
    data: Path | None,
    host: str,
    port: int,
    open_browser: bool,
    offline: bool,
    run_first: bool,
) -> int:
    """All services in one process, with the log and the tables in the data folder. Ctrl-C ends it.

    Every FILE is imported unless this very document is there already.

    \b
    Examples:
      flowledger dev
      flowledger dev examples/hello.yml --offline --open
    """
    with quick_imports():
        from flowledger.dev import start_embedded
    from flowledger.cli.running import app_of_file
    from libs.events.log import LogError
    from libs.serving import PortTaken, configure_logging
    from libs.settings import SettingsError

    if run_first and not files:
        raise Problem("--run needs a FILE", USAGE)
    configure_logging()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # our ready line says it all
    given = settings(data)
    _check_port(host, port)
    if given.kafka is not None:
        talk(
            f"FLOWLEDGER_KAFKA is set, but dev keeps its own log in {given.data}. "
            "On Kafka, start the services: flowledger api, executor, projector"
        )
    try:
        chosen = replace(given, models="offline") if offline else given
        instance = start_embedded(given.data, host, port, chosen, schedules=True)
    except (PortTaken, SettingsError) as error:  # taken between the look at it and the start
        raise Problem(str(error), USAGE) from error
    except LogError as error:
        raise Problem(f"cannot open {given.data}: {error}", UNREACHABLE) from error
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        with closing(Server(instance.url, instance.admin_token, options=data_options(data))) as target:
            apps = [app_of_file(target, file) for file in files]
            click.echo(f"flowledger dev ready on {instance.url}")
            for file, app in zip(files, apps, strict=True):
                talk(f"{file} is app {app}")
            if run_first and not _run_first(target, files[0], apps[0]):
                return 0
        signal.signal(signal.SIGINT, lambda *_: asked.set())
        if open_browser:
            click.launch(instance.url)
        asked.wait()
    finally:
        instance.stop()
        signal.signal(signal.SIGTERM, before)
    return 0


def _run_first(target: Server, file: Path, app: str) -> bool:
    """Run it and say what to try next; False when the person pressed Ctrl-C meanwhile."""
    from flowledger.cli.follow import start
    from flowledger.cli.running import declared_types, follow_to_end

    try:
        started = start(target, {"app_id": app, "inputs": {}, "user": "cli"})
        if follow_to_end(target, started.run_id, started, quiet=False) == INTERRUPTED:
            return False
    except Problem as problem:
        problem.show()  # and serve: the run and its history can be looked at
    click.echo(f"Serving on {target.url} (Ctrl-C ends it). In another terminal, try:")
    inputs = " -i name=Ada" if "name" in declared_types(file.read_text("utf-8", "replace")) else ""
    click.echo(target.command(f"run {shlex.quote(str(file))}{inputs}"))
    return True


def _check_port(host: str, port: int) -> None:
    """Say who has the port before anything is started."""
    from libs.serving import PortTaken, listen

    try:
        listen(host, port, 1).close()
    except PortTaken as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EADDRINUSE:
            raise Problem(str(error), USAGE) from error
        who = _listener(port) or "another process"
        another = f"Take another: --port {port + 1} (make: PORT={port + 1})"
        raise Problem(f"port {port} is in use by {who}. {another}", USAGE) from error


def _listener(port: int) -> str | None:
    """`name (pid)` of who listens on `port`; None where /proc cannot tell."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "0A":  # 0A: listening
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        with suppress(OSError):
            if any(str(link.readlink()) in inodes for link in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


@click.command()
@_HOST
@click.option("--port", default=5001, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
def api(host: str, port: int) -> int | None:
    """The HTTP service. Kafka and the database come from settings.

    \b
    Examples:
      FLOWLEDGER_KAFKA=localhost:9092 FLOWLEDGER_DATABASE_URL=postgresql://localhost/flowledger flowledger api
    """
    from services.api.main import main

    return main(host, port)


@click.command()
@_HOST
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Health and metrics. 0 takes a free one.")
def executor(host: str, port: int) -> int | None:
    """The service that runs nodes. Kafka comes from settings.

    \b
    Examples:
      FLOWLEDGER_KAFKA=localhost:9092 flowledger executor --port 9101
    """
    from services.executor.main import main

    return main(host, port)


@click.command()
@_HOST
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Health and metrics. 0 takes a free one.")
def projector(host: str, port: int) -> int:
    """The service that fills the tables. Kafka and the database come from settings.

    \b
    Examples:
      FLOWLEDGER_KAFKA=localhost:9092 FLOWLEDGER_DATABASE_URL=postgresql://localhost/flowledger flowledger projector
    """
    from services.projector.main import main

    return main(host, port)


COMMANDS: dict[str, click.Command] = {"dev": dev, "api": api, "executor": executor, "projector": projector}
