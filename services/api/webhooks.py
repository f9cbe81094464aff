"""Requests from outside that start runs: `/triggers/webhook/{id}`; of the draft: `/triggers/webhook-debug/{id}`.

The address is the credential. What a request brings becomes the event that the workflow's webhook node takes apart;
what the node requires is checked here, so that a caller learns at once what is missing. The answer is the node's own,
and leaves when the log has the start: a caller that got it need not call again. The draft is run while an editor
waits for a call (`services.api.awaited`), and by the first call only.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from pydantic import JsonValue
from starlette.responses import JSONResponse, Response

from libs.events.ids import task_id_of
from libs.events.registry import AppCreated, VersionPublished
from libs.events.triggers import WebhookCreated
from libs.workflow.configs.flow import WebhookConfig, WebhookField
from libs.workflow.roots import roots_of
from services.api.access import Principal
from services.api.account import ADMIN_ID
from services.api.awaited import awaited, begin
from services.api.errors import ApiError, bad_request, invalid_param, not_found
from services.api.frames import Json
from services.api.multipart import MultipartInvalid, Part, parse_multipart
from services.api.parts import Parts
from services.api.requests import RunRequest, body_digest, idempotency_key, parsed, read_body
from services.api.schemas import Responses, errors
from services.api.starting import Wanted
from services.api.uploads import FileUser

MAX_BODY_BYTES: Final = 10 * 1024 * 1024
METHODS: Final = ("GET", "PUT", "PATCH", "DELETE", "HEAD")
"""Beside POST, which the OpenAPI document shows for all of them."""

USER: Final = "webhook"
_PRIVATE: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Headers that leave no trace in the log, unless the node declares them."""


def webhook_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/triggers", tags=["Triggers"])
    answered: Responses = {200: {"description": "The node's answer"}}

    async def receive(request: Request, webhook_id: str) -> Response:
        return await _receive(parts, request, webhook_id)

    router.add_api_route(
        "/webhook/{webhook_id}",
        receive,
        methods=["POST"],
        summary="Start a run by an event from outside",
        description="By the method that the webhook node names. Status and body of the answer are the node's.",
        responses=answered | errors(400, 404, 413, 422, 429, 503),
        openapi_extra={"security": []},
    )
    router.add_api_route("/webhook/{webhook_id}", receive, methods=list(METHODS), include_in_schema=False)

    async def receive_for_draft(request: Request, webhook_id: str) -> Response:
        return await _receive_for_draft(parts, request, webhook_id)

    router.add_api_route(
        "/webhook-debug/{webhook_id}",
        receive_for_draft,
        methods=["POST"],
        summary="Run the draft by an event from outside, while an editor waits for one",
        description="As the address of the published version; 409 while nobody waits.",
        responses=answered | errors(400, 404, 409, 413, 422, 429, 503),
        openapi_extra={"security": []},
    )
    router.add_api_route(
        "/webhook-debug/{webhook_id}", receive_for_draft, methods=list(METHODS), include_in_schema=False
    )
    return router


async def _receive(parts: Parts, request: Request, webhook_id: str) -> Response:
    app, version, node_id, config = await _hook(parts, webhook_id)
    principal = Principal(app, surface="trigger")
    content, event = await _call(parts, request, config, FileUser(app.app_id, principal, USER))
    wanted = Wanted(
        principal,
        app,
        version,
        USER,
        RunRequest({"webhook_data": event}, (), False, _key(request, node_id)),
        _digest(request, config, content, node_id),
        triggered_from="webhook",
        invoke_from="trigger",
        root=node_id,
    )
    started = await parts.starter.begun(wanted)
    return _answer(config, started.run_id)


