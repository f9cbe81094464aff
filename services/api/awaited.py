"""Waiting for an event that begins a run of the draft: who waits, and what an event that comes does.

An editor asks again and again whether the event has come; each question says for `WAIT_US` more that somebody waits.
That is a fact in the log, so the event may arrive at any replica, and a wait that nobody asks for ends by itself. The
event begins the run, at the replica it came to; that the wait has its run is the fact that follows, and the next
question is answered with the run. The start's idempotency key is the wait's, so a wait has one run: of two events that
come at once the second is refused, and a process that dies between start and fact leaves a start that the next event
finds. Clocks of replicas may differ by a few seconds: by so much a wait is longer or shorter there.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pydantic import JsonValue

from libs.events.registry import AppCreated, VersionPublished
from libs.events.triggers import TriggerAwaited, awaited_key
from services.api.access import Principal
from services.api.account import ADMIN_ID
from services.api.drafting import DEBUGGING, SINGLE_STEP
from services.api.parts import Parts
from services.api.requests import RunRequest
from services.api.starting import Wanted

WAIT_US: Final = 30_000_000
"""How long a question says that somebody waits, and for how long a run that has begun is waiting to be asked for."""

RENEW_US: Final = 20_000_000
"""A wait that has less left is made longer: who asks every two seconds does not write every two seconds."""


def awaited(parts: Parts, app: AppCreated, node_id: str) -> TriggerAwaited | None:
    """The wait that an event of the node ends now: for a run of the whole draft, else for one of the node alone."""
    for alone in (False, True):
        wait = parts.registry.triggers.awaited(app.app_id, node_id, alone=alone)
        if wait is not None and wait.run_id is None and parts.now_us() < wait.until_us:
            return wait
    return None


async def ask(parts: Parts, app: AppCreated, node_ids: Sequence[str], *, alone: bool) -> list[TriggerAwaited]:
    """Wait, or go on waiting, for an event of any of the nodes; the waits, in the order of the nodes.

    One that has its run is in the answer once: with that the others are over, too. Raises ApiError 503.
    """
    now_us = parts.now_us()
    waits: list[TriggerAwaited] = []
    for node_id in node_ids:
        known = parts.registry.triggers.awaited(app.app_id, node_id, alone=alone)
        if known is None or known.until_us <= now_us:
            known = TriggerAwaited(
                wait_id=parts.new_uuid(),
                app_id=app.app_id,
                node_id=node_id,
                alone=alone,
                since_us=now_us,
                until_us=now_us,
            )
        waits.append(known)
    if any(wait.run_id is not None for wait in waits):
        await end(parts, waits)
        return waits
    longer = [wait.model_copy(update={"until_us": now_us + WAIT_US}) for wait in waits if _short(wait, now_us)]
    if longer:
        await parts.publisher.record(longer)
    found = (parts.registry.triggers.awaited(app.app_id, wait.node_id, alone=alone) or wait for wait in waits)
    return list(found)  # of two that began at once the first counts


def _short(wait: TriggerAwaited, now_us: int) -> bool:
    return wait.until_us - now_us < RENEW_US


async def end(parts: Parts, waits: Sequence[TriggerAwaited]) -> None:
    """Nobody waits for these any more."""
    await parts.publisher.take_back(*(awaited_key(wait.app_id, wait.node_id, alone=wait.alone) for wait in waits))


async def begin(
    parts: Parts, app: AppCreated, version: VersionPublished, wait: TriggerAwaited, inputs: dict[str, JsonValue]
) -> tuple[str, bool]:
    """(the run of the wait, whether this event has begun it). Raises ApiError."""
    wanted = replace(debugging(app, version, wait.node_id, inputs, alone=wait.alone), body_digest=wait.wait_id)
    wanted = replace(wanted, request=replace(wanted.request, idempotency_key=f"wait/{wait.wait_id}"))
    started = await parts.starter.begun(wanted)
    until_us = parts.now_us() + WAIT_US
    # Also when another event was first: should its process have died, nobody has said so.
    await parts.publisher.record([wait.model_copy(update={"run_id": started.run_id, "until_us": until_us})])
    return started.run_id, not started.attached


def debugging(
    app: AppCreated, version: VersionPublished, node_id: str, inputs: dict[str, JsonValue], *, alone: bool
) -> Wanted:
    """A run of the draft that an event begins at a trigger, or of the trigger alone."""
    return Wanted(
        Principal(None),
        app,
        version,
        ADMIN_ID,
        RunRequest(inputs, (), True, None),
        "",
        triggered_from=SINGLE_STEP if alone else DEBUGGING,
        invoke_from="debugger",
        root=None if alone else node_id,
        only=node_id if alone else None,
    )
