"""The API as an ASGI application. `create_app` builds it from plain objects; nothing here reads the environment."""

import logging
import re
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response

from libs.events.blobs import BlobLost, Blobs
from libs.events.codec import CodecError
from libs.events.files import Files
from libs.events.log import Log, LogError
from libs.events.registry import RegistryTail
from libs.events.sealing import Vault
from libs.net import GuardedHttp
from libs.settings import Provider
from libs.workflow.catalog import Catalog, ShownCatalog
from services.api.about import about_routes
from services.api.absent import absent_routes
from services.api.access import Access
from services.api.annotating import Annotating
from services.api.annotations import annotation_routes
from services.api.apps import app_routes
from services.api.chat import chat_routes
from services.api.console import console_routes
from services.api.conversations import conversation_routes
from services.api.drafting import Drafting
from services.api.edge import Edge
from services.api.embeddings import Embedders
from services.api.end_users import EndUsers
from services.api.errors import CODES, ApiError, invalid_param, unavailable
from services.api.files import file_routes
from services.api.folds import Folds
from services.api.forks import fork_routes
from services.api.forms import form_routes
from services.api.fresh import FreshTables
from services.api.health import Beside, health_routes
from services.api.logs import log_routes
from services.api.many import many_routes
from services.api.matcher import Matcher
from services.api.metrics import ApiMetrics
from services.api.parts import Limits, Parts
from services.api.publishing import Publisher
from services.api.rate import RequestRate
from services.api.reads import Reads
from services.api.records import Records
from services.api.runs import run_routes
from services.api.scheduler import Scheduler
from services.api.schemas import SECURITY_SCHEMES, describe_errors, for_every_key
from services.api.sse import Pinger
from services.api.start_page import start_page_routes
from services.api.starting import RunStarter
from services.api.streams import RunStreams
from services.api.submit import Submitter
from services.api.tables import Tables
from services.api.tail import EventTail, TailBehind
from services.api.talks import Talks
from services.api.threads import Threads
from services.api.time_travel import time_travel_routes
from services.api.uploads import Signer, Uploads
from services.api.web import web_routes
from services.api.web_dialogues import web_dialogue_routes
from services.api.webhooks import webhook_routes
from services.api.workflows import workflow_routes

logger = logging.getLogger(__name__)

__all__ = ["ApiDependencies", "Beside", "Limits", "create_app"]


def _wall_us() -> int:
    return time.time_ns() // 1000


@dataclass(slots=True, frozen=True)
class ApiDependencies:
    """What the API is built from. The caller opens and closes these; the app only uses them."""

    log: Log
    registry: RegistryTail
    catalog: Catalog
    blobs: Blobs
    vault: Vault
    """Seals documents that may hold secrets; the same key in all services of a deployment."""
    records: Records | None
    """Read side of the tables; None: lists of runs are not available, everything else is."""
    admin_token: str = field(repr=False)
    version: str = "0.1.0"
    instance_id: str = ""
    models: str = "configured"
    """`configured`, or `offline`: a stand-in makes vectors of texts."""
    providers: Mapping[str, Provider] = field(default_factory=dict, repr=False)
    """Who makes vectors of texts, by the names of settings."""
    schedules: bool = True
    """Whether this process starts the runs of schedules; all that do share the work."""
    origins: tuple[str, ...] = ("*",)
    """Pages of these may call (CORS); `*`: of all."""
    http_allow: tuple[str, ...] = ()
    """Hosts and networks that documents may be fetched from although they are private."""
    limits: Limits = field(default_factory=Limits)
    beside: tuple[Beside, ...] = ()
    now_us: Callable[[], int] = _wall_us
    random_bits: Callable[[int], int] = secrets.randbits
    new_uuid: Callable[[], str] = lambda: str(uuid.uuid4())


