"""A broker that goes away, that freezes, and whose topics hold what nobody of us wrote.

Oracles: what stands in the log (`Ledger.check`), what every client saw (`Follower.check`), whom the outside service
heard from (one idempotency key per call).
"""

import json
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer

from libs.events.model import CommandRejected
from tests import servers
from tests.e2e.calling import chain
from tests.e2e.deployment import Api, Deployment, Service, deployment, wait_until
from tests.e2e.following import Follower
from tests.e2e.ledger import Ledger
from tests.e2e.witness import Witness

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def deployed(
    private_kafka: servers.Kafka, private_prefix: str, postgres_url: str, tmp_path: Path
) -> Iterator[Deployment]:
    with deployment(private_kafka.bootstrap, private_prefix, postgres_url, tmp_path) as it:
        yield it
        private_kafka.resume()


@pytest.fixture
def witness() -> Iterator[Witness]:
    with Witness() as it:
        yield it


def one_key_per_call(witness: Witness) -> None:
    """A call that was made again carried the key of the first time; no two calls share one."""
    paths = defaultdict(set)
    for call in witness.calls:
        paths[call.key].add(call.path)
    assert None not in paths
    assert all(len(found) == 1 for found in paths.values())


def wanted(key: str, idempotency_key: str) -> dict[str, Any]:
    """A start, as httpx takes it."""
    body = {"inputs": {"q": "x"}, "response_mode": "blocking", "user": "tester"}
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": idempotency_key}
    return {"json": body, "headers": headers, "timeout": 60}


def post(url: str, key: str, idempotency_key: str) -> httpx.Response:
    return httpx.post(url + "/v1/workflows/run", trust_env=False, **wanted(key, idempotency_key))


def answered(url: str, key: str, idempotency_key: str) -> str:
    """The run that a start with this key made, asked for until it is known."""
    answers: list[httpx.Response] = []

    def known() -> bool:
        answers.append(post(url, key, idempotency_key))
        return answers[-1].status_code != 503

    wait_until(known, "an answer to the start")
    assert answers[-1].status_code == 200, answers[-1].text
    return answers[-1].headers["X-Workflow-Run-Id"]


def health_port(service: Service) -> int:
    """Of an executor or projector."""
    return next(int(json.loads(line)["port"]) for line in service.log if " health and metrics" in line)


def readiness(service: Service) -> str:
    """What `/readyz` of this executor says that keeps it from its work; empty when nothing does."""
    answer = httpx.get(f"http://127.0.0.1:{health_port(service)}/readyz", timeout=30, trust_env=False)
    said = answer.json()
    assert (answer.status_code == 200) == ("problem" not in said)
    return str(said.get("problem", ""))


def under_way(witness: Witness, service: Service, key: str, runs: int, calls: int) -> list[Follower]:
    """Runs of a chain that were started at this API, once more than so many calls have been made."""
    followers = [Follower(service.url, key, {"q": str(number)}) for number in range(runs)]
    for follower in followers:
        follower.wait_accepted()
    wait_until(lambda: len(witness.calls) > calls, "calls of all runs under way")
    return followers


def once_only(service: Service, key: str) -> set[str]:
    """The one run of the start that was not confirmed, however often it is asked for."""
    made = {answered(service.url, key, "once") for _ in range(3)}
    assert len(made) == 1
    return made


def check_ends(deployed: Deployment, witness: Witness, followers: list[Follower], once: Iterable[str] = ()) -> Ledger:
    """All of these runs of five calls succeeded, once each, and no process was lost; the log they left."""
    for follower in followers:
        follower.join()
        follower.check(7)
    ledger = Ledger(deployed)
    ledger.check()
    assert all(service.alive for service in deployed.services)
    assert sorted(ledger.runs) == sorted([*(follower.run_id for follower in followers), *once])
    assert all(ledger.kinds(run_id)["RunSucceeded"] == 1 for run_id in ledger.runs)
    one_key_per_call(witness)
    return ledger


