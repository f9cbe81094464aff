"""The executor: owns the partitions it is placed on and runs their runs on one event loop.

Placement says which partitions to own; safety comes from the claims in the log. Handlers that wait share the loop;
the log's clients have threads of their own and are crossed in batches.
"""

import asyncio
import logging
import random
import secrets
import threading
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from libs.events.blobs import Blobs
from libs.events.log import Ack, Log, LogError, LogTruncated, Record, Topic
from libs.events.sealing import Vault
from libs.workflow.catalog import Catalog, DefinitionMissing
from libs.workflow.definition import Definition
from services.executor.measures import Measures
from services.executor.nodes.port import Handler
from services.executor.owner import RELEASE_CONFIRM_S, PartitionOwner
from services.executor.slots import Slots

logger = logging.getLogger(__name__)

LOOP_SILENCE_S = 3.0
"""A loop that has not ticked for this long is not alive: others get its partitions."""

REVOKE_DEADLINE_S = 2.5
"""All revoked partitions share it; well under the group's `max.poll.interval.ms`."""

MOST_DOUBLINGS = 6

PATIENCE_S = 0.002
"""How long the loop stands still for an acknowledgement when little is under way: as long as a short turn."""


@dataclass(slots=True)
class Health:
    """What readiness and metrics show of an executor."""

    alarms: dict[int, str] = field(default_factory=dict)
    """Partition -> why it was stopped; a person must act."""


