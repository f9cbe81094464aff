"""Fixtures that every folder of tests may use: the real servers, shared by the session and emptied per test.

Without a broker or a database the tests that need one are skipped and say how to get it; with `CI=true` they fail,
because a suite that silently tests less is worse than a red one.
"""

import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, NoReturn

import hypothesis
import pytest

from tests import servers
from tests.cluster import Cluster

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: children would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What an example costs depends on who else is on the machine; a test that hangs meets pytest's own limit.
# With CI=true the same examples each time, so that chance decides on no release; elsewhere new ones, which find more.
hypothesis.settings.register_profile(
    "flowledger", deadline=None, derandomize=os.environ.get("CI", "").lower() == "true"
)
hypothesis.settings.load_profile("flowledger")


class _NoServer(pytest.skip.Exception):  # type: ignore[misc, name-defined]  # hidden behind a decorator
    """A test is skipped because a server cannot be had here."""


def _missing(problem: servers.Unavailable) -> NoReturn:
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{problem} (CI=true: missing servers fail the suite)", pytrace=False)
    raise _NoServer(str(problem))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give all such skips one place, so that the summary folds them into one line per missing server."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, _NoServer):
        report.longrepr = ("tests/conftest.py", 0, f"Skipped: {call.excinfo.value}")
    return report


@pytest.fixture(autouse=True)
def _no_handler_of_a_test_before() -> Iterator[None]:
    """A service or command that ran in a test logs to that test's stderr, which is closed when the next one begins."""
    yield
    root = logging.getLogger()
    for handler in tuple(root.handlers):
        if type(handler) is logging.StreamHandler:  # pytest's own are of other types
            root.removeHandler(handler)


_for_workers: list[servers.Kafka | servers.Postgres] = []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """With several workers: start the servers here, once, and hand them over through the environment.

    What cannot be had is left to the workers, whose tests say how to get it.
    """
    with contextlib.suppress(servers.Unavailable):
        _for_workers.append(kafka := servers.open_kafka(brief=True))
        os.environ["FLOWLEDGER_TEST_KAFKA"] = kafka.bootstrap
    with contextlib.suppress(servers.Unavailable):
        _for_workers.append(postgres := servers.open_postgres())
        os.environ["FLOWLEDGER_TEST_POSTGRES"] = postgres.url


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of the time limit of a test: waiting is not its fault
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    if "PYTEST_XDIST_WORKER" not in os.environ or item.config.cache is None:
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    if not _turn.taken:
        _turn.take(item.config.cache.mkdir("workers"), alone=alone)
    try:
        return (yield)
    finally:
        # Of several such tests in a row the first waits for the others' tests, and those then wait once, not each time.
        if not (alone and nextitem is not None and nextitem.get_closest_marker("alone")):
            _turn.end()


class _Turn:
    """Among several workers: a test that measures time or fills the machine runs while no other worker's test does."""

    def __init__(self) -> None:
        self._room: IO[str] | None = None

    @property
    def taken(self) -> bool:
        return self._room is not None

    def take(self, place: Path, *, alone: bool) -> None:
        self._room = (place / "room").open("w")
        with (place / "gate").open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)  # who waits for the room keeps others from coming in
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)

    def end(self) -> None:
        if self._room is not None:
            self._room.close()
            self._room = None


_turn = _Turn()


def pytest_unconfigure() -> None:
    while _for_workers:
        _for_workers.pop().close()


@pytest.fixture(scope="session")
def _kafka_or_problem() -> Iterator[servers.Kafka | servers.Unavailable]:
    """Tried once: a session without a broker must not wait for one in every test."""
    try:
        server = servers.open_kafka(brief=True)
    except servers.Unavailable as problem:
        yield problem
        return
    yield server
    server.close()


@pytest.fixture
def kafka_server(_kafka_or_problem: servers.Kafka | servers.Unavailable) -> servers.Kafka:
    """The session's broker; `.bootstrap`. Not to be stopped: see `private_kafka`."""
    if isinstance(_kafka_or_problem, servers.Unavailable):
        _missing(_kafka_or_problem)
    return _kafka_or_problem


@pytest.fixture
def kafka_prefix(kafka_server: servers.Kafka) -> Iterator[str]:
    """A topic prefix of the test's own on the session's broker: all topics exist, with 4 run partitions."""
    with servers.fresh_topics(kafka_server.bootstrap) as prefix:
        yield prefix


@pytest.fixture(scope="module")
def module_kafka(_kafka_or_problem: servers.Kafka | servers.Unavailable) -> Iterator[tuple[str, str]]:
    """Bootstrap servers and a topic prefix that a whole module shares."""
    if isinstance(_kafka_or_problem, servers.Unavailable):
        _missing(_kafka_or_problem)
    with servers.fresh_topics(_kafka_or_problem.bootstrap) as prefix:
        yield _kafka_or_problem.bootstrap, prefix


@pytest.fixture(scope="module")
def _private_kafka_or_problem() -> Iterator[servers.Kafka | servers.Unavailable]:
    try:
        server = servers.own_kafka(brief=True)
    except servers.Unavailable as problem:
        yield problem
        return
    yield server
    server.close()


@pytest.fixture
def private_kafka(_private_kafka_or_problem: servers.Kafka | servers.Unavailable) -> servers.Kafka:
    """A broker of the module's own that a test may stop, kill or freeze; it runs when the test begins."""
    if isinstance(_private_kafka_or_problem, servers.Unavailable):
        _missing(_private_kafka_or_problem)
    _private_kafka_or_problem.resume()
    _private_kafka_or_problem.start()
    return _private_kafka_or_problem


@pytest.fixture
def private_prefix(private_kafka: servers.Kafka) -> str:
    """As `kafka_prefix`, on `private_kafka`."""
    return servers.create_test_topics(private_kafka.bootstrap)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three brokers of the module's own; all of them run when the module begins."""
    try:
        made = Cluster(3)
    except servers.Unavailable as problem:
        _missing(problem)
    yield made
    made.close()


@pytest.fixture(scope="session")
def _postgres_or_problem() -> Iterator[servers.Postgres | servers.Unavailable]:
    try:
        server = servers.open_postgres()
    except servers.Unavailable as problem:
        yield problem
        return
    yield server
    server.close()


@pytest.fixture
def postgres_url(_postgres_or_problem: servers.Postgres | servers.Unavailable) -> Iterator[str]:
    """SQLAlchemy URL of a fresh, empty database of the test's own."""
    if isinstance(_postgres_or_problem, servers.Unavailable):
        _missing(_postgres_or_problem)
    with servers.fresh_database(_postgres_or_problem.url) as url:
        yield url


@pytest.fixture(scope="module")
def module_database(_postgres_or_problem: servers.Postgres | servers.Unavailable) -> Iterator[str]:
    """As `postgres_url`, shared by a whole module."""
    if isinstance(_postgres_or_problem, servers.Unavailable):
        _missing(_postgres_or_problem)
    with servers.fresh_database(_postgres_or_problem.url) as url:
        yield url
