"""The Python client against a real server: both twins, replicas that die, requests that get lost."""

import asyncio
import inspect
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import flowledger
from flowledger.client import (
    AsyncClient,
    AsyncRun,
    Client,
    Event,
    FlowledgerError,
    Refused,
    Run,
    RunFailed,
    RunStopped,
    StillRunning,
)
from flowledger.dev import start_embedded
from libs.events.memory import MemoryLog
from libs.events.model import (
    NodeFailed,
    NodeRetryScheduled,
    NodeStarted,
    RunAccepted,
    RunStarted,
)
from libs.events.model import (
    RunFailed as RunFailedEvent,
)
from libs.events.model import (
    RunStopped as RunStoppedEvent,
)
from libs.settings import Settings
from tests.api_world import (
    ADMIN,
    ECHO,
    SPEAKING,
    ScriptedExecutor,
    Server,
    echo,
    finish_llm,
    nothing,
    serving,
    to_llm,
    until,
)
from tests.documents import code, document, edges, end, node, start, template


class Awaited:
    """The asynchronous twin, driven to each answer: so that one test is for both."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(*arguments, **more)

    def __getattr__(self, name: str) -> Any:
        return _awaited(self._loop, getattr(self._client, name))

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class _AwaitedRun:
    def __init__(self, loop: asyncio.AbstractEventLoop, run: AsyncRun) -> None:
        self._loop, self._run, self.id = loop, run, run.id

    def __getattr__(self, name: str) -> Any:
        return _awaited(self._loop, getattr(self._run, name))


def _awaited(loop: asyncio.AbstractEventLoop, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **more: Any) -> Any:
        found = function(*arguments, **more)
        if inspect.isasyncgen(found):
            return _each(loop, found)
        if inspect.isawaitable(found):
            found = loop.run_until_complete(_value(found))
        return _AwaitedRun(loop, found) if isinstance(found, AsyncRun) else found

    return call


async def _value(found: Any) -> Any:
    return await found


def _each(loop: asyncio.AbstractEventLoop, found: Any) -> Iterator[Any]:
    with suppress(StopAsyncIteration):
        while True:
            yield loop.run_until_complete(found.__anext__())


@pytest.fixture
def replicas(log: MemoryLog, server: Server) -> Iterator[list[Server]]:
    with serving(log) as other:
        yield [server, other]


@pytest.fixture(params=[Client, Awaited], ids=["blocking", "asynchronous"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def connected(*urls: str, token: str = ADMIN) -> Any:
        made.append(request.param(urls, token))
        return made[-1]

    yield connected
    for client in made:
        client.close()


def names(events: list[Event]) -> list[str]:
    return [event.event for event in events]


# --- what it is ---


@pytest.mark.parametrize(("blocking", "twin"), [(Client, AsyncClient), (Run, AsyncRun)])
def test_the_twins_have_the_same_names_and_parameters(blocking: type, twin: type) -> None:
    def public(owner: type) -> dict[str, list[str]]:
        found = {name: value for name, value in vars(owner).items() if inspect.isfunction(value)}
        return {name: list(inspect.signature(value).parameters) for name, value in found.items() if name[0] != "_"}

    assert public(blocking) == public(twin)


def test_importing_the_client_loads_nothing_heavy() -> None:
    code = "import sys; from flowledger import Client, AsyncClient; Client('http://127.0.0.1:1'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "pydantic",
        "sqlalchemy",
        "fastapi",
        "uvicorn",
        "confluent_kafka",
        "rich",
        "click",
        "yaml",
        "services",
        "libs",
    }
    assert heavy & set(loaded) == set()
    assert flowledger.Client is Client


# --- starting ---


@pytest.mark.usefixtures("log")  # counts all apps
def test_a_file_is_imported_once_and_run(connect: Any, server: Server, tmp_path: Any) -> None:
    client = connect(server.url)
    file = tmp_path / "echo.yml"
    file.write_text(ECHO)
    results = [client.start(file, {"q": word}).result(timeout_s=10) for word in ("a", "b")]
    assert [result.outputs for result in results] == [{"answer": "a"}, {"answer": "b"}]
    assert (results[0].status, results[0].total_steps) == ("succeeded", 2)
    assert len(client.apps()) == 1


@pytest.mark.usefixtures("log")  # no other app has the name
def test_an_app_is_named_by_id_name_or_key(connect: Any, server: Server) -> None:
    made = server.import_app()
    client = connect(server.url)
    for target in (made["app_id"], made["name"], made["app_id"][:8]):
        assert client.start(target, {"q": "x"}).result(timeout_s=10).outputs == {"answer": "x"}
    for act in (client.start, lambda name: client.import_document(ECHO, app=name)):
        with pytest.raises(FlowledgerError, match="names no app"):
            act("")
    with_key = connect(server.url, token=made["api_key"])
    assert with_key.start(inputs={"q": "y"}).result(timeout_s=10).outputs == {"answer": "y"}


def test_what_the_server_refuses_is_an_error_with_its_code(connect: Any, server: Server, tmp_path: Any) -> None:
    client = connect(server.url)
    with pytest.raises(Refused, match="does not exist") as missing:
        client.state("01900000-0000-7000-8000-000000000001")
    assert (missing.value.status, missing.value.code) == (404, "not_found")
    broken = tmp_path / "broken.yml"
    broken.write_text(ECHO.replace('"target": "end"', '"target": "nowhere"').replace("target: end", "target: nowhere"))
    with pytest.raises(Refused) as invalid:
        client.start(broken)
    assert invalid.value.code == "definition_invalid"
    assert invalid.value.problems
    with pytest.raises(Refused) as denied:
        connect(server.url, token="app-wrong").apps()
    assert denied.value.status == 401


def test_one_idempotency_key_is_one_run_and_means_one_request(connect: Any, server: Server) -> None:
    client = connect(server.url, token=server.import_app()["api_key"])
    first = client.start(inputs={"q": "x"}, idempotency_key="signup-42")
    assert client.start(inputs={"q": "x"}, idempotency_key="signup-42").id == first.id
    assert client.start(inputs={"q": "x"}).id != first.id
    with pytest.raises(Refused) as reused:
        client.start(inputs={"q": "other"}, idempotency_key="signup-42")
    assert (reused.value.status, reused.value.code) == (422, "idempotency_key_reused")


class Wire:
    """A TCP proxy that cuts connections: `cuts` says after how many bytes of its answer each one ends."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._port, self._cuts = port, cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                left = self._cuts.pop(0) if self._cuts else 1 << 40
                thread = threading.Thread(target=self._carry, args=(client, left), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _carry(self, client: socket.socket, left: int) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            up = threading.Thread(target=_pump, args=(client, server), daemon=True)
            up.start()
            with suppress(OSError):
                while left > 0 and (data := server.recv(min(left, 65536))):
                    client.sendall(data)
                    left -= len(data)
            for each in (client, server):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            up.join()

    def close(self) -> None:
        self._listener.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


def test_a_start_whose_answer_is_lost_makes_one_run(connect: Any, server: Server, executor: ScriptedExecutor) -> None:
    wire = Wire(server.port, cuts=[0, 0, 10])  # asked three times, heard the fourth time
    client = connect(wire.url, token=server.import_app()["api_key"])
    run = client.start(inputs={"q": "x"})
    wire.close()
    assert wire.connections == 4
    assert list(executor.accepted) == [run.id]


# --- following ---


def test_events_are_the_same_wherever_the_connection_breaks(
    connect: Any, server: Server, executor: ScriptedExecutor
) -> None:
    client = connect(server.url, token=server.import_app()["api_key"])
    run = client.start(inputs={"q": "x" * 50})
    whole = list(run.events())
    assert names(whole)[0] == "workflow_started"
    assert names(whole)[-1] == "workflow_finished"
    assert len({event.id for event in whole}) == len(whole)
    wire = Wire(server.port, cuts=list(range(400, 2600, 150)))
    broken = connect(wire.url, token=ADMIN)
    again = list(broken.run(run.id, user="python").events())
    wire.close()
    assert wire.connections > 3
    assert again == whole


def test_a_stream_goes_on_at_the_other_replica(
    connect: Any, replicas: list[Server], executor: ScriptedExecutor
) -> None:
    executor.script = to_llm
    app = replicas[0].import_app(SPEAKING)
    client = connect(*(server.url for server in replicas), token=app["api_key"])
    run = client.start(inputs={"q": "x"})
    events = run.events()
    seen = [next(events) for _ in range(4)]
    assert names(seen)[-1] == "node_started"
    replicas[0].stop()
    finish_llm(executor, run.id, "the text")
    seen += list(events)
    with_both = names(seen)
    assert with_both == [
        "workflow_started", "node_started", "node_finished", "node_started", "text_chunk", "node_finished",
        "node_started", "node_finished", "workflow_finished",
    ]  # fmt: skip
    assert seen[-1].data["outputs"] == {"text": "the text"}


def test_events_go_on_behind_any_event(connect: Any, server: Server) -> None:
    client = connect(server.url, token=server.import_app()["api_key"])
    run = client.start(inputs={"q": "x"})
    whole = list(run.events())
    for number, event in enumerate(whole[:-1]):
        if event.id:
            assert list(run.events(after=event.id)) == whole[number + 1 :]
    fact = list(run.history())[3]
    assert [event for event in whole if event.seq > fact.seq] == list(run.events(after=fact.seq))


def test_behind_the_last_event_there_is_nothing(connect: Any, server: Server) -> None:
    client = connect(server.url, token=server.import_app()["api_key"])
    run = client.start(inputs={"q": "x"})
    last = [event.id for event in run.events()][-1]
    assert list(run.events(after=last)) == []


# --- several runs ---


def test_several_runs_are_followed_together(connect: Any, server: Server) -> None:
    client = connect(server.url, token=server.import_app()["api_key"])
    ids = [client.start(inputs={"q": text}).id for text in "abc"]
    together = list(client.follow(ids))
    for run_id in ids:
        alone = [(event.event, event.seq, event.data) for event in client.run(run_id).events()]
        assert [(event.event, event.seq, event.data) for event in together if event.run_id == run_id] == alone
    whole = [number for number, event in enumerate(together) if event.id]
    for number in (whole[0], whole[len(whole) // 2], whole[-1]):
        assert list(client.follow(ids, after=together[number].id)) == together[number + 1 :]


def test_a_stream_of_several_runs_goes_on_at_the_other_replica(
    connect: Any, replicas: list[Server], executor: ScriptedExecutor
) -> None:
    executor.script = to_llm
    app = replicas[0].import_app(SPEAKING)
    client = connect(*(server.url for server in replicas), token=app["api_key"])
    ids = [client.start(inputs={"q": text}).id for text in "ab"]
    events = client.follow(ids)
    seen = [next(events) for _ in range(8)]
    replicas[0].stop()
    for run_id in ids:
        finish_llm(executor, run_id, f"text of {run_id}")
    seen += list(events)
    for run_id in ids:
        said = [(event.event, event.seq) for event in seen if event.run_id == run_id]
        assert said == [(event.event, event.seq) for event in client.run(run_id).events()]


def test_following_a_run_that_is_not_there_is_refused(connect: Any, server: Server) -> None:
    client = connect(server.url, token=server.import_app()["api_key"])
    with pytest.raises(Refused) as refused:
        list(client.follow(["nobody"]))
    assert (refused.value.status, refused.value.code) == (404, "not_found")


# --- results ---


def failing(executor: ScriptedExecutor, run_id: str, accepted: RunAccepted) -> None:
    executor.emit(
        run_id,
        RunStarted(max_steps=100),
        NodeStarted(node_id="start", node_type="start", index=1),
        NodeRetryScheduled(node_id="start", error="503", due_us=0),
        NodeStarted(node_id="start", node_type="start", index=1, attempt=2),
        NodeFailed(node_id="start", attempt=2, error="503 again"),
        RunFailedEvent(error="503 again", node_id="start"),
    )


def test_a_failed_run_raises_with_node_attempt_and_error(
    connect: Any, server: Server, executor: ScriptedExecutor
) -> None:
    executor.script = failing
    client = connect(server.url, token=server.import_app()["api_key"])
    run = client.start(inputs={"q": "x"})
    with pytest.raises(RunFailed) as failed:
        run.result(timeout_s=10)
    assert (failed.value.node_id, failed.value.attempt, failed.value.error) == ("start", 2, "503 again")
    assert failed.value.run_id == run.id


def test_a_stopped_run_raises(connect: Any, server: Server, executor: ScriptedExecutor) -> None:
    executor.script = nothing
    client = connect(server.url, token=server.import_app()["api_key"])
    run = client.start(inputs={"q": "x"})
    assert run.stop("enough")["stop_requested"] is True
    executor.emit(run.id, RunStoppedEvent(error="enough"))
    with pytest.raises(RunStopped, match="enough"):
        run.result(timeout_s=10)


def test_waiting_ends_with_its_time_and_the_run_goes_on(
    connect: Any, server: Server, executor: ScriptedExecutor
) -> None:
    executor.script = nothing
    client = connect(server.url, token=server.import_app()["api_key"])
    run = client.start(inputs={"q": "x"})
    with pytest.raises(StillRunning) as waiting:
        run.result(timeout_s=0.2)
    assert isinstance(waiting.value, TimeoutError)
    executor.script = echo
    echo(executor, run.id, executor.accepted[run.id])
    assert run.result(timeout_s=10).outputs == {"answer": "x"}


# --- reading ---


def test_history_and_state_are_those_of_the_log(connect: Any, server: Server) -> None:
    client = connect(server.url, token=server.import_app()["api_key"])
    run = client.start(inputs={"q": "x"})
    run.result(timeout_s=10)
    history = run.history()
    assert [line.seq for line in history] == list(range(1, 8))
    assert (history[0].type, history[-1].type) == ("RunAccepted", "RunSucceeded")
    assert [line.type for line in run.history(2, 3)] == [line.type for line in history[1:3]]
    assert run.state().outputs == {"answer": "x"}
    assert (run.state(at=3).status, run.state(at=3).seq) == ("running", 3)


# --- doing something about a run; the real thing decides ---


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(URL, admin token) of an embedded instance."""
    folder = tmp_path_factory.mktemp("data")
    instance = start_embedded(folder, "127.0.0.1", 0, Settings(models="offline", data=folder))
    yield instance.url, instance.admin_token
    instance.stop()


FLOW = document(
    [start("q"), code("c"), template("t", "{{ c }}!", c="c.result"), end(a="t.output")], edges("start > c > t > end")
)
ASKING = document(
    [
        start("q"),
        template("t", "{{ q }}!", q="start.q"),
        node(
            "ask",
            "human-input",
            form_content="Well?",
            inputs=[],
            user_actions=[{"id": "yes", "title": "Yes"}],
            timeout=3,
            timeout_unit="day",
            delivery_methods=[],
        ),
        end(a="t.output"),
    ],
    edges("start > t > ask", "ask[yes] > end"),
)


def test_a_failed_run_is_tried_again_and_any_run_forked(connect: Any, real: tuple[str, str]) -> None:
    client = connect(real[0], token=real[1])
    app = client.import_document(FLOW)["app_id"]
    run = client.start(app, pins={"nodes": {"c": {"fail": "no"}}})
    with pytest.raises(RunFailed, match="no") as failed:
        run.result(timeout_s=30)
    assert (failed.value.node_id, failed.value.attempt) == ("c", 1)
    assert "c" in run.why()
    again = run.retry(idempotency_key=f"again-{run.id}")
    assert run.retry(idempotency_key=f"again-{run.id}").id == again.id
    with pytest.raises(RunFailed):
        again.result(timeout_s=30)
    good = client.start(app, pins={"nodes": {"c": {"outputs": {"result": "yes"}}}})
    assert good.result(timeout_s=30).outputs == {"a": "yes!"}
    done = next(line.seq for line in good.history() if (line.type, line.node_id) == ("NodeSucceeded", "c"))
    assert good.fork(done, {"c.result": "other"}).result(timeout_s=30).outputs == {"a": "other!"}
    with pytest.raises(Refused):
        good.fork(999)


TRIGGERED = document(
    [
        node("hook", "trigger-webhook", method="post", body=[{"name": "who", "type": "string"}]),
        node("tick", "trigger-schedule", mode="cron", cron_expression="0 0 1 1 *", timezone="UTC"),
        end(who="hook.who"),
    ],
    edges("hook > end", "tick > end"),
)


def test_a_run_begins_at_the_root_that_is_named(connect: Any, real: tuple[str, str]) -> None:
    client = connect(real[0], token=real[1])
    app = client.import_document(TRIGGERED)["app_id"]
    assert client.start(app, {"who": "Ada"}).result(timeout_s=30).outputs == {"who": "Ada"}
    ticked = client.start(app, root="tick", idempotency_key="root-1")
    assert ticked.result(timeout_s=30).outputs == {"who": None}
    assert [line.node_id for line in ticked.history() if line.type == "NodeStarted"] == ["tick", "end"]
    with pytest.raises(Refused) as reused:
        client.start(app, root="hook", idempotency_key="root-1")
    assert reused.value.code == "idempotency_key_reused"
    with pytest.raises(Refused, match="no run begins") as refused:
        client.start(app, root="end")
    assert refused.value.code == "invalid_param"


def test_many_runs_are_counted_then_tried_again_or_stopped(connect: Any, real: tuple[str, str]) -> None:
    client = connect(real[0], token=real[1])
    app = client.import_document(FLOW)["app_id"]
    failed = [client.start(app, pins={"nodes": {"c": {"fail": "no"}}}) for _ in range(2)]
    for run in failed:
        with pytest.raises(RunFailed):
            run.result(timeout_s=30)
    counted = until(lambda: (found := client.bulk("retry", app=app)).count == 2 and found)
    assert (counted.action, counted.done, counted.changed, counted.failed) == ("retry", False, (), ())
    with pytest.raises(Refused) as refused:
        client.bulk("retry", app=app, expect=5)
    assert (refused.value.status, refused.value.code) == (409, "count_changed")
    done = client.bulk("retry", app=app, expect=2)
    assert (done.done, done.failed) == (True, ())
    assert {change.run_id for change in done.changed} == {run.id for run in failed}
    assert len({change.retried_as for change in done.changed}) == 2
    assert done.already == ()
    for change in done.changed:
        with pytest.raises(RunFailed):
            client.run(change.retried_as).result(timeout_s=30)
    asking = client.start(client.import_document(ASKING)["app_id"], {"q": "hi"})
    until(lambda: client.bulk("stop", id_prefix=asking.id).count == 1)
    stopped = client.bulk("stop", id_prefix=asking.id, expect=1, reason="enough")
    assert [(change.run_id, change.retried_as) for change in stopped.changed] == [(asking.id, None)]
    with pytest.raises(RunStopped, match="enough"):
        asking.result(timeout_s=30)


def test_a_run_that_waits_for_a_person_is_waited_for_and_answered(connect: Any, real: tuple[str, str]) -> None:
    client = connect(real[0], token=real[1])
    run = client.start(client.import_document(ASKING)["app_id"], {"q": "hi"})
    seen = []
    for event in run.events():
        seen.append(event.event)
        if event.event == "workflow_paused":
            assert run.state().status == "paused"
            with pytest.raises(StillRunning):
                run.result(timeout_s=0.2)
            with pytest.raises(Refused):
                run.resume()
            run.resume("yes")
    assert (seen.count("workflow_paused"), seen[-1]) == (1, "workflow_finished")
    assert run.result(timeout_s=30).outputs == {"a": "hi!"}