async def _receive_for_draft(parts: Parts, request: Request, webhook_id: str) -> Response:
    hook = parts.registry.triggers.webhook(webhook_id)
    await parts.access.refresh()  # whoever waits may have said so at another replica, this instant
    hook = hook or parts.registry.triggers.webhook(webhook_id)
    app = parts.registry.app(hook.app_id) if hook is not None else None
    if hook is None or app is None:
        raise not_found("there is no such webhook")
    wait = awaited(parts, app, hook.node_id)
    draft = await parts.drafting.find(app) if wait is not None else None
    if wait is None or draft is None:
        raise _nobody_waits("nobody waits for a call")
    try:
        version = await parts.drafting.runnable(app, draft)
    except ApiError as error:
        if error.code != "definition_invalid":
            raise
        # Its mistakes are told to whoever edits it, not to whoever calls.
        raise _nobody_waits("the draft cannot run as it is") from error
    definition = await parts.starter.definition(version)
    node = definition.nodes.get(hook.node_id)
    if node is None or node.id not in roots_of(definition) or not isinstance(node.config, WebhookConfig):
        raise _nobody_waits("the draft does not begin with this webhook any more")
    _, event = await _call(parts, request, node.config, FileUser(app.app_id, Principal(None), ADMIN_ID))
    run_id, begun = await begin(parts, app, version, wait, {"webhook_data": event})
    if not begun:
        raise _nobody_waits("another call came first")
    return _answer(node.config, run_id)


def _nobody_waits(why: str) -> ApiError:
    return ApiError(409, "trigger_not_awaited", f"{why}. Let the editor listen to the node, then call again")


async def _call(parts: Parts, request: Request, config: WebhookConfig, user: FileUser) -> tuple["_Content", Json]:
    """The request as the node takes it: content, and the event made of it. Keeps its files. Raises ApiError."""
    if request.method.lower() != config.method:
        allowed = config.method.upper()
        message = f"this webhook is called by {allowed}, not by {request.method}"
        raise ApiError(405, "method_not_allowed", message, headers={"Allow": allowed})
    content = await _content(request)
    event = await _event(parts, request, config, content, user)
    missing = _missing(config, event)
    if missing:
        raise invalid_param(f"the webhook requires {', '.join(missing)}. Send it")
    return content, event


async def _hook(parts: Parts, webhook_id: str) -> tuple[AppCreated, VersionPublished, str, WebhookConfig]:
    """What the address leads to, in the app's newest version. Raises ApiError 404."""
    found = _published(parts, webhook_id)
    if found is None:  # another replica may have made or published it just now
        await parts.access.refresh()
        found = _published(parts, webhook_id)
    if found is None:
        raise not_found("there is no such webhook, or its workflow is not published")
    hook, app, version = found
    definition = await parts.starter.definition(version)
    node = definition.nodes.get(hook.node_id)
    if node is None or node.id not in roots_of(definition) or not isinstance(node.config, WebhookConfig):
        raise not_found("the published workflow does not begin with this webhook. Publish one that does")
    if not parts.registry.triggers.enabled(app.app_id, node.id):
        raise not_found("the webhook is switched off")
    return app, version, hook.node_id, node.config


def _published(parts: Parts, webhook_id: str) -> tuple[WebhookCreated, AppCreated, VersionPublished] | None:
    hook = parts.registry.triggers.webhook(webhook_id)
    app = parts.registry.app(hook.app_id) if hook is not None else None
    version = parts.registry.latest(app.app_id) if app is not None else None
    return None if hook is None or app is None or version is None else (hook, app, version)


def _key(request: Request, node_id: str) -> str | None:
    """The caller's key, of this address alone: one delivery may go to several webhooks of an app."""
    key = idempotency_key(request)
    return None if key is None else f"{node_id}/{key}"


@dataclass(slots=True, frozen=True)
class _Content:
    """A body taken apart; its files are not kept yet."""

    fields: Json
    files: tuple[Part, ...] = ()
    is_file: bool = False
    """The body is one file, not a form that has it."""


