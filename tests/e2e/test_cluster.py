"""Three brokers, three replicas of everything, two needed for an acknowledgement (rows 3, 4, 5 of docs/faults.md).

Oracles: as in `test_broker_faults`. Brokers take their time to come back, so only when asked:
`FLOWLEDGER_TEST_CLUSTER=1 make test ARGS=tests/e2e/test_cluster.py` (two minutes).
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.e2e.calling import chain
from tests.e2e.deployment import Deployment, deployment, wait_until
from tests.e2e.following import Follower
from tests.e2e.ledger import Ledger
from tests.e2e.test_broker_faults import answered, one_key_per_call, post
from tests.e2e.witness import Witness

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        os.environ.get("FLOWLEDGER_TEST_CLUSTER") != "1",
        reason="starts and kills three brokers, two minutes: set FLOWLEDGER_TEST_CLUSTER=1",
    ),
]

REPLICAS = 3


@pytest.fixture
def deployed(cluster: Cluster, postgres_url: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(cluster.bootstrap, cluster.create_topics(4), postgres_url, tmp_path) as it:
        yield it


def started(deployed: Deployment, witness: Witness, nodes: int) -> tuple[str, str]:
    """The whole system with an app of `nodes` calls: the URL of its API, and its key."""
    service = deployed.start("api")
    for verb in ("executor", "executor", "projector"):
        deployed.start(verb)
    return service.url, deployed.client(service).import_document(chain(witness, nodes, 0.4))["api_key"]


def under_way(url: str, key: str, witness: Witness, count: int = 12) -> list[Follower]:
    before = len(witness.calls)
    followers = [Follower(url, key, {"q": str(number)}) for number in range(count)]
    for follower in followers:
        follower.wait_accepted()
    wait_until(lambda: len(witness.calls) > before + count, "calls of the runs under way")
    return followers


def all_is_well(deployed: Deployment, witness: Witness, runs: list[str]) -> None:
    ledger = Ledger(deployed)
    ledger.check()
    assert sorted(ledger.runs) == sorted(runs)
    assert all(ledger.kinds(run_id)["RunSucceeded"] == 1 for run_id in ledger.runs)
    one_key_per_call(witness)
    assert all(service.alive for service in deployed.services)


def ended(followers: list[Follower], nodes: int) -> list[str]:
    """Their runs, each with a whole stream to a good end."""
    for follower in followers:
        follower.join()
        follower.check(nodes + 2)
    return [follower.run_id for follower in followers]


def test_brokers_that_die_one_after_the_other_cost_time_and_nothing_else(
    deployed: Deployment, cluster: Cluster
) -> None:
    """One of the three is the controller, and all lead partitions: both move, in mid-append."""
    events = deployed.settings["FLOWLEDGER_TOPIC_PREFIX"] + ".events"
    assert set(cluster.leaders(events).values()) >= {1, 2, 3}
    runs: list[str] = []
    with Witness() as witness:
        url, key = started(deployed, witness, 8)
        for number, broker in cluster.brokers.items():
            followers = under_way(url, key, witness)
            broker.kill()
            runs += ended(followers, 8)
            assert number not in cluster.leaders(events).values()
            broker.start()
            wait_until(lambda: cluster.in_sync(events) == REPLICAS, "three replicas in sync")
        all_is_well(deployed, witness, runs)


def test_without_enough_replicas_nothing_begins_and_everything_goes_on_afterwards(
    deployed: Deployment, cluster: Cluster
) -> None:
    events = deployed.settings["FLOWLEDGER_TOPIC_PREFIX"] + ".events"
    gone = [cluster.brokers[1], cluster.brokers[2]]
    with Witness() as witness:
        url, key = started(deployed, witness, 8)
        followers = under_way(url, key, witness)
        for broker in gone:
            broker.kill()
        answer = post(url, key, "once")
        assert answer.status_code == 503, answer.text
        time.sleep(2)  # calls that were under way have ended
        before = len(witness.calls)
        time.sleep(2)
        assert len(witness.calls) == before < 8 * len(followers)
        for broker in gone:
            broker.begin()
        for broker in gone:
            broker.wait()
        wait_until(lambda: cluster.in_sync(events) == REPLICAS, "three replicas in sync")
        once = {answered(url, key, "once") for _ in range(3)}
        assert len(once) == 1
        all_is_well(deployed, witness, [*ended(followers, 8), *once])
