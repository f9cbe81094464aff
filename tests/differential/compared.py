"""One case in both engines, and where they differ beyond what was decided.

Decided differences, and how they are taken out before comparing:

  a retry that succeeds     The reference ends the run partially succeeded, because it counts every failed attempt.
                            Ours counts what ended with an exception, so such a run is succeeded.
  siblings of a failure     The reference lets them go on unseen; ours stops them. What ran besides, and which of two
                            failures came first, is chance: of a failed run only the status is compared.
  values of a loop's body   The reference gives each round a copy of the values, so that nobody outside sees them. Ours
                            shares them, as its contract says (graph-semantics 4.4, point 3). No document made here
                            reads them from outside; test_reference.py shows the difference by hand.
  a default value of a      It leaves a branch node without a selection. The reference fails the run for it, also from
  branch node               inside a container; ours fails the node, and a container decides what that means. Not made
                            inside containers.
  wording                   Ours writes selectors as documents do, and names what a loop misses.
  the last items of a       Where an iteration is terminated, how many of its items had begun depends on the order in
  terminated iteration      which they ended; then only the main graph's edges are compared.
"""

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from libs.events.model import NodeStarted, RoundFinished, RunEvent
from libs.workflow.machine import Rejection
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import ROOT, Key, round_path, rounds_of
from tests.differential.made import ERROR, Made, pinned
from tests.driver import Driver

PYTHON = Path(os.environ.get("FLOWLEDGER_TEST_GRAPHON", "~/.cache/flowledger/graphon-venv/bin/python")).expanduser()
SCRIPT = Path(__file__).with_name("reference.py")
ABSENT = (
    f"no reference engine at {PYTHON}: make an environment with Python 3.12 or newer there, and install graphon==0.8.0"
)

_WORDING = (
    (re.compile(r"\['(\w+)', '(\w+)'\]"), r"\1.\2"),
    (re.compile(r"invalid iterator value: .*?, please provide a list\."), "the iteration has no list"),
    (re.compile(r"iterator variable [\w.]+ must be a list, it is an? [\w\[\]]+"), "the iteration has no list"),
    (re.compile(r"Invalid value for loop variable text"), "the loop cannot open"),
    (re.compile(r"loop variable 'text': variable [\w.]+ not found"), "the loop cannot open"),
)
"""Errors that say the same in other words."""

Result = dict[str, Any]


def reference(cases: Iterable[Made]) -> Iterator[Result]:
    """Results of the reference engine, in order."""
    text = "".join(json.dumps(each.as_json()) + "\n" for each in cases)
    done = subprocess.run([PYTHON, SCRIPT], input=text, capture_output=True, text=True, check=True)
    yield from map(json.loads, done.stdout.splitlines())


class _Recording(Driver):
    """Remembers what started, and the edges of every frame."""

    def __init__(self, case: Made) -> None:
        self.edges: dict[bool, Counter[tuple[str, str, str]]] = {True: Counter(), False: Counter()}
        self.started: Counter[str] = Counter()
        super().__init__(case.document, q=case.inputs["q"])

    def fold(self, event: RunEvent | Rejection) -> None:
        if isinstance(event, RoundFinished):
            kind = self.definition.nodes[event.node_id].type
            self._remember(round_path(event.path, kind, event.node_id, event.index))
        if isinstance(event, NodeStarted) and event.attempt == 1:
            self.started[event.node_id] += 1
        super().fold(event)

    def _remember(self, path: str) -> None:
        for edge in self.definition.edges:
            taken = self.state.frames[path].edges.get(edge.index)
            if taken is not None:
                self.edges[taken][edge.source, edge.handle, edge.target] += 1

    def finish(self) -> None:
        self._remember(ROOT)


def ours(case: Made, drawn: int = 0) -> Result:
    """The run in our machine; `drawn` picks the order in which completes what runs in parallel."""
    driver = _Recording(case)
    order = Random(f"order {case.seed} {drawn}")
    calls: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def answer(key: Key, attempt: int) -> Outcome:
        items = tuple(each.index for each in rounds_of(key.path) if each.kind == "iteration")
        calls[key.node_id, items] += 1
        outputs = pinned(case.pins[key.node_id], key.node_id, list(items), calls[key.node_id, items])
        if outputs is None:
            return Failed(ERROR, "PinnedError")
        return Succeeded(outputs=outputs, output_types={"items": "array[string]"})

    state = driver.run(answer, order.choice)
    driver.finish()
    arrows = {
        taken: {f"{source}[{handle}] > {target}": count for (source, handle, target), count in found.items()}
        for taken, found in driver.edges.items()
    }
    return {
        "status": state.status,
        "outputs": state.outputs,
        "error": state.error,
        "exceptions_count": state.exceptions_count,
        "started": dict(driver.started),
        "taken": arrows[True],
        "skipped": arrows[False],
    }


def differences(case: Made, theirs: Result, mine: Result) -> list[str]:
    """What differs although it should not; empty: they agree."""
    if theirs["status"] == "refused":
        return [f"the reference refuses the document: {theirs['error']}"]
    status = theirs["status"]
    if status == "partial-succeeded" and not theirs["handled"] and not theirs["failed"]:
        status = "succeeded"
    if status != mine["status"]:
        return [f"status: theirs {theirs['status']} ({theirs['error']}), ours {mine['status']} ({mine['error']})"]
    if status == "failed":
        return []
    found = []
    if _plain(theirs["outputs"]) != _plain(mine["outputs"]):
        found.append(f"outputs: theirs {theirs['outputs']}\n         ours   {mine['outputs']}")
    if not theirs["failed"] and theirs["handled"] != mine["exceptions_count"]:
        found.append(f"exceptions: theirs {theirs['handled']}, ours {mine['exceptions_count']}")
    terminated = theirs["failed"] > 0 and '"terminated"' in case.document
    main = _main_graph(case.document)
    for name in ("started", "taken", "skipped"):
        left, right = theirs[name], mine[name]
        if terminated:
            left, right = _of_main(left, main), _of_main(right, main)
        if left != right:
            keys = sorted({*left, *right})
            apart = {
                key: (left.get(key, 0), right.get(key, 0)) for key in keys if left.get(key, 0) != right.get(key, 0)
            }
            found.append(f"{name} (theirs, ours): {apart}")
    return found


def _main_graph(document: str) -> set[str]:
    nodes = json.loads(document)["workflow"]["graph"]["nodes"]
    return {each["id"] for each in nodes if not each.get("parentId")}


def _of_main(counts: dict[str, int], main: set[str]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name.partition("[")[0] in main}


def _plain(outputs: dict[str, Any]) -> dict[str, Any]:
    """Answers of parallel nodes are joined in order of completion; files are empty in every case."""
    answer = outputs.get("answer")
    plain = {name: _plain_text(value) for name, value in outputs.items() if name not in ("answer", "files")}
    if isinstance(answer, str):
        plain["answer"] = sorted(_plain_text(answer).split("["))
    return plain


def _plain_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    for pattern, same in _WORDING:
        value = pattern.sub(same, value)
    return value
