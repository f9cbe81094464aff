"""Random worlds: graphs, several runs and executors, crashes, lost and timed-out bursts, foreign records, stops, people
who answer forms (some twice), pauses.

A world is a function of its seed; a failure names it. `FLOWLEDGER_SIMULATION_SEEDS=5000` runs that many worlds
(otherwise as many as fit into some 20 s), `FLOWLEDGER_SIMULATION_FIRST=123` begins with that seed.

Oracles: no gap in the sequence of a run; every run ends, as the same graph does undisturbed (unless it was stopped);
no attempt has two outcomes; no effect begins without its start in the log, nor after its outcome; recovery from the
last checkpoint finds what a reader of everything finds; no callback of the executor breaks; no run is set aside.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, seed, settings

from libs.events.log import Entry, Topic
from libs.events.model import (
    FormOpened,
    NodeExcepted,
    NodeFailed,
    NodeRestarted,
    NodeRetryScheduled,
    NodeStarted,
    NodeSucceeded,
)
from libs.workflow.outcome import Failed, Outcome, Succeeded
from services.executor.executor import Executor
from services.executor.nodes.port import Attempt, Handler
from services.executor.partition import PartitionFold
from services.executor.recovery import PartitionReader, read_to, recover
from tests.graphs import graphs
from tests.simulation.world import Effects, ScriptedHandler, World

BUDGET_S = 20.0
FIRST = int(os.environ.get("FLOWLEDGER_SIMULATION_FIRST", "1"))
SEEDS = int(os.environ.get("FLOWLEDGER_SIMULATION_SEEDS", "0"))
"""0: as many as fit into the budget."""

MISHAPS = (
    "go on", "go on", "go on", "lose", "time out", "crash", "beside", "foreign", "stop", "leave", "answer", "answer",
    "pause", "resume",
)  # fmt: skip
MOST_ANSWERS = 100
REST_S = 30.0
"""Virtual seconds in which everything but people comes to its end."""
ENDS_OF_ATTEMPTS = (NodeSucceeded, NodeFailed, NodeExcepted, NodeRetryScheduled)


def _document(number: int) -> str:
    """A random graph, the same for the same number."""
    found: list[str] = []

    @seed(number)
    @settings(max_examples=3, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(graphs(people=True))
    def draw(text: str) -> None:
        found.append(text)

    draw()
    return found[-1]  # the first one is always the smallest


def _answers(number: int) -> Callable[[Attempt], Outcome]:
    def answer(attempt: Attempt) -> Outcome:
        place = f"{number} {attempt.node.id} {attempt.path} {attempt.number}"
        if random.Random(place).random() < 0.15:
            return Failed(f"{attempt.node.id} broke", "SomeError")
        return Succeeded(outputs={"result": f"{attempt.node.id} at {attempt.path}"})

    return answer


def _answer_forms(world: World, run_id: str) -> bool:
    """What a person does, the same in every world; whether there was anything to do."""
    state = world.fold(run_id)
    if state.ended:
        return False
    if state.pause_reason is not None:
        world.resume(run_id)
    for form in world.open_forms(run_id):
        world.submit_form(run_id, form.form_id, _action(form), result=f"{form.node_id} at {form.path}")
    return True


def _action(form: FormOpened) -> str:
    return random.Random(f"{form.node_id} {form.path}").choice(["ok", "no"])


class Watched(Handler):
    """A handler that looks into the log before it acts."""

    def __init__(self, world: "Chaos", number: int, delay_s: float) -> None:
        self._world = world
        self._handler = ScriptedHandler(Effects(), _answers(number), delay_s)

    async def run(self, attempt: Attempt) -> Outcome:
        place = (attempt.path, attempt.node.id, attempt.number)
        begun = ended = False
        for each in self._world.events(attempt.run_id):
            event = each.event
            if isinstance(event, (NodeStarted, NodeRestarted, *ENDS_OF_ATTEMPTS)):
                if (event.path, event.node_id, event.attempt) == place:
                    begun |= isinstance(event, NodeStarted | NodeRestarted)
                    ended |= isinstance(event, ENDS_OF_ATTEMPTS)
        if not begun or ended:
            self._world.wrong.append(f"{place} of {attempt.run_id}: begun {begun}, ended {ended}")
        return await self._handler.run(attempt)


class Chaos(World):
    """A world in which things go wrong, in an order that the seed decides."""

    def begin(self, number: int) -> None:
        self.source = source = random.Random(number)
        self.wrong: list[str] = []
        self.executors: list[Executor] = []
        self.stopped: set[str] = set()
        self.submitted: set[str] = set()
        self.handlers = {"code": Watched(self, number, source.choice([0.0, 0.05, 0.4]))}
        self.snapshot_events = source.choice([2, 3, 7, 1000])
        self.checkpoint_bytes = source.choice([600, 3_000, 20_000])
        self.blocking_s = source.choice([0.0, 0.01, 0.3])
        self.slots = {"wait": source.choice([1, 2, 1000]), "process": 1}

    def go_wrong(self, runs: list[str]) -> None:
        source = self.source
        match source.choice(MISHAPS):
            case "go on":
                self.run(landings=source.randint(1, 12), horizon_s=source.choice([0.1, 2, 10]))
            case "lose":
                self.log.lose(source.randint(1, 3))
                self.log.land(source.randint(0, 3), error=source.choice([None, "timed out"]))
                self.log.deliver()
            case "time out":
                self.log.land(source.randint(1, 4), error="timed out")
                self.log.deliver()
            case "crash":
                self.crash()
                self.place()
            case "beside":
                self.place()
            case "foreign":
                self.log.send(Topic.EVENTS, 0, Entry(b"somebody", b"rubbish", headers=[("ce_type", b"x")]))
            case "stop":
                run_id = source.choice(runs)
                if source.random() < 0.5 and not self.log.waiting():
                    self.stop(run_id)
                    self.stopped.add(run_id)
            case "answer" if not self.log.waiting():
                self._answer(source.choice(runs))
            case "pause" if not self.log.waiting():
                self.pause(source.choice(runs))
            case "resume" if not self.log.waiting():
                self.resume(source.choice(runs))
            case "leave":
                self.run(until=self._main.done, horizon_s=20)
                if not self._main.done():
                    return
                leaving = self.loop.create_task(self.executors[-1].stop(grace_s=0.1))
                self.run(until=leaving.done, horizon_s=20)
                self.log.land()
                self.log.deliver()
                self.loop.settle()
                self.place()

    def _answer(self, run_id: str) -> None:
        """Answer a form; one that was answered is answered otherwise, which must change nothing."""
        forms = self.open_forms(run_id)
        if forms:
            form = self.source.choice(forms)
            action = _action(form)
            if form.form_id in self.submitted:
                action = "no" if action == "ok" else "ok"
            self.submitted.add(form.form_id)
            self.submit_form(run_id, form.form_id, action, result=f"{form.node_id} at {form.path}")

    def place(self) -> None:
        self.executors.append(self.start_executor())


def _undisturbed(number: int, text: str, inputs: dict[str, object]) -> tuple[str, object]:
    world = World(script=_answers(number))
    run_id = world.submit(world.add("document", text), **inputs)  # type: ignore[arg-type]  # inputs are any JSON
    world.start_executor()
    world.run(horizon_s=REST_S)
    while _answer_forms(world, run_id):
        world.run(horizon_s=REST_S)
    state = world.fold(run_id)
    world.close()
    return state.status, state.outputs


def _live_through(number: int) -> None:
    text = _document(number)
    world = Chaos()
    world.begin(number)
    inputs: dict[str, object] = {"q": world.source.choice(["yes", "no"]), "items": ["x", "y", "z"]}
    expected = _undisturbed(number, text, inputs)
    digest = world.add("document", text)
    runs = [world.submit(digest, **inputs) for _ in range(world.source.randint(1, 4))]  # type: ignore[arg-type]  # as above
    world.place()
    for _ in range(world.source.randint(3, 20)):
        world.go_wrong(runs)
    world.crash()
    world.place()
    world.run(horizon_s=120)
    for _ in range(MOST_ANSWERS):
        if not [run_id for run_id in runs if _answer_forms(world, run_id)]:
            break
        world.run(horizon_s=REST_S)
    for run_id in runs:
        _check(world, run_id, expected)
    _check_recovery(world)
    assert not world.wrong, world.wrong
    assert not any(executor.quarantined or executor.health.alarms for executor in world.executors)
    world.close()


def _check(world: Chaos, run_id: str, expected: tuple[str, object]) -> None:
    state = world.fold(run_id)
    assert state.ended, f"{run_id} hangs: {state.status}"
    if state.status != "stopped" or run_id not in world.stopped:
        assert state.status == expected[0]
        if state.status != "failed":  # which of several failures is first is a matter of order
            assert state.outputs == expected[1]
    ends = Counter(
        (each.event.path, each.event.node_id, each.event.attempt)
        for each in world.events(run_id)
        if isinstance(each.event, ENDS_OF_ATTEMPTS)
    )
    assert all(count == 1 for count in ends.values()), ends


def _check_recovery(world: Chaos) -> None:
    found, whole = recover(world.log, 0), PartitionReader(PartitionFold(0))
    read_to(world.log, whole)
    assert found.fold.validity == whole.fold.validity
    assert found.fold.next_command == whole.fold.next_command
    assert found.fold.runs == whole.fold.runs == {}


def test_random_worlds_end_as_they_should() -> None:
    began, number = time.monotonic(), FIRST
    while (number < FIRST + SEEDS) if SEEDS else (time.monotonic() - began < BUDGET_S):
        try:
            _live_through(number)
        except BaseException as error:
            error.add_note(f"seed {number}: FLOWLEDGER_SIMULATION_FIRST={number} FLOWLEDGER_SIMULATION_SEEDS=1")
            raise
        number += 1
    assert number > FIRST
