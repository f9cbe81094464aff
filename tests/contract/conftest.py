"""The logs that the contract suite runs over, and what a test gets of them.

`LOGS` has one row per adapter: a context manager that yields a way to open the same fresh data again and again.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from libs.events.log import Log
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.sqlite import SqliteLog
from tests import servers

PARTITIONS = 4
Open = Callable[[], Log]


@contextmanager
def _sqlite(request: pytest.FixtureRequest) -> Iterator[Open]:
    folder: Path = request.getfixturevalue("tmp_path")
    yield lambda: SqliteLog(folder / "log", PARTITIONS)


@contextmanager
def _memory(request: pytest.FixtureRequest) -> Iterator[Open]:
    store = MemoryStore(PARTITIONS)
    yield lambda: MemoryLog(store)


@contextmanager
def _kafka(request: pytest.FixtureRequest) -> Iterator[Open]:
    server: servers.Kafka = request.getfixturevalue("kafka_server")
    prefix: str = request.getfixturevalue("kafka_prefix")
    from libs.events.kafka import KafkaLog  # a library with a C part: not for those who run only the other rows

    yield lambda: KafkaLog(server.bootstrap, {}, prefix, PARTITIONS)


LOGS: dict[str, Callable[[pytest.FixtureRequest], AbstractContextManager[Open]]] = {
    "sqlite": _sqlite,
    "memory": _memory,
    "kafka": _kafka,
}
MARKS = {"kafka": pytest.mark.kafka}


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, ())) for name in LOGS])
def open_log(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens the test's data; what it opened is closed at the end."""
    opened: list[Log] = []
    with LOGS[request.param](request) as open_it:

        def open_and_note() -> Log:
            opened.append(open_it())
            return opened[-1]

        yield open_and_note
        for log in opened:
            log.close()


@pytest.fixture
def log(open_log: Open) -> Log:
    """A fresh log with 4 partitions."""
    return open_log()


@pytest.fixture
def reopen(open_log: Open) -> Open:
    """A second log object on the data of `log`; close `log` first (the embedded log has one writer)."""
    return open_log
