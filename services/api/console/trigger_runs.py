"""Runs of the draft by a trigger: an editor asks until the event has come, and is answered with the run it began.

A webhook is awaited at its debug address. A schedule begins at once: nobody waits for the night to try a workflow out.
Only where other triggers are awaited beside it, it begins at its next instant, or they would never have a chance.
"""

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from libs.events.registry import AppCreated, VersionPublished
from libs.events.triggers import TriggerAwaited
from libs.workflow.definition import Node
from libs.workflow.roots import root_nodes
from libs.workflow.schedules import ScheduleInvalid, schedule_of
from services.api.awaited import ask, begin, debugging, end
from services.api.bodies import Body
from services.api.console import shapes
from services.api.console.apps import CONSOLE
from services.api.console.asked import text
from services.api.console.draft_runs import execution_answer, execution_of
from services.api.console.session import WorkflowApp
from services.api.errors import invalid_param
from services.api.frames import Cursor
from services.api.parts import Parts
from services.api.schemas import answers, errors, json_body, streamed

RETRY_IN_MS = 2000
SCHEDULE = "trigger-schedule"
AWAITED = ("trigger-webhook", SCHEDULE)
ASKING = "Asked again and again: `waiting` until the event has come, then the run."


def trigger_run_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/console/api/apps/{app_id}/workflows/draft", tags=["Console"])
    run = streamed(shapes.Waiting) | errors(400, 401, 403, 404, 413, 415, 422, 429, 503)

    @router.post(
        "/trigger/run",
        summary="Run the draft by the next event of a trigger",
        description=ASKING,
        responses=run,
        openapi_extra=CONSOLE | json_body(shapes.TriggerRunBody),
    )
    async def run_by_trigger(app: WorkflowApp, body: Body) -> Response:
        return await _whole(parts, app, [text(body, "node_id")])

    @router.post(
        "/trigger/run-all",
        summary="Run the draft by the next event of any of these triggers",
        description=ASKING,
        responses=run,
        openapi_extra=CONSOLE | json_body(shapes.TriggerRunAllBody),
    )
    async def run_by_any_trigger(app: WorkflowApp, body: Body) -> Response:
        node_ids = body.get("node_ids")
        if not isinstance(node_ids, list) or not node_ids or not all(isinstance(each, str) for each in node_ids):
            raise invalid_param("node_ids: expected a list of ids of nodes", "node_ids")
        return await _whole(parts, app, list(dict.fromkeys(node_ids)))

    @router.post(
        "/nodes/{node_id}/trigger/run",
        summary="Run one trigger alone by its next event",
        description=ASKING,
        responses=answers(shapes.NodeExecution | shapes.Waiting, 400, 401, 403, 404, 422, 429, 503),
        openapi_extra=CONSOLE,
    )
    async def run_trigger(app: WorkflowApp, node_id: str) -> Response:
        version, nodes = await _triggers(parts, app, [node_id])
        if nodes[0].type == SCHEDULE:
            run_id = await parts.starter.finished(debugging(app, version, node_id, {}, alone=True))
        else:
            waits = await ask(parts, app, [node_id], alone=True)
            if waits[0].run_id is None:
                return _waiting()
            run_id = waits[0].run_id
            await parts.starter.ended(run_id)
        return execution_answer(await execution_of(parts, run_id, node_id))

    return router


async def _whole(parts: Parts, app: AppCreated, node_ids: Sequence[str]) -> Response:
    version, nodes = await _triggers(parts, app, node_ids)
    if all(node.type == SCHEDULE for node in nodes):
        return await parts.starter.start(debugging(app, version, nodes[0].id, {}, alone=False), None)
    waits = await ask(parts, app, node_ids, alone=False)
    run_id = next((wait.run_id for wait in waits if wait.run_id is not None), None)
    if run_id is None:
        due = next((wait for node, wait in zip(nodes, waits, strict=True) if _due(parts, node, wait)), None)
        if due is None:
            return _waiting()
        run_id, _ = await begin(parts, app, version, due, {})
        await end(parts, waits)
    return parts.starter.attach(run_id, Cursor())


def _due(parts: Parts, node: Node, wait: TriggerAwaited) -> bool:
    """Whether an instant of a schedule has come since somebody began to wait for it."""
    if node.type != SCHEDULE:
        return False
    next_us = schedule_of(node.data).next_us(wait.since_us)
    return next_us is not None and next_us <= parts.now_us()


async def _triggers(
    parts: Parts, app: AppCreated, node_ids: Sequence[str]
) -> tuple[VersionPublished, tuple[Node, ...]]:
    """The draft, and the nodes of it that are to begin it. Raises ApiError 400: one of them cannot."""
    draft = await parts.drafting.find(app)
    if draft is None:
        raise invalid_param("the app has no draft yet. Save one first")
    version = await parts.drafting.runnable(app, draft)
    roots = {node.id: node for node in root_nodes(await parts.starter.definition(version))}
    for node_id in node_ids:
        node = roots.get(node_id)
        if node is None:
            raise invalid_param(f'the draft does not begin with a trigger "{node_id[:64]}"', "node_id")
        if node.type not in AWAITED:
            raise invalid_param(
                f'no event comes for node "{node_id[:64]}" of type {node.type}. '
                "Run the draft with the event as its inputs",
                "node_id",
            )
        if node.type == SCHEDULE:
            try:
                schedule_of(node.data)
            except ScheduleInvalid as error:
                raise invalid_param(f'node "{node_id[:64]}": {error}', "node_id") from error
    return version, tuple(roots[node_id] for node_id in node_ids)


def _waiting() -> Response:
    return JSONResponse({"status": "waiting", "retry_in": RETRY_IN_MS})
