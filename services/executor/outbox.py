"""What an owner has decided, on its way into the log: numbered, encoded, appended in one batch, confirmed.

Numbers `(epoch, n)` are given in order, at the moment of handing over, so that a value which is too large for the log
can leave its event first while everything behind it waits. Nothing is ever sent twice: a delivery error, a foreign
claim or missing records end the epoch (`lost`).

One event loop. Reading back what stands between acknowledgements runs through `blocking`.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from libs.events.blobs import Blobs
from libs.events.claim_check import offload, oversized
from libs.events.codec import encode_body, encode_event, stamp_of
from libs.events.log import Ack, Appender, AppendRefused, Entry, Log, LogError, Topic
from libs.events.model import Event, RunAccepted
from libs.events.positions import Position
from libs.events.sealed_values import MARK
from libs.events.sealing import SealError
from libs.events.validity import Validity
from services.executor.confirm import Confirmer, Next
from services.executor.secrets import Secrets

BATCH = 2_000
REFUSED_WAIT_S = 0.02
OVERHEAD_BYTES = 400
"""Headers and framing of a record, roughly."""


class Lost(Protocol):
    def __call__(self, reason: str, *, again: bool, alarm: bool = False) -> None:
        """The epoch is over. `again`: claim anew at once; `alarm`: a person must look at the log."""


@dataclass(slots=True, eq=False)
class Outgoing:
    """An event on its way into the log; `n` is 0 until it is handed over."""

    event: Event
    run_id: str
    seq: int
    at_us: int
    cause: str
    secrets: Secrets | None = None
    body: bytes | None = None
    n: int = 0


class Outbox:
    """The appends of one epoch of one partition."""

    def __init__(
        self,
        *,
        partition: int,
        epoch: int,
        claim_offset: int,
        claimed_at: float,
        log: Log,
        appender: Appender,
        blobs: Blobs,
        monotonic: Callable[[], float],
        blocking: Callable[..., Awaitable[Any]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        lost: Lost,
        wake: Callable[[], None],
        roomier: Callable[[], None],
        appended: Callable[[], None],
        took: Callable[[float], None],
    ) -> None:
        """`wake` asks for another `flush`; `claimed_at`: when the claim was sent.

        `roomier` is called when fewer records are ahead of the confirmed log, `appended` after each append,
        `took` with the seconds from an append to its confirmation.
        """
        self.partition = partition
        self.epoch = epoch
        self.bytes_written = 0
        self.proven_at = claimed_at
        """Clock reading before which the newest confirmed record was sent: ownership is proven as of then."""
        self._confirmer = Confirmer(epoch, claim_offset)
        self._log = log
        self._appender = appender
        self._blobs = blobs
        self._monotonic = monotonic
        self._blocking = blocking
        self._spawn = spawn
        self._lost = lost
        self._wake = wake
        self._roomier = roomier
        self._appended = appended
        self._took = took
        self._queue: deque[Outgoing] = deque()
        self._refused: list[Entry] = []
        self._waiting: deque[tuple[Outgoing, Callable[[], None]]] = deque()
        self._sent: deque[tuple[int, float]] = deque()
        self._n = 0
        self._offloading = False
        self._reconciling = False
        self._trying_again = False
        self._closed = False

    @property
    def ahead(self) -> int:
        """Records that are decided and not confirmed."""
        return self._n + len(self._queue) - self._confirmer.confirmed

    @property
    def waits(self) -> bool:
        """Whether something was not handed over yet."""
        return bool(self._queue or self._refused)

    @property
    def position(self) -> Position:
        """Right behind the last confirmed record: a reader from here meets all that is put from now on."""
        confirmer = self._confirmer
        return Position(confirmer.offset + 1, self.epoch, confirmer.confirmed)

    def before(self, out: Outgoing) -> Position:
        """The exact place of a confirmed record."""
        confirmer = self._confirmer
        return Position(confirmer.offset - (confirmer.confirmed - out.n), self.epoch, out.n - 1)

    def close(self) -> None:
        """Forget everything; nothing more is handed over or called."""
        self._closed = True
        self._queue.clear()
        self._waiting.clear()

    # --- in ---

    def put(
        self, event: Event, run_id: str, seq: int, at_us: int, cause: str, secrets: Secrets | None = None
    ) -> Outgoing:
        """`secrets`: those of its run, which are not to be read in the log."""
        out = Outgoing(event, run_id, seq, at_us, cause, secrets)
        self._queue.append(out)
        return out

    def when_confirmed(self, out: Outgoing, act: Callable[[], None]) -> None:
        """Call `act` in the turn of the loop in which `out` is found confirmed. Ask in the order of `put`."""
        self._waiting.append((out, act))

    async def confirmed(self, out: Outgoing) -> None:
        """Wait until `out` is confirmed (for ever, when the epoch ends before: be cancelled then)."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settle() -> None:
            if not done.done():
                done.set_result(None)

        self.when_confirmed(out, settle)
        self.flush()
        await done

    def flush(self) -> None:
        """Number and hand over what is in the queue, up to a value that is still on its way out."""
        if self._closed or (self._refused and not self._hand_over(self._refused)):
            return
        batch: list[Entry] = []
        while self._queue and not self._offloading and len(batch) < BATCH:
            out = self._queue[0]
            body = out.body if out.body is not None else self._body(out)
            if body is None:
                return
            # `RunAccepted` repeats its command, whose large values the sender has moved out already: references in
            # it are real ones, and moving them out once more would hide the values behind two of them.
            if out.body is None and oversized(body) and not isinstance(out.event, RunAccepted):
                self._offloading = True
                self._spawn(self._offload(out))
                break
            self._queue.popleft()
            batch.append(self._encode(out, body))
        if batch:
            self._hand_over(batch)
        if self._queue and not self._offloading and not self._refused:
            self._wake()

    def _body(self, out: Outgoing) -> bytes | None:
        """The event's JSON without a secret in it; None: the epoch is over, because secrets cannot be sealed here."""
        body = encode_body(out.event)
        if out.secrets is None or not (out.secrets or MARK in body):
            return body
        try:
            out.event = out.secrets.sealed(out.event)
        except SealError as error:
            self._lost(str(error), again=True)
            return None
        return encode_body(out.event)

    def _encode(self, out: Outgoing, body: bytes) -> Entry:
        self._n += 1
        out.n = self._n
        self.bytes_written += len(body) + OVERHEAD_BYTES
        return encode_event(
            out.event,
            partition=self.partition,
            run_id=out.run_id,
            seq=out.seq,
            epoch=self.epoch,
            n=out.n,
            at_us=out.at_us,
            cause=out.cause,
            body=body,
        )

    def _hand_over(self, batch: list[Entry]) -> bool:
        sent_at = self._monotonic()
        try:
            self._appender.append(self.partition, batch)
        except AppendRefused:
            self._refused = batch
            if not self._trying_again:
                self._trying_again = True
                self._spawn(self._try_again())
            return False
        self._refused = []
        self._sent.append((batch[-1].n, sent_at))
        self._appended()
        return True

    async def _try_again(self) -> None:
        """The buffer may be full of other partitions' records: then no acknowledgement of ours comes to wake us."""
        await asyncio.sleep(REFUSED_WAIT_S)
        self._trying_again = False
        self.flush()

    async def _offload(self, out: Outgoing) -> None:
        try:
            out.body = encode_body(await asyncio.wrap_future(offload(out.event, self._blobs, out.run_id)))
        except (LogError, OSError) as error:
            self._lost(f"a large value could not be stored: {error}", again=True)
            return
        finally:
            self._offloading = False
        self.flush()

    # --- out ---

    def on_acks(self, acks: list[Ack]) -> None:
        verdict = self._confirmer.on_acks(acks)
        if not self._reconciling:
            self._after(verdict)

    def _after(self, verdict: Next) -> None:
        self._act()
        match verdict:
            case Next.GO_ON:
                self._roomier()
            case Next.LOST:
                self._lost(self._confirmer.reason, again=True)
            case Next.TRUNCATED:
                self._lost(f"acknowledged records are gone: {self._confirmer.reason}", again=False, alarm=True)
            case Next.READ_FOREIGN | Next.READ_BACK:
                self._reconciling = True
                self._spawn(self._reconcile(verdict))

    def _act(self) -> None:
        """What waited for records that are confirmed now."""
        confirmed = self._confirmer.confirmed
        while self._sent and self._sent[0][0] <= confirmed:
            self.proven_at = self._sent.popleft()[1]
            self._took(self._monotonic() - self.proven_at)
        while self._waiting and 0 < self._waiting[0][0].n <= confirmed:
            self._waiting.popleft()[1]()

    async def _reconcile(self, verdict: Next) -> None:
        """Read the log where acknowledgements and expectation differ."""
        confirmer = self._confirmer
        try:
            while verdict in (Next.READ_FOREIGN, Next.READ_BACK):
                if verdict is Next.READ_FOREIGN:
                    if await self._blocking(self._claimed_between, confirmer.gap_start, confirmer.gap_stop):
                        self._lost("another executor has claimed the partition", again=False)
                        return
                    verdict = confirmer.found_foreign()
                    # Before the next gap shifts the base: `before` counts back from the last confirmed record.
                    self._act()
                    continue
                offset = await self._blocking(self._find, confirmer.confirmed + 1)
                if offset is None:
                    self._lost(f"record {confirmer.confirmed + 1} cannot be read back", again=True)
                    return
                verdict = confirmer.found_at(offset)
                self._act()
        except LogError as error:
            self._lost(f"the log cannot be read back: {error}", again=True)
            return
        finally:
            self._reconciling = False
        self._after(verdict)

    def _claimed_between(self, start: int, stop: int) -> bool:
        validity = Validity(self.epoch, self._confirmer.confirmed)
        for records in self._log.read(Topic.EVENTS, self.partition, start, stop):
            for record in records:
                validity.admit(stamp_of(record))
        return validity.epoch != self.epoch

    def _find(self, n: int) -> int | None:
        for records in self._log.read(Topic.EVENTS, self.partition, self._confirmer.gap_start):
            for record in records:
                stamp = stamp_of(record)
                if stamp is not None and (stamp.epoch, stamp.n, stamp.claim) == (self.epoch, n, False):
                    return record.offset
        return None