@pytest.mark.alone
def test_a_broker_gone_for_20_s_costs_time_and_nothing_else(
    deployed: Deployment, private_kafka: servers.Kafka, witness: Witness
) -> None:
    service = deployed.start("api")
    api = deployed.client(service)
    executors = [deployed.start("executor"), deployed.start("executor")]
    deployed.start("projector")
    app = api.import_document(chain(witness, 5, 0.7))
    followers = under_way(witness, service, app["api_key"], 30, 45)
    private_kafka.stop()
    gone_at = time.monotonic()
    answer = api.http.post("/v1/workflows/run", **wanted(app["api_key"], "once"))  # to make a client takes time, too
    took_s = time.monotonic() - gone_at
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    assert took_s < 5
    wait_until(
        lambda: all("the log cannot be read" in readiness(each) for each in executors), "both say so", 10, every_s=0.2
    )
    time.sleep(max(0.0, 20 - (time.monotonic() - gone_at)))
    private_kafka.start()
    check_ends(deployed, witness, followers, once_only(service, app["api_key"]))
    wait_until(lambda: [readiness(each) for each in executors] == ["", ""], "both are ready again", 10, every_s=0.2)


def test_a_full_disk_of_the_broker_costs_time_and_nothing_else(
    deployed: Deployment, private_kafka: servers.Kafka, witness: Witness
) -> None:
    if not isinstance(private_kafka, servers.LocalKafka):
        pytest.skip("limits the broker's process, which a container keeps to itself")
    service = deployed.start("api")
    deployed.start("executor")
    deployed.start("projector")
    app = deployed.client(service).import_document(chain(witness, 5, 0.7))
    followers = under_way(witness, service, app["api_key"], 12, 16)
    private_kafka.take_room()
    private_kafka.wait_for_end()  # what a broker does whose only disk fails
    answer = post(service.url, app["api_key"], "once")
    assert answer.status_code == 503, answer.text
    private_kafka.start()
    check_ends(deployed, witness, followers, once_only(service, app["api_key"]))


def test_rights_that_are_taken_back_cost_time_and_nothing_else_when_they_are_given_again(
    deployed: Deployment, private_kafka: servers.Kafka, private_prefix: str, witness: Witness
) -> None:
    service = deployed.start("api")
    deployed.start("executor")
    projector = f"http://127.0.0.1:{health_port(deployed.start('projector'))}"
    api = deployed.client(service)
    app = api.import_document(chain(witness, 5, 0.7))
    followers = under_way(witness, service, app["api_key"], 12, 16)
    with servers.no_rights(private_kafka.bootstrap, [f"{private_prefix}.events", f"{private_prefix}.commands"]):
        for each in (service.url, projector):
            wait_until(partial(told, each, "authorization failed"), f"the alarm of {each}")
        answer = post(service.url, app["api_key"], "once")
        assert answer.status_code == 503, answer.text
        time.sleep(5)
        calls = len(witness.calls)
        time.sleep(1)
        assert len(witness.calls) == calls, "no effect begins without proof of ownership"
    for each in (service.url, projector):
        wait_until(partial(told, each, ""), f"{each} to go on")
    ledger = check_ends(deployed, witness, followers, once_only(service, app["api_key"]))
    assert {api.detail(app["api_key"], run_id)["status"] for run_id in ledger.runs} == {"succeeded"}
    wait_until(lambda: succeeded_rows(api) == len(ledger.runs), "the projection")


def succeeded_rows(api: Api) -> int:
    return len(api.http.get("/v1/runs?status=succeeded&limit=100", headers=api.admin).json()["data"])


def told(url: str, problem: str) -> bool:
    """Whether `/readyz` of the service tells of this problem; of none when it is empty."""
    said = str(httpx.get(f"{url}/readyz", timeout=30, trust_env=False).json().get("problem", ""))
    return problem in said if problem else not said


SESSION_MS = 1000
"""Of the executors' group."""


# While the broker is frozen its sockets still take records: what the producer reports as timed out is in the log when
# it wakes. Shorter than the group's session: the delivery error ends the epoch. Longer: the lost session does.
@pytest.mark.parametrize("timeout_ms", [600, 3000])
def test_records_reported_as_timed_out_that_are_in_the_log_cause_no_second_outcome(
    deployed: Deployment, private_kafka: servers.Kafka, witness: Witness, timeout_ms: int
) -> None:
    impatient = {"FLOWLEDGER_KAFKA_OPTIONS": f"message.timeout.ms={timeout_ms}"}
    service = deployed.start("api")
    executors = [deployed.start("executor", **impatient), deployed.start("executor", **impatient)]
    deployed.start("projector")
    app = deployed.client(service).import_document(chain(witness, 5, 0.4))
    followers: list[Follower] = []
    for _ in range(4):  # whether the client's next request or its records are in the sockets first is chance
        followers += under_way(witness, service, app["api_key"], 12, len(witness.calls) + 16)
        private_kafka.suspend()
        time.sleep(9)
        private_kafka.resume()
        ledger = check_ends(deployed, witness, followers)
        doubted = [place for executor in executors for place in in_doubt(executor)]
        landed = {(recorded.partition, recorded.epoch, recorded.n) for recorded in ledger.valid}
        if timeout_ms >= SESSION_MS or any(place in landed for place in doubted):
            return
    pytest.fail(f"the fault did not happen: {doubted}")


