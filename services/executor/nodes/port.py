"""What the executor needs of a node handler. One handler per node type, in the module of its name.

A handler never sees the log. It answers a value (`Succeeded` or `Failed`); an exception that escapes it is recorded
as a failed node. It runs at least once per attempt: after the loss of its owner the same attempt runs again, with the
same `key`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from libs.workflow.conversation import Turn
from libs.workflow.definition import Definition, Node
from libs.workflow.outcome import Outcome
from libs.workflow.pool import Pool


@dataclass(slots=True, frozen=True)
class Attempt:
    """One try of one node execution, as its handler sees it."""

    run_id: str
    app_id: str
    user: str
    definition: Definition
    node: Node
    path: str
    number: int
    """1 for the first attempt."""
    key: str
    """Idempotency key for the outside world: `run/node/iteration path/attempt`."""
    pool: Pool
    """Values the run has produced, as of the attempt's start. Read only; read before the first `await`."""
    emit: Callable[[str, str], None]
    """`emit(output name, text)`: text to be streamed at once. Only appends; the outcome's outputs are what holds."""
    history: tuple[Turn, ...] = ()
    """Chatflows: earlier messages of the conversation with their answers, oldest first; for nodes with a memory."""


class Handler:
    """Base of all handlers: override `evaluate` (pure, quick, at once), `run` (waits), or both."""

    effect: bool = True
    """Whether `run` touches the outside world: then it starts only after its `NodeStarted` is confirmed."""
    slot: Literal["wait", "process"] = "wait"
    """What `run` occupies: `wait` (thousands at once, never blocks the loop) or `process` (one per core)."""

    def evaluate(self, node: Node, pool: Pool) -> Outcome | None:
        """The outcome without waiting, or None: call `run`. Pure: no I/O, clock or randomness; well under 1 ms."""
        return None

    async def run(self, attempt: Attempt) -> Outcome:
        """The outcome, after waiting. Cancelled when the run stops: release everything and re-raise."""
        raise NotImplementedError
