"""The command line: one verb, one function; each module is imported when its verb is typed.

`flowledger --help` therefore costs little more than click itself (tests/unit/test_cli.py measures the imports).
stdout is data, stderr is talk; exit codes are in `flowledger.cli.exits`.
"""

import errno
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import click

from flowledger import __version__
from flowledger.cli.exits import EXIT_CODES, INTERRUPTED, USAGE, Problem
from flowledger.cli.output import encodable


class Verb(NamedTuple):
    module: str
    help: str


VERBS: dict[str, Verb] = {
    "dev": Verb("services", "All services in one process, embedded log."),
    "validate": Verb("documents", "Check documents without running anything."),
    "import": Verb("documents", "Bring a document: a new app, or a new version of one."),
    "apps": Verb("documents", "List apps."),
    "versions": Verb("documents", "List the published versions of an app."),
    "keys": Verb("documents", "List, create, add or revoke the keys of an app."),
    "run": Verb("running", "Run a document or an app."),
    "runs": Verb("reading", "List runs, newest first."),
    "show": Verb("reading", "Show a run: state, nodes, outputs."),
    "watch": Verb("running", "Follow a run until it ends."),
    "history": Verb("reading", "The events of a run, from the log."),
    "stop": Verb("running", "Stop a run."),
    "why": Verb("time_travel", "One sentence: what a run waits for, why it or a node ended as it did."),
    "diff": Verb("time_travel", "What changed in a run between two of its events."),
    "fork": Verb("time_travel", "A new run that shares a run's events up to one of them."),
    "retry": Verb("time_travel", "Try again what made a run fail, as a new run."),
    "pause": Verb("pausing", "Pause a run: nothing new begins in it."),
    "resume": Verb("pausing", "Let a paused run go on: answer its form, or take a pause back."),
    "export": Verb("histories", "Write a run's history to a file."),
    "replay": Verb("histories", "Fold an exported history, without a server."),
    "bulk": Verb("bulk", "Stop or retry all runs that match, counted first."),
    "api": Verb("services", "The HTTP service (Kafka and database by settings)."),
    "executor": Verb("services", "The service that runs nodes (Kafka by settings)."),
    "projector": Verb("services", "The service that fills the tables (Kafka and database by settings)."),
    "rebuild": Verb("upkeep", "Drop the tables and make them anew from the log."),
    "verify": Verb("upkeep", "Compare the tables with the log."),
    "log": Verb("logs", "Records as they stand in the log."),
    "quarantine": Verb("logs", "Runs that executors set aside."),
    "topics": Verb("upkeep", "Create or check the Kafka topics."),
    "doctor": Verb("upkeep", "Check what this machine and its settings offer."),
}


class _ReaderGone(Exception):
    """Who read our output has left (`| head`). click would end with 1, as if a run had failed."""


class _NoRoom(Problem):
    """Our output finds no room."""


@contextmanager
def _told_of_output_that_fails() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _ReaderGone from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _NoRoom(f"cannot write: {error.strerror}. Make room, or write elsewhere", USAGE) from error


class _Verbs(click.Group):
    """Knows its verbs and their one-line help without importing them."""

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        with _told_of_output_that_fails():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _told_of_output_that_fails():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        module = importlib.import_module(f"flowledger.cli.{verb.module}")
        command: click.Command = module.COMMANDS[cmd_name]
        command.epilog = command.epilog or EXIT_CODES
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            close = [verb for verb in VERBS if verb.startswith(name[:2])]
            hint = f" Did you mean {' or '.join(close)}?" if close else " List them: flowledger --help"
            raise click.UsageError(f"no verb {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.command(cls=_Verbs, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flowledger")
def cli() -> None:
    """Durable workflow execution for AI graphs.

    \b
    Examples:
      flowledger run examples/hello.yml -i name=Ada
      flowledger runs
      flowledger history 0193
    """


def main() -> None:
    """Entry point of the `flowledger` script."""
    _open_standard_streams()
    code = run(sys.argv[1:])
    gc.freeze()  # the interpreter would search all that was imported for garbage, and only then end: 0.2 s
    sys.exit(code)


def _open_standard_streams() -> None:
    """Those that are closed (`>&-`) lead nowhere from here: a socket that got such a number would be written into."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or open(0, closefd=False)  # open as long as the process
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # as above
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # as above


def run(arguments: list[str]) -> int:
    """Run one verb; the exit code."""
    try:
        for number, argument in enumerate(arguments, 1):
            if not encodable(argument):
                raise Problem(f"argument {number}: not UTF-8. For bytes as they are: -i NAME=@FILE", USAGE)
        result = cli.main(arguments, prog_name="flowledger", standalone_mode=False)
    except click.ClickException as error:
        try:
            error.show()
        except OSError:  # nobody reads, or there is no room for this either
            _lead_nowhere(2)
        if isinstance(error, _NoRoom):
            _lead_nowhere(1, 2)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except _ReaderGone:
        _lead_nowhere(1)
        return 0
    return result if isinstance(result, int) else 0


def _lead_nowhere(*descriptors: int) -> None:
    """What is still in the buffers of these would fail once more at exit, with a code and a complaint of its own."""
    for descriptor in descriptors:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
