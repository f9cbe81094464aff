"""Values that runs of the draft have left: shown to who edits it, changed by hand, and given to runs of one node.

They are not stored anywhere: the newest execution of each node says what its values are, and what was changed by hand
since is a fact of its own. A newer execution takes the place of a change.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import JsonValue
from starlette.responses import JSONResponse, Response

from libs.events.drafts import DraftVariableChanged
from libs.events.registry import AppCreated
from libs.workflow.segments import infer
from libs.workflow.variables import fits
from services.api.bodies import Body
from services.api.console import shapes
from services.api.console.apps import CONSOLE
from services.api.console.asked import paging
from services.api.console.queries import last_outputs, last_run_inputs
from services.api.console.runs import asked
from services.api.console.secrets import MASK, masked
from services.api.console.session import App
from services.api.drafting import draft_workflow_id, named
from services.api.errors import invalid_param, not_found
from services.api.frames import Json, encode
from services.api.parts import Parts
from services.api.schemas import answers, json_body, nothing, parameters

SYSTEM: Final = "sys"
CONVERSATION: Final = "conversation"
_NAMESPACE: Final = uuid.UUID("5f0e2f5e-6f6c-4c0b-9e0e-2b1f6b7f7a10")


@dataclass(slots=True, frozen=True)
class Variable:
    kind: str
    node_id: str
    name: str
    value: JsonValue
    at_us: int
    """When its node ended, or its run was made; 0: it has its value from the draft."""
    edited: bool = False
    description: str = ""
    declared: str | None = None

    @property
    def secret(self) -> bool:
        return self.declared == "secret"

    @property
    def listed(self) -> bool:
        """Not so what a node repeats of the system's variables: nodes may read it, and it is shown once."""
        return self.kind != "node" or not self.name.startswith(f"{SYSTEM}.")

    def id(self, app_id: str) -> str:
        return str(uuid.uuid5(_NAMESPACE, json.dumps([app_id, self.node_id, self.name])))


