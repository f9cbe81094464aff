"""Looking at a run's past over HTTP: what changed between two of its events, and why it is where it is."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import JsonValue
from starlette.responses import JSONResponse, Response

from libs.events.codec import Recorded
from libs.workflow.definition import Definition
from libs.workflow.modes import PartInvalid
from services.api import schemas
from services.api.errors import invalid_param, not_found
from services.api.frames import Json, encode
from services.api.parts import Parts
from services.api.requests import whole_number
from services.api.schemas import answers, parameters, secured
from services.api.views import show
from services.api.why import why, why_set_aside

__all__ = ["difference", "time_travel_routes"]


def time_travel_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1/runs", tags=["Runs"])
    both = secured("admin", "app_key")

    @router.get(
        "/{run_id}/diff",
        summary="What changed in a run between two of its events",
        responses=answers(schemas.Difference, 400, 401, 404, 409, 503),
        openapi_extra=both | parameters("from", "to"),
    )
    async def get_difference(request: Request, run_id: str) -> Response:
        history = await parts.folds.history(run_id, await parts.access.anyone(request))
        first, last = whole_number(request, "from", 1), whole_number(request, "to", len(history))
        assert first is not None  # they have
        assert last is not None  # defaults
        if not 1 <= first <= last <= len(history):
            raise invalid_param(f"from, to: the run has events 1 to {len(history)}, and from comes first", "from")
        return await _answer(parts, lambda definition: difference(definition, history, first, last), history)

    @router.get(
        "/{run_id}/why",
        summary="Why a run, or one of its nodes, is where it is",
        responses=answers(schemas.Why, 401, 404, 409, 503),
        openapi_extra=both | parameters("node"),
    )
    async def get_why(request: Request, run_id: str) -> Response:
        principal = await parts.access.anyone(request)
        node = request.query_params.get("node") or None
        row = await parts.reads.set_aside(run_id) if node is None else None
        if row is not None and principal.may_see(row["app_id"]):  # its history may be what cannot be read
            return JSONResponse(why_set_aside(row, admin=principal.admin))
        history = await parts.folds.history(run_id, principal)
        try:
            return await _answer(parts, lambda definition: why(definition, history, node), history)
        except PartInvalid as error:
            raise not_found(str(error), "node") from error

    return router


async def _answer(parts: Parts, made: Any, history: list[Recorded]) -> Response:
    body = await parts.threads.run(lambda: encode(made(parts.folds.definition(history))))
    return Response(body, media_type="application/json")


def difference(definition: Definition, history: list[Recorded], first: int, last: int) -> Json:
    """What is different behind event `last` from behind event `first`; both are there. Pure."""
    run_id = history[0].run_id
    before, after = (show(run_id, history[:place], definition) or {} for place in (first, last))
    return {
        "id": run_id,
        "from": first,
        "to": last,
        "status": {"from": before["status"], "to": after["status"]},
        "nodes": _changed(_states(before), _states(after)),
        "variables": _changed(_flat(before["variables"]), _flat(after["variables"])),
        "outputs": _changed(before["outputs"], after["outputs"]),
    }


def _states(shown: Json) -> dict[str, JsonValue]:
    """Node -> its state; in rounds: how often it ran, too."""
    return {
        node_id: node["status"]
        if len(node["executions"]) < 2
        else f"{node['status']} ({len(node['executions'])} times)"
        for node_id, node in shown["nodes"].items()
    }


def _flat(variables: Json) -> dict[str, JsonValue]:
    return {f"{scope}.{name}": value for scope, names in variables.items() for name, value in names.items()}


def _changed(before: Json, after: Json) -> Json:
    """Name -> `from` and `to`; either is absent where there is no value."""
    changed: Json = {}
    for name in [*before, *(name for name in after if name not in before)]:
        sides = {"from": before[name]} if name in before else {}
        sides |= {"to": after[name]} if name in after else {}
        if len(sides) < 2 or sides["from"] != sides["to"]:
            changed[name] = sides
    return changed
