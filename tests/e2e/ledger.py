"""What really stands in the log after a test: every valid record, and what must hold for any history of runs."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from libs.events.codec import Recorded, decode_event, stamp_of
from libs.events.kafka import KafkaLog
from libs.events.log import Record, Topic
from libs.events.model import RUN_END_TYPES, PartitionClaimed
from libs.events.validity import Validity
from tests.e2e.deployment import Deployment, Service, wait_until


class Ledger:
    """The events topic, read once from its beginning: what the validity rule admits, and what it does not."""

    def __init__(self, deployed: Deployment) -> None:
        settings = deployed.settings
        partitions = int(settings["FLOWLEDGER_PARTITIONS"])
        log = KafkaLog(settings["FLOWLEDGER_KAFKA"], {}, settings["FLOWLEDGER_TOPIC_PREFIX"], partitions)
        self.valid: list[Recorded] = []
        self.ignored: list[Record] = []
        try:
            for partition in range(partitions):
                self._read(log, partition)
        finally:
            log.close()

    def _read(self, log: KafkaLog, partition: int) -> None:
        validity = Validity()
        for records in log.read(Topic.EVENTS, partition, 0):
            for record in records:
                if validity.admit(stamp_of(record)):
                    self.valid.append(decode_event(record))
                else:
                    self.ignored.append(record)

    def of(self, run_id: str) -> list[Recorded]:
        return [recorded for recorded in self.valid if recorded.run_id == run_id]

    def kinds(self, run_id: str) -> Counter[str]:
        return Counter(recorded.event.type for recorded in self.of(run_id))

    def first(self, holds: Callable[[Recorded], bool]) -> Recorded:
        """The earliest record, by time, for which `holds`."""
        return min((recorded for recorded in self.valid if holds(recorded)), key=lambda recorded: recorded.at_us)

    @property
    def runs(self) -> list[str]:
        """Every run that was accepted; a run accepted twice stands here twice."""
        return [recorded.run_id for recorded in self.valid if recorded.event.type == "RunAccepted"]

    def check(self) -> None:
        """Each run has one gapless sequence, each node execution at most one outcome, and each run one end."""
        by_run: dict[str, list[Recorded]] = {run_id: [] for run_id in self.runs}
        assert len(by_run) == len(self.runs), "a run was accepted twice"
        for recorded in self.valid:
            if recorded.run_id:
                by_run[recorded.run_id].append(recorded)
        for run_id, history in by_run.items():
            assert [recorded.seq for recorded in history] == list(range(1, len(history) + 1)), run_id
            ends = [recorded.event.type for recorded in history if recorded.event.type in RUN_END_TYPES]
            assert len(ends) == 1, f"{run_id}: {ends}"
            outcomes = Counter(_outcome(recorded) for recorded in history)
            del outcomes[None]
            assert all(count == 1 for count in outcomes.values()), f"{run_id}: {outcomes.most_common(3)}"


def owners(deployed: Deployment) -> dict[int, int]:
    """Partition -> process id of its owner, by the claims in the log."""
    claims = [recorded for recorded in Ledger(deployed).valid if isinstance(recorded.event, PartitionClaimed)]
    return {claim.partition: int(claim.event.owner.split("-")[-2]) for claim in claims}  # type: ignore[union-attr]


def settled(deployed: Deployment, executors: list[Service]) -> bool:
    """Whether every executor owns its share."""
    found = owners(deployed)
    alive = {executor.process.pid for executor in executors if executor.alive}
    return len(found) == deployed.partitions and set(found.values()) == alive


def shared_out(deployed: Deployment, executors: list[Service]) -> dict[int, Service]:
    """Partition -> its owner, when every executor owns its share."""
    wait_until(lambda: settled(deployed, executors), "the partitions are shared out", every_s=0.2)
    by_pid = {executor.process.pid: executor for executor in executors}
    return {partition: by_pid[pid] for partition, pid in owners(deployed).items()}


def _outcome(recorded: Recorded) -> tuple[str, str, int] | None:
    """The attempt whose outcome this is."""
    event: Any = recorded.event
    if event.type in ("NodeSucceeded", "NodeFailed", "NodeExcepted", "NodeRetryScheduled", "NodeStopped"):
        return event.path, event.node_id, event.attempt
    return None
