"""The owner of one partition: claims it, folds it, decides, appends, confirms, and only then acts.

The order of the steps of a turn is the correctness argument:
  1 read      commands and outcomes that arrived since the last turn
  2 fold      they are decided against memory, which is the fold of the log plus this epoch's own appends
  3 decide    one fact per command and per outcome; derived facts follow; pure nodes run ahead
  4 append    everything of the turn in one batch, numbered (epoch, n)
  5 confirm   acknowledged at the expected offset: in the log, valid, nobody claimed in between
  6 act       only now an effect starts whose `NodeStarted` is confirmed

Memory ahead of the confirmed log is provisional: any doubt (`lose`) ends the epoch and drops it; nothing is resent.
Steps 4 and 5 are in `outbox`, handlers in `attempts`, the way of a run into memory in `hydration` and `live`, what
keeps recovery short in `checkpoints`.
One event loop; blocking reads go to threads.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import replace
from enum import Enum
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from libs.events.chunks import Chunk, encode_chunk
from libs.events.codec import CodecError, decode_command, encode_event
from libs.events.ids import form_token
from libs.events.log import Ack, Record, Topic
from libs.events.model import (
    RUN_END_TYPES,
    CommandRejected,
    Event,
    NodeStopped,
    OwnerConfirmed,
    PartitionClaimed,
    PartitionReleased,
    RunAccepted,
    RunEvent,
    RunFailed,
    RunReleased,
    RunSetAside,
    RunStopped,
    StopRequested,
)
from libs.workflow.conversation import recall
from libs.workflow.machine import (
    Begin,
    CheckForms,
    CheckTime,
    CompleteAttempt,
    Due,
    Rejection,
    StartAttempt,
    apply,
    copying,
    decide,
    derived,
    due,
    next_timer_us,
)
from libs.workflow.outcome import Asked, Outcome
from libs.workflow.state import Key, RunState
from services.executor.answers import recordable
from services.executor.attempts import SLOT_KINDS, Plan, perform, plan
from services.executor.checkpoints import Checkpoints
from services.executor.fair import FairQueue
from services.executor.hydration import Hydration
from services.executor.live import LiveRun, why_unfoldable
from services.executor.measures import OUTCOMES
from services.executor.outbox import Outbox, Outgoing
from services.executor.partition import COMMAND_BYTES, NEEDS_BODY, SHOWN, PartitionFold
from services.executor.recovery import PartitionReader, read_to, recover

if TYPE_CHECKING:
    from services.executor.executor import Executor

logger = logging.getLogger(__name__)

TURN_BUDGET_S = 0.005
"""A turn ends after about this long, so that commands, acknowledgements and streams are never kept waiting."""

RUN_BUDGET_EVENTS = 64
"""Events one run may cause before another run of the partition has its turn."""

COMMANDS_PER_TURN = 1_000
"""A backlog of commands must not keep acknowledgements waiting, nor the loop from ticking."""

MAX_AHEAD = 20_000
"""Records ahead of the confirmed log; beyond it runs wait, commands do not."""

DUE_AT_ONCE = 32
FEATURES: tuple[str, ...] = ()
"""What this release writes that older ones would fold wrongly; only grows. Every claim names it, and who finds a name
that it does not know keeps away from the partition. The first release must ask already: later is too late."""

RELEASE_CONFIRM_S = 1.0
"""What the last records of an epoch and the pointer to them get, together."""


class Phase(Enum):
    CLAIMING = "claiming"
    ACTIVE = "active"
    DRAINING = "draining"
    """Nothing starts any more; what runs may end."""
    LEAVING = "leaving"
    """Nothing is decided any more; the last records are on their way."""
    OVER = "over"


class PartitionOwner:
    """One partition from assignment to release. Built and fed by `Executor`."""

    def __init__(self, partition: int, executor: "Executor") -> None:
        self.partition = partition
        self.phase = Phase.OVER
        self._x = executor
        self._loop = asyncio.get_running_loop()
        self._fold = PartitionFold(partition)
        self._epoch = 0
        self._outbox: Outbox
        self._runs: dict[str, LiveRun] = {}
        self._commands: deque[Record] = deque()
        self._next_command = 0
        """Offset of the next command to take from the tail."""
        self._missing_before = -1
        """Offset in front of which the tail seems to have left out commands."""
        self._outcomes: deque[tuple[LiveRun, Plan, Outcome]] = deque()
        self._runnable: FairQueue[LiveRun] = FairQueue()
        self._scheduled = False
        self._checkpoints: Checkpoints
        self._hydration: Hydration
        self._claim_ack: asyncio.Future[Ack] | None = None
        self._over: asyncio.Future[bool] = self._loop.create_future()
        self._unbegun: set[Plan] = set()
        """Attempts that have a slot and do not run yet: their start is not confirmed, or their task had no step."""
        self._background: set[asyncio.Task[None]] = set()

    @property
    def active(self) -> bool:
        return self.phase is Phase.ACTIVE

    @property
    def next_command(self) -> int:
        """Offset of the next command to decide."""
        return self._fold.next_command

    @property
    def unfinished_runs(self) -> int:
        return len(self._runs)

    @property
    def runs_in_memory(self) -> int:
        return sum(run.state is not None or run.loading for run in tuple(self._runs.values()))

    @property
    def set_aside(self) -> dict[str, str]:
        """Run -> why nothing of it is executed."""
        if self.phase in (Phase.CLAIMING, Phase.OVER):
            return {}
        runs = tuple(self._fold.runs.items())  # metrics are asked for on another thread
        return {run_id: entry.set_aside for run_id, entry in runs if entry.set_aside is not None}

    # --- owning ------------------------------------------------------------------------------------------------------

    async def own(self) -> bool:
        """Claim the partition and work until the epoch is over.

        True: try again at once (delivery error). False: somebody else claimed it, wait for a new assignment.
        """
        self.phase = Phase.CLAIMING
        self._over = self._loop.create_future()
        reader = await self._x.blocking(recover, self._x.log, self.partition)
        self._fold, self._epoch = reader.fold, reader.fold.validity.epoch + 1
        if unknown := sorted(set(self._fold.requires) - set(FEATURES)):
            self.phase = Phase.OVER
            problem = f"a newer release has owned it, and this one does not know: {', '.join(unknown)}. Upgrade it"
            logger.error("release_too_old", extra={"partition": self.partition, "problem": problem})
            self._x.alarm(self.partition, problem)
            return False
        claimed_at = self._x.monotonic()
        ack = await self._claim()
        if self.phase is not Phase.CLAIMING:
            return False
        if ack.error is not None:
            logger.warning("claim_failed", extra={"partition": self.partition, "problem": ack.error})
            return True
        await self._x.blocking(read_to, self._x.log, reader, None if ack.offset < 0 else ack.offset + 1)
        first_command, _ = await self._x.blocking(self._x.log.bounds, Topic.COMMANDS, self.partition)
        if self.phase is not Phase.CLAIMING:
            return False
        if self._fold.owner != self._x.owner_id or self._fold.validity.epoch != self._epoch:
            logger.info("claim_lost", extra={"partition": self.partition, "epoch": self._epoch})
            return False
        self._activate(reader, claimed_at, first_command)
        return await self._over

    async def _claim(self) -> Ack:
        claim = PartitionClaimed(
            owner=self._x.owner_id,
            commands_topic_id=await self._x.blocking(self._x.log.topic_id, Topic.COMMANDS),
            requires=FEATURES,
        )
        at_us = max(self._x.now_us(), self._fold.last_at_us)
        entry = encode_event(
            claim, partition=self.partition, run_id="", seq=0, epoch=self._epoch, n=0, at_us=at_us, cause="owner"
        )
        self._claim_ack = self._loop.create_future()
        self._x.appender.append(self.partition, [entry])
        self._x.appended()
        return await self._claim_ack

    def _activate(self, reader: PartitionReader, claimed_at: float, first_command: int) -> None:
        self.phase = Phase.ACTIVE
        self._outbox = Outbox(
            partition=self.partition,
            epoch=self._epoch,
            claim_offset=self._fold.claim_offset,
            claimed_at=claimed_at,
            log=self._x.log,
            appender=self._x.appender,
            blobs=self._x.blobs,
            monotonic=self._x.monotonic,
            blocking=self._x.blocking,
            spawn=self._spawn,
            lost=self.lose,
            wake=self.wake,
            roomier=self._on_room,
            appended=self._x.appended,
            took=self._x.measures.appended,
        )
        self._checkpoints = Checkpoints(
            self.partition,
            self._epoch,
            self._fold,
            self._outbox,
            self._runs,
            self._x,
            emit=self._emit,
            spawn=self._spawn,
            active=lambda: self.active,
        )
        self._hydration = Hydration(
            self.partition,
            self._epoch,
            self._x,
            spawn=self._spawn,
            go_on=self._go_on,
            set_aside=self._set_aside,
            fail=self._fail,
        )
        unreadable: list[str] = []
        for run_id, entry in self._fold.runs.items():
            if entry.set_aside is not None:
                continue
            if run_id in reader.unreadable:
                unreadable.append(run_id)
                continue
            run = self._runs[run_id] = LiveRun.found(run_id, entry, reader)
            if entry.parked and entry.seq == entry.snapshot_seq:
                run.snapshot = None
                self._set_timer(run, entry.next_due_us)
            else:
                self._queue(run)
        for run_id in unreadable:
            self._quarantine(run_id, reader.unreadable[run_id])
        facts = {"partition": self.partition, "epoch": self._epoch, "unfinished_runs": len(self._runs)}
        logger.info("partition_owned", extra=facts | {"set_aside": len(self.set_aside)})
        # Commands that retention has removed were not decided within their days: nobody waits for them any more.
        self._next_command, self._missing_before = max(self._fold.next_command, first_command), -1
        self._x.commands.add(self.partition, self._next_command)
        self.wake()

    def lose(self, reason: str, *, again: bool, alarm: bool = False) -> None:
        """The epoch is over: cancel handlers, drop what memory holds. `again`: claim anew at once."""
        if self.phase is Phase.OVER:
            return
        lost = self.active
        about = {"partition": self.partition, "epoch": self._epoch, "reason": reason}
        logger.log(logging.WARNING if lost else logging.INFO, "epoch_over", extra=about)
        if lost:
            self._x.measures.epochs_lost += 1
        if alarm:
            self._x.alarm(self.partition, reason)
        if self.phase is not Phase.CLAIMING:
            self._outbox.close()
        self.phase = Phase.OVER
        self._x.commands.remove(self.partition)
        for run in self._runs.values():
            run.let_go()
        for planned in tuple(self._unbegun):
            self._give_up(planned)
        self._commands.clear()
        self._outcomes.clear()
        self._runnable.clear()
        self._runs.clear()
        for task in self._background:
            task.cancel()
        if not self._over.done():
            self._over.set_result(again)

    async def release(self, grace_s: float) -> None:
        """Hand the partition over: stop starting, let running attempts end for `grace_s`, checkpoint, say so."""
        if self.phase is Phase.ACTIVE:
            self.phase = Phase.DRAINING
            self._x.commands.remove(self.partition)
            running = [task for run in self._runs.values() for task in run.tasks.values() if task is not None]
            if running:
                await asyncio.wait(running, timeout=grace_s)
            self._turn()
            if self.phase is Phase.DRAINING:
                self.phase = Phase.LEAVING
                await self._leave()
        elif self.phase in (Phase.DRAINING, Phase.LEAVING):
            await asyncio.wait([self._over], timeout=grace_s + RELEASE_CONFIRM_S)
        self.lose("released", again=False)

    async def _leave(self) -> None:
        """Write the table and that the partition is free; nothing stands behind that in this epoch."""
        for run in self._runs.values():
            run.let_go()
        deadline = self._loop.time() + RELEASE_CONFIRM_S
        self._checkpoints.write()
        released = self._emit("", PartitionReleased(owner=self._x.owner_id), "owner")
        done = self._loop.create_task(self._outbox.confirmed(released))
        either: list[asyncio.Future[Any]] = [done, self._over]
        await asyncio.wait(either, timeout=RELEASE_CONFIRM_S, return_when=asyncio.FIRST_COMPLETED)
        done.cancel()
        if self._background:
            await asyncio.wait(self._background, timeout=max(deadline - self._loop.time(), 0))

    # --- what arrives ------------------------------------------------------------------------------------------------

    def on_commands(self, records: list[Record]) -> None:
        """Take what continues the commands partition. A batch from before the last claim may still come late."""
        if self.phase is not Phase.ACTIVE:
            return
        for record in records:
            if record.offset > self._next_command and record.offset != self._missing_before:
                # Deciding it would put the commands before it behind the fold's position: read from there again. When
                # that leads here once more, there are none (a foreign transaction's marker stands there).
                self._missing_before = record.offset
                self._x.commands.add(self.partition, self._next_command)
                break
            if record.offset >= self._next_command:
                self._next_command = record.offset + 1
                self._commands.append(record)
        self.wake()

    def on_acks(self, acks: list[Ack]) -> None:
        if self.phase in (Phase.ACTIVE, Phase.DRAINING, Phase.LEAVING):
            self._outbox.on_acks(acks)
        elif self._claim_ack is not None and not self._claim_ack.done():
            for ack in acks:
                if (ack.epoch, ack.n) == (self._epoch, 0):
                    self._claim_ack.set_result(ack)

    def _on_room(self) -> None:
        """Go on with what had to wait for acknowledgements."""
        if self._runnable or self._outbox.waits:
            self.wake()

    # --- the turn ----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have a turn soon; calls before it are one turn."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self.phase is Phase.LEAVING:
            self._outbox.flush()
        if self.phase not in (Phase.ACTIVE, Phase.DRAINING):
            return
        self._decide_commands()
        self._decide_outcomes()
        stop_at = self._x.monotonic() + TURN_BUDGET_S
        while self._runnable and self._outbox.ahead < MAX_AHEAD:
            run = self._runnable.popleft()
            run.queued = False
            if self._lives(run):
                try:
                    self._advance(run)
                except Exception as error:  # one run's fold throws: only that run is set aside
                    self._set_aside(run, error)
            if self._x.monotonic() > stop_at:
                break
        self._x.slots.pump()
        self._outbox.flush()
        self._checkpoints.begin_if_due()
        if self._commands or (self._runnable and self._outbox.ahead < MAX_AHEAD):
            self.wake()

    def _decide_commands(self) -> None:
        now_us = self._x.now_us()
        for _ in range(min(len(self._commands), COMMANDS_PER_TURN)):
            record = self._commands.popleft()
            if record.offset < self._fold.next_command:
                continue
            try:
                if len(record.value or b"") > COMMAND_BYTES:
                    raise CodecError(f"the command has {len(record.value or b'')} bytes, more than {COMMAND_BYTES}")
                decision = self._fold.decide(decode_command(record), record.offset, now_us)
            except CodecError as error:
                decision = self._fold.reject_unreadable(record.offset, str(error))
            run_id, event = decision
            self._x.measures.commands["rejected" if isinstance(event, CommandRejected) else "accepted"] += 1
            run = self._runs.get(run_id)
            out = self._emit(run_id, event, f"command:{record.offset}", run)
            if run is None and run_id in self._fold.runs and out.seq == 1:
                entry = self._fold.runs[run_id]
                run = self._runs[run_id] = LiveRun(run_id, entry.app_id, entry.digest)
                run.ahead.append((event, out.at_us))  # type: ignore[arg-type]  # sequence 1 is a RunAccepted
                if isinstance(event, RunAccepted) and event.earlier:
                    run.placed = False
                    self._outbox.when_confirmed(out, partial(self._placed, run))
            if run is not None:
                self._queue(run)
            elif isinstance(event, StopRequested):
                # Set aside: nothing of it runs, and nothing of it can be folded. Its end can be recorded all the same.
                self._emit(run_id, RunStopped(error=event.reason, **self._talk_of(run_id)), "derived")
            elif isinstance(event, RunReleased):
                self._take_up(event.run_id, out)

    def _decide_outcomes(self) -> None:
        while self._outcomes:
            run, planned, outcome = self._outcomes.popleft()
            if run.state is not None and self._lives(run):
                try:
                    self._complete(run, run.state, planned, outcome)
                    self._queue(run)
                except Exception as error:  # as above
                    self._set_aside(run, error)

    def _complete(self, run: LiveRun, state: RunState, planned: Plan, outcome: Outcome) -> None:
        key, attempt = planned.item.key, planned.item.attempt
        pinned = planned.pin is not None
        outcome = recordable(outcome)
        if isinstance(outcome, Asked):
            outcome = replace(outcome, token=form_token(run.run_id, self._x.random_bits(128)))
        event = decide(state, CompleteAttempt(key, attempt, self._epoch, outcome, self._x.now_us(), pinned))
        if isinstance(event, Rejection):
            logger.debug("outcome_rejected", extra={"run_id": run.run_id, "reason": event.reason})
            return
        self._emit(run.run_id, event, f"node:{key.path}/{key.node_id}#{attempt}", run)

    def _queue(self, run: LiveRun) -> None:
        if not run.queued:
            run.queued = True
            self._runnable.append(run.app_id, run)
            self.wake()

    def _advance(self, run: LiveRun) -> None:
        """Everything that follows for one run, up to its share of the turn."""
        state = run.state or self._hydration.state_of(run)
        if state is None:
            return
        if run.released is not None:
            self._checkpoints.snapshot(run, state, run.released)
            run.released = None
        budget = state.seq + RUN_BUDGET_EVENTS
        now_us = self._x.now_us()
        while state.seq < budget:
            if self._follow(run, state, now_us):
                if state.ended:
                    self._finish(run)
                    return
                continue
            if self.phase is not Phase.ACTIVE:
                return
            if not self._start_due(run, state, now_us):
                self._set_timer(run, next_timer_us(state, now_us))
                break
        else:
            self._queue(run)
        self._checkpoints.keep_up(run, state)

    def _follow(self, run: LiveRun, state: RunState, now_us: int) -> bool:
        """The next fact that follows without anybody's doing: derived, admission, expiry of a form, time limit."""
        cause = "copied" if copying(state) else "derived"
        event = derived(state)
        if event is None and self.phase is Phase.ACTIVE:
            if state.status == "pending":
                event, cause = self._admission(run, state), "owner"
            else:
                event, cause = self._overdue(state, now_us), "timer"
        if event is None or isinstance(event, Rejection):
            return False
        self._emit(run.run_id, event, cause, run)
        return True

    def _admission(self, run: LiveRun, state: RunState) -> RunEvent | None:
        """The run's beginning; None while the conversation that it continues is being read."""
        accepted = state.accepted
        assert accepted is not None
        if accepted.mode == "advanced-chat" and accepted.conversation_id is not None and run.opening is None:
            if accepted.earlier:
                if run.placed:
                    self._hydration.recall(run, state, accepted.earlier)
                return None
            run.open(state, recall((), accepted.conversation) if accepted.conversation is not None else None)
        event = decide(state, Begin(self._x.max_steps, self._x.max_time_s, run.opening))
        return None if isinstance(event, Rejection) else event

    def _overdue(self, state: RunState, now_us: int) -> RunEvent | None:
        """What an instant that has passed causes."""
        event = decide(state, CheckTime(now_us)) if state.max_time_s else None
        if (event is None or isinstance(event, Rejection)) and state.forms:
            event = decide(state, CheckForms(now_us))
        return None if isinstance(event, Rejection) else event

    def _start_due(self, run: LiveRun, state: RunState, now_us: int) -> bool:
        """Start what is due; whether anything could be started."""
        started = 0
        blocked: set[str] = set()
        # Who waits for one kind of slot may have nodes of the other kind further behind.
        most = None if run.waits_for else DUE_AT_ONCE
        for item in list(islice(due(state, self._epoch, now_us), most)):
            if item.key in run.tasks:
                continue
            if self._start(run, state, item, blocked):
                started += 1
                if started >= DUE_AT_ONCE or derived(state) is not None:
                    break
            elif len(blocked) == len(SLOT_KINDS):
                break
        for kind in blocked - run.waits_for:
            run.waits_for.add(kind)
            self._x.slots.wait(kind, partial(self._slot_free, run, kind), run.app_id)
        if blocked and not started and most is not None:
            return self._start_due(run, state, now_us)
        return started > 0

    def _slot_free(self, run: LiveRun, kind: str) -> bool:
        run.waits_for.discard(kind)
        wanted = self.phase is Phase.ACTIVE and self._lives(run)
        if wanted:
            self._queue(run)
        return wanted

    def _lives(self, run: LiveRun) -> bool:
        """Whether this is the run as the current epoch knows it: what is left of an earlier one must not act."""
        return self._runs.get(run.run_id) is run

    def _finish(self, run: LiveRun) -> None:
        run.let_go()
        self._runs.pop(run.run_id, None)

    def _set_aside(self, run: LiveRun, error: Exception) -> None:
        """Nothing of this run is executed until somebody looks at it; it can still be stopped."""
        logger.error("run_unfoldable", extra={"run_id": run.run_id}, exc_info=error)
        self._finish(run)
        if self.phase is not Phase.LEAVING:
            self._quarantine(run.run_id, why_unfoldable(error), run)

    def _quarantine(self, run_id: str, reason: str, run: LiveRun | None = None) -> None:
        reason = reason[:SHOWN]
        logger.error("run_quarantined", extra={"run_id": run_id, "reason": reason})
        entry = self._fold.runs[run_id]
        if entry.stopping:
            self._emit(run_id, RunStopped(error=reason, **self._talk_of(run_id)), "derived")
        else:
            cause = None if run is None else run.released
            self._emit("", RunSetAside(run_id=run_id, error=reason), cause or "owner", of=run)
        self.wake()

    def _take_up(self, run_id: str, out: Outgoing) -> None:
        """Fold a released run once more, as soon as everything of it that is not in memory is in the log."""
        entry = self._fold.runs[run_id]
        run = self._runs[run_id] = LiveRun(run_id, entry.app_id, entry.digest, released=out.cause, loading=True)
        run.snapshot_seq, run.snapshot_offset = entry.snapshot_seq, entry.snapshot_offset

        def confirmed() -> None:
            run.unread, run.loading = (entry.since, self._outbox.before(out).offset), False
            self._go_on(run)

        self._outbox.when_confirmed(out, confirmed)

    def _talk_of(self, run_id: str) -> dict[str, Any]:
        """What an end that is made without the run's state says of its conversation."""
        entry = self._fold.runs.get(run_id)
        return {} if entry is None or entry.conversation_id is None else {"conversation_id": entry.conversation_id}

    # --- attempts ----------------------------------------------------------------------------------------------------

    def _start(self, run: LiveRun, state: RunState, item: Due, blocked: set[str]) -> bool:
        """Record the start; answer at once, or launch. False: no slot is free."""
        planned = plan(run, state, item, self._x.handlers)
        slot = planned.slot
        if planned.launches and (slot in blocked or not self._x.slots.take(slot)):
            blocked.add(slot)
            return False
        pinned = planned.pin is not None
        event = decide(state, StartAttempt(item.key, self._epoch, self._x.now_us(), pinned))
        if isinstance(event, Rejection):
            # What was started just before has ended its round: the item is not due any more.
            if planned.launches:
                self._x.slots.release(slot)
            return False
        out = self._emit(run.run_id, event, "owner" if item.lost else "derived", run)
        if planned.outcome is not None:
            self._complete(run, state, planned, planned.outcome)
            return True
        if not planned.launches:
            return True
        self._unbegun.add(planned)
        run.tasks[item.key] = None
        launch = partial(self._launch, run, state, planned, out.seq)
        if planned.effect:
            self._outbox.when_confirmed(out, launch)
        else:
            launch()
        return True

    def _launch(self, run: LiveRun, state: RunState, planned: Plan, seq: int) -> None:
        key = planned.item.key
        if key not in run.tasks or self.phase is not Phase.ACTIVE:
            run.tasks.pop(key, None)
            self._give_up(planned)
            return
        task = run.tasks[key] = self._loop.create_task(self._attempt(run, state, planned, seq))
        # A task that is cancelled before its first step runs none of its own code.
        task.add_done_callback(lambda _: self._give_up(planned))

    def _give_up(self, planned: Plan) -> None:
        """Free the slot of an attempt that did not begin to run."""
        if planned in self._unbegun:
            self._unbegun.discard(planned)
            self._x.slots.release(planned.slot)

    async def _attempt(self, run: LiveRun, state: RunState, planned: Plan, seq: int) -> None:
        self._unbegun.discard(planned)
        key = planned.item.key
        try:
            outcome = await perform(run, state, planned, self._epoch, seq, self._publish, self._still_owner)
        finally:
            if run.tasks.get(key) is asyncio.current_task():
                del run.tasks[key]
            self._x.slots.release(planned.slot)
        self._outcomes.append((run, planned, outcome))
        self.wake()

    async def _still_owner(self) -> None:
        """Confirm again when the last proof of ownership is older than a session time-out.

        A proof that is old when it comes is as good as a log that slow allows, unless this process was frozen
        meanwhile: then others had reason to take the partition.
        """
        while self._x.monotonic() - self._outbox.proven_at > self._x.session_timeout_s:
            asked_at = self._x.monotonic()
            await self._outbox.confirmed(self._emit("", OwnerConfirmed(), "owner"))
            if self._x.ran_since(asked_at):
                return

    def _publish(self, chunks: list[Chunk]) -> None:
        self._x.log.publish(Topic.CHUNKS, self.partition, [encode_chunk(chunk) for chunk in chunks])

    # --- what runs wait for ------------------------------------------------------------------------------------------

    def _go_on(self, run: LiveRun) -> None:
        if self._lives(run):
            self._queue(run)

    def _placed(self, run: LiveRun) -> None:
        run.placed = True
        self._go_on(run)

    def _fail(self, run: LiveRun, code: str, error: str) -> None:
        """End a run whose document cannot be run at all."""
        if self._lives(run) and self.phase is not Phase.LEAVING:
            self._emit(run.run_id, RunFailed(code=code, error=error, **self._talk_of(run.run_id)), "owner", run)
            self._finish(run)
            self.wake()

    def _set_timer(self, run: LiveRun, instant_us: int | None) -> None:
        if run.timer is not None:
            if run.timer_us == instant_us:
                return
            run.timer.cancel()
            run.timer = None
        if instant_us is not None:
            run.timer_us = instant_us
            delay_s = max(instant_us - self._x.now_us(), 0) / 1e6
            run.timer = self._loop.call_later(delay_s, self._on_timer, run)

    def _on_timer(self, run: LiveRun) -> None:
        run.timer = None
        self._go_on(run)

    # --- facts -------------------------------------------------------------------------------------------------------

    def _emit(
        self, run_id: str, event: Event, cause: str, run: LiveRun | None = None, *, of: LiveRun | None = None
    ) -> Outgoing:
        """Fold a fact into memory and put it into the outbox. `of`: the run that a partition event tells of."""
        fold = self._fold
        about = run or of
        secrets = None if about is None else about.secrets
        if secrets:
            event = secrets.without_errors(event)
        at_us = fold.last_at_us = max(self._x.now_us(), fold.last_at_us)
        name = type(event).__name__
        entry = fold.runs.get(run_id)
        if name in NEEDS_BODY:
            fold.apply(event, run_id, at_us, self._outbox.position)
            entry = fold.runs.get(run_id)
        elif run_id:
            fold.count(name, run_id, self._outbox.position)
        # A run that has ended has left the table: its entry still says the sequence before.
        seq = 0 if entry is None else entry.seq + (name in RUN_END_TYPES)
        out = self._outbox.put(event, run_id, seq, at_us, cause, secrets)
        if run is not None:
            if run.state is None:
                run.ahead.append((event, at_us))  # type: ignore[arg-type]  # runs get run events only
            else:
                apply(run.state, event, at_us, self._epoch)  # type: ignore[arg-type]  # same
                if name in OUTCOMES and cause != "copied":
                    node = run.state.definition.nodes[event.node_id]  # type: ignore[union-attr,index]  # they have one
                    self._x.measures.attempts[node.type, OUTCOMES[name]] += 1
            if isinstance(event, NodeStopped):
                task = run.tasks.pop(Key(event.path, event.node_id), None)
                if task is not None:
                    task.cancel()
        return out

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
