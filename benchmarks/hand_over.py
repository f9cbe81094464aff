"""How long does a partition stand still when executors are restarted one after the other, under load?

Two executors, a broker and a database; runs of short HTTP calls all the time. Ten times one of the two is asked to stop
(SIGTERM) and a new one started. By the log's times: from an owner's `PartitionReleased` to the next one's
`PartitionClaimed`, and the longest time in which a run of such a partition had no event. No run may fail.

    python -m benchmarks.hand_over [--restarts 10]
"""

import argparse
import json
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.machine import machine
from libs.events.model import PartitionClaimed, PartitionReleased
from tests import servers
from tests.e2e.calling import chain
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.following import Follower
from tests.e2e.ledger import Ledger
from tests.e2e.witness import Witness

NODES, CALL_S = 20, 0.05
APART_S = 3.0
"""Between two restarts: placement and a few runs."""

LOAD = 8
"""Runs under way at once."""


def measure(deployed: Deployment, witness: Witness, restarts: int) -> dict[str, object]:
    api = deployed.start("api")
    deployed.start("projector")
    executors = [deployed.start("executor"), deployed.start("executor")]
    key = deployed.client(api).import_document(chain(witness, NODES, CALL_S))["api_key"]
    over = threading.Event()
    done: list[Follower] = []

    def keep_running() -> None:
        while not over.is_set():
            follower = Follower(api.url, key, {"q": "x"})
            follower.join()
            done.append(follower)

    threads = [threading.Thread(target=keep_running) for _ in range(LOAD)]
    for thread in threads:
        thread.start()
    time.sleep(APART_S)
    for _ in range(restarts):
        code = executors.pop(0).terminate()
        assert code == 0, code
        executors.append(deployed.start("executor"))
        time.sleep(APART_S)
    over.set()
    for thread in threads:
        thread.join()
    for follower in done:
        follower.check(NODES + 2)
    return summary(Ledger(deployed)) | {"restarts": restarts, "runs": len(done)}


def summary(ledger: Ledger) -> dict[str, object]:
    ledger.check()
    released: dict[int, int] = {}
    gaps: list[float] = []
    for recorded in ledger.valid:
        if isinstance(recorded.event, PartitionReleased):
            released[recorded.partition] = recorded.at_us
        elif isinstance(recorded.event, PartitionClaimed) and recorded.partition in released:
            gaps.append((recorded.at_us - released.pop(recorded.partition)) / 1000)
    silences = [
        (after.at_us - before.at_us) / 1000
        for run_id in ledger.runs
        for before, after in pairwise(ledger.of(run_id))
        if after.epoch > before.epoch
    ]
    return {
        "hand_overs": len(gaps),
        "gap_ms": _shown(gaps),
        "run_silence_ms": _shown(silences),
    }


def _shown(values: list[float]) -> dict[str, int]:
    ranked = sorted(values)
    return {
        "p50": round(ranked[len(ranked) // 2]),
        "p90": round(ranked[len(ranked) * 9 // 10]),
        "max": round(ranked[-1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=10)
    options = parser.parse_args()
    kafka, postgres = servers.open_kafka(), servers.open_postgres()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            servers.fresh_topics(kafka.bootstrap) as prefix,
            servers.fresh_database(postgres.url) as url,
            deployment(kafka.bootstrap, prefix, url, Path(folder)) as deployed,
            Witness() as witness,
        ):
            found = measure(deployed, witness, options.restarts)
    finally:
        postgres.close()
        kafka.close()
    print(json.dumps({"name": "hand_over"} | found | machine()), flush=True)  # noqa: T201  # one JSON line per question


if __name__ == "__main__":
    main()
