"""The topics of a deployment: how many partitions, which settings, and what is wrong with the ones that exist.

The specification is plain data, so that it can be compared and shown without a broker. `create_topics` and
`check_topics` are the only parts that talk to Kafka. A setting is listed when we rely on it: a broker's default may
differ from ours (its retention of 7 days would delete the truth).
"""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from libs.events.log import LogError, Topic

logger = logging.getLogger(__name__)

_DELETING = frozenset({"retention.ms", "retention.bytes", "cleanup.policy"})

_SETTLE_S = 5.0
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_MIB = 1 << 20

MAX_RECORD_BYTES: Mapping[Topic, int] = {
    Topic.COMMANDS: 8 * _MIB,  # start inputs are not moved out before the run is accepted
    Topic.EVENTS: _MIB,
    Topic.CHUNKS: _MIB,
    Topic.BLOBS: _MIB,
    Topic.INDEX: _MIB,
    Topic.DEFINITIONS: 16 * _MIB,
    Topic.DEAD_LETTERS: 2 * _MIB,  # holds a foreign record beside its place
}
"""Largest record batch by topic (`max.message.bytes`)."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What one topic must be."""

    topic: Topic
    partitions: int
    replication: int
    config: Mapping[str, str]

    def name(self, prefix: str) -> str:
        return topic_name(prefix, self.topic)


@dataclass(frozen=True, slots=True)
class SeenTopic:
    """What a cluster says about one topic; `None` in its place means that the topic does not exist."""

    partitions: int
    replication: int
    """Of the partition that has the fewest replicas."""
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicProblem:
    """One thing that does not hold."""

    topic: str
    setting: str
    expected: str
    seen: str
    hint: str = "Run `flowledger topics create`"

    def __str__(self) -> str:
        return f"{self.topic}: {self.setting}: expected {self.expected}, seen {self.seen}. {self.hint}"


def topic_name(prefix: str, topic: Topic) -> str:
    return f"{prefix}.{topic.value}"


def topic_specs(partitions: int, replication: int) -> tuple[TopicSpec, ...]:
    """The specification of all topics of a deployment with `partitions` run partitions."""
    safe = {
        "unclean.leader.election.enable": "false",
        "min.insync.replicas": "2" if replication >= 3 else "1",
        "message.timestamp.type": "CreateTime",
    }
    kept = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    # A compacted fact must stay however old it is; an index pointer or a definition is small, so compact early.
    compacted = {"cleanup.policy": "compact", "retention.ms": "-1", "retention.bytes": "-1"}

    def expiring(retention_ms: int) -> dict[str, str]:
        return {"cleanup.policy": "delete", "retention.ms": str(retention_ms), "retention.bytes": "-1"}

    def spec(topic: Topic, policy: Mapping[str, str], count: int = partitions) -> TopicSpec:
        limit = {"max.message.bytes": str(MAX_RECORD_BYTES[topic])}
        return TopicSpec(topic, count, replication, {**safe, **policy, **limit})

    return (
        spec(Topic.COMMANDS, expiring(7 * _DAY_MS)),
        spec(Topic.EVENTS, kept),
        spec(Topic.CHUNKS, {**expiring(6 * _HOUR_MS), "segment.ms": str(_HOUR_MS)}),
        spec(Topic.BLOBS, kept),
        spec(Topic.INDEX, {**compacted, "segment.ms": str(_HOUR_MS)}),
        spec(Topic.DEFINITIONS, compacted, count=1),
        spec(Topic.DEAD_LETTERS, expiring(365 * _DAY_MS)),
    )


def compare(spec: TopicSpec, seen: SeenTopic | None, prefix: str) -> list[TopicProblem]:
    """What is wrong with a topic; empty when all of the specification holds. Pure."""
    name = spec.name(prefix)
    if seen is None:
        return [TopicProblem(name, "topic", "to exist", "no such topic")]
    problems = []
    if seen.partitions != spec.partitions:
        # Runs carry their partition in their id: a topic cannot be widened in place.
        hint = f"Set FLOWLEDGER_PARTITIONS={seen.partitions}, or use another FLOWLEDGER_TOPIC_PREFIX"
        if spec.topic is Topic.DEFINITIONS:
            hint = "Use another FLOWLEDGER_TOPIC_PREFIX"
        problems.append(TopicProblem(name, "partitions", str(spec.partitions), str(seen.partitions), hint))
    if seen.replication < spec.replication:
        hint = "Reassign its partitions with Kafka's own tools, or lower FLOWLEDGER_REPLICATION"
        problems.append(TopicProblem(name, "replication", str(spec.replication), str(seen.replication), hint))
    for setting, expected in spec.config.items():
        value = seen.config.get(setting, "unset")
        if value != expected:
            problems.append(TopicProblem(name, setting, expected, value))
    return problems


def create_topics(
    bootstrap: str,
    options: Mapping[str, str],
    prefix: str,
    partitions: int,
    replication: int = 1,
    timeout_s: float = 30.0,
) -> list[str]:
    """Create what is missing, set what differs, and wait until every partition has a leader. Idempotent.

    Returns one line per topic that was created or changed. Raises LogError when the cluster cannot be reached or
    refuses, or when something differs that cannot be set in place (see `check_topics`).
    """
    from libs.events.kafka.admin import apply_specs  # the specification itself must not need the Kafka client

    specs = topic_specs(partitions, replication)
    done = apply_specs(bootstrap, options, prefix, specs, timeout_s)
    deadline = time.monotonic() + _SETTLE_S
    # A broker learns of a changed setting a moment after the controller has confirmed it.
    while left := check_topics(bootstrap, options, prefix, partitions, replication, timeout_s):
        if not done or time.monotonic() > deadline:
            raise LogError("\n".join(map(str, left)))
        time.sleep(0.05)
    return done


def warn_of_deletion(bootstrap: str, options: Mapping[str, str], prefix: str, partitions: int) -> None:
    """A line for every setting by which the broker would delete what is the truth.

    For services at their start, which go on: what there is can be read, and `topics check` tells of all settings.
    """
    with suppress(LogError):  # services say themselves when there is no broker
        for problem in check_topics(bootstrap, options, prefix, partitions, timeout_s=5.0):
            if problem.setting in _DELETING:
                logger.error("topic_loses_records", extra={"problem": str(problem)})


def check_topics(
    bootstrap: str,
    options: Mapping[str, str],
    prefix: str,
    partitions: int,
    replication: int = 1,
    timeout_s: float = 10.0,
) -> list[TopicProblem]:
    """What does not hold, over all topics; empty when everything does. Raises LogError when Kafka cannot be reached."""
    from libs.events.kafka.admin import seen_topics  # as above

    specs = topic_specs(partitions, replication)
    seen = seen_topics(bootstrap, options, [spec.name(prefix) for spec in specs], timeout_s)
    return [problem for spec in specs for problem in compare(spec, seen[spec.name(prefix)], prefix)]
