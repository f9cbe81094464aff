"""Runs as their histories tell: all events of one, and its state as of any of them. Read from the log, kept nowhere."""

from libs.events.blobs import Blobs
from libs.events.codec import Recorded
from libs.events.log import Log
from libs.events.model import RunAccepted
from libs.events.sealing import Unopened
from libs.workflow.catalog import Catalog, DefinitionMissing
from libs.workflow.definition import Definition, DefinitionInvalid
from libs.workflow.machine import evolve, new_state
from libs.workflow.state import RunState
from services.api.access import Principal
from services.api.errors import ApiError, not_found
from services.api.history import read_events
from services.api.reads import Reads
from services.api.threads import Threads


class Folds:
    def __init__(self, log: Log, blobs: Blobs, catalog: Catalog, reads: Reads, threads: Threads) -> None:
        self._log = log
        self._blobs = blobs
        self._catalog = catalog
        self._reads = reads
        self._threads = threads

    async def history(self, run_id: str, principal: Principal, *, sealed: bool = False) -> list[Recorded]:
        """All events of the run as of now, with their large values; at least its first.

        `sealed`: with secrets as they stand in the log, to be copied; else as readers are shown them.
        Raises ApiError 404 when there is no such run for this caller; LogError, CodecError.
        """
        vault = Unopened() if sealed else None
        span = await self._reads.span(run_id)
        if span is not None:
            history = await self._threads.run(
                lambda: [each for batch in read_events(self._log, self._blobs, span, vault) for each in batch]
            )
            if history and principal.may_see(accepted_in(history).app_id):
                return list(history)
        raise not_found(f'run "{run_id[:64]}" does not exist')

    async def state(self, run_id: str, principal: Principal, *, sealed: bool = False) -> RunState:
        """The run as of now. Raises as `history`; ApiError 409 when its document cannot be read."""
        history = await self.history(run_id, principal, sealed=sealed)
        definition = await self._threads.run(self.definition, history)
        return await self._threads.run(fold, definition, history)

    def definition(self, history: list[Recorded]) -> Definition:
        """The document of the run. Blocking. Raises ApiError 409."""
        try:
            return self._catalog.get(accepted_in(history).digest)
        except (DefinitionMissing, DefinitionInvalid) as error:
            message = f"the document of run {history[0].run_id} cannot be read: {error}"
            raise ApiError(409, "definition_invalid", message) from error


def accepted_in(history: list[Recorded]) -> RunAccepted:
    first = history[0].event
    assert isinstance(first, RunAccepted)  # sequence 1 is nothing else
    return first


def fold(definition: Definition, history: list[Recorded], at: int | None = None) -> RunState:
    """The state behind event `at`; None: behind the last one."""
    state = new_state(definition, history[0].run_id)
    for recorded in history[:at]:
        evolve(state, recorded)
    return state
