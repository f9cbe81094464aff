"""The embedded mode: API, executor and projector in one process, over one data folder and no server.

Same services, same log port, same semantics as on Kafka. The folder holds `log.db` (the truth), `tables.db` (can be
deleted; absent where the settings name a database), `blobs/`, `admin-token`, `secret-key` and, while it runs,
`server.json` with the address. A lock on the folder decides who writes: a second process is refused.
"""

import asyncio
import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import uvicorn
import uvloop

from libs.events.archive import IMPORTING, import_under_way, partitions_of
from libs.events.blobs import FolderBlobs
from libs.events.log import LogError, Topic
from libs.events.registry import RegistryTail
from libs.events.sealing import Vault, stored_key
from libs.events.sqlite import SqliteLog
from libs.serving import hush_http, in_url, listen
from libs.settings import Settings
from libs.storage import blobs_by_setting
from libs.workflow.catalog import Catalog
from services.api.app import ApiDependencies, Beside, create_app
from services.api.connections import Connection
from services.api.main import limits_of, own_version, stored_admin_token
from services.api.records import Records
from services.executor.build import build_executor, build_handlers
from services.executor.main import owner_name, problem_of
from services.executor.metrics import ExecutorMetrics
from services.projector.embedded import open_embedded_tables
from services.projector.health import ProjectorMetrics, broken
from services.projector.projector import Projector

logger = logging.getLogger(__name__)

Ready = Callable[["Embedded"], None]

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
GRACE_S = 2.0
CLOSE_S = 2
_BACKLOG = 1024


class Embedded:
    """A running instance. `stop()` is idempotent."""

    def __init__(self, url: str, admin_token: str, loop: asyncio.AbstractEventLoop, asked: asyncio.Event) -> None:
        self.url = url
        self.admin_token = admin_token
        self._loop = loop
        self._asked = asked
        self._thread: threading.Thread | None = None

    def stop(self) -> None:
        """Hand over what runs, close the files, and return when that is done."""
        with suppress(RuntimeError):  # the loop is closed: stopped already
            self._loop.call_soon_threadsafe(self._asked.set)
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)


def start_embedded(
    data: Path, host: str, port: int, settings: Settings, *, executor: bool = True, schedules: bool = False
) -> Embedded:
    """Start in a thread; returns when requests are answered. `executor` False: nothing is executed, reads only.

    `schedules`: runs of schedules are started; who opens the folder for one command leaves them to a server.

    Raises LogInUse when another process has the folder open, LogError when it cannot be one, PortTaken, and
    SettingsError when the database of the settings is none, or is filled from another log.
    """
    if import_under_way(data):
        raise LogError(
            f"{data}: an import has not ended. Do it again (flowledger log import FILE), or remove {data / IMPORTING}"
        )
    hush_http()
    started = threading.Event()
    found: list[Embedded | BaseException] = []

    def ready(instance: Embedded) -> None:
        found.append(instance)
        started.set()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(data, host, port, settings, executor, schedules, ready))
        except BaseException as error:
            found.append(error)
            if started.is_set():
                logger.exception("embedded_instance_ended")
            started.set()

    thread = threading.Thread(target=run, name="flowledger", daemon=True)
    thread.start()
    if not started.wait(START_TIMEOUT_S):
        raise LogError(f"{data}: the embedded instance did not start within {START_TIMEOUT_S:.0f} s")
    instance = found[0]
    if isinstance(instance, BaseException):
        thread.join()
        raise instance
    instance._thread = thread  # noqa: SLF001  # same module
    return instance


async def _serve(
    data: Path, host: str, port: int, settings: Settings, execute: bool, schedules: bool, ready: Ready
) -> None:
    """Open everything, serve until asked to stop, close everything in the opposite order."""
    async with AsyncExitStack() as closing:
        listening = closing.enter_context(listen(host, port, _BACKLOG))
        url = f"http://{in_url(host)}:{listening.getsockname()[1]}"
        log = await asyncio.to_thread(SqliteLog, data, partitions_of(data))
        closing.push_async_callback(asyncio.to_thread, log.close)
        token = settings.admin_token or stored_admin_token(data)
        engine = await asyncio.to_thread(open_embedded_tables, data, settings, log)
        closing.callback(engine.dispose)
        blobs = blobs_by_setting(settings, FolderBlobs(data / "blobs"))
        closing.push_async_callback(asyncio.to_thread, blobs.close)
        key = stored_key(settings.secret_key, data, make=True)
        await asyncio.to_thread(key)
        vault = Vault(key)
        registry = await asyncio.to_thread(RegistryTail, log, vault)
        closing.callback(registry.close)
        if execute:  # who only reads sees masked values, with or without the key
            await asyncio.to_thread(registry.refresh, START_TIMEOUT_S)
            registry.check_sealed()
        catalog = Catalog(registry.document)
        projector = Projector(log, engine)
        closing.push_async_callback(asyncio.to_thread, projector.stop)
        projector.start()
        beside = [Beside("projector", partial(broken, projector), ProjectorMetrics(projector))]
        if execute:
            handlers = build_handlers(settings, log, blobs)
            closing.push_async_callback(handlers.close)
            worker = build_executor(settings, log, catalog, registry.refresh, blobs, vault, owner_name(), handlers)
            await worker.start()
            closing.push_async_callback(worker.stop, GRACE_S)
            beside.append(Beside("executor", lambda: log.problem() or problem_of(worker), ExecutorMetrics(worker)))
        instance_id = uuid.uuid4().hex
        dependencies = ApiDependencies(
            log=log,
            registry=registry,
            catalog=catalog,
            blobs=blobs,
            vault=vault,
            records=Records(engine, log.topic_id(Topic.EVENTS)),
            admin_token=token,
            version=own_version(),
            instance_id=instance_id,
            models=settings.models,
            providers=settings.providers,
            schedules=schedules,
            origins=settings.cors_origins,
            http_allow=settings.http_allow,
            limits=limits_of(settings),
            beside=tuple(beside),
        )
        await _start_api(dependencies, listening, closing)
        if execute:  # who only reads is not offered to others: their runs would not go on
            closing.enter_context(_address_file(data, url, instance_id))
        asked = asyncio.Event()
        ready(Embedded(url, token, asyncio.get_running_loop(), asked))
        await asked.wait()


async def _start_api(dependencies: ApiDependencies, listening: socket.socket, closing: AsyncExitStack) -> None:
    """Returns when requests are answered. Raises LogError when the API does not start."""
    app = create_app(dependencies)
    config = uvicorn.Config(
        app,
        http=Connection,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=CLOSE_S,
    )
    server = _Announcing(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    serving.add_done_callback(lambda _: server.begun.set())

    async def close() -> None:
        app.state.parts.streams.close()
        server.should_exit = True
        await serving

    closing.push_async_callback(close)
    await server.begun.wait()
    if not server.started:
        raise LogError("the API did not start; its log lines say why")


class _Announcing(uvicorn.Server):
    """Says when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.begun.set()


@contextmanager
def _address_file(data: Path, url: str, instance_id: str) -> Iterator[None]:
    """Where the command line finds us, for as long as we answer. Replaced in one step: nobody reads half of it."""
    address, half = data / "server.json", data / "server.json.new"
    half.write_text(json.dumps({"url": url, "instance_id": instance_id, "pid": os.getpid()}), "utf-8")
    half.replace(address)
    try:
        yield
    finally:
        address.unlink(missing_ok=True)
