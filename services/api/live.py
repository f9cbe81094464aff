"""Runs that somebody watches: their complete fold, the frames made lately, and who gets them.

A frame is made once per run and replica, however many watch. `LiveRun` holds complete folds only: it begins with the
run's first event, or is filled from the log before anybody is attached. A client that attaches gets what follows its
cursor from the ring of late frames, or is told that the ring does not reach back that far.

On one event loop; nothing here blocks.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from libs.events.chunks import Chunk
from libs.events.claim_check import contains_ref
from libs.events.codec import CodecError, Recorded, decode_event
from libs.events.log import Record
from libs.events.model import RunAccepted
from libs.workflow.definition import Definition
from libs.workflow.machine import evolve, new_state
from libs.workflow.state import RunState
from libs.workflow.streaming import ResponseStream
from services.api.frames import Cursor, Frame, FrameMaker

logger = logging.getLogger(__name__)

RING_BYTES = 256 * 1024
MAX_EARLY_CHUNKS = 1_000
_MARK = b'"$blob"'


class Receiver(Protocol):
    """Takes the frames of a run; never blocks."""

    def push(self, frames: list[Frame]) -> None: ...

    def fail(self, code: str, message: str) -> None: ...

    def finish(self) -> None: ...


class Fold:
    """A run's events and chunks to frames: the run's state, its response text, and the frames."""

    __slots__ = ("_stream", "maker", "state")

    def __init__(self, run_id: str, definition: Definition | None) -> None:
        self.maker = FrameMaker(run_id)
        # Without a definition (the document cannot be read) there is no text, and still all other frames.
        self.state: RunState | None = None if definition is None else new_state(definition, run_id)
        self._stream: ResponseStream | None = None

    def on_event(self, recorded: Recorded) -> list[Frame]:
        if self.state is None:
            return self.maker.on_event(recorded)
        evolve(self.state, recorded)
        if self._stream is None:  # the first event says whether the whole graph runs or a part of it
            self._stream = ResponseStream(self.state.definition)
        # Run events only: partition events have no run and are not routed here.
        texts = self._stream.on_event(recorded.event, self.state)  # type: ignore[arg-type]
        return self.maker.on_event(recorded, texts)

    def on_chunk(self, chunk: Chunk) -> list[Frame]:
        return [] if self._stream is None else self.maker.on_texts(self._stream.on_chunk(chunk))


class Ring:
    """The frames of a run made lately, up to `RING_BYTES`, and what a client has seen before the first of them."""

    __slots__ = ("base", "base_unsettled", "frames", "size_bytes")

    def __init__(self) -> None:
        self.frames: deque[Frame] = deque()
        self.size_bytes = 0
        self.base = Cursor()
        self.base_unsettled = False

    def keep(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.size_bytes += len(frame.wire)
        # An event counts as seen only with its last frame, the one with an id: the ring begins behind such a frame.
        while (self.size_bytes > RING_BYTES and len(self.frames) > 1) or self.base.seq < 0:
            gone = self.frames.popleft()
            self.size_bytes -= len(gone.wire)
            self.base = Cursor(gone.seq if gone.identified else -1, gone.position)
            self.base_unsettled = gone.unsettled

    def shown_at(self, seq: int) -> tuple[int, bool]:
        """The text that a client shows right behind event `seq`, and whether replicas may differ in that."""
        position, unsettled = self.base.position or 0, self.base_unsettled
        for frame in self.frames:
            if frame.seq > seq or (frame.kind == "text" and frame.seq == seq):
                break
            position, unsettled = frame.position, frame.unsettled
        return position, unsettled


@dataclass(slots=True, eq=False)
class LiveRun:
    """One run that is watched, or was lately."""

    run_id: str
    definition_of: Callable[[str], Definition | None]
    """The compiled definition of a digest; only asked for digests that were compiled already."""
    restore: Callable[["LiveRun", Recorded], None]
    """Fetches an event's large values elsewhere, then calls `restored`."""
    fold: Fold | None = None
    size_bytes: int = 0
    """Of the events folded: what keeping it costs, roughly."""
    broken: str | None = None
    receivers: list[Receiver] = field(default_factory=list)
    ring: Ring = field(default_factory=Ring)
    _ahead: list[tuple[Receiver, Cursor]] = field(default_factory=list)
    """Clients that have seen more than was folded here: a replica may be behind another, or wait for a large value."""
    _waiting: deque[Recorded] = field(default_factory=deque)
    _restoring: bool = False
    _early: list[Chunk] = field(default_factory=list)
    _held: list[Record] | None = None
    """Events that came while the fold is being filled from the log; None: it is complete."""

    @property
    def seq(self) -> int:
        return 0 if self.fold is None else self.fold.maker.seq

    @property
    def ended(self) -> bool:
        return self.fold is not None and self.fold.maker.ended

    @property
    def watched(self) -> bool:
        return bool(self.receivers or self._ahead)

    @property
    def place(self) -> Cursor:
        """What a client has seen that has seen everything."""
        return Cursor() if self.fold is None else Cursor(self.seq, self.fold.maker.position)

    @property
    def said(self) -> str | None:
        """What clients see of a message's answer by now; None where nothing is seen, or it cannot be told."""
        return None if self.fold is None or self.broken is not None else self.fold.maker.answer

    @property
    def current(self) -> bool:
        """Whether every event that was read is folded."""
        return self._held is None and not self._restoring and not self._waiting and self.broken is None

    # --- filling from the log ---

    def hold(self) -> None:
        """Keep what comes until `fill` is called."""
        self._held = []

    @property
    def filling(self) -> bool:
        return self._held is not None

    def fill(self, fold: Fold, ring: Ring) -> None:
        """Take over a fold made from the log, then what came meanwhile."""
        self.fold, self.ring = fold, ring
        held, self._held = self._held or [], None
        for record in held:
            self.on_record(record)

    # --- what comes ---

    def on_record(self, record: Record) -> None:
        """The next valid record of the run."""
        if self._held is not None:
            self._held.append(record)
            return
        if self.broken is not None:
            return
        try:
            recorded = decode_event(record)
        except CodecError as error:
            self.break_off(str(error))
            return
        self.size_bytes += len(record.value or b"")
        if recorded.seq <= self.seq:
            return  # read from the log already
        # Looking for the mark first: walking all values of every event would cost more than folding it.
        if self._restoring or (_MARK in (record.value or b"") and contains_ref(recorded.event)):
            self._waiting.append(recorded)
            self._restore_next()
            return
        self._take(recorded)

    def restored(self, recorded: Recorded) -> None:
        """The event that waited longest, with all its values."""
        self._restoring = False
        self._take(recorded)
        while self._waiting and not self._restoring:
            if contains_ref(self._waiting[0].event):
                self._restore_next()
            else:
                self._take(self._waiting.popleft())

    def on_chunk(self, chunk: Chunk) -> None:
        """A chunk waits until the event it follows was shown."""
        if chunk.after > self.seq or self._held is not None:
            if len(self._early) < MAX_EARLY_CHUNKS:
                self._early.append(chunk)
        elif self.fold is not None and self.broken is None:
            self._show(self.fold.on_chunk(chunk))

    def break_off(self, problem: str) -> None:
        """The run cannot be followed here any more."""
        logger.error("run_unreadable", extra={"run_id": self.run_id, "problem": problem})
        self.broken = problem
        for receiver in [*self.receivers, *(each for each, _ in self._ahead)]:
            receiver.fail("internal_server_error", "the run's history cannot be read here")
        self.receivers.clear()
        self._ahead.clear()

    def _restore_next(self) -> None:
        if not self._restoring:
            self._restoring = True
            self.restore(self, self._waiting.popleft())

    def _take(self, recorded: Recorded) -> None:
        if recorded.seq != self.seq + 1:
            self.break_off(f"sequence {recorded.seq} follows {self.seq}")
            return
        try:
            if self.fold is None:
                assert isinstance(recorded.event, RunAccepted)  # sequence 1 is nothing else
                self.fold = Fold(self.run_id, self.definition_of(recorded.event.digest))
            frames = self.fold.on_event(recorded)
        except Exception as error:
            # A history that does not fit its definition: this run cannot be shown, all others must go on.
            logger.exception("run_unfoldable", extra={"run_id": self.run_id})
            self.break_off(f"{type(error).__name__} at sequence {recorded.seq}")
            return
        self._show(frames)
        if self._ahead:
            self._reach()
        if self._early:
            early, self._early = self._early, []
            for chunk in early:
                self.on_chunk(chunk)

    # --- what goes out ---

    def _show(self, frames: list[Frame]) -> None:
        if not frames:
            return
        for frame in frames:
            self.ring.keep(frame)
        for receiver in tuple(self.receivers):
            receiver.push(frames)
        if frames[-1].last:
            self.receivers.clear()

    def attach(self, receiver: Receiver, after: Cursor | None) -> bool:
        """Give `receiver` what follows `after` (None: what is still to come), then everything that comes.

        False: the ring does not reach back that far; nothing was given.
        """
        if after is not None and after.seq > self.seq and not self.ended:
            self._ahead.append((receiver, after))
            return True
        backlog = [] if after is None else self._behind(after)
        if backlog is None:
            return False
        if backlog:
            receiver.push(backlog)
        if not self.ended:
            self.receivers.append(receiver)
        elif not (backlog and backlog[-1].last):
            receiver.finish()
        return True

    def detach(self, receiver: Receiver) -> None:
        if receiver in self.receivers:
            self.receivers.remove(receiver)
        self._ahead = [item for item in self._ahead if item[0] is not receiver]

    def _reach(self) -> None:
        """Attach those whose place has been reached."""
        reached = [item for item in self._ahead if item[1].seq <= self.seq or self.ended]
        self._ahead = [item for item in self._ahead if item not in reached]
        for receiver, after in reached:
            if not self.attach(receiver, after):
                receiver.fail("service_unavailable", "this server was too far behind. Attach again with the last id")

    def _behind(self, after: Cursor) -> list[Frame] | None:
        if after.seq < self.ring.base.seq:
            return None
        frames = [
            each for each in self.ring.frames if each.seq > after.seq or (each.kind == "text" and each.seq == after.seq)
        ]
        replaced = [number for number, each in enumerate(frames) if each.kind == "replace"]
        if replaced:  # text before it does not matter any more
            return [each for each in frames[: replaced[-1]] if each.kind == "event"] + frames[replaced[-1] :]
        shown = after.position
        if shown is None:
            shown, unsettled = self.ring.shown_at(after.seq)
            if unsettled:
                return self._with_all_text(frames)
        if self.fold is not None and shown > self.fold.maker.position:
            return self._with_all_text(frames)  # it has seen text that did not come to us, or does not hold
        return self._cut(frames, shown)

    def _with_all_text(self, frames: list[Frame]) -> list[Frame]:
        assert self.fold is not None  # there are frames only of a fold
        maker = self.fold.maker
        events = [each for each in frames if each.kind == "event"]
        if events and (events[-1].last or events[-1].pauses):
            # Behind the frame that ends a stream nobody reads; before it the text must not have a later id.
            return [*events[:-1], maker.replacement(maker.text, maker.seq, identify=False), events[-1]]
        return [*events, maker.replacement(maker.text, maker.seq)]

    def _cut(self, frames: list[Frame], shown: int) -> list[Frame]:
        """`frames` without the first `shown` characters of text, and without a hole behind them."""
        if self.fold is None:
            return frames
        maker = self.fold.maker
        kept: list[Frame] = []
        for frame in frames:
            if frame.kind == "text":
                if frame.position <= shown:
                    continue
                if frame.position - len(frame.text) != shown:
                    frame = maker.text_frame(
                        maker.text[shown : frame.position], frame.selector, frame.seq, frame.position
                    )
                shown = frame.position
            kept.append(frame)
        if shown < maker.position and not maker.ended:
            kept.append(maker.text_frame(maker.text[shown:], (), maker.seq, maker.position))
        return kept
