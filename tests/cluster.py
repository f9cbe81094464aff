"""Three brokers as processes of our own, each a controller too; each can be killed and started again."""

import uuid
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from libs.events.topics import create_topics
from tests import servers


class Cluster:
    """Topics have three replicas, two of which must have a record before it is acknowledged."""

    def __init__(self, size: int = 3) -> None:
        ports = {number: (servers.free_port(), servers.free_port()) for number in range(1, size + 1)}
        voters = ",".join(f"{number}@127.0.0.1:{controller}" for number, (_, controller) in ports.items())
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port, _ in ports.values())
        self.brokers = {
            number: servers.LocalKafka(servers.Member(number, port, controller, voters, size))
            for number, (port, controller) in ports.items()
        }
        for broker in self.brokers.values():
            broker.begin()
        for broker in self.brokers.values():
            broker.wait()
        self._admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def create_topics(self, partitions: int) -> str:
        prefix = f"t{uuid.uuid4().hex[:10]}"
        create_topics(self.bootstrap, {}, prefix, partitions, replication=len(self.brokers))
        return prefix

    def leaders(self, topic: str) -> dict[int, int]:
        """Partition -> broker that leads it, as of now."""
        found = self._admin.list_topics(topic, timeout=10).topics[topic]
        return {number: partition.leader for number, partition in found.partitions.items()}

    def in_sync(self, topic: str) -> int:
        """Of the partition with the fewest replicas in sync, how many."""
        try:
            found: Any = self._admin.list_topics(topic, timeout=5).topics[topic]
        except KafkaException:
            return 0
        return min(len(partition.isrs) for partition in found.partitions.values())

    def close(self) -> None:
        for broker in self.brokers.values():
            broker.close()
