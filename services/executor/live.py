"""An unfinished run in its owner's memory, and how it gets there: snapshot, events behind it, this epoch's own."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from libs.events.blobs import Blobs
from libs.events.claim_check import restore
from libs.events.codec import decode_event
from libs.events.log import Log, LogError, LogTruncated, Record, Topic
from libs.events.model import RunEvent, RunSnapshotted
from libs.events.positions import Position
from libs.events.sealed_values import read_copied
from libs.events.sealing import Vault
from libs.workflow.conversation import Conversation, opening
from libs.workflow.definition import Definition
from libs.workflow.machine import apply, new_state
from libs.workflow.pins import Pins, parse_pins
from libs.workflow.state import Key, RunState, load_state
from services.executor.partition import RunEntry
from services.executor.recovery import PartitionReader, read_run
from services.executor.secrets import Secrets


@dataclass(slots=True, eq=False)
class LiveRun:
    """One unfinished run. `state` is None until it is hydrated."""

    run_id: str
    app_id: str
    digest: str
    state: RunState | None = None
    pins: Pins | None = None
    secrets: Secrets | None = None
    """Known with the state: until then nothing of a node is recorded."""
    snapshot: Record | None = None
    snapshot_offset: int | None = None
    """Where the newest snapshot stands that recovery did not meet on its way."""
    snapshot_seq: int = 0
    records: list[Record] = field(default_factory=list)
    """Events that are in the log and still to be folded."""
    unread: tuple[Position, int] | None = None
    """Where they stand instead, when recovery did not meet them: from a position up to an offset."""
    released: str | None = None
    """The cause of its release, while it is not known yet whether its history can be folded by now."""
    ahead: list[tuple[RunEvent, int]] = field(default_factory=list)
    """Events of this epoch that were decided before the run was hydrated, with their times."""
    tasks: dict[Key, "asyncio.Task[None] | None"] = field(default_factory=dict)
    """Attempts under way; None: its `NodeStarted` is not confirmed yet."""
    timer: asyncio.TimerHandle | None = None
    timer_us: int = 0
    queued: bool = False
    loading: bool = False
    """Something of it is being read: its state, or what came before it in its conversation."""
    placed: bool = True
    """Whether its `RunAccepted` is in the log, and so is what it says came before it."""
    opening: dict[str, Any] | None = None
    """What its `RunStarted` will say of the conversation (`libs.workflow.conversation.opening`)."""
    waits_for: set[str] = field(default_factory=set)
    """Slot kinds it will be woken for."""

    @classmethod
    def found(cls, run_id: str, entry: RunEntry, reader: PartitionReader) -> "LiveRun":
        """The run as recovery has found it."""
        run = cls(run_id, entry.app_id, entry.digest, snapshot=reader.snapshots.get(run_id))
        run.snapshot_seq, run.snapshot_offset = entry.snapshot_seq, entry.snapshot_offset
        if entry.seq > entry.snapshot_seq and entry.since.offset < reader.began:
            run.unread = entry.since, reader.next_offset
        else:
            run.records = reader.events.get(run_id, [])
        return run

    @property
    def in_the_log(self) -> bool:
        """Whether something of it must be read before its state is known."""
        places = (self.unread, self.snapshot, self.snapshot_offset)
        return bool(self.records) or any(place is not None for place in places)

    def fold_ahead(self, state: RunState, epoch: int, vault: Vault) -> None:
        """Fold this epoch's own events; from then on `state` is the run's state."""
        for event, at_us in self.ahead:
            apply(state, read_copied(event, vault), at_us, epoch)
        self.secrets = Secrets.of(state.definition, vault)
        if state.accepted is not None:
            self.secrets.learn(state.pool.secrets())  # and what was put into secret variables of the conversation
        self.ahead.clear()
        self.state = state
        if state.accepted is not None and state.accepted.pins:
            self.pins = parse_pins(state.accepted.pins)

    def open(self, state: RunState, earlier: Conversation | None) -> None:
        """`earlier`: the conversation that it continues, when it is known."""
        accepted = state.accepted
        assert accepted is not None
        assert accepted.conversation_id is not None
        assert self.secrets is not None
        self.opening = opening(state.definition, accepted.conversation_id, earlier)
        values = self.opening["variables"]
        self.secrets.learn(values[each.name] for each in state.definition.conversation if each.type == "secret")

    def park(self, snapshot_offset: int) -> None:
        """Forget the state, which a snapshot holds; it comes back by hydration."""
        self.state = self.pins = self.secrets = None
        self.snapshot, self.snapshot_offset = None, snapshot_offset

    def let_go(self) -> None:
        """Cancel what is under way."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        for task in self.tasks.values():
            if task is not None:
                task.cancel()
        self.tasks.clear()


def why_unfoldable(error: Exception) -> str:
    """What people are told when `load_run`, or a later fold, has raised."""
    return str(error) if isinstance(error, LogError) else f"its history cannot be folded: {error!r}"


Ahead = list[tuple[RunEvent, int]]


def load_run(
    run: LiveRun,
    ahead: Ahead,
    log: Log,
    blobs: Blobs,
    vault: Vault,
    partition: int,
    definition: Callable[[str], Definition],
) -> tuple[RunState, Ahead]:
    """The run's state from its snapshot and the events behind it; and `ahead` with its large values. Blocking.

    Raises DefinitionMissing, DefinitionInvalid; CodecError, LogError; and whatever a broken history does to the fold.
    """
    compiled = definition(run.digest)
    record = run.snapshot
    if record is None and run.snapshot_offset is not None:
        start = run.snapshot_offset
        record = next((found for batch in log.read(Topic.EVENTS, partition, start, start + 1) for found in batch), None)
        if record is None:
            raise LogTruncated(f"{Topic.EVENTS}[{partition}]: the snapshot at {start} is gone. Restore the topic")
    state = new_state(compiled, run.run_id)
    if record is not None:
        snapshot = restore(decode_event(record, vault).event, blobs, vault)
        assert isinstance(snapshot, RunSnapshotted)
        state = load_state(compiled, run.run_id, snapshot.state)
    for record in run.records if run.unread is None else read_run(log, partition, run.run_id, *run.unread):
        recorded = decode_event(record, vault)
        if recorded.seq > state.seq:
            event = read_copied(restore(recorded.event, blobs, vault), vault)
            apply(state, event, recorded.at_us, recorded.epoch)  # type: ignore[arg-type]  # a run event
    return state, [(restore(event, blobs), at_us) for event, at_us in ahead]
