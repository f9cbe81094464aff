"""How an owner keeps recovery short: states of runs and the table of the partition, in the log that they describe.

A snapshot is written when a run parks, after many events, and at a checkpoint when its events reach back too far. A
checkpoint is the fold's table in parts; once it is confirmed a pointer to it is sent (decision 5 in docs/adr).
One epoch of one partition; one event loop.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from libs.events.log import LogError, Topic
from libs.events.model import CheckpointWritten, Event, OwnerConfirmed, RunSnapshotted
from libs.events.positions import Pointer, Position, pointer_entry
from libs.workflow.machine import copying
from libs.workflow.state import PAUSED, RunState, dump_state
from services.executor.live import LiveRun
from services.executor.outbox import Outbox, Outgoing
from services.executor.partition import PartitionFold

if TYPE_CHECKING:
    from services.executor.executor import Executor

logger = logging.getLogger(__name__)

SNAPSHOT_SHARE = 4
"""A run is written again when a quarter of what is written has come. States grow with their runs (rounds leave their
results), and at a fixed distance a long run would be written over and over. Checkpoints bound what is read anyway."""


class Emit(Protocol):
    def __call__(self, run_id: str, event: Event, cause: str, *, of: LiveRun | None = None) -> Outgoing:
        """Fold a partition event and put it into the outbox. `of`: the run that it tells of."""


class Checkpoints:
    """See the module docstring. Built by the owner when its epoch begins; `runs` are its live runs."""

    def __init__(
        self,
        partition: int,
        epoch: int,
        fold: PartitionFold,
        outbox: Outbox,
        runs: dict[str, LiveRun],
        executor: "Executor",
        *,
        emit: Emit,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        active: Callable[[], bool],
    ) -> None:
        """`active`: whether the owner still decides; who leaves writes a last checkpoint by itself."""
        self._partition = partition
        self._epoch = epoch
        self._fold = fold
        self._outbox = outbox
        self._runs = runs
        self._x = executor
        self._emit = emit
        self._spawn = spawn
        self._active = active
        self._count = 0
        self._under_way = False
        self._last_offset = fold.claim_offset
        self._began_at = 0
        """Bytes written when the last checkpoint began; `_next_at`: when the next one does."""
        self._next_at = executor.checkpoint_bytes

    # --- runs ---

    def snapshot(self, run: LiveRun, state: RunState, cause: str = "owner") -> None:
        seq = run.snapshot_seq = state.seq
        out = self._emit("", RunSnapshotted(run_id=run.run_id, seq=seq, state=dump_state(state)), cause, of=run)
        self._outbox.when_confirmed(out, partial(self._snapshot_confirmed, run, seq, out))

    def keep_up(self, run: LiveRun, state: RunState) -> None:
        """Behind a run's turn: park it when it waits for a person, write it when much has come."""
        if state.status == PAUSED and not run.queued:
            self._park(run, state)
        elif not copying(state) and state.seq - run.snapshot_seq >= max(
            self._x.snapshot_events, run.snapshot_seq // SNAPSHOT_SHARE
        ):  # what is still to be copied would be in every snapshot
            self.snapshot(run, state)

    def _snapshot_confirmed(self, run: LiveRun, seq: int, out: Outgoing) -> None:
        offset = self._outbox.before(out).offset
        self._fold.snapshotted(run.run_id, seq, offset, Position(offset + 1, self._epoch, out.n))
        state = run.state
        if state is not None and state.status == PAUSED and not run.queued and self._runs.get(run.run_id) is run:
            self._park(run, state)

    def _park(self, run: LiveRun, state: RunState) -> None:
        """A paused run may wait for days: it leaves memory once a snapshot of its state is confirmed."""
        entry = self._fold.runs[run.run_id]
        if entry.snapshot_seq == state.seq and entry.snapshot_offset is not None:
            run.park(entry.snapshot_offset)
        elif run.snapshot_seq < state.seq:
            self.snapshot(run, state)

    # --- the table ---

    def begin_if_due(self) -> None:
        """Snapshot the runs whose events reach back furthest, then write the table of unfinished runs."""
        if self._under_way or self._outbox.bytes_written <= self._next_at:
            return
        self._under_way = True
        for run_id, run in self._runs.items():
            entry = self._fold.runs[run_id]
            behind = entry.seq > entry.snapshot_seq and entry.since.offset < self._last_offset
            if behind and run.state is not None:
                self.snapshot(run, run.state)
        barrier = self._emit("", OwnerConfirmed(), "owner")
        self._outbox.when_confirmed(barrier, self._barrier_passed)
        self._outbox.flush()

    def _barrier_passed(self) -> None:
        if self._active():
            self.write()

    def write(self) -> None:
        fold = self._fold
        fold.forget_old_keys(self._x.now_us())
        scan = fold.scan_from(self._outbox.position)
        parts = fold.dump()
        self._count += 1
        self._began_at = self._outbox.bytes_written
        name = f"{self._epoch}-{self._count}"
        outs = [
            self._emit("", CheckpointWritten(checkpoint_id=name, part=i, parts=len(parts), data=part), "owner")
            for i, part in enumerate(parts)
        ]
        self._outbox.when_confirmed(outs[-1], partial(self._point_at, outs[0], scan))
        self._outbox.flush()

    def _point_at(self, first: Outgoing, scan: Position) -> None:
        before = self._outbox.before(first)
        self._last_offset = before.offset
        self._under_way = False
        # A large table takes more than the interval itself: it is not written more often than it has grown old.
        written = self._outbox.bytes_written
        self._next_at = written + max(self._x.checkpoint_bytes, written - self._began_at)
        self._spawn(self._send_pointer(before, scan))

    async def _send_pointer(self, before: Position, scan: Position) -> None:
        """A pointer that does not arrive costs the next owner time, nothing else."""
        try:
            pointer = await self._x.blocking(pointer_entry, self._x.log, self._partition, Pointer(before, scan))
            await asyncio.wrap_future(self._x.log.send(Topic.INDEX, 0, pointer))
        except LogError as error:
            logger.warning("checkpoint_pointer_failed", extra={"partition": self._partition, "problem": str(error)})
