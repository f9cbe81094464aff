"""When the Kafka appender waits for acknowledgements on its caller's thread, with a client that answers when told."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from libs.events.kafka import appender as module
from libs.events.kafka.appender import COLLECTED, KafkaAppender
from libs.events.log import Ack, Entry


class Delivered:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        return self._offset


class Client:
    """A producer: `quick`, it reports in the next poll; else only when `report` is set."""

    quick = True

    def __init__(self, settings: object) -> None:
        self._reports: list[Callable[[Any, Any], None]] = []
        self._offset = 0
        self.report = threading.Event()
        self.polled_by_caller = 0

    def produce(self, topic: str, *, on_delivery: Callable[[Any, Any], None], **rest: object) -> None:
        self._reports.append(on_delivery)

    def poll(self, timeout_s: float) -> None:
        if threading.current_thread() is threading.main_thread():
            self.polled_by_caller += 1
        if self.quick or self.report.wait(timeout_s):
            reports, self._reports = self._reports, []
            for report in reports:
                report(None, Delivered(self._offset))
                self._offset += 1

    def purge(self) -> None: ...


@pytest.fixture
def acks() -> list[Ack]:
    return []


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, acks: list[Ack]) -> Iterator[tuple[KafkaAppender, Client]]:
    monkeypatch.setattr(module, "Producer", Client)
    appender = KafkaAppender("nowhere:1", {}, "events", acks.extend, 60.0, collects=True)
    client: Client = appender._producer  # noqa: SLF001  # the one that was just made
    yield appender, client
    client.report.set()
    appender.close(5.0)


def entry(n: int) -> Entry:
    return Entry(key=None, value=b"x", headers=[], epoch=1, n=n)


def test_an_acknowledgement_that_comes_at_once_is_collected(
    made: tuple[KafkaAppender, Client], acks: list[Ack]
) -> None:
    appender, client = made
    for n in range(5):
        appender.append(0, [entry(n)])
        appender.collect(5.0)
        assert [ack.offset for ack in acks] == list(range(n + 1))
    assert client.polled_by_caller == 5


def test_a_slow_broker_is_waited_for_less_and_less_often(made: tuple[KafkaAppender, Client], acks: list[Ack]) -> None:
    appender, client = made
    client.quick = False
    tried = []
    for n in range(20):
        appender.append(0, [entry(n)])
        before = client.polled_by_caller
        appender.collect(0.001)
        if client.polled_by_caller > before:
            tried.append(n)
        client.report.set()
        while len(acks) <= n:
            threading.Event().wait(0.001)
        client.report.clear()
    assert len(tried) <= 4, tried
    assert tried[0] == 0


def test_nobody_waits_for_many_records(made: tuple[KafkaAppender, Client], acks: list[Ack]) -> None:
    appender, client = made
    client.quick = False
    appender.append(0, [entry(n) for n in range(COLLECTED + 1)])
    appender.collect(5.0)
    assert client.polled_by_caller == 0
    client.report.set()
    appender.close(5.0)
    assert len(acks) == COLLECTED + 1
