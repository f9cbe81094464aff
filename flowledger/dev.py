"""The embedded mode: API, executor and projector in one process, over one data folder and no server.

Same services, same log port, same semantics as on Kafka. The folder holds `log.db` (the truth), `tables.db` (can be
deleted), `blobs/`, `admin-token` and, while it runs, `server.json` with the address. A lock on the folder decides who
writes: a second process is refused.
"""

import asyncio
import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn
import uvloop

from libs.events.blobs import FolderBlobs
from libs.events.log import LogError, Topic
from libs.events.registry import RegistryTail
from libs.events.sqlite import SqliteLog
from libs.settings import Settings
from libs.tables import open_engine, sqlite_url
from libs.workflow.catalog import Catalog
from services.api.app import ApiDependencies, create_app
from services.api.main import own_version, stored_admin_token
from services.api.records import Records
from services.executor.build import build_executor
from services.executor.main import owner_name
from services.executor.nodes import NodeHandlers
from services.projector.projector import Projector

logger = logging.getLogger(__name__)

Ready = Callable[["Embedded"], None]

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
GRACE_S = 2.0
CLOSE_S = 2


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


def start_embedded(data: Path, host: str, port: int, settings: Settings, *, executor: bool = True) -> Embedded:
    """Start in a thread; returns when requests are answered. `executor` False: nothing is executed, reads only.

    Raises LogError when another process has the folder open, OSError when the port is taken.
    """
    started = threading.Event()
    found: list[Embedded | BaseException] = []

    def ready(instance: Embedded) -> None:
        found.append(instance)
        started.set()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(data, host, port, settings, executor, ready))
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


async def _serve(data: Path, host: str, port: int, settings: Settings, execute: bool, ready: Ready) -> None:
    data.mkdir(parents=True, exist_ok=True)
    token = settings.admin_token or stored_admin_token(data)
    listening = _listen(host, port)
    url = f"http://{host}:{listening.getsockname()[1]}"
    log = await asyncio.to_thread(SqliteLog, data)
    engine = open_engine(sqlite_url(data / "tables.db"))
    blobs = FolderBlobs(data / "blobs")
    registry = await asyncio.to_thread(RegistryTail, log)
    catalog = Catalog(registry.document)
    projector = Projector(log, engine)
    instance_id = uuid.uuid4().hex
    handlers = NodeHandlers.build(settings)
    worker = build_executor(settings, log, catalog, registry.refresh, blobs, owner_name(), handlers)
    app = create_app(
        ApiDependencies(
            log=log,
            registry=registry,
            catalog=catalog,
            blobs=blobs,
            records=Records(engine, log.topic_id(Topic.EVENTS)),
            admin_token=token,
            version=own_version(),
            instance_id=instance_id,
            models=settings.models,
        )
    )
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", ws="none", timeout_graceful_shutdown=CLOSE_S))
    asked = asyncio.Event()
    address = data / "server.json"
    serving: asyncio.Task[None] | None = None
    try:
        projector.start()
        if execute:
            await worker.start()
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        if serving.done():
            serving.result()
            raise LogError("the API ended while it started; see its log lines")
        address.write_text(json.dumps({"url": url, "instance_id": instance_id, "pid": os.getpid()}), "utf-8")
        ready(Embedded(url, token, asyncio.get_running_loop(), asked))
        await asked.wait()
    finally:
        with suppress(FileNotFoundError):
            address.unlink()
        if serving is not None and not serving.done():
            app.state.parts.streams.close()
            server.should_exit = True
            await serving
        if execute:
            await worker.stop(GRACE_S)
        await handlers.close()
        await asyncio.to_thread(projector.stop)
        registry.close()
        await asyncio.to_thread(log.close)
        engine.dispose()
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(1024)
    return listening
