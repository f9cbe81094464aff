"""An API over HTTP for the modules that test one: `log`, `clock`, `executor` and `server`.

A test that asks for `log` (or for `clock`) has all of them to itself, on an empty log: whoever counts what is there,
breaks something or opens a second replica. All others share those of their module, because an application takes
longer to build than most tests take: such a test knows nothing but the apps and runs that it made.
"""

from collections.abc import Iterator

import pytest

from libs.events.memory import MemoryLog, MemoryStore
from tests.api_world import Clock, ScriptedExecutor, Serve, Server, echo, serving


@pytest.fixture(scope="module")
def serve() -> Serve:
    """How an API is opened on a log; a module that gives it more has a fixture of this name."""
    return serving


@pytest.fixture(scope="module")
def shared(serve: Serve) -> Iterator[tuple[ScriptedExecutor, Server]]:
    log = MemoryLog(MemoryStore(partitions=2))
    executor = ScriptedExecutor(log)
    with serve(log) as server:
        yield executor, server
    executor.close()
    log.close()


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    made = MemoryLog(MemoryStore(partitions=2))
    yield made
    made.close()


@pytest.fixture
def clock(log: MemoryLog) -> Clock:
    return Clock()


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> Iterator[ScriptedExecutor]:
    if "log" in request.fixturenames:
        made = ScriptedExecutor(request.getfixturevalue("log"))
        yield made
        made.close()
    else:
        shared: ScriptedExecutor = request.getfixturevalue("shared")[0]
        shared.script = echo
        shared.accepted.clear()
        shared.stops.clear()
        yield shared


@pytest.fixture
def server(request: pytest.FixtureRequest, executor: ScriptedExecutor, serve: Serve) -> Iterator[Server]:
    if "log" in request.fixturenames:
        more = {"now_us": request.getfixturevalue("clock")} if "clock" in request.fixturenames else {}
        with serve(request.getfixturevalue("log"), **more) as made:
            yield made
    else:
        shared: Server = request.getfixturevalue("shared")[1]
        shared.http.cookies.clear()
        yield shared
