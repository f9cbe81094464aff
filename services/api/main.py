"""`flowledger api`: one API process on Kafka and PostgreSQL. Reads the environment, builds the objects, serves."""

import asyncio
import os
import secrets
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import uvicorn
import uvloop
from sqlalchemy.engine import Engine

from libs.events.blobs import LogBlobs
from libs.events.log import LogError, Topic
from libs.events.registry import RegistryTail
from libs.events.sealing import Vault, stored_key
from libs.events.topics import warn_of_deletion
from libs.serving import PortTaken, configure_logging, in_url, listen, refuse, until_asked_to_stop
from libs.settings import Settings, SettingsError, load_settings
from libs.storage import blobs_by_setting
from libs.tables import TablesError, open_engine
from libs.workflow.catalog import Catalog
from services.api.app import ApiDependencies, Limits, create_app
from services.api.connections import Connection
from services.api.records import Records

GRACE_S = 3
_BACKLOG = 2048
TOKEN_FILE = "admin-token"


class Server(uvicorn.Server):
    """uvicorn that leaves signals to us, so that SIGTERM ends with exit code 0, and says when it listens."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn's way to say so: it would end the process with 3, which means "not found"
            self.should_exit = True
        if not self.should_exit:
            print(self._ready, flush=True)  # noqa: T201  # the ready line is data


def main(host: str = "127.0.0.1", port: int = 5001) -> int:
    """Serve until SIGTERM. Returns the exit code."""
    configure_logging()
    try:
        settings = load_settings()
    except SettingsError as error:
        return refuse(str(error), 2)
    if settings.kafka is None:
        return refuse("FLOWLEDGER_KAFKA is not set: an API of its own needs a broker. Without one: flowledger dev", 2)
    if settings.database_url is None:
        return refuse("FLOWLEDGER_DATABASE_URL is not set: an API on Kafka reads its lists from a database.", 2)
    try:
        engine = open_engine(settings.database_url)
        listener = listen(host, port, _BACKLOG)
    except TablesError as error:
        return refuse(f"FLOWLEDGER_DATABASE_URL: {error}", 2)
    except PortTaken as error:
        return refuse(str(error), 2)
    try:
        with listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, settings.kafka, engine, listener, host))
    except LogError as error:
        return refuse(str(error), 7)
    return 0


async def _serve(settings: Settings, kafka: str, engine: Engine, listener: socket.socket, host: str) -> None:
    from libs.events.kafka import KafkaLog  # here: the embedded mode uses this module and no Kafka client

    log = KafkaLog(kafka, settings.kafka_options, settings.topic_prefix, settings.partitions)
    await asyncio.to_thread(log.check_partitions)
    place = (kafka, settings.kafka_options, settings.topic_prefix, settings.partitions)
    await asyncio.to_thread(warn_of_deletion, *place)
    registry: RegistryTail | None = None
    blobs = blobs_by_setting(settings, LogBlobs(log))
    try:
        key = stored_key(settings.secret_key, settings.data, make=True)
        await asyncio.to_thread(key)  # made now, so that it can be given to the executors
        vault = Vault(key)
        registry = await asyncio.to_thread(RegistryTail, log, vault)
        topic_id = await asyncio.to_thread(log.topic_id, Topic.EVENTS)
        app = create_app(
            ApiDependencies(
                log=log,
                registry=registry,
                catalog=Catalog(registry.document),
                blobs=blobs,
                vault=vault,
                records=Records(engine, topic_id),
                admin_token=settings.admin_token or stored_admin_token(settings.data),
                version=own_version(),
                instance_id=str(uuid.uuid4()),
                models=settings.models,
                providers=settings.providers,
                origins=settings.cors_origins,
                http_allow=settings.http_allow,
                limits=limits_of(settings),
            )
        )
        config = uvicorn.Config(
            app, http=Connection, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_S
        )
        server = Server(config, f"flowledger api ready on http://{in_url(host)}:{listener.getsockname()[1]}")
        serving = asyncio.ensure_future(server.serve([listener]))
        asked = asyncio.ensure_future(until_asked_to_stop())
        await asyncio.wait([serving, asked], return_when=asyncio.FIRST_COMPLETED)
        app.state.parts.streams.close()  # clients resume elsewhere; waiting for them would use up the grace
        server.should_exit = True
        asked.cancel()
        await serving
        if not server.started:
            raise LogError("the API could not start; the log lines before this one say why")
    finally:
        if registry is not None:
            registry.close()
        engine.dispose()
        blobs.close()
        log.close()


def stored_admin_token(folder: Path) -> str:
    """The admin token in the data folder; made, printed once and kept (0600) when there is none."""
    path = folder / TOKEN_FILE
    try:
        kept = path.read_text("utf-8").strip()
        if kept:
            return kept
    except FileNotFoundError:
        pass
    token = secrets.token_urlsafe(32)
    folder.mkdir(0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(token + "\n")
    print(f"admin token (kept in {path}): {token}", file=sys.stderr)  # noqa: T201  # shown this once
    return token


def limits_of(settings: Settings) -> Limits:
    return Limits(
        key_requests_per_minute=settings.key_requests_per_minute,
        max_app_runs=settings.max_app_runs,
        max_runs=settings.max_runs,
        blocked_extensions=frozenset(settings.upload_blocked),
    )


def own_version() -> str:
    try:
        return version("flowledger")
    except PackageNotFoundError:
        return "0.0.0"


if __name__ == "__main__":
    sys.exit(main())
