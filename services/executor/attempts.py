"""Attempts: what a due node needs, running its handler, and what comes back.

A handler's exception is the node's failure. Nothing here writes to the log: the owner decides with what comes back.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from libs.events.chunks import Chunk
from libs.workflow.conversation import turns
from libs.workflow.definition import Node, NodeKind
from libs.workflow.machine import Due
from libs.workflow.outcome import Failed, Outcome
from libs.workflow.pins import Pin, answer
from libs.workflow.state import RunState, rounds_of
from services.executor.emitter import Emitter
from services.executor.live import LiveRun
from services.executor.nodes.port import Attempt, Handler

SLOT_KINDS = ("wait", "process")
REMEMBERING = frozenset({"llm", "question-classifier", "parameter-extractor", "agent"})
"""Node types whose handlers may look at the conversation's earlier messages."""


@dataclass(slots=True, frozen=True, eq=False)
class Plan:
    """How an attempt will be answered."""

    item: Due
    node: Node
    pin: Pin | None = None
    handler: Handler | None = None
    outcome: Outcome | None = None
    """Known at once: nothing has to be waited for."""

    @property
    def launches(self) -> bool:
        """Whether something runs; a container only opens, its rounds follow by themselves."""
        return self.outcome is None and (self.pin is not None or self.handler is not None)

    @property
    def slot(self) -> str:
        return self.handler.slot if self.handler is not None and self.pin is None else "wait"

    @property
    def effect(self) -> bool:
        """Whether it may begin only when its `NodeStarted` is confirmed."""
        return self.pin is None and self.handler is not None and self.handler.effect


def plan(run: LiveRun, state: RunState, item: Due, handlers: Mapping[str, Handler]) -> Plan:
    """Pinned, answered at once, or to be waited for. Never raises."""
    node = state.definition.nodes[item.key.node_id]
    pin = run.pins.for_node(node) if run.pins is not None else None
    if pin is not None and pin.answers(item.attempt):
        return Plan(item, node, pin, outcome=None if pin.delay_s else _pinned(state, item, node, pin))
    if node.kind is NodeKind.CONTAINER:
        return Plan(item, node)
    handler = handlers.get(node.type)
    if handler is None:
        text = f"{node.type} node {node.title or node.id!r}: nothing here runs nodes of this type; pin it ({node.id})"
        return Plan(item, node, outcome=Failed(text, "NodeTypeNotSupportedError"))
    try:
        outcome = handler.evaluate(node, state.frames[item.key.path].pool)
    except Exception as error:  # a node handler's exception is the node's failure
        outcome = _escaped(error)
    return Plan(item, node, handler=handler, outcome=outcome)


async def perform(
    run: LiveRun,
    state: RunState,
    planned: Plan,
    epoch: int,
    after: int,
    publish: Callable[[list[Chunk]], None],
    still_owner: Callable[[], Awaitable[None]],
) -> Outcome:
    """Run the attempt to its outcome.

    `after`: sequence of its `NodeStarted`; `still_owner` returns when ownership is proven.
    """
    item, node, handler, pin = planned.item, planned.node, planned.handler, planned.pin
    if pin is not None:
        await asyncio.sleep(pin.delay_s)
        return _pinned(state, item, node, pin) or Failed("the pin has no answer")
    assert handler is not None
    emitter = Emitter(partial(_pattern, run.run_id, epoch, item, after), publish)
    try:
        if planned.effect:
            await still_owner()
        outcome = await handler.run(_attempt(run, state, item, node, emitter.emit))
    except asyncio.CancelledError:
        emitter.drop()
        raise
    except Exception as error:  # a node handler's exception is the node's failure
        outcome = _escaped(error)
    emitter.flush()
    return outcome


def _pattern(run_id: str, epoch: int, item: Due, after: int) -> Chunk:
    """What all chunks of an attempt have in common."""
    return Chunk(
        run_id=run_id,
        epoch=epoch,
        node_id=item.key.node_id,
        path=item.key.path,
        attempt=item.attempt,
        field="",
        position=0,
        text="",
        after=after,
    )


def _attempt(run: LiveRun, state: RunState, item: Due, node: Node, emit: Callable[[str, str], None]) -> Attempt:
    accepted = state.accepted
    assert accepted is not None
    return Attempt(
        run_id=run.run_id,
        app_id=accepted.app_id,
        user=accepted.caller.user,
        definition=state.definition,
        node=node,
        path=item.key.path,
        number=item.attempt,
        key=f"{run.run_id}/{node.id}/{item.key.path}/{item.attempt}",
        pool=state.frames[item.key.path].pool,
        emit=run.secrets.withheld(emit) if run.secrets else emit,
        history=tuple(turns(state.history)) if node.type in REMEMBERING else (),
    )


def _pinned(state: RunState, item: Due, node: Node, pin: Pin) -> Outcome | None:
    rounds = rounds_of(item.key.path)
    inputs = dict(state.accepted.inputs) if state.accepted else {}
    try:
        return answer(pin, node, rounds[-1].index if rounds else None, inputs, item.attempt)
    except Exception as error:  # a pin that does not fit is the node's failure
        return _escaped(error)


def _escaped(error: Exception) -> Failed:
    return Failed(str(error) or type(error).__name__, "WorkflowNodeError")
