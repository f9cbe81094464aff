"""The projector as people start it: on real servers, killed, asked to stop, refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from libs.events.kafka import KafkaLog
from libs.tables import open_engine
from services.projector.rebuild import rebuild
from tests import servers
from tests.projections import Owner, append, dump, entry, interleaved, run_id, story

PARTITIONS = 4  # of the topics that `kafka_prefix` makes


@contextmanager
def process(**settings: str) -> Iterator[subprocess.Popen[str]]:
    """`flowledger projector` with these settings; killed at the end if it still runs."""
    code = "from flowledger.cli import main; main()"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLOWLEDGER_")}
    started = subprocess.Popen(
        [sys.executable, "-c", code, "projector", "--port", "0"],
        env=clean | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def settings_for(bootstrap: str, prefix: str, database: str) -> dict[str, str]:
    return {
        "FLOWLEDGER_KAFKA": bootstrap,
        "FLOWLEDGER_TOPIC_PREFIX": prefix,
        "FLOWLEDGER_PARTITIONS": str(PARTITIONS),
        "FLOWLEDGER_DATABASE_URL": database,
    }


def health_port(started: subprocess.Popen[str]) -> int:
    assert started.stderr is not None
    for line in started.stderr:
        if found := re.search(r'"port": (\d+)', line):
            return int(found[1])
    raise AssertionError("the process ended without naming its port")


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_for_lag(port: int, records: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        text = get(port, "/metrics")[1]
        lags = re.findall(r"^flowledger_projector_lag_records\{.*\} (\S+)$", text, re.MULTILINE)
        if len(lags) == PARTITIONS and sum(map(float, lags)) == records:
            return
        time.sleep(0.02)
    raise AssertionError(f"lag of {records} not reached: {text}")


@pytest.mark.kafka
@pytest.mark.postgres
def test_killed_and_started_again_it_gives_the_rows_of_a_rebuild(
    kafka_server: servers.Kafka, kafka_prefix: str, postgres_url: str
) -> None:
    log = KafkaLog(kafka_server.bootstrap, {}, kafka_prefix, PARTITIONS)
    owners = [Owner(partition) for partition in range(PARTITIONS)]
    settings = settings_for(kafka_server.bootstrap, kafka_prefix, postgres_url)

    def write(first: int) -> None:
        for owner in owners:
            ids = [run_id(first + i, owner.partition) for i in range(5)]
            append(log, [entry(one) for one in interleaved(owner, {run: story(run) for run in ids})], owner.partition)

    write(0)
    with process(**settings) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "flowledger projector ready\n"
        port = health_port(started)
        wait_for_lag(port, 0)
        assert json.loads(get(port, "/healthz")[1])["status"] == "ok"
        assert get(port, "/readyz")[0] == 200
        write(100)
        started.kill()
    with process(**settings) as started:
        port = health_port(started)
        wait_for_lag(port, 0)
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 0
    engine = open_engine(postgres_url)
    before = dump(engine)
    assert len(before["workflow_runs"]) == 2 * 5 * PARTITIONS
    rebuild(log, engine)
    assert dump(engine) == before
    engine.dispose()
    log.close()


@pytest.mark.kafka
@pytest.mark.postgres
def test_readiness_says_since_when_the_database_is_away(kafka_server: servers.Kafka, kafka_prefix: str) -> None:
    nowhere = f"postgresql://nobody@127.0.0.1:{servers.free_port()}/none"
    with process(**settings_for(kafka_server.bootstrap, kafka_prefix, nowhere)) as started:
        port = health_port(started)
        deadline = time.monotonic() + 20
        while "database down since" not in (answer := get(port, "/readyz"))[1]:
            assert time.monotonic() < deadline, answer
            time.sleep(0.02)
        assert answer[0] == 503
        assert get(port, "/healthz")[0] == 200
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [({}, "FLOWLEDGER_KAFKA"), ({"FLOWLEDGER_KAFKA": "127.0.0.1:1"}, "FLOWLEDGER_DATABASE_URL")],
)
def test_without_its_servers_it_refuses_to_start_and_names_the_setting(settings: dict[str, str], named: str) -> None:
    with process(**settings) as started:
        output, errors = started.communicate(timeout=20)
    assert started.returncode == 2
    assert named in errors
    assert output == ""