def variable_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/console/api/apps/{app_id}/workflows/draft", tags=["Console"])

    @router.get(
        "/variables",
        summary="What runs of the draft have left, without values",
        responses=answers(shapes.VariablePage, 400, 401, 403, 404, 503),
        openapi_extra=CONSOLE | parameters("page", "limit"),
    )
    async def list_variables(request: Request, app: App) -> Response:
        page, limit = paging(request, default_limit=20)
        await parts.drafting.require(app)
        known = await _listed(parts, app)
        shown = known[(page - 1) * limit : page * limit]
        items = [_shown(app, one, values=False) for one in shown]
        return Response(encode({"items": items, "total": len(known)}), media_type="application/json")

    @router.delete(
        "/variables",
        summary="Forget all of them",
        status_code=204,
        responses=nothing(401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def delete_variables(app: App) -> Response:
        await _change(parts, app, "deleted")
        return Response(status_code=204)

    @router.get(
        "/nodes/{node_id}/variables",
        summary="What a node has left",
        responses=answers(shapes.Variables, 400, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def node_variables(app: App, node_id: str) -> Response:
        _check_node(node_id)
        await parts.drafting.require(app)
        return _items(app, [one for one in await _listed(parts, app) if one.node_id == node_id])

    @router.delete(
        "/nodes/{node_id}/variables",
        summary="Forget what a node has left",
        status_code=204,
        responses=nothing(400, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def delete_node_variables(app: App, node_id: str) -> Response:
        _check_node(node_id)
        await _change(parts, app, "deleted", node_id)
        return Response(status_code=204)

    @router.get(
        "/conversation-variables",
        summary="Conversation variables of the draft",
        responses=answers(shapes.Variables, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def conversation_variables(app: App) -> Response:
        await parts.drafting.require(app)
        return _items(app, [one for one in await _listed(parts, app) if one.kind == CONVERSATION])

    @router.get(
        "/system-variables",
        summary="System variables of the newest run of the draft",
        responses=answers(shapes.Variables, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def system_variables(app: App) -> Response:
        await parts.drafting.require(app)
        return _items(app, [one for one in await _listed(parts, app) if one.kind == SYSTEM])

    @router.get(
        "/environment-variables",
        summary="Environment variables of the draft, secrets masked",
        responses=answers(shapes.EnvironmentVariables, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def environment_variables(app: App) -> Response:
        draft = await parts.drafting.require(app)
        items = [
            {
                "id": one["id"],
                "type": "env",
                "name": one.get("name"),
                "description": one["description"],
                "selector": ["env", one.get("name")],
                "value_type": one.get("value_type"),
                "value": one.get("value"),
                "edited": False,
                "visible": True,
                "editable": True,
            }
            for one in named(masked(draft.workflow["environment_variables"]))
        ]
        return JSONResponse({"items": items})

    _one(router, parts)
    return router


def _one(router: APIRouter, parts: Parts) -> None:
    @router.get(
        "/variables/{variable_id}",
        summary="One value",
        responses=answers(shapes.Variable, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def get_variable(app: App, variable_id: str) -> Response:
        return _item(app, await _find(parts, app, variable_id))

    @router.patch(
        "/variables/{variable_id}",
        summary="Change a value for further runs of single nodes",
        responses=answers(shapes.Variable, 400, 401, 403, 404, 413, 415, 503),
        openapi_extra=CONSOLE | json_body(shapes.VariableBody),
    )
    async def patch_variable(app: App, variable_id: str, body: Body) -> Response:
        known = await _find(parts, app, variable_id)
        if body.get("name") not in (None, known.name):
            raise invalid_param("name: a node decides what its values are called", "name")
        if "value" not in body:
            return _item(app, known)
        if known.secret:
            raise invalid_param(f"value: {known.name} is a secret. Change it in the draft's variables", "value")
        _check_type(known, body["value"])
        await _change(parts, app, "set", known.node_id, known.name, body["value"])
        return _item(app, replace(known, value=body["value"], edited=True))

    @router.delete(
        "/variables/{variable_id}",
        summary="Forget a value",
        status_code=204,
        responses=nothing(401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def delete_variable(app: App, variable_id: str) -> Response:
        known = await _find(parts, app, variable_id)
        await _change(parts, app, "deleted", known.node_id, known.name)
        return Response(status_code=204)

    @router.put(
        "/variables/{variable_id}/reset",
        summary="Take a change back",
        responses=answers(shapes.Variable, 401, 403, 404, 503),
        openapi_extra=CONSOLE,
    )
    async def reset_variable(app: App, variable_id: str) -> Response:
        known = await _find(parts, app, variable_id)
        await _change(parts, app, "reset", known.node_id, known.name)
        return _item(app, await _find(parts, app, variable_id))


async def kept_variables(parts: Parts, app: AppCreated) -> dict[str, JsonValue]:
    """What a run of one node begins with, as a pool's dump has it."""
    dump: dict[str, Any] = {}
    for one in await _everything(parts, app):
        dump.setdefault(one.node_id, {})[one.name] = [one.value, *([one.declared] if one.declared else [])]
    return dump


async def _listed(parts: Parts, app: AppCreated) -> list[Variable]:
    return [one for one in await _everything(parts, app) if one.listed]


async def _everything(parts: Parts, app: AppCreated) -> list[Variable]:
    """All that is known now: of nodes, of the system, of conversations."""
    workflow_id = draft_workflow_id(app.app_id)
    outputs = await asked(parts, lambda connection: last_outputs(connection, app.app_id, workflow_id))
    inputs, made_at = await asked(parts, lambda connection: last_run_inputs(connection, app.app_id, workflow_id))
    draft = await parts.drafting.find(app)
    found = await parts.threads.run(lambda: [*_of_nodes(parts, outputs), *_of_system(parts, inputs, made_at)])
    for each in draft.workflow["conversation_variables"] if draft is not None else ():
        if isinstance(each, dict) and isinstance(each.get("name"), str):
            about = str(each.get("description") or "")
            declared = str(each.get("value_type") or "") or None
            found.append(
                Variable(CONVERSATION, CONVERSATION, each["name"], each.get("value"), 0, False, about, declared)
            )
    changes = parts.registry.drafts.variable_changes(app.app_id)
    return [one for each in found if (one := _changed(each, changes)) is not None]


def _of_nodes(parts: Parts, outputs: Mapping[str, Mapping[str, Any]]) -> list[Variable]:
    return [
        Variable("node", node_id, name, value, row["finished_at"] or 0)
        for node_id, row in outputs.items()
        for name, value in parts.reads.restored(row["outputs"]).items()
    ]


def _of_system(parts: Parts, inputs: str | None, made_at_us: int) -> list[Variable]:
    prefix = f"{SYSTEM}."
    return [
        Variable(SYSTEM, SYSTEM, name.removeprefix(prefix), value, made_at_us)
        for name, value in parts.reads.restored(inputs).items()
        if name.startswith(prefix)
    ]


def _changed(one: Variable, changes: tuple[DraftVariableChanged, ...]) -> Variable | None:
    """The value after what was done to it by hand since its node ended or its run began; None: it was forgotten."""
    known: Variable | None = one
    for change in changes:
        meant = change.node_id in ("", one.node_id) and change.name in ("", one.name)
        # A conversation variable has its value from the draft: forgetting it means that value again.
        if not meant or change.changed_at_us < one.at_us:
            continue
        if change.change == "set":
            known = replace(one, value=change.value, edited=True)
        elif change.change == "reset" or one.kind == CONVERSATION:
            known = one
        else:
            known = None
    return known


async def _find(parts: Parts, app: AppCreated, variable_id: str) -> Variable:
    for one in await _listed(parts, app):
        if one.id(app.app_id) == variable_id:
            return one
    raise not_found(f'the draft has no variable "{variable_id[:64]}"')


async def _change(
    parts: Parts, app: AppCreated, change: Any, node_id: str = "", name: str = "", value: JsonValue = None
) -> None:
    fact = DraftVariableChanged(
        change_id=parts.new_uuid(),
        app_id=app.app_id,
        node_id=node_id,
        name=name,
        change=change,
        value=value,
        changed_at_us=parts.now_us(),
    )
    await parts.publisher.record([fact])


def _check_type(known: Variable, value: JsonValue) -> None:
    """Raises ApiError 400 when the variable cannot have this value. Of lists, only that it is one is asked."""
    if known.declared is None and known.value is None:
        return
    shown, given = known.declared or infer(known.value).shown_type, infer(value).shown_type
    fitting = fits(value, known.declared) if known.declared else given.partition("[")[0] == shown.partition("[")[0]
    if not fitting:
        raise invalid_param(f"value: {known.name} is a {shown}, got a value of type {given}", "value")


def _check_node(node_id: str) -> None:
    if node_id in (SYSTEM, CONVERSATION):
        raise invalid_param(f'"{node_id}" is no node', "node_id")


def _items(app: AppCreated, variables: list[Variable]) -> Response:
    shown = [_shown(app, one, values=True) for one in variables]
    return Response(encode({"items": shown}), media_type="application/json")


def _item(app: AppCreated, variable: Variable) -> Response:
    return Response(encode(_shown(app, variable, values=True)), media_type="application/json")


def _shown(app: AppCreated, one: Variable, *, values: bool) -> Json:
    shown: Json = {
        "id": one.id(app.app_id),
        "type": one.kind,
        "name": one.name,
        "description": one.description,
        "selector": [one.node_id, one.name],
        "value_type": one.declared or infer(one.value).shown_type,
        "edited": one.edited,
        "visible": True,
        "is_truncated": False,
    }
    return shown | ({"value": MASK if one.secret else one.value, "full_content": None} if values else {})