async def _content(request: Request) -> _Content:
    """The body, by what the request calls it. Raises ApiError."""
    content = await read_body(request, MAX_BODY_BYTES)
    kind = request.headers.get("content-type", "")
    named = kind.partition(";")[0].strip().lower()
    if not content:
        return _Content({})
    if named == "multipart/form-data":
        try:
            form = parse_multipart(kind, content)
        except MultipartInvalid as error:
            raise bad_request(f"the form cannot be read: {error}") from error
        fields = {part.name: part.text for part in form if part.filename is None}
        return _Content(fields, tuple(part for part in form if part.filename is not None))
    if named == "application/x-www-form-urlencoded":
        return _Content(dict(parse_qsl(content.decode("utf-8", "replace"), keep_blank_values=True)))
    if named == "application/octet-stream":
        return _Content({}, (Part("raw", "webhook.bin", named, content),), is_file=True)
    if named == "text/plain":
        return _Content({"raw": content.decode("utf-8", "replace")})
    value = parsed(content)
    return _Content(value if isinstance(value, dict) else {"raw": json.dumps(value)})


async def _event(parts: Parts, request: Request, config: WebhookConfig, content: _Content, user: FileUser) -> Json:
    """What the node takes apart. Keeps the files."""
    declared = _declared(config)
    shown = {name: value for name, value in request.headers.items() if name not in _PRIVATE or name in declared}
    kept = {part.name: await _kept(parts, part, user) for part in content.files}
    body, files = (kept, {}) if content.is_file else (content.fields, kept)
    return {"headers": shown, "query_params": dict(request.query_params), "body": body, "files": files}


def _digest(request: Request, config: WebhookConfig, content: _Content, node_id: str) -> str:
    """What tells two deliveries with one idempotency key apart.

    Headers that the node does not declare do not: whoever delivers again, or passes it on, sets them anew. Files are
    compared by what is in them: kept, each has an id of its own.
    """
    declared = _declared(config)
    said: Json = {
        "headers": {name: value for name, value in request.headers.items() if name in declared},
        "query_params": dict(request.query_params),
        "body": content.fields,
        "files": [[part.name, part.filename, sha256(part.content).hexdigest()] for part in content.files],
    }
    return body_digest(said, node_id)


def _declared(config: WebhookConfig) -> frozenset[str]:
    return frozenset(field.name.lower() for field in config.headers)


async def _kept(parts: Parts, part: Part, user: FileUser) -> JsonValue:
    """A file of the request as a value of the run."""
    owner = user.principal.caller(user.user).id
    one = Part("file", part.filename or "file", part.mime_type or "application/octet-stream", part.content)
    stored = await parts.uploads.take([one], user.app_id, owner)
    mention: JsonValue = {"transfer_method": "local_file", "upload_file_id": stored.file_id}
    return await parts.uploads.mentioned(part.name, mention, user)


def _missing(config: WebhookConfig, event: Json) -> list[str]:
    """What the node requires and the event lacks."""
    headers = {name.lower(): value for name, value in event["headers"].items()}
    params, body, files = event["query_params"], event["body"], event["files"]
    plain, binary = (config.content_type == kind for kind in ("text/plain", "application/octet-stream"))

    def lacking(fields: Sequence[WebhookField], there: Callable[[WebhookField], bool], what: str) -> list[str]:
        return [f"{what} {field.name}" for field in fields if field.required and not there(field)]

    def sent(field: WebhookField) -> bool:
        """Whether the node finds something that can be what it declares."""
        if plain:
            return body.get("raw") is not None
        if binary:
            return isinstance(body.get("raw", body.get(field.name)), dict)
        if field.type == "file":
            return isinstance(files.get(field.name, body.get(field.name)), dict)
        return body.get(field.name) is not None

    return [
        *lacking(config.headers, lambda field: field.name.lower() in headers, "header"),
        *lacking(config.params, lambda field: field.name in params, "query parameter"),
        *lacking(config.body, sent, "body field"),
    ]


def _answer(config: WebhookConfig, run_id: str) -> Response:
    headers = {"X-Workflow-Run-Id": run_id, "X-Task-Id": task_id_of(run_id)}
    status = config.status_code if 200 <= config.status_code < 600 else 200
    text = config.response_body.strip()
    if status in (204, 304):
        return Response(status_code=status, headers=headers)
    if not text:
        return JSONResponse({"status": "success"}, status, headers)
    try:
        return JSONResponse(json.loads(text), status, headers)
    except ValueError:
        return Response(text, status, headers, "text/plain; charset=utf-8")