def in_doubt(executor: Service) -> Iterator[tuple[int, int, int]]:
    """(partition, epoch, n) of the records whose time-out ended an epoch."""
    for line in executor.log:
        if "epoch_over" in line and (found := re.search(r"record (\d+) of epoch (\d+) may or may not", line)):
            yield int(json.loads(line)["partition"]), int(found[2]), int(found[1])


GARBAGE = (b"", b"{", b"\xff\x00\xfe", b'{"type": "NoSuchThing"}', b'{"type": "StartRun"}', b"[1, 2, 3]")

_HEADERS = {"ce_specversion": b"1.0", "ce_subject": b"nobody", "ce_sequence": b"1", "ce_time": b"2026-05-02T09:13:44Z"}
FOREIGN: tuple[dict[str, bytes], ...] = (
    {},
    {"ce_type": b"flowledger.NodeSucceeded.1"},
    {"ce_type": b"\xff", "ce_epoch": b"one", "ce_n": b"\x00"},
    _HEADERS | {"ce_type": b"flowledger.NodeSucceeded.1", "ce_epoch": b"0", "ce_n": b"1"},
    _HEADERS | {"ce_type": b"flowledger.RunSucceeded.1", "ce_epoch": b"999", "ce_n": b"1"},
    _HEADERS | {"ce_type": b"flowledger.RunFailed.99", "ce_epoch": b"1", "ce_n": b"999999"},
    _HEADERS | {"ce_type": b"flowledger.PartitionClaimed.1", "ce_epoch": b"999", "ce_n": b"0"},
)


class Vandal:
    """Writes into the topics what is not of ours, until it is told to stop."""

    def __init__(self, deployed: Deployment) -> None:
        self.commands = self.events = 0
        self._prefix = deployed.settings["FLOWLEDGER_TOPIC_PREFIX"]
        self._partitions = int(deployed.settings["FLOWLEDGER_PARTITIONS"])
        self._producer = Producer({"bootstrap.servers": deployed.settings["FLOWLEDGER_KAFKA"]})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(10) == 0

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            for partition in range(self._partitions):
                for value in (*GARBAGE, None):
                    self._producer.produce(f"{self._prefix}.commands", value, partition=partition)
                    self.commands += 1
                for headers in FOREIGN:
                    for body in (None, b"\x00garbage", b"{}"):
                        self._producer.produce(
                            f"{self._prefix}.events", body, partition=partition, headers=list(headers.items())
                        )
                        self.events += 1
            self._producer.poll(0)


def test_garbage_and_foreign_records_are_ignored_and_unreadable_commands_answered(
    deployed: Deployment, witness: Witness
) -> None:
    service = deployed.start("api")
    others = [deployed.start("executor"), deployed.start("projector")]
    app = deployed.client(service).import_document(chain(witness, 4, 0.3))
    vandal = Vandal(deployed)
    followers = [Follower(service.url, app["api_key"], {"q": str(number)}) for number in range(12)]
    for follower in followers:
        follower.join()
        follower.check(6)
    vandal.stop()
    # Decided in order: when this one is answered, so is everything before it in its partition.
    last = [answered(service.url, app["api_key"], f"last-{number}") for number in range(16)]
    ledger = Ledger(deployed)
    ledger.check()
    assert len(ledger.ignored) == vandal.events > 0
    rejections = [(r.partition, r.event) for r in ledger.valid if isinstance(r.event, CommandRejected)]
    assert {partition for partition, _ in rejections} == {0, 1, 2, 3}
    assert Counter(rejected.code for _, rejected in rejections) == {"unreadable": vandal.commands}
    assert len({(partition, rejected.command_offset) for partition, rejected in rejections}) == vandal.commands
    assert sorted(ledger.runs) == sorted([*(follower.run_id for follower in followers), *last])
    assert len(witness.calls) == 4 * len(ledger.runs)
    assert service.alive
    assert all(other.alive for other in others)
    api = deployed.client(service)
    wait_until(lambda: api.detail(app["api_key"], last[-1])["status"] == "succeeded", "the projection")
