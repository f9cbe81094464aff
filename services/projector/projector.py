"""The projector's shell: tails the events of all partitions and keeps the tables up to date.

Synchronous: the log's tail hands batches to a queue, one thread applies them. A session is 1 check the saved positions
against the log, 2 tail from there, 3 apply batches. Whatever puts the saved positions elsewhere (a rebuild, a
database that came back without its last commits) ends the session and begins the next one from what is saved.

While the cluster refuses us (expired credentials, rights taken back) a new session is tried from time to time.
While the database is away the batch in hand is tried again for ever, and reading pauses when enough is waiting.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.engine import Engine

from libs.events.log import Entry, Log, LogDenied, LogError, Record, Tail, Topic
from libs.tables import create_tables
from services.projector.batch import DATABASE_ERRORS, BatchWriter, DeadLetter
from services.projector.position import Position, PositionTaken, check, generation, load

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

BATCH_RECORDS = 4_000
"""Records in one transaction: enough for folding and COPY to pay, short enough for 0.2 s transactions."""

GATHER_S = 0.02
"""How long records are gathered for a transaction. A transaction for every append costs several times the work, and in
one process with the executor and the API its many short calls keep their threads from running."""

_PAUSE_AT, _RESUME_AT = 40_000, 8_000
"""Waiting records at which reading pauses and goes on."""

_DENIED_S = 2.0
"""Wait between two tries to read a log that refuses us."""

_SILENT_S = 10.0
"""How long a call of the database may take before it counts as down; a batch takes 0.2 s."""

_RETRY_S = (0.1, 5.0)
"""First and longest wait between two tries of a database that is away."""


@dataclass(slots=True, frozen=True)
class ProjectorState:
    """What readiness and metrics show."""

    running: bool
    lag_records: dict[int, int]
    """By partition: records of the log that are not in the tables."""
    database_down_since_s: float | None
    """Seconds since the epoch, None while the database works."""
    database_problem: str
    """Why it does not, if it does not."""
    denied: str | None
    """Why the log cannot be read now."""
    failure: str | None
    """Why the projector stopped by itself."""
    events: int
    dead_letters: int
    ignored: int


class _StartOver(Exception):
    """The saved positions are elsewhere for a good reason; begin a new session from them."""


class Projector:
    """Keeps the tables of `engine` up to date with the events of `log`. `run` blocks; `start` runs it in a thread."""

    def __init__(
        self, log: Log, engine: Engine, *, clock: Callable[[], float] = time.time, gather_s: float = GATHER_S
    ) -> None:
        self._source, self._engine, self._clock, self._gather_s = log, engine, clock, gather_s
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._positions: dict[int, Position] = {}
        self._down_since: float | None = None
        self._asked_at: float | None = None
        """When the call of the database that is under way began."""
        self._down_why = ""
        self._denied: str | None = None
        self.failure: str | None = None
        """Why `run` ended by itself in the thread of `start`."""
        self.running = False
        """Whether the tables are being kept up to date (they may lag)."""
        self._events = self._dead = 0
        self._between_tries: Callable[[], None] = _nothing

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run_guarded, name="projector", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Finish the transaction under way and stop. Idempotent; from any thread but the projector's own."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def state(self) -> ProjectorState:
        """Blocking: asks the log for its ends. Raises LogError when it cannot be reached."""
        here = dict(self._positions)
        ends = {p: self._source.bounds(Topic.EVENTS, p)[1] for p in range(self._source.partitions)}
        return ProjectorState(
            running=self.running,
            lag_records={p: end - (here[p].next_offset if p in here else 0) for p, end in ends.items()},
            database_down_since_s=self._down_since or self._silent_since(),
            database_problem=self._down_why or "it does not answer",
            denied=self._denied,
            failure=self.failure,
            events=self._events,
            dead_letters=self._dead,
            ignored=sum(position.ignored for position in here.values()),
        )

    def run(self) -> None:
        """Project until `stop`. Raises ProjectorError or LogError when going on would be wrong."""
        while not self._stopping.is_set():
            try:
                self._session()
            except _StartOver as reason:
                _log.warning("projector starts over from the saved positions: %s", reason)
            except LogDenied as error:
                if self._denied is None:
                    _log.error("the log refuses the projector, trying again: %s", error)
                self._denied = str(error)
                self._stopping.wait(_DENIED_S)

    def _run_guarded(self) -> None:
        try:
            self.run()
        except Exception as error:  # the thread's main: whoever started it reads `failure`
            self.failure = str(error)
            _log.error("projector stopped: %s", error)
        finally:
            self.running = False

    # --- a session ---------------------------------------------------------------------------------------------------

    def _session(self) -> None:
        saved = self._until_database_works(self._open_tables)
        if saved is None:
            return
        made, at = saved
        for position in at.values():
            check(position, self._source)
        self._positions = at
        waiting = _Waiting()
        tail = self._source.tail(
            Topic.EVENTS, {p: position.next_offset for p, position in at.items()}, waiting.put, waiting.fail
        )
        try:
            self.running = True
            if self._denied is not None:
                _log.warning("the log lets the projector in again")
                self._denied = None
            writer = BatchWriter(self._engine)
            self._between_tries = lambda: waiting.throttle(tail, at)
            while not self._stopping.is_set():
                records = waiting.take(BATCH_RECORDS, self._gather_s)
                waiting.throttle(tail, at)
                if records:
                    self._apply(writer, records, at, made)
        finally:
            self.running = False
            self._between_tries = _nothing
            tail.close()

    def _open_tables(self) -> tuple[int, dict[int, Position]]:
        create_tables(self._engine)
        topic_id = self._source.topic_id(Topic.EVENTS)
        with self._engine.begin() as connection:
            saved = load(connection)
            return generation(connection), {
                p: saved.get(p, Position(p, topic_id)) for p in range(self._source.partitions)
            }

    def _apply(self, writer: BatchWriter, records: list[Record], at: dict[int, Position], made: int) -> None:
        try:
            batch = self._until_database_works(lambda: writer.apply(records, at))
        except PositionTaken as taken:
            error = taken
            self._until_database_works(lambda: self._explain(error, at, made))
            return
        if batch is not None:
            self._events += len(batch.events)
            self._dead += len(batch.dead)
            for letter in batch.dead:
                self._announce(letter)
            if batch.foreign:  # one line, however many a stranger writes
                first = batch.foreign[0].record
                facts = {"partition": first.partition, "offset": first.offset, "records": len(batch.foreign)}
                _log.warning("foreign records in the events topic", extra=facts)

    def _explain(self, error: PositionTaken, at: dict[int, Position], made: int) -> None:
        """Raise _StartOver when the saved positions moved for a good reason, else `error`."""
        with self._engine.begin() as connection:
            saved, now = load(connection), generation(connection)
        if now != made:
            raise _StartOver("the tables were rebuilt") from error
        if any(p not in saved or saved[p].next_offset < at[p].next_offset for p in at if at[p].next_offset):
            raise _StartOver("the database came back without its last commits") from error
        raise error

    def _announce(self, letter: DeadLetter) -> None:
        record = letter.record
        _log.error("dead letter: %s", letter.reason, extra={"partition": record.partition, "offset": record.offset})
        source = f"{record.topic}[{record.partition}]@{record.offset}".encode()
        headers = [*record.headers.items(), ("source", source), ("reason", letter.reason.encode()[:1000])]
        # Nobody waits: the row with place and reason is committed, and the record itself stays in the log.
        self._source.send(Topic.DEAD_LETTERS, record.partition, Entry(source, record.value, headers))

    def _until_database_works(self, work: Callable[[], _T]) -> _T | None:
        """What `work` returns, tried until the database takes it; None when the projector is asked to stop."""
        wait_s = _RETRY_S[0]
        failed = False
        while not self._stopping.is_set():
            self._asked_at = self._clock()
            try:
                result = work()
            except PositionTaken as error:
                if failed:
                    raise _StartOver("a commit whose answer was lost may have taken place") from error
                raise
            except DATABASE_ERRORS as error:
                failed = True
                if self._down_since is None:
                    self._down_since = self._clock()
                    self._down_why = _why(error)
                    _log.error("database cannot work, trying again: %s", self._down_why)
                self._between_tries()
                self._stopping.wait(wait_s)
                wait_s = min(_RETRY_S[1], wait_s * 2)
            else:
                if self._down_since is not None:
                    _log.warning("database works again after %.1f s", self._clock() - self._down_since)
                    self._down_since, self._down_why = None, ""
                return result
            finally:
                self._asked_at = None
        return None

    def _silent_since(self) -> float | None:
        """When the database was asked, if that is long ago: one that stands still answers nothing, closes nothing."""
        asked_at = self._asked_at
        return asked_at if asked_at is not None and self._clock() - asked_at > _SILENT_S else None


def _why(error: Exception) -> str:
    text = str(error).splitlines()[0]
    gone = "no such table" in text or "UndefinedTable" in text
    return f"{text}. Make the tables anew: flowledger rebuild" if gone else text


def _nothing() -> None:
    pass


class _Waiting:
    """Records between the tail's thread and the projector's. One per session, so nothing stale gets into the next."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[list[Record] | LogError] = queue.SimpleQueue()
        self._put = self._taken = 0
        self._paused = False

    def put(self, records: list[Record]) -> None:
        """On the tail's thread."""
        self._put += len(records)
        self._queue.put(records)

    def fail(self, error: LogError) -> None:
        """On the tail's thread."""
        self._queue.put(error)

    def take(self, most: int, gather_s: float) -> list[Record]:
        """Waiting records, about `most`; waits a moment for the first, and for `gather_s` when there are few.

        Raises what the tail could not heal.
        """
        records: list[Record] = []
        timeout_s = 0.2
        while len(records) < most:
            try:
                item = self._queue.get(timeout=timeout_s) if timeout_s else self._queue.get_nowait()
            except queue.Empty:
                break
            if isinstance(item, LogError):
                raise item
            records.extend(item)
            if timeout_s and self._put - self._taken < most:
                time.sleep(gather_s)
            timeout_s = 0.0
        self._taken += len(records)
        return records

    def throttle(self, tail: Tail, partitions: Iterable[int]) -> None:
        """Pause reading while the database is behind, so that memory stays bounded."""
        waiting = self._put - self._taken
        if not self._paused and waiting > _PAUSE_AT:
            self._paused = True
            for partition in partitions:
                tail.pause(partition)
        elif self._paused and waiting < _RESUME_AT:
            self._paused = False
            for partition in partitions:
                tail.resume(partition)