def create_app(deps: ApiDependencies) -> FastAPI:
    """The application. It begins to read the log when it starts (lifespan) and stops when it shuts down."""
    parts = _build(deps)
    metrics = ApiMetrics()
    metrics.watch(parts.tail, parts.streams)
    scheduler = Scheduler(
        deps.registry,
        deps.catalog,
        parts.starter,
        parts.publisher,
        parts.threads,
        now_us=deps.now_us,
        look_s=deps.limits.schedules_s,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await parts.tail.start()
        if deps.schedules:
            scheduler.start()
        try:
            yield
        finally:
            await scheduler.stop()
            await parts.annotating.stop()
            parts.streams.close()
            parts.pinger.stop()
            await parts.tail.stop()
            await parts.http.aclose()
            parts.threads.close()
            parts.access.close()

    app = FastAPI(
        title="Flowledger",
        version=deps.version,
        description="Durable runs of Dify workflow documents over an event log.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.parts = parts
    app.include_router(workflow_routes(parts))
    app.include_router(chat_routes(parts))
    app.include_router(conversation_routes(parts))
    app.include_router(about_routes(parts))
    app.include_router(file_routes(parts))
    app.include_router(log_routes(parts))
    app.include_router(absent_routes(parts))
    app.include_router(annotation_routes(parts))  # before the paths that have an app's id in this place
    app.include_router(app_routes(parts))
    app.include_router(form_routes(parts))
    app.include_router(many_routes(parts))  # before the paths that have a run id in this place
    app.include_router(run_routes(parts))
    app.include_router(fork_routes(parts))
    app.include_router(time_travel_routes(parts))
    app.include_router(web_routes(parts))
    app.include_router(web_dialogue_routes(parts))
    app.include_router(webhook_routes(parts))
    for router in console_routes(parts):
        app.include_router(router)
    app.include_router(health_routes(parts, metrics, deps.beside))
    app.include_router(start_page_routes(parts))
    _handle_errors(app)
    app.add_middleware(Edge, version=deps.version, metrics=metrics, origins=deps.origins)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _build(deps: ApiDependencies) -> Parts:
    limits = deps.limits
    threads = Threads()
    catalog = ShownCatalog(deps.catalog)
    tables = None if deps.records is None else Tables(deps.records, limits.tables_s)
    streams = RunStreams(deps.log, deps.blobs, catalog, threads, limits.stream_buffer_bytes)
    tail = EventTail(deps.log, threads, streams.make_live, streams.close)
    reads = Reads(deps.log, deps.blobs, tail, tables, threads, limits.fresh_s)
    streams.join(tail, reads)
    submitter = Submitter(
        deps.log,
        deps.blobs,
        tail,
        now_us=deps.now_us,
        random_bits=deps.random_bits,
        send_s=limits.send_s,
        lifetime_s=limits.start_lifetime_s,
        max_app_runs=partial(_max_runs_of, deps.registry, limits.max_app_runs),
        max_runs=limits.max_runs,
    )
    files = Files(deps.log, deps.blobs, now_us=deps.now_us, random_bits=deps.random_bits)
    uploads = Uploads(files, threads, limits.blocked_extensions)
    pinger = Pinger(limits.ping_s, limits.stuck_s)
    folds = Folds(deps.log, deps.blobs, catalog, reads, threads)
    fresh = FreshTables(deps.log, tail, tables, limits.fresh_s, limits.tables_s)
    talks = Talks(fresh, submitter, deps.blobs, threads, decide_s=limits.start_lifetime_s + 1.0)
    matcher = Matcher(deps.registry.annotations, Embedders(deps.providers, offline=deps.models == "offline"), threads)
    starter = RunStarter(
        deps.registry,
        catalog,
        deps.blobs,
        tail,
        streams,
        submitter,
        uploads,
        threads,
        pinger,
        folds,
        talks,
        matcher,
        decide_s=limits.start_lifetime_s + 1.0,
    )
    publisher = Publisher(
        deps.log,
        deps.vault,
        deps.registry,
        threads,
        now_us=deps.now_us,
        new_uuid=deps.new_uuid,
        random_bits=deps.random_bits,
        keys_per_app=limits.keys_per_app,
    )
    annotating = Annotating(deps.registry.annotations, publisher, matcher, now_us=deps.now_us, new_uuid=deps.new_uuid)
    drafting = Drafting(publisher, deps.registry, threads, now_us=deps.now_us, new_uuid=deps.new_uuid)
    return Parts(
        log=deps.log,
        blobs=deps.blobs,
        registry=deps.registry,
        catalog=catalog,
        tables=tables,
        fresh=fresh,
        talks=talks,
        limits=limits,
        threads=threads,
        access=Access(deps.registry, deps.admin_token, RequestRate(limits.key_requests_per_minute, time.monotonic)),
        tail=tail,
        reads=reads,
        streams=streams,
        submitter=submitter,
        starter=starter,
        folds=folds,
        uploads=uploads,
        end_users=EndUsers(submitter),
        # Every replica has the admin token already; a link that was signed with another one is refused.
        signer=Signer(deps.admin_token, deps.now_us, deps.random_bits),
        publisher=publisher,
        drafting=drafting,
        annotating=annotating,
        pinger=pinger,
        http=GuardedHttp(deps.http_allow),
        instance_id=deps.instance_id,
        models=deps.models,
        version=deps.version,
        now_us=deps.now_us,
        new_uuid=deps.new_uuid,
    )


def _max_runs_of(registry: RegistryTail, most: int, app_id: str) -> int:
    """How many runs the app may have at once: its own limit, and at most what all apps may have. 0: any number."""
    app = registry.app(app_id)
    own = app.max_active_requests if app is not None else None
    return min((limit for limit in (own, most) if limit), default=0)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def on_api_error(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(TailBehind)
    async def on_tail_behind(_: Request, error: TailBehind) -> Response:
        return unavailable(f"this server has not read far enough to answer: {error}. Try again").response()

    @app.exception_handler(LogError)
    async def on_log_error(_: Request, error: LogError) -> Response:
        logger.warning("log_unavailable", extra={"problem": str(error)})
        return unavailable("the log cannot be read now. Try again").response()

    @app.exception_handler(BlobLost)
    async def on_blob_lost(_: Request, error: BlobLost) -> Response:
        # Its text names folders of this machine: for the log, not for clients.
        logger.error("value_lost", extra={"problem": str(error)})
        text = "a large value of the run is not there any more, so its history cannot be shown. Put the blobs back"
        return ApiError(500, "internal_server_error", text).response()

    @app.exception_handler(CodecError)
    async def on_codec_error(_: Request, error: CodecError) -> Response:
        logger.error("event_unreadable", extra={"problem": str(error)})
        return ApiError(500, "internal_server_error", "an event of the run cannot be read by this server").response()

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        code = CODES.get(error.status_code, "unknown")
        message = str(error.detail)
        headers = dict(error.headers or {})
        if error.status_code == 404:
            message = f"there is no {request.url.path}"
        if error.status_code == 405:
            # A route knows its own method only; the path may have others.
            allowed = allowed_methods(app.openapi(), request.url.path)
            headers["Allow"] = ", ".join(allowed)
            if request.method == "OPTIONS":
                return Response(headers=headers)
            message = f"{request.url.path} knows {headers['Allow']}, not {request.method}"
        return ApiError(error.status_code, code, message, headers=headers).response()

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> Response:
        found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        return invalid_param("\n".join(found)).response()


def allowed_methods(document: dict[str, Any], path: str) -> list[str]:
    """The methods that the document has for a path, and those that all paths have.

    Where two of its paths match, the one with fewer parameters.
    """
    patterns = {one: re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(one)) for one in document["paths"]}
    matching = [one for one, pattern in patterns.items() if re.fullmatch(pattern, path)]
    closest = min(matching, key=lambda one: one.count("{"), default=None)
    methods = set() if closest is None else {method.upper() for method in document["paths"][closest]}
    return sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))


def _openapi(app: FastAPI) -> dict[str, Any]:
    if not app.openapi_schema:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        made.setdefault("components", {})["securitySchemes"] = SECURITY_SCHEMES
        describe_errors(made)
        for_every_key(made)
        app.openapi_schema = made
    return app.openapi_schema
