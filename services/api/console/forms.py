"""Forms at the console: what a paused run waits for, its forms, and the forms of the draft's nodes, tried out."""

from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.codec import rfc3339
from libs.events.model import RunPaused
from libs.events.registry import AppCreated
from libs.workflow.definition import Definition, Node
from libs.workflow.forms import ask, outcome
from libs.workflow.modes import PartInvalid, prepare
from libs.workflow.outcome import Asked
from libs.workflow.pool import Pool
from libs.workflow.state import Form
from services.api import schemas
from services.api.access import Principal
from services.api.account import ADMIN_ID
from services.api.bodies import Body
from services.api.console import shapes
from services.api.console.apps import CONSOLE
from services.api.console.asked import text
from services.api.console.draft_runs import wanted_part
from services.api.console.session import CHAT_PREFIX, Account, App
from services.api.console.variables import kept_variables
from services.api.drafting import SINGLE_STEP
from services.api.errors import invalid_param, not_found
from services.api.forms import MAX_BYTES, asking, fitting, shown, submitted
from services.api.frames import Json, encode
from services.api.parts import Parts
from services.api.requests import read_json
from services.api.schemas import answers, json_body
from services.api.uploads import FileUser

FORM_PATH: Final = "/v1/form/human_input/"
_DRAFT: Final = "/apps/{app_id}%s/workflows/draft/human-input/nodes/{node_id}/form/"


