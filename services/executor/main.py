"""`flowledger executor`: an executor process on Kafka. Reads the environment, builds the objects, waits for SIGTERM."""

import asyncio
import os
import socket
import sys
import uuid

import uvloop
from prometheus_client import CollectorRegistry, generate_latest

from libs.events.blobs import LogBlobs
from libs.events.log import Log, LogError, Topic
from libs.events.registry import RegistryTail
from libs.events.sealing import Vault, stored_key
from libs.events.topics import warn_of_deletion
from libs.serving import HealthServer, PortTaken, configure_logging, refuse, until_asked_to_stop
from libs.settings import Settings, SettingsError, load_settings
from libs.storage import blobs_by_setting
from libs.workflow.catalog import Catalog
from services.executor.build import build_executor, build_handlers
from services.executor.executor import Executor
from services.executor.metrics import ExecutorMetrics

GRACE_S = 5.0
OPENING_S = 30.0
"""How long reading the definitions may take at start."""


def owner_name() -> str:
    """Unique per process start: two claims with the same name would be taken for one owner."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def main(host: str = "127.0.0.1", port: int = 0) -> int:
    """Run until SIGTERM. Returns the exit code."""
    configure_logging()
    try:
        settings = load_settings()
    except SettingsError as error:
        return refuse(str(error), 2)
    if settings.kafka is None:
        return refuse("FLOWLEDGER_KAFKA is not set: an executor of its own needs a broker.", 2)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, host, port))
    except PortTaken as error:
        return refuse(str(error), 2)
    except LogError as error:
        return refuse(str(error), 7)
    return 0


async def _serve(settings: Settings, host: str, port: int) -> None:
    assert settings.kafka is not None
    from libs.events.kafka import KafkaLog  # here: the embedded mode uses this module and no Kafka client

    log = KafkaLog(settings.kafka, settings.kafka_options, settings.topic_prefix, settings.partitions)
    await asyncio.to_thread(log.check_partitions)
    place = (settings.kafka, settings.kafka_options, settings.topic_prefix, settings.partitions)
    await asyncio.to_thread(warn_of_deletion, *place)
    vault = Vault(stored_key(settings.secret_key, settings.data, make=False))
    registry = await asyncio.to_thread(RegistryTail, log, vault)
    await asyncio.to_thread(registry.refresh, OPENING_S)
    registry.check_sealed()
    catalog = Catalog(registry.document)
    blobs = blobs_by_setting(settings, LogBlobs(log))
    handlers = build_handlers(settings, log, blobs)
    executor = build_executor(settings, log, catalog, registry.refresh, blobs, vault, owner_name(), handlers)
    metrics = CollectorRegistry()
    metrics.register(ExecutorMetrics(executor))
    health = HealthServer(host, port, lambda: readiness(executor, log), lambda: generate_latest(metrics), "executor")
    try:
        await executor.start()
        print("flowledger executor ready", flush=True)  # noqa: T201  # the ready line is data
        await until_asked_to_stop()
    finally:
        await executor.stop(GRACE_S)
        await handlers.close()
        health.close()
        registry.close()
        blobs.close()
        log.close()


def readiness(executor: Executor, log: Log) -> str | None:
    """None when runs can go on here, else what keeps them from it. Asks the log, so it may take its time."""
    problem = problem_of(executor)
    if problem is not None:
        return problem
    try:
        log.bounds(Topic.COMMANDS, 0)
    except LogError as error:
        return f"the log cannot be read: {error}"
    return None


def problem_of(executor: Executor) -> str | None:
    """What the executor itself knows of."""
    if not executor.alive():
        return "the event loop does not tick"
    if executor.health.alarms:
        return "; ".join(f"partition {number}: {why}" for number, why in executor.health.alarms.items())
    return None


if __name__ == "__main__":
    sys.exit(main())
