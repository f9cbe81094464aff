"""Schedules start runs: every API process compares them with its clock, and the log decides that each instant has one.

What makes an instant fire once is not who looks at the clock: the start carries an idempotency key made of app, node
and instant, so the partition's owner accepts one of the starts that all replicas send. That the instant is over is a
fact that is written behind its start; a process that dies in between leaves a start that is sent again and is the same
run. After a downtime the newest instant that was missed fires, once; those before it do not. An instant whose start is
refused by a limit, or cannot be decided, stays due until it is accepted or the next one comes.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from libs.events.ids import execution_id
from libs.events.log import LogError
from libs.events.registry import AppCreated, RegistryTail, VersionPublished
from libs.events.sealing import SealError
from libs.events.triggers import ScheduleFired
from libs.workflow.catalog import Catalog, DefinitionMissing
from libs.workflow.definition import DefinitionInvalid
from libs.workflow.roots import root_nodes
from libs.workflow.schedules import Schedule, ScheduleInvalid, schedule_of
from services.api.access import Principal
from services.api.errors import ApiError
from services.api.publishing import Publisher
from services.api.requests import RunRequest
from services.api.starting import RunStarter, Wanted
from services.api.threads import Threads

logger = logging.getLogger(__name__)

KIND: Final = "trigger-schedule"
USER: Final = "schedule"
AT_ONCE: Final = 32
"""Starts under way: each may wait for an executor."""

FIRST_WAIT_US: Final = 1_000_000
LONGEST_WAIT_US: Final = 30_000_000
"""Between two tries of an instant that is refused: each leaves two records in the log."""


_Schedules = tuple[tuple[str, Schedule], ...]
"""(node, schedule) for each root of a document that is a schedule."""


@dataclass(slots=True, frozen=True)
class _Scheduled:
    app: AppCreated
    version: VersionPublished
    node_id: str
    schedule: Schedule


@dataclass(slots=True, frozen=True)
class _Held:
    """An instant that was refused for now, until when it is left alone, and for how long that is."""

    due_us: int
    until_us: int
    wait_us: int


class Scheduler:
    """`start` begins to look, `stop` ends that. On one event loop."""

    def __init__(
        self,
        registry: RegistryTail,
        catalog: Catalog,
        starter: RunStarter,
        publisher: Publisher,
        threads: Threads,
        *,
        now_us: Callable[[], int],
        look_s: float,
    ) -> None:
        self._registry = registry
        self._catalog = catalog
        self._starter = starter
        self._publisher = publisher
        self._threads = threads
        self._now_us = now_us
        self._look_s = look_s
        self._known: dict[str, _Schedules] = {}
        """By digest of a document."""
        self._scheduled: list[_Scheduled] = []
        self._next: dict[tuple[str, str], tuple[Schedule, int, int | None]] = {}
        self._held: dict[tuple[str, str], _Held] = {}
        self._read_to = -1
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._end_listening: Callable[[], None] = lambda: None
        self._at_once = asyncio.Semaphore(AT_ONCE)

    def start(self) -> None:
        loop = asyncio.get_running_loop()

        def changed() -> None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._changed.set)

        self._end_listening = self._registry.listen(changed)
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        self._end_listening()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self._look()
            except (LogError, SealError) as error:
                logger.warning("schedules_unread", extra={"problem": str(error)})
            except Exception:  # one schedule's trouble must not end all the others'
                logger.exception("schedules_failed")
            if self._scheduled:
                await asyncio.sleep(self._look_s)  # the clock tells nobody that it was set
            else:
                await self._changed.wait()

    async def _look(self) -> None:
        """Fire what is due. Raises LogError, SealError."""
        if self._read_to != self._registry.position:
            await self._read()
        if not any(self._due(one) is not None for one in self._scheduled):
            return
        # What another replica has fired meanwhile is over here too; and a registry that still reads its beginning
        # does not know yet what was fired long ago.
        await self._threads.run(self._registry.catch_up)
        await self._read()
        due = [(one, at_us) for one in self._scheduled if (at_us := self._due(one)) is not None]
        await asyncio.gather(*(self._fire(one, at_us) for one, at_us in due))

    async def _read(self) -> None:
        """The schedules of the newest versions of all apps."""
        self._read_to = self._registry.position
        found: list[_Scheduled] = []
        known: dict[str, _Schedules] = {}
        for app in self._registry.apps():
            version = self._registry.latest(app.app_id)
            if version is None:
                continue
            digest = version.digest
            if digest not in known:
                known[digest] = self._known[digest] if digest in self._known else await self._of(digest)
            found += (_Scheduled(app, version, *scheduled) for scheduled in known[digest])
        self._known, self._scheduled = known, found

    async def _of(self, digest: str) -> _Schedules:
        """The schedules of a document; one that means nothing is left out, and logged."""
        text = self._registry.document(digest)
        if text is None or KIND not in text:
            return ()  # most documents: not worth compiling
        try:
            definition = await self._threads.run(self._catalog.get, digest)
        except (DefinitionMissing, DefinitionInvalid) as error:
            logger.error("schedule_invalid", extra={"digest": digest, "problem": str(error)})
            return ()
        found: list[tuple[str, Schedule]] = []
        for node in root_nodes(definition):
            try:
                if node.type == KIND:
                    found.append((node.id, schedule_of(node.data)))
            except ScheduleInvalid as error:
                logger.error("schedule_invalid", extra={"digest": digest, "node_id": node.id, "problem": str(error)})
        return tuple(found)

    def _due(self, one: _Scheduled) -> int | None:
        """The newest instant that is due and not over. A version's schedule begins when it is published."""
        triggers = self._registry.triggers
        fired = triggers.fired(one.app.app_id, one.node_id)
        switched = triggers.switched(one.app.app_id, one.node_id)
        if switched is not None and not switched.enabled:
            return None
        after_us = max(
            one.version.published_at_us,
            fired.due_us if fired is not None else 0,
            switched.switched_at_us if switched is not None else 0,  # what it missed while it was off is lost
        )
        now_us = self._now_us()
        next_us = self._next_us(one, after_us)
        if next_us is None or next_us > now_us:
            return None
        due_us = one.schedule.last_us(now_us, after_us)
        held = self._held.get((one.app.app_id, one.node_id))
        return None if held is not None and held.due_us == due_us and now_us < held.until_us else due_us

    def _next_us(self, one: _Scheduled, after_us: int) -> int | None:
        """Worked out once for each instant that is over: an instant of every minute takes some milliseconds."""
        key = (one.app.app_id, one.node_id)
        known = self._next.get(key)
        if known is None or known[:2] != (one.schedule, after_us):
            known = self._next[key] = (one.schedule, after_us, one.schedule.next_us(after_us))
        return known[2]

    async def _fire(self, one: _Scheduled, due_us: int) -> None:
        """Start the run of an instant, then let the instant be over."""
        app_id = one.app.app_id
        key = execution_id(app_id, str(due_us), one.node_id)
        wanted = Wanted(
            Principal(one.app, surface="trigger"),
            one.app,
            one.version,
            USER,
            RunRequest({}, (), False, key),
            USER,  # what tells the starts of one instant apart: nothing, whatever version a replica knows
            triggered_from="schedule",
            invoke_from="trigger",
            root=one.node_id,
        )
        where = {"app_id": app_id, "node_id": one.node_id, "due_us": due_us}
        run_id: str | None = None
        async with self._at_once:
            try:
                run_id = (await self._starter.begun(wanted)).run_id
            except ApiError as error:
                if error.status == 429 or error.status >= 500:
                    wait_s = self._hold(app_id, one.node_id, due_us) / 1e6
                    logger.warning("schedule_delayed", extra=where | {"problem": error.message, "wait_s": wait_s})
                    return  # it stays due, under the same key
                logger.error("schedule_refused", extra=where | {"problem": error.message})
        self._held.pop((app_id, one.node_id), None)
        fired = self._registry.triggers.fired(app_id, one.node_id)
        if fired is not None and fired.due_us >= due_us:
            return  # another replica has said so
        over = ScheduleFired(
            app_id=app_id, node_id=one.node_id, due_us=due_us, run_id=run_id, fired_at_us=self._now_us()
        )
        try:
            await self._publisher.record([over])
        except ApiError as error:
            # It fires again under the same key, which is the same run.
            logger.warning("schedule_unrecorded", extra=where | {"problem": error.message})

    def _hold(self, app_id: str, node_id: str, due_us: int) -> int:
        """Leave the instant alone for a while, longer each time; for how many microseconds."""
        before = self._held.get((app_id, node_id))
        if before is None or before.due_us != due_us:
            wait_us = FIRST_WAIT_US
        else:
            wait_us = min(2 * before.wait_us, LONGEST_WAIT_US)
        self._held[app_id, node_id] = _Held(due_us, self._now_us() + wait_us, wait_us)
        return wait_us
