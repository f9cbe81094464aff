"""Brings runs of an epoch into memory: their state, and what the conversation of a message is made of.

What the log holds of one run may be out of reach for the moment (it is asked again), gone or unreadable for good (the
run is set aside), or name a document that cannot be run (the run fails). Its neighbours notice nothing of it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from libs.events.blobs import BlobLost
from libs.events.claim_check import contains_ref
from libs.events.log import LogError, LogTruncated
from libs.events.model import Mark
from libs.events.sealing import OtherKey
from libs.workflow.catalog import DefinitionMissing
from libs.workflow.conversation import recall
from libs.workflow.definition import DefinitionInvalid
from libs.workflow.machine import new_state
from libs.workflow.state import RunState
from services.executor.live import LiveRun, load_run
from services.executor.recovery import read_marked

if TYPE_CHECKING:
    from services.executor.executor import Executor

logger = logging.getLogger(__name__)

AGAIN_S = 1.0
"""How long to wait before a log that could not be asked is asked again."""


class Fail(Protocol):
    def __call__(self, run: LiveRun, code: str, error: str) -> None:
        """End a run whose document cannot be run at all."""


class Hydration:
    """One per epoch. At most one thing of a run is read at a time: `LiveRun.loading`."""

    def __init__(
        self,
        partition: int,
        epoch: int,
        executor: "Executor",
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        go_on: Callable[[LiveRun], None],
        set_aside: Callable[[LiveRun, Exception], None],
        fail: Fail,
    ) -> None:
        """`go_on` is called when what a run waited for is there, or may be asked for again."""
        self._partition = partition
        self._epoch = epoch
        self._x = executor
        self._spawn = spawn
        self._go_on = go_on
        self._set_aside = set_aside
        self._fail = fail

    def state_of(self, run: LiveRun) -> RunState | None:
        """The state when nothing has to be waited for; else hydration begins and None is returned."""
        if run.loading:
            return None
        definition = self._x.catalog.cached(run.digest)
        if definition is None or run.in_the_log or any(contains_ref(event) for event, _ in run.ahead):
            self._load(run, partial(self._hydrate, run), "run_not_loaded")
            return None
        run.fold_ahead(new_state(definition, run.run_id), self._epoch, self._x.vault)
        return run.state

    def recall(self, run: LiveRun, state: RunState, earlier: Sequence[Mark]) -> None:
        """Read what the run's conversation is made of, as of its acceptance, unless that is under way."""
        if not run.loading:
            self._load(run, partial(self._recall, run, state, earlier), "conversation_not_read")

    def _load(self, run: LiveRun, work: Callable[[], Awaitable[None]], waits: str) -> None:
        run.loading = True
        self._spawn(self._guarded(run, work, waits))

    async def _guarded(self, run: LiveRun, work: Callable[[], Awaitable[None]], waits: str) -> None:
        try:
            await work()
        except (DefinitionMissing, DefinitionInvalid) as error:
            self._fail(run, "definition_invalid", str(error))
            return
        except (BlobLost, LogTruncated, OtherKey) as error:
            self._set_aside(run, error)
            return
        except LogError as error:
            # The log cannot be asked at the moment; that says nothing about the run.
            logger.warning(waits, extra={"run_id": run.run_id, "problem": str(error)})
            await asyncio.sleep(AGAIN_S)
        except Exception as error:  # one run's fold throws: only that run is set aside
            self._set_aside(run, error)
            return
        finally:
            run.loading = False
        self._go_on(run)

    async def _hydrate(self, run: LiveRun) -> None:
        ahead = list(run.ahead)
        arguments = (self._x.log, self._x.blobs, self._x.vault, self._partition, self._x.definition)
        state, ahead = await self._x.blocking(load_run, run, ahead, *arguments)
        run.ahead[: len(ahead)] = ahead
        run.fold_ahead(state, self._epoch, self._x.vault)
        run.records, run.snapshot, run.unread = [], None, None

    async def _recall(self, run: LiveRun, state: RunState, earlier: Sequence[Mark]) -> None:
        assert state.accepted is not None
        conversation_id = state.accepted.conversation_id
        assert conversation_id is not None
        events = await self._x.blocking(
            read_marked, self._x.log, self._x.blobs, self._x.vault, self._partition, earlier
        )
        if any(getattr(event, "conversation_id", conversation_id) != conversation_id for _, event in events):
            raise LogTruncated(f"what conversation {conversation_id} is made of is not where its runs say it is")
        run.open(state, recall(events))