class Executor:
    """Build it, `start()` it inside a running loop, `stop()` it."""

    def __init__(
        self,
        *,
        log: Log,
        catalog: Catalog,
        refresh_definitions: Callable[[], None],
        handlers: Mapping[str, Handler],
        blobs: Blobs,
        vault: Vault,
        owner_id: str,
        slots: Mapping[str, int],
        max_steps: int,
        max_time_s: float,
        now_us: Callable[[], int],
        random_bits: Callable[[int], int] = secrets.randbits,
        group: str = "executors",
        session_timeout_s: float = 1.0,
        checkpoint_bytes: int = 16 * 1024 * 1024,
        snapshot_events: int = 1_000,
        monotonic: Callable[[], float] = time.monotonic,
        blocking: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        """`refresh_definitions` reads the definitions topic to its end (blocking). `slots`: sizes by kind.

        A partition's table is written after every `checkpoint_bytes` of its log, a run's state after `snapshot_events`,
        or later the longer the run is.

        `now_us` is the wall clock of events, `monotonic` the clock of leases; `random_bits(n)` a random number of n
        bits; `blocking` runs a blocking function.
        """
        self.log = log
        self.catalog = catalog
        self.handlers = handlers
        self.blobs = blobs
        self.vault = vault
        self.owner_id = owner_id
        self.slots = Slots(slots)
        self.max_steps = max_steps
        self.max_time_s = max_time_s
        self.now_us = now_us
        self.random_bits = random_bits
        self.session_timeout_s = session_timeout_s
        self.checkpoint_bytes = checkpoint_bytes
        self.snapshot_events = snapshot_events
        self.monotonic = monotonic
        self.blocking = blocking
        self.health = Health()
        self.measures = Measures()
        self._refresh_definitions = refresh_definitions
        self._group = group
        self._owners: dict[int, PartitionOwner] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._placed: set[int] = set()
        """Partitions that placement wants here; what is being released may be among them again."""
        self._stopping = False
        self._collecting = False
        self._acks: deque[list[Ack]] = deque()
        self._ticked_at = self._thawed_at = self.monotonic()

    async def start(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.appender = self.log.open_appender(self._take_acks, collects=True)
        self.commands = self.log.tail(
            Topic.COMMANDS,
            {},
            lambda records: _call(loop, self._on_commands, records),
            self._on_tail_error,
            prompt=True,
        )
        self._ticker = loop.create_task(self._tick())
        self._placement = await self.blocking(
            self.log.place, self._group, self._assigned, self._revoked, self.alive, self.session_timeout_s
        )

    async def stop(self, grace_s: float = 5.0) -> None:
        """Hand everything over and leave. Idempotent."""
        if self._ticker.done():
            return
        self._stopping = True
        partitions = set(self._owners)
        await self._release(partitions, grace_s)
        await self.blocking(self._placement.close, 2.0)
        self.commands.close()
        await self.blocking(self.appender.close, 2.0)
        self._ticker.cancel()

    @property
    def owned(self) -> dict[int, str]:
        """Partition -> phase of its owner."""
        return {partition: owner.phase.value for partition, owner in self._owners.items()}

    @property
    def unfinished_runs(self) -> int:
        return sum(owner.unfinished_runs for owner in self._owners.values())

    @property
    def runs_in_memory(self) -> int:
        """Of the unfinished runs, those whose state is in memory: runs that wait for a person are not."""
        return sum(owner.runs_in_memory for owner in self._owners.values())

    def lag_records(self) -> dict[int, int]:
        """Partition -> commands that wait to be decided. Blocking: asks the log. Raises LogError."""
        at = {partition: owner.next_command for partition, owner in tuple(self._owners.items()) if owner.active}
        return {
            partition: max(self.log.bounds(Topic.COMMANDS, partition)[1] - offset, 0)
            for partition, offset in at.items()
        }

    @property
    def quarantined(self) -> dict[str, str]:
        """Run -> why it was set aside: nothing of it is executed until somebody releases it."""
        return {run_id: why for owner in self._owners.values() for run_id, why in owner.set_aside.items()}

    def definition(self, digest: str) -> Definition:
        """Blocking. Raises DefinitionMissing, DefinitionInvalid."""
        try:
            return self.catalog.get(digest)
        except DefinitionMissing:
            self._refresh_definitions()
            return self.catalog.get(digest)

    def alarm(self, partition: int, reason: str) -> None:
        self.health.alarms[partition] = reason

    # --- placement ---------------------------------------------------------------------------------------------------

    def _assigned(self, partitions: set[int]) -> None:
        _call(self._loop, self._own, partitions)

    def _revoked(self, partitions: set[int]) -> None:
        """Called on the placement's thread; returns when the partitions are handed over, or after the deadline."""
        grace_s = REVOKE_DEADLINE_S - RELEASE_CONFIRM_S
        done = asyncio.run_coroutine_threadsafe(self._release(partitions, grace_s), self._loop)
        try:
            done.result(REVOKE_DEADLINE_S)
        except (TimeoutError, asyncio.CancelledError):
            logger.warning("hand_over_late", extra={"partitions": sorted(partitions)})

    def alive(self) -> bool:
        """Whether the loop makes progress; asked from other threads."""
        return self.monotonic() - self._ticked_at < LOOP_SILENCE_S

    def ran_since(self, instant: float) -> bool:
        """Whether this process has run since `instant` of its clock without a gap of a session time-out."""
        return self._thawed_at <= instant and self.monotonic() - self._ticked_at <= self.session_timeout_s

    async def _tick(self) -> None:
        while True:
            now = self.monotonic()
            if now - self._ticked_at > self.session_timeout_s:
                self._thawed_at = now
            self._ticked_at = now
            await asyncio.sleep(0.25)

    def _own(self, partitions: set[int]) -> None:
        if self._stopping:
            return
        self._placed |= partitions
        for partition in partitions - set(self._tasks):
            owner = self._owners[partition] = PartitionOwner(partition, self)
            task = self._tasks[partition] = self._loop.create_task(self._keep(partition, owner))
            task.add_done_callback(partial(self._given_up, partition))

    def _given_up(self, partition: int, task: "asyncio.Task[None]") -> None:
        """A partition that nobody keeps any more must not look healthy."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("partition_given_up", extra={"partition": partition}, exc_info=error)
            self.alarm(partition, f"its owner broke: {error!r}. See the log, then restart this process")

    async def _keep(self, partition: int, owner: PartitionOwner) -> None:
        """Own the partition for as long as it is assigned."""
        failures = 0
        while True:
            began = self.monotonic()
            try:
                again = await owner.own()
                if partition in self.health.alarms:
                    return
            except LogTruncated as error:
                # Numbering anew behind what is gone would hide it: a person must look first.
                self.alarm(partition, f"{error}. Restore the topic, then restart this process")
                logger.error("partition_truncated", extra={"partition": partition, "problem": str(error)})
                return
            except LogError as error:
                again = True
                logger.warning("partition_unavailable", extra={"partition": partition, "problem": str(error)})
            failures = min(failures + 1, MOST_DOUBLINGS) if self.monotonic() - began < 5.0 else 0
            if again:
                await asyncio.sleep(min(0.05 * 2**failures, 2.0) * random.uniform(0.5, 1.0))
            else:
                # Claimed elsewhere although it is assigned here: placement is late on one side. Wait it out.
                await asyncio.sleep(self.session_timeout_s)

    async def _release(self, partitions: set[int], grace_s: float) -> None:
        self._placed -= partitions
        # They stay in the table meanwhile: the acknowledgements of their last records find them there.
        owners = [self._owners[partition] for partition in partitions if partition in self._owners]
        await asyncio.gather(*(owner.release(grace_s) for owner in owners))
        for partition in partitions:
            self._owners.pop(partition, None)
            task = self._tasks.pop(partition, None)
            if task is not None:
                task.cancel()
        # Placed here again before they were released: nobody tells us a second time.
        self._own(partitions & self._placed)

    # --- the log -----------------------------------------------------------------------------------------------------

    def appended(self) -> None:
        """Something was handed to the log: look for its acknowledgement once what is ready has run."""
        if not self._collecting:
            self._collecting = True
            self._loop.call_soon(self._collect)

    def _collect(self) -> None:
        self._collecting = False
        self.appender.collect(PATIENCE_S)

    def _take_acks(self, acks: list[Ack]) -> None:
        """The log calls in the order of its acknowledgements, on one thread at a time, of which the loop's is one.

        What another thread has brought may still wait for its turn of the loop: it comes first.
        """
        self._acks.append(acks)
        if threading.get_ident() == self._thread:
            self._pass_acks()
        else:
            _call(self._loop, self._pass_acks)

    def _pass_acks(self) -> None:
        while self._acks:
            self._on_acks(self._acks.popleft())

    def _on_acks(self, acks: list[Ack]) -> None:
        by_partition: dict[int, list[Ack]] = defaultdict(list)
        for ack in acks:
            by_partition[ack.partition].append(ack)
        for partition, some in by_partition.items():
            owner = self._owners.get(partition)
            if owner is not None:
                owner.on_acks(some)

    def _on_commands(self, records: list[Record]) -> None:
        by_partition: dict[int, list[Record]] = defaultdict(list)
        for record in records:
            by_partition[record.partition].append(record)
        for partition, some in by_partition.items():
            owner = self._owners.get(partition)
            if owner is not None:
                owner.on_commands(some)

    def _on_tail_error(self, error: LogError) -> None:
        logger.error("commands_unreadable", extra={"problem": str(error)})
        _call(self._loop, self._commands_failed, str(error))

    def _commands_failed(self, problem: str) -> None:
        for owner in self._owners.values():
            owner.lose(f"commands cannot be read: {problem}", again=True)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    """Hand over to the loop from another thread; nothing happens when the loop is closed already."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        logger.debug("loop_closed")
