"""Live progress of a run from its SSE frames, on stderr: plain lines, or one updating block on a terminal."""

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from flowledger.cli.follow import Frame
from flowledger.cli.output import SIGNS, fancy, seconds, state, talk

if TYPE_CHECKING:
    from rich.table import Table

_ENDED = frozenset({"succeeded", "failed", "exception", "stopped"})


class Progress(Protocol):
    def show(self, frame: Frame) -> None: ...

    def close(self) -> None: ...


def progress(*, compact: bool = False, quiet: bool = False) -> Progress:
    """The progress that suits stderr. `compact`: only what failed, was repeated, or still runs."""
    if quiet:
        return _Silent()
    return _Block(compact=compact) if fancy(sys.stderr) else _Lines(compact=compact)


class _Silent:
    def show(self, frame: Frame) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(slots=True)
class _Line:
    title: str
    kind: str
    status: str
    started: float
    detail: str = ""
    elapsed_s: float | None = None


class _Lines:
    """One line per thing that happened."""

    def __init__(self, *, compact: bool) -> None:
        self._compact = compact

    def show(self, frame: Frame) -> None:
        data = frame.data.get("data") or {}
        match frame.event:
            case "workflow_started":
                talk(f"run {data.get('id')} {'goes on' if data.get('reason') == 'resumption' else 'started'}")
            case "human_input_required":
                talk(f"  {state('paused', sys.stderr)}  {data.get('node_title') or data.get('node_id')}")
            case "human_input_form_filled" | "human_input_form_timeout":
                talk(f"  {_answered(data)}")
            case "node_started" | "iteration_started" | "loop_started" if not self._compact:
                talk(f"  {SIGNS['running']} {_name(data)}")
            case "node_finished" | "iteration_completed" | "loop_completed":
                status = str(data.get("status"))
                if status != "succeeded" or not self._compact:
                    spent = seconds(data.get("elapsed_time"))
                    talk(f"  {state(status, sys.stderr)}  {_name(data)}  {spent}{_why(data)}")
            case "node_retry":
                talk(f"  {state('retry', sys.stderr)} {data.get('retry_index')}  {_name(data)}{_why(data)}")
            case "iteration_next" | "loop_next" if not self._compact:
                talk(f"  {SIGNS['running']} {_name(data)} round {data.get('index')}")
            case "workflow_finished" | "workflow_paused":
                talk(f"{state(str(data.get('status')), sys.stderr)} in {seconds(data.get('elapsed_time'))}{_why(data)}")
            case "error":
                talk(f"error: {frame.data.get('message')}")
            case _:
                pass

    def close(self) -> None:
        pass


class _Block:
    """One block that is drawn again as nodes move on; long runs show what runs and the last that ended."""

    _ROWS = 20

    def __init__(self, *, compact: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self._compact = compact
        self._nodes: dict[str, _Line] = {}
        self._live = Live(console=Console(stderr=True), get_renderable=self._draw, refresh_per_second=10)
        self._live.start()

    def show(self, frame: Frame) -> None:
        data = frame.data.get("data") or {}
        key = str(data.get("id", ""))
        match frame.event:
            case "node_started" | "iteration_started" | "loop_started":
                title = str(data.get("title") or data.get("node_id"))
                self._nodes[key] = _Line(title, str(data.get("node_type")), "running", time.monotonic())
            case "node_finished" | "iteration_completed" | "loop_completed" if key in self._nodes:
                line = self._nodes[key]
                line.status, line.elapsed_s = str(data.get("status")), data.get("elapsed_time")
                line.detail = str(data.get("error") or "")
            case "node_retry" if key in self._nodes:
                line = self._nodes[key]
                line.status, line.detail = "retry", f"{data.get('retry_index')}: {data.get('error')}"
            case "workflow_started" if not self._live.is_started:
                self._live.start()
            case "human_input_required":
                for line in self._nodes.values():
                    if line.title == data.get("node_title") and line.status == "running":
                        line.status, line.detail = "paused", "waits for a person"
            case "iteration_next" | "loop_next" if key in self._nodes:
                self._nodes[key].detail = f"round {data.get('index')}"
            case "workflow_finished" | "workflow_paused":
                self.close()
                talk(f"{state(str(data.get('status')), sys.stderr)} in {seconds(data.get('elapsed_time'))}{_why(data)}")
            case "error":
                self.close()
                talk(f"error: {frame.data.get('message')}")
            case _:
                pass

    def close(self) -> None:
        if self._live.is_started:
            self._live.stop()

    def _draw(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        colours = {"succeeded": "green", "failed": "red", "exception": "yellow", "retry": "yellow", "running": "cyan"}
        grid = Table.grid(padding=(0, 2))
        lines = [line for line in self._nodes.values() if not (self._compact and line.status == "succeeded")]
        if len(lines) > self._ROWS:
            grid.add_row("", f"... {len(lines) - self._ROWS} more above")
        for line in lines[-self._ROWS :]:
            spent = line.elapsed_s if line.status in _ENDED else time.monotonic() - line.started
            status = Text(f"{SIGNS.get(line.status, ' ')} {line.status}", style=colours.get(line.status, ""))
            grid.add_row(status, Text(line.title), Text(line.kind, style="dim"), seconds(spent), Text(line.detail[:80]))
        return grid


def _name(data: dict[str, object]) -> str:
    title, node_id = data.get("title"), data.get("node_id")
    return f"{title} ({data.get('node_type')})" if title else f"{node_id} ({data.get('node_type')})"


def _answered(data: dict[str, object]) -> str:
    title = data.get("node_title") or data.get("node_id")
    if "action_id" not in data:
        return f"{title}: nobody answered in time"
    return f"{title}: {data.get('action_text') or data.get('action_id')}"


def _why(data: dict[str, object]) -> str:
    return f": {data['error']}" if data.get("error") else ""
