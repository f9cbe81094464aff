"""The projector as a process: reads settings, connects log and database, serves health and metrics, ends on SIGTERM."""

import signal
import threading

from prometheus_client import CollectorRegistry, generate_latest

from libs.events.kafka import KafkaLog
from libs.events.log import LogError
from libs.events.topics import warn_of_deletion
from libs.serving import HealthServer, PortTaken, configure_logging, refuse
from libs.settings import Settings, SettingsError, load_settings
from libs.tables import TablesError, open_engine
from services.projector.health import ProjectorMetrics, readiness
from services.projector.projector import Projector

_POLL_S = 0.05
"""How often the main thread looks whether the projector came up or stopped by itself."""


def main(host: str = "127.0.0.1", port: int = 0) -> int:
    """Run until SIGTERM or SIGINT; the exit status. 1: the projector stopped by itself; 2: settings; 7: no broker."""
    configure_logging()
    try:
        settings = load_settings()
        kafka, database_url = _required(settings)
        engine = open_engine(database_url)
    except SettingsError as error:
        return refuse(f"projector: {error}", 2)
    except TablesError as error:
        return refuse(f"projector: FLOWLEDGER_DATABASE_URL: {error}", 2)
    log = KafkaLog(kafka, settings.kafka_options, settings.topic_prefix, settings.partitions)
    try:
        log.check_partitions()
        warn_of_deletion(kafka, settings.kafka_options, settings.topic_prefix, settings.partitions)
        return _serve(Projector(log, engine), host, port)
    except PortTaken as error:
        return refuse(f"projector: {error}", 2)
    except LogError as error:
        return refuse(f"projector: {error}", 7)
    finally:
        log.close()
        engine.dispose()


def _serve(projector: Projector, host: str, port: int) -> int:
    registry = CollectorRegistry()
    registry.register(ProjectorMetrics(projector))
    health = HealthServer(
        host, port, lambda: readiness(projector), lambda: generate_latest(registry), service="projector"
    )
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    projector.start()
    try:
        return _watch(projector, asked)
    finally:
        projector.stop()
        health.close()


def _required(settings: Settings) -> tuple[str, str]:
    if settings.kafka is None:
        raise SettingsError("FLOWLEDGER_KAFKA is not set. `flowledger dev` runs all services without Kafka")
    if settings.database_url is None:
        raise SettingsError(
            "FLOWLEDGER_DATABASE_URL is not set. With Kafka the tables need a database that all services reach, "
            "for example postgresql://user@host/flowledger"
        )
    return settings.kafka, settings.database_url


def _watch(projector: Projector, asked: threading.Event) -> int:
    said = False
    while not asked.wait(_POLL_S):
        if projector.failure is not None:
            return refuse(f"projector: {projector.failure}", 1)
        if projector.running and not said:
            said = True
            print("flowledger projector ready", flush=True)  # noqa: T201  # the ready line is data
    return 0
