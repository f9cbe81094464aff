"""Runs of the draft: all of it, one node, one container. Runs like any other, in the log, marked as debugging.

A single node answers with its execution when it has ended. Its document is the draft as of the request; later saves
change nothing in a run that has begun.
"""

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from libs.events.registry import AppCreated
from libs.workflow.roots import default_root
from services.api.access import Principal
from services.api.account import ADMIN_ID
from services.api.bodies import Body
from services.api.chat import conversation_of
from services.api.console import shapes
from services.api.console.apps import CONSOLE
from services.api.console.executions import executions
from services.api.console.queries import last_execution
from services.api.console.runs import asked
from services.api.console.session import CHAT_PREFIX, App, WorkflowApp
from services.api.console.variables import kept_variables
from services.api.drafting import DEBUGGING, SINGLE_STEP, draft_workflow_id
from services.api.errors import invalid_param, not_found
from services.api.frames import Json, encode
from services.api.parts import Parts
from services.api.requests import RunRequest, body_digest
from services.api.runs import asked_pins
from services.api.schemas import answers, errors, json_body, streamed
from services.api.starting import Wanted
from services.api.workflows import last_event_id


def draft_run_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/console/api/apps/{app_id}", tags=["Console"])
    run_doc = CONSOLE | json_body(shapes.DraftRunBody)
    stream = streamed(None) | errors(400, 401, 403, 404, 413, 415, 422, 429, 503)

    @router.post("/workflows/draft/run", summary="Run the draft", responses=stream, openapi_extra=run_doc)
    async def run_draft(request: Request, app: WorkflowApp, body: Body) -> Response:
        return await _stream(parts, request, await _wanted(parts, request, app, body))

    @router.post(
        f"{CHAT_PREFIX}/workflows/draft/run",
        summary="Say something to the draft of a chatflow",
        responses=stream,
        openapi_extra=CONSOLE | json_body(shapes.DraftChatBody),
    )
    async def run_draft_chat(request: Request, app: App, body: Body) -> Response:
        query = body.get("query")
        if query is not None and not isinstance(query, str):
            raise invalid_param("query: expected a string", "query")
        wanted = await _wanted(parts, request, app, {"inputs": {}} | _given(body))
        wanted = replace(wanted, query=query or "", conversation_id=conversation_of(body), annotations=True)
        return await _stream(parts, request, wanted)

    for prefix in ("", CHAT_PREFIX):
        for kind in ("iteration", "loop"):
            _container(router, parts, prefix, kind)
    _single(router, parts)
    return router


def _container(router: APIRouter, parts: Parts, prefix: str, kind: str) -> None:
    @router.post(
        f"{prefix}/workflows/draft/{kind}/nodes/{{node_id}}/run",
        summary=f"Run one {kind} of the draft",
        responses=streamed(None) | errors(400, 401, 403, 404, 413, 415, 422, 429, 503),
        openapi_extra=CONSOLE | json_body(shapes.DraftRunBody),
    )
    async def run_container(request: Request, app: App, node_id: str, body: Body) -> Response:
        wanted = await wanted_part(parts, request, app, body, node_id, kind)
        return await _stream(parts, request, wanted)


def _single(router: APIRouter, parts: Parts) -> None:
    @router.post(
        "/workflows/draft/nodes/{node_id}/run",
        summary="Run one node of the draft and wait for it",
        responses=answers(shapes.NodeExecution, 400, 401, 403, 404, 413, 415, 422, 429, 503),
        openapi_extra=CONSOLE | json_body(shapes.DraftRunBody),
    )
    async def run_node(request: Request, app: App, node_id: str, body: Body) -> Response:
        wanted = await wanted_part(parts, request, app, body, node_id, None)
        run_id = await parts.starter.finished(replace(wanted, triggered_from=SINGLE_STEP))
        return execution_answer(await execution_of(parts, run_id, node_id))

    @router.get(
        "/workflows/draft/nodes/{node_id}/last-run",
        summary="The newest execution of a node in runs of the draft",
        responses=answers(shapes.NodeExecution, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def last_run(app: App, node_id: str) -> Response:
        execution = await newest_execution(parts, app, node_id)
        if execution is None:
            raise not_found(f'node "{node_id[:64]}" has not run in the draft')
        return execution_answer(execution)


async def _stream(parts: Parts, request: Request, wanted: Wanted) -> Response:
    wanted = replace(wanted, request=replace(wanted.request, streaming=True))
    return await parts.starter.start(wanted, last_event_id(request))


async def _wanted(parts: Parts, request: Request, app: AppCreated, body: Json) -> Wanted:
    """A run of the draft, as the administrator asks for it. Raises ApiError."""
    asked_for = RunRequest.parse(request, {name: value for name, value in body.items() if name != "response_mode"})
    draft = await parts.drafting.find(app)
    if draft is None:
        raise invalid_param("the app has no draft yet. Save one first")
    version = await parts.drafting.runnable(app, draft)
    return Wanted(
        Principal(None),
        app,
        version,
        ADMIN_ID,
        asked_for,
        body_digest(body, version.digest),
        pins=asked_pins(Principal(None), body),
        triggered_from=DEBUGGING,
        invoke_from="debugger",
    )


async def wanted_part(
    parts: Parts, request: Request, app: AppCreated, body: Json, node_id: str, kind: str | None
) -> Wanted:
    """A run of one node (of type `kind`) with what earlier runs of the draft have left. Raises ApiError."""
    wanted = await _wanted(parts, request, app, body)
    definition = await parts.starter.definition(wanted.version)
    node = definition.nodes.get(node_id)
    if node is None or kind not in (None, node.type):
        raise invalid_param(f'the draft has no {kind or "node"} "{node_id[:64]}"', "node_id")
    query = body.get("query")
    kept: dict[str, Any] = await kept_variables(parts, app)
    kept.pop(node_id, None)  # what it left itself is made anew
    if isinstance(query, str):
        kept["sys"] = {**kept.get("sys", {}), "query": [query]}
        root = default_root(definition)
        if definition.nodes[root].type == "start":  # it repeats the system's variables
            kept[root] = {**kept.get(root, {}), "sys.query": [query]}
    return replace(wanted, only=node_id, kept=kept, lenient=True)


def _given(body: Json) -> Json:
    return {name: value for name, value in body.items() if value is not None}


async def newest_execution(parts: Parts, app: AppCreated, node_id: str) -> Json | None:
    """The newest execution of the node in runs of the draft; None: it has not run. Raises ApiError."""
    workflow_id = draft_workflow_id(app.app_id)
    found = await asked(parts, lambda connection: last_execution(connection, app.app_id, workflow_id, node_id))
    return None if found is None else await execution_of(parts, found[0], node_id, found[1])


async def execution_of(parts: Parts, run_id: str, node_id: str, execution_id: str | None = None) -> Json:
    history = await parts.folds.history(run_id, Principal(None))
    for one in executions(history):
        if one["node_id"] == node_id and execution_id in (None, one["id"]):
            return one
    # The run was refused or stopped before its node began: there is nothing to show of it.
    raise not_found(f'node "{node_id[:64]}" did not run')


def execution_answer(execution: Json) -> Response:
    return Response(encode(execution), media_type="application/json")
