"""The number of an app's runs under way, which its limit is decided with, is what a recount gives, whatever happens."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from libs.events.commands import Caller, StartRun
from libs.events.ids import new_run_id
from libs.events.model import RUN_END_TYPES, CommandRejected, RunAccepted, RunReleased, RunSetAside
from libs.events.positions import Position
from services.executor.partition import PartitionFold

AT_US = 1_800_000_000_000_000
MOST = 3
APPS = ("a", "b")
EVENTS = ("RunStarted", "NodeSucceeded", "RunPaused", "PauseRequested", "ResumeRequested", "RunResumed")
STEP = st.one_of(
    st.tuples(st.just("start"), st.sampled_from(APPS)),
    st.tuples(st.sampled_from([*EVENTS, *sorted(RUN_END_TYPES), "RunSetAside", "RunReleased"]), st.integers(0, 7)),
    st.tuples(st.just("checkpoint"), st.none()),
)


@dataclass
class Counted:
    """A fold beside a list of what it holds: run -> its app, and those that are paused or set aside."""

    fold: PartitionFold = field(default_factory=lambda: PartitionFold(0))
    held: dict[str, str] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    aside: set[str] = field(default_factory=set)
    records: int = 0

    def step(self, what: str, which: str | int | None) -> None:
        self.records += 1
        if what == "checkpoint":
            recovered = PartitionFold(0)
            recovered.load(from_json(to_json(self.fold.dump())))
            self.fold = recovered
        elif isinstance(which, str):
            self._start(which)
        elif isinstance(which, int) and self.held:
            self._happened(what, list(self.held)[which % len(self.held)])

    def recount(self) -> dict[str, int]:
        return dict(Counter(app for run, app in self.held.items() if run not in self.paused | self.aside))

    def _start(self, app: str) -> None:
        run_id = new_run_id(0, AT_US, self.records)
        command = StartRun(
            run_id=run_id, app_id=app, workflow_id="w", version="1", digest="d", max_app_runs=MOST, inputs={},
            caller=Caller(id="c", user="u"), body_digest="b", not_after_us=AT_US,
        )  # fmt: skip
        _, event = self.fold.decide(command, self.records, AT_US)
        assert isinstance(event, CommandRejected) is (self.recount().get(app, 0) >= MOST)
        if isinstance(event, RunAccepted):
            self.fold.apply(event, run_id, AT_US, self._place())
            self.held[run_id] = app

    def _happened(self, event_type: str, run_id: str) -> None:
        match event_type:
            case "RunSetAside":
                self.fold.apply(RunSetAside(run_id=run_id, error="x"), "", AT_US, self._place())
                self.aside.add(run_id)
                return
            case "RunReleased":
                released = RunReleased(command_offset=self.records, run_id=run_id)
                self.fold.apply(released, "", AT_US, self._place())
                self.aside.discard(run_id)
                return
            case "RunPaused":
                self.paused.add(run_id)
            case "PauseRequested":
                pass
            case _:
                self.paused.discard(run_id)
        self.fold.count(event_type, run_id, self._place())
        if event_type in RUN_END_TYPES:
            del self.held[run_id]

    def _place(self) -> Position:
        return Position(self.records, 1, self.records)


@given(st.lists(STEP, max_size=40))
def test_the_count_of_an_apps_runs_equals_the_recount(steps: list[tuple[str, str | int | None]]) -> None:
    counted = Counted()
    for step in steps:
        counted.step(*step)
        assert counted.fold.active == counted.recount()