def form_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/console/api", tags=["Console"])

    @router.get(
        "/workflow/{run_id}/pause-details",
        summary="What a paused run waits for",
        responses=answers(shapes.PauseDetails, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def pause_details(run_id: str, _: Account) -> Response:
        return JSONResponse(await _pause_details(parts, run_id))

    @router.get(
        "/form/human_input/{form_token}",
        summary="A form that a run waits for",
        responses=answers(schemas.FormDefinition, 401, 403, 404, 412, 503),
        openapi_extra=CONSOLE,
    )
    async def get_form(form_token: str, principal: Account) -> Response:
        return await shown(parts, form_token, principal)

    @router.post(
        "/form/human_input/{form_token}",
        summary="Answer a form",
        responses=answers(schemas.Nothing, 400, 401, 403, 404, 412, 413, 415, 503),
        openapi_extra=CONSOLE | json_body(schemas.WebSubmissionBody),
    )
    async def submit_form(request: Request, form_token: str, principal: Account) -> Response:
        body = await read_json(request, min(MAX_BYTES, parts.limits.max_body_bytes))
        return await submitted(parts, form_token, principal, body, ADMIN_ID)

    @router.post(
        "/apps/{app_id}/workflows/draft/human-input/nodes/{node_id}/delivery-test",
        summary="Try how a form is delivered: forms are not delivered here",
        responses=schemas.errors(400, 401, 403, 404, 413, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.DeliveryTestBody),
    )
    async def try_delivery(app: App, node_id: str, body: Body) -> Response:
        text(body, "delivery_method_id")
        raise invalid_param(
            f'node "{node_id[:64]}" delivers nothing: whoever has the token of its form answers it',
            "delivery_method_id",
        )

    for prefix in ("", CHAT_PREFIX):
        _drafts(router, parts, _DRAFT % prefix)
    return router


def _drafts(router: APIRouter, parts: Parts, path: str) -> None:
    @router.post(
        path + "preview",
        summary="The form of a node of the draft, with these values of other nodes",
        responses=answers(shapes.FormPreview, 400, 401, 403, 404, 413, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.FormPreviewBody),
    )
    async def preview(request: Request, app: App, node_id: str, body: Body) -> Response:
        node, asked = await _asked(parts, request, app, body, node_id)
        form = {"form_id": node.id, "node_id": node.id, "node_title": node.title, "form_token": None}
        made = {name: value for name, value in asked.form.items() if name != "user_actions"}
        return Response(
            encode(form | made | {"actions": asked.form["user_actions"], "expiration_time": None}),
            media_type="application/json",
        )

    @router.post(
        path + "run",
        summary="Answer the form of a node of the draft: its outputs, kept as its last run",
        responses=answers(shapes.FormOutputs, 400, 401, 403, 404, 413, 415, 422, 429, 503),
        openapi_extra=CONSOLE | json_body(shapes.FormRunBody),
    )
    async def try_form(request: Request, app: App, node_id: str, body: Body) -> Response:
        node, asked = await _asked(parts, request, app, body, node_id)
        outputs = await _outputs(parts, app, node, asked, body)
        pins: Json = {"nodes": {node.id: {"outputs": _literal(outputs), "branch": body["action"]}}}
        wanted = await wanted_part(parts, request, app, {"inputs": body.get("inputs") or {}}, node_id, node.type)
        await parts.starter.finished(replace(wanted, triggered_from=SINGLE_STEP, pins=pins))
        return Response(encode(outputs), media_type="application/json")


async def _pause_details(parts: Parts, run_id: str) -> Json:
    maker = await asking(parts, run_id)
    if maker is None:
        raise not_found(f'run "{run_id[:64]}" does not exist')
    if maker.asked.paused is None:
        return {"paused_at": None, "paused_nodes": []}
    history = await parts.folds.history(run_id, Principal(None))
    paused_us = next((each.at_us for each in reversed(history) if isinstance(each.event, RunPaused)), None)
    nodes = [
        {
            "node_id": form.opened.node_id,
            "node_title": form.title,
            "pause_type": {
                "type": "human_input",
                "form_id": form.opened.form_id,
                "backstage_input_url": FORM_PATH + form.opened.token,
            },
        }
        for form in maker.asked.open_forms()
    ]
    return {"paused_at": None if paused_us is None else rfc3339(paused_us), "paused_nodes": nodes}


async def _asked(parts: Parts, request: Request, app: AppCreated, body: Json, node_id: str) -> tuple[Node, Asked]:
    """The node of the draft, and what it asks with the given values. Raises ApiError."""
    inputs = body.get("inputs")
    if inputs is not None and not isinstance(inputs, dict):
        raise invalid_param("inputs: expected an object", "inputs")
    wanted = await wanted_part(parts, request, app, {"inputs": inputs or {}}, node_id, "human-input")
    definition = await parts.starter.definition(wanted.version)
    try:
        prepared = prepare(definition, node_id, inputs or {}, await kept_variables(parts, app))
    except PartInvalid as error:
        raise invalid_param(str(error), "inputs") from error
    node = definition.nodes[node_id]
    return node, ask(node.config, _pool(definition, prepared.variables))


def _pool(definition: Definition, variables: Json) -> Pool:
    pool = Pool()
    for variable in definition.environment:
        pool.set("env", variable.name, variable.value, variable.type)
    for node_id, names in variables.items():
        for name, value in names.items():
            pool.set(node_id, name, *value)
    return pool


async def _outputs(parts: Parts, app: AppCreated, node: Node, asked: Asked, body: Json) -> dict[str, Any]:
    """What the node gives for the answer in `body`. Raises ApiError 400."""
    action, inputs = body.get("action"), body.get("form_inputs")
    if not isinstance(action, str) or not isinstance(inputs, dict):
        raise invalid_param("form_inputs (an object) and action (a text) are required", "form_inputs")
    user = FileUser(app.app_id, Principal(None), ADMIN_ID)
    values = await fitting(parts, asked.form, asked.actions, action, inputs, user)
    return outcome(Form(node.id, "", "", asked.form, 0, action, values)).outputs


def _literal(value: Any) -> Any:
    """The value as pins give it back: their texts are templates."""
    if isinstance(value, str):
        return "{{ " + encode(value).decode() + " }}" if "{{" in value or "{%" in value else value
    if isinstance(value, dict):
        return {name: _literal(each) for name, each in value.items()}
    return [_literal(each) for each in value] if isinstance(value, list) else value
