"""Triggers of an app at the console: addresses of webhooks, and what begins the published version."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.codec import rfc3339
from libs.events.registry import AppCreated
from libs.events.triggers import TriggerSwitched, WebhookCreated
from libs.workflow.definition import Node
from libs.workflow.roots import root_nodes
from services.api.bodies import Body
from services.api.console import shapes
from services.api.console.apps import CONSOLE
from services.api.console.asked import boolean, text
from services.api.console.session import App
from services.api.errors import invalid_param, not_found
from services.api.frames import Json
from services.api.parts import Parts
from services.api.schemas import answers, json_body, parameters

KINDS = ("trigger-webhook", "trigger-schedule", "trigger-plugin")


def trigger_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/console/api/apps/{app_id}", tags=["Console"])

    @router.get(
        "/workflows/triggers/webhook",
        summary="The address of a webhook node; made when it is first asked for",
        responses=answers(shapes.Webhook, 400, 401, 403, 404, 503),
        openapi_extra=CONSOLE | parameters("node_id", required=("node_id",)),
    )
    async def webhook(request: Request, app: App) -> Response:
        node_id = request.query_params.get("node_id")
        if not node_id:
            raise invalid_param("node_id is required", "node_id")
        made = parts.registry.triggers.address(app.app_id, node_id)
        if made is None:
            made = await _made(parts, app, node_id)
        base = str(request.base_url).rstrip("/")
        return JSONResponse(
            {
                "id": made.webhook_id,
                "webhook_id": made.webhook_id,
                "webhook_url": f"{base}/triggers/webhook/{made.webhook_id}",
                "webhook_debug_url": f"{base}/triggers/webhook-debug/{made.webhook_id}",
                "node_id": made.node_id,
                "created_at": rfc3339(made.created_at_us),
            }
        )

    @router.get(
        "/triggers",
        summary="What begins the published version from outside",
        responses=answers(shapes.Triggers, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def list_triggers(app: App) -> Response:
        return JSONResponse({"data": [_trigger(parts, app, node) for node in await _triggers(parts, app)]})

    @router.post(
        "/trigger-enable",
        summary="Switch a trigger on or off",
        description="A schedule that is switched on again goes on with its next instant.",
        responses=answers(shapes.Trigger, 400, 401, 403, 404, 413, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.TriggerEnableBody),
    )
    async def enable_trigger(app: App, body: Body) -> Response:
        trigger_id, on = text(body, "trigger_id"), boolean(body, "enable_trigger")
        node = next((each for each in await _triggers(parts, app) if each.id == trigger_id), None)
        if node is None:
            raise not_found(f'the published version has no trigger "{trigger_id[:64]}"')
        fact = TriggerSwitched(app_id=app.app_id, node_id=node.id, enabled=on, switched_at_us=parts.now_us())
        await parts.publisher.record([fact])
        return JSONResponse(_trigger(parts, app, node))

    return router


async def _triggers(parts: Parts, app: AppCreated) -> list[Node]:
    """Nodes of the published version that begin it from outside."""
    latest = parts.registry.latest(app.app_id)
    definition = None if latest is None else await parts.starter.definition(latest)
    roots = () if definition is None else root_nodes(definition)
    return [root for root in roots if root.type in KINDS]


def _trigger(parts: Parts, app: AppCreated, node: Node) -> Json:
    fired = parts.registry.triggers.fired(app.app_id, node.id)
    return {
        "id": node.id,
        "trigger_type": node.type,
        "title": node.title,
        "node_id": node.id,
        "status": "enabled" if parts.registry.triggers.enabled(app.app_id, node.id) else "disabled",
        "last_due_at": rfc3339(fired.due_us) if fired is not None else None,
    }


async def _made(parts: Parts, app: AppCreated, node_id: str) -> WebhookCreated:
    """The node's address; of two that are made at once both work, and the first is shown."""
    draft = await parts.drafting.find(app)
    nodes = draft.workflow["graph"].get("nodes") if draft is not None else None
    datas = {one.get("id"): one.get("data") for one in nodes or () if isinstance(one, dict)}
    data = datas.get(node_id)
    if not isinstance(data, dict) or data.get("type") != "trigger-webhook":
        raise invalid_param(f'the draft has no webhook node "{node_id[:64]}". Save it first', "node_id")
    fact = WebhookCreated(
        webhook_id=parts.publisher.make_webhook_id(),
        app_id=app.app_id,
        node_id=node_id,
        created_at_us=parts.now_us(),
    )
    await parts.publisher.record([fact])
    return parts.registry.triggers.address(app.app_id, node_id) or fact
