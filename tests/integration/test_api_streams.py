"""Streams over real HTTP: order, resume at every place, replicas, slow and vanishing clients."""

import socket
import threading
import time
from typing import Any

import httpx
import pytest

from libs.events.codec import encode_event
from libs.events.ids import partition_of
from libs.events.log import LogError, Topic
from libs.events.memory import MemoryLog
from libs.events.model import (
    NodeRestarted,
    NodeStarted,
    NodeSucceeded,
    PartitionClaimed,
    RunStarted,
    RunStopped,
    RunSucceeded,
)
from services.api import Limits
from tests.api_world import (
    ADMIN,
    SPEAKING,
    ScriptedExecutor,
    Server,
    finish_llm,
    names,
    nothing,
    text_of,
    to_llm,
    until,
)

FIVE = ["workflow_started", "text_chunk", "node_started", "node_finished", "node_started", "node_finished"]


@pytest.fixture
def key(server: Server) -> str:
    return str(server.import_app()["api_key"])


@pytest.fixture
def speaking_key(server: Server) -> str:
    return str(server.import_app(SPEAKING)["api_key"])


def test_a_stream_begins_with_a_ping_and_ends_with_the_run(server: Server, key: str) -> None:
    with server.running(key) as stream:
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["x-accel-buffering"] == "no"
        assert next(stream.response.iter_lines()) == "event: ping"
    with server.running(key) as stream:
        frames = stream.rest()
    assert names(frames) == [*FIVE, "workflow_finished"]
    assert {frame.data["workflow_run_id"] for frame in frames} == {stream.run_id}
    assert {frame.data["task_id"] for frame in frames} == {stream.headers["x-task-id"]}


def test_ids_come_at_once_before_the_run_is_decided(log: MemoryLog) -> None:
    executor = ScriptedExecutor(log, deciding=False)
    server = Server(log)
    try:
        key = server.import_app()["api_key"]
        with server.running(key) as stream:
            assert stream.run_id
            assert stream.headers["x-task-id"]
    finally:
        server.close()
        executor.close()


def test_ids_of_a_stream_rise_and_each_event_has_one(server: Server, key: str) -> None:
    with server.running(key) as stream:
        ids = [frame.id for frame in stream.rest() if frame.id]
    places = [tuple(int(part) for part in one.split(".")) for one in ids]
    assert places == sorted(set(places))
    assert ids == ["2", "2.2", "3", "4", "5", "6", "7"]


def test_resuming_at_every_place_gives_exactly_the_rest(server: Server, key: str) -> None:
    with server.running(key) as stream:
        whole = stream.rest()
        run_id = stream.run_id
    for seen in range(len(whole)):
        with server.attached(run_id, key, last=whole[seen].id) as stream:
            assert stream.rest() == whole[seen + 1 :]
    with server.attached(run_id, key, last="0") as stream:
        assert stream.rest() == whole


def test_another_replica_resumes_from_the_log_at_every_place(server: Server, key: str, log: MemoryLog) -> None:
    with server.running(key) as stream:
        whole = stream.rest()
        run_id = stream.run_id
    other = Server(log)
    try:
        for seen in range(len(whole)):
            with other.attached(run_id, key, last=whole[seen].id) as stream:
                assert stream.rest() == whole[seen + 1 :]
    finally:
        other.close()


def test_a_live_run_is_joined_on_another_replica_without_gap_or_duplicate(
    server: Server, speaking_key: str, log: MemoryLog, executor: ScriptedExecutor
) -> None:
    executor.script = to_llm
    other = Server(log)
    try:
        with server.running(speaking_key) as first:
            begun = first.take(4)
            with other.attached(first.run_id, speaking_key, last=begun[1].id) as second:
                assert second.take(2) == begun[2:]
                finish_llm(executor, first.run_id, "x")
                assert names(first.rest()) == names(second.rest())
    finally:
        other.close()


def test_attaching_without_an_id_gives_what_is_still_to_come(
    server: Server, speaking_key: str, executor: ScriptedExecutor
) -> None:
    executor.script = to_llm
    with server.running(speaking_key) as first:
        first.take(4)
        with server.attached(first.run_id, speaking_key) as second:
            finish_llm(executor, first.run_id, "x")
            assert names(second.rest())[:2] == ["text_chunk", "node_finished"]


def test_attaching_to_an_ended_run_without_an_id_gives_one_frame(server: Server, key: str) -> None:
    run_id = server.start(key).json()["workflow_run_id"]
    with server.attached(run_id, key) as stream:
        (frame,) = stream.rest()
    assert stream.pings == 0
    assert frame.data["task_id"] == run_id
    assert (frame.name, frame.data["data"]["status"]) == ("workflow_finished", "succeeded")


def test_a_snapshot_comes_before_what_is_still_to_come(
    server: Server, speaking_key: str, executor: ScriptedExecutor
) -> None:
    executor.script = to_llm
    with server.running(speaking_key) as first:
        first.take(4)
        with server.attached(first.run_id, speaking_key, include_state_snapshot="True") as second:  # as Python says it
            shown = second.take(4)
            finish_llm(executor, first.run_id, "x")
            rest = second.rest()
    assert names(shown) == ["workflow_started", "node_started", "node_finished", "node_started"]
    assert names(rest)[:2] == ["text_chunk", "node_finished"]


def test_an_id_behind_the_newest_event_is_refused(
    server: Server, speaking_key: str, executor: ScriptedExecutor
) -> None:
    """It is another run's: whoever waited behind it would never be told of the end."""
    executor.script = to_llm
    with server.running(speaking_key) as first:
        first.take(4)
        path = f"/v1/workflow/{first.run_id}/events"
        headers = {"Authorization": f"Bearer {speaking_key}", "Last-Event-ID": "99999"}
        answer = server.http.get(path, params={"user": "u1"}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
        assert "the run has 5 events" in answer.json()["message"]


def test_streamed_text_is_shown_as_it_comes_and_completed_from_the_log(
    server: Server, speaking_key: str, executor: ScriptedExecutor
) -> None:
    executor.script = to_llm
    with server.running(speaking_key) as stream:
        before = stream.take(4)
        executor.speak(stream.run_id, "Hel", 0)
        executor.speak(stream.run_id, "lo", 3)
        chunks = stream.take(2)
        finish_llm(executor, stream.run_id, "Hello, world")
        rest = stream.rest()
    assert [frame.id for frame in chunks] == ["5.3", "5.5"]
    assert (rest[0].name, rest[0].id) == ("text_chunk", "5.12")
    assert text_of([*before, *chunks, *rest]) == "Hello, world"


def test_a_chunk_waits_until_the_event_it_follows_is_shown(
    server: Server, speaking_key: str, executor: ScriptedExecutor
) -> None:
    executor.script = nothing
    with server.running(speaking_key) as stream:
        executor.run()
        executor.speak(stream.run_id, "Hi", 0, after=5)
        to_llm(executor, stream.run_id, executor.accepted[stream.run_id])
        assert names(stream.take(5))[-2:] == ["node_started", "text_chunk"]


def test_chunks_of_a_replaced_owner_are_not_shown(
    server: Server, speaking_key: str, executor: ScriptedExecutor
) -> None:
    executor.script = to_llm
    with server.running(speaking_key) as stream:
        stream.take(4)
        executor.speak(stream.run_id, "old", 0)
        assert stream.next().data["data"]["text"] == "old"  # type: ignore[union-attr]
        executor.claim(partition_of(stream.run_id), epoch=2)
        executor.emit(stream.run_id, NodeRestarted(node_id="llm"))
        replaced = stream.next()
        executor.speak(stream.run_id, "late", 3, after=5)
        executor.speak(stream.run_id, "new", 0)
        fresh = stream.next()
    assert replaced is not None
    assert fresh is not None
    assert (replaced.name, replaced.data["data"]["text"], replaced.id) == ("text_replace", "", "6.0")
    assert (fresh.data["data"]["text"], fresh.id) == ("new", "6.3")


@pytest.mark.parametrize("last", ["5", "5.1", "5.2", "5.4"])
def test_a_client_with_part_of_a_streamed_text_gets_the_rest_on_any_replica(
    server: Server, speaking_key: str, executor: ScriptedExecutor, log: MemoryLog, last: str
) -> None:
    executor.script = to_llm
    shown = "Hello!"[: int(last.partition(".")[2] or 0)]
    other = Server(log)
    try:
        with server.running(speaking_key) as first:
            first.take(4)
            executor.speak(first.run_id, "Hell", 0)
            first.take(1)
            for replica in (server, other):  # one has seen the chunk, the other has not
                with replica.attached(first.run_id, speaking_key, last=last) as second:
                    if replica is other:
                        finish_llm(executor, first.run_id, "Hello!")
                    rest = second.rest() if replica is other else second.take(1) if last != "5.4" else []
                    final = apply(shown, rest)
                    assert final == ("Hello!" if replica is other else "Hell")
    finally:
        other.close()


def apply(shown: str, frames: list[Any]) -> str:
    for frame in frames:
        if frame.name == "text_chunk":
            shown += frame.data["data"]["text"]
        elif frame.name == "text_replace":
            shown = frame.data["data"]["text"]
    return shown


def test_records_of_a_replaced_owner_reach_nobody(
    server: Server, speaking_key: str, executor: ScriptedExecutor
) -> None:
    executor.script = to_llm
    with server.running(speaking_key) as stream:
        stream.take(4)
        executor.emit_invalid(stream.run_id, RunSucceeded(outputs={"text": "forged"}))
        finish_llm(executor, stream.run_id, "true")
        frames = stream.rest()
    assert frames[-1].data["data"]["outputs"] == {"text": "true"}


def test_garbage_in_the_events_topic_stops_nothing(
    server: Server, key: str, executor: ScriptedExecutor, log: MemoryLog
) -> None:
    for partition in range(log.partitions):
        garbage = encode_event(
            PartitionClaimed(owner="x", commands_topic_id="t"),
            partition=partition, run_id="", seq=0, epoch=7, n=0, at_us=0, cause="\xff", body=b"\x00\xff not json",
        )  # fmt: skip
        log.send(Topic.EVENTS, partition, garbage).result(30)
    assert server.start(key).status_code == 200


def test_large_values_come_back_whole_and_in_order(server: Server, key: str, executor: ScriptedExecutor) -> None:
    large = "x" * 300_000

    def script(executor: ScriptedExecutor, run_id: str, accepted: Any) -> None:
        executor.emit(
            run_id,
            RunStarted(max_steps=9),
            NodeStarted(node_id="start", node_type="start", index=1),
            NodeSucceeded(node_id="start", outputs={"q": large}),
            RunSucceeded(outputs={"answer": large}),
        )

    executor.script = script
    with server.running(key) as stream:
        frames = stream.rest()
    assert names(frames) == ["workflow_started", "text_chunk", "node_started", "node_finished", "workflow_finished"]
    assert frames[-1].data["data"]["outputs"] == {"answer": large}
    detail = server.http.get(f"/v1/workflows/run/{stream.run_id}", headers={"Authorization": f"Bearer {key}"}).json()
    assert detail["outputs"] == {"answer": large}


def test_large_inputs_leave_the_command_and_come_back(server: Server, key: str, executor: ScriptedExecutor) -> None:
    executor.script = nothing
    large = "y" * 200_000
    body = {"inputs": {"q": large}, "user": "u1", "response_mode": "streaming"}
    with server.stream("POST", "/v1/workflows/run", key, body) as stream:
        executor.run()
        assert len(str(executor.accepted[stream.run_id].inputs)) < 1_000
        executor.emit(stream.run_id, RunStarted(max_steps=1), RunStopped())
        frames = stream.rest()
    assert frames[0].data["data"]["inputs"]["q"] == large


def test_silence_is_broken_by_pings(log: MemoryLog) -> None:
    executor = ScriptedExecutor(log, nothing)
    server = Server(log, limits=Limits(ping_s=0.1))
    try:
        key = server.import_app()["api_key"]
        with server.running(key) as stream:
            lines = stream.response.iter_lines()
            assert [next(lines) for _ in range(6)] == ["event: ping", ""] * 3
    finally:
        server.close()
        executor.close()


def test_a_client_that_goes_away_frees_everything_and_the_run_goes_on(
    server: Server, speaking_key: str, executor: ScriptedExecutor
) -> None:
    executor.script = to_llm
    with server.running(speaking_key) as stream:
        stream.take(4)
        run_id = stream.run_id
    until(lambda: server.parts.streams.clients == 0)
    assert server.parts.tail.live(run_id).receivers == []
    finish_llm(executor, run_id, "x")
    until(lambda: executor.seq(run_id) == 9)
    with server.attached(run_id, speaking_key, last="5") as stream:
        assert names(stream.rest())[-1] == "workflow_finished"


def test_head_of_a_stream_is_its_headers_and_leaves_the_connection_free(
    server: Server, speaking_key: str, executor: ScriptedExecutor
) -> None:
    executor.script = to_llm
    with server.running(speaking_key) as stream:
        stream.take(4)
        run_id = stream.run_id
    key = {"Authorization": f"Bearer {speaking_key}"}
    limits = httpx.Limits(max_connections=1)
    with httpx.Client(base_url=server.http.base_url, headers=key, limits=limits, trust_env=False, verify=False) as one:
        head = one.head(f"/v1/workflow/{run_id}/events?user=u1")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert one.get("/healthz").status_code == 200
    until(lambda: server.parts.streams.clients == 0)


def test_frames_larger_than_a_clients_buffer_come_once_each(log: MemoryLog) -> None:
    executor = ScriptedExecutor(log, nothing)
    server = Server(log, limits=Limits(stream_buffer_bytes=3_000))
    nodes = range(4)
    try:
        with server.running(server.import_app(wide(4))["api_key"]) as stream:
            run_id = executor.run()
            executor.emit(run_id, RunStarted(max_steps=100))
            seen = stream.take(1)
            for n in nodes:
                executor.emit(run_id, NodeStarted(node_id=f"n{n}", node_type="code", index=n + 1))
                seen += stream.take(1)
            for n in nodes:  # each one overflows, with nothing between them that fits
                until(lambda: server.parts.tail.live(run_id).receivers)
                executor.emit(run_id, NodeSucceeded(node_id=f"n{n}", outputs={"t": "z" * 5_000}))
                seen += stream.take(1)
            executor.emit(run_id, RunSucceeded())
            seen += stream.rest()
        assert [frame.id for frame in seen] == [str(seq) for seq in range(2, 2 + len(seen))]
        assert names(seen) == ["workflow_started", *["node_started"] * 4, *["node_finished"] * 4, "workflow_finished"]
    finally:
        server.close()
        executor.close()


def test_a_slow_reader_is_bounded_and_misses_nothing(log: MemoryLog) -> None:
    rounds = 150
    text = "z" * 60_000

    def script(executor: ScriptedExecutor, run_id: str, accepted: Any) -> None:
        executor.emit(run_id, RunStarted(max_steps=1000))
        for index in range(rounds):
            executor.emit(
                run_id,
                NodeStarted(node_id=f"n{index}", node_type="code", index=index + 1),
                NodeSucceeded(node_id=f"n{index}", outputs={"t": text}),
            )
        executor.emit(run_id, RunSucceeded())

    executor = ScriptedExecutor(log, nothing)
    server = Server(log, limits=Limits(stream_buffer_bytes=50_000))
    try:
        app = server.import_app(wide(rounds))
        key = app["api_key"]
        body = b'{"inputs": {}, "user": "u1", "response_mode": "streaming"}'
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        raw.connect(("127.0.0.1", server.port))
        raw.sendall(
            b"POST /v1/workflows/run HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        run_id = executor.run()
        script(executor, run_id, executor.accepted[run_id])
        until(lambda: server.parts.tail.live(run_id).ended)
        assert server.parts.streams.waiting_bytes <= 50_000
        received = b""
        while piece := raw.recv(1 << 16):
            received += piece
            time.sleep(0)
        raw.close()
        ids = [line for line in received.split(b"\n") if line.startswith(b"id: ")]
        assert ids == [b"id: %d" % seq for seq in range(2, 2 * rounds + 4)]
    finally:
        server.close()
        executor.close()


def wide(count: int) -> str:
    from tests.documents import code, document, edges, end, start

    names_ = [f"n{index}" for index in range(count)]
    return document([start(), *(code(name) for name in names_), end()], edges(" > ".join(["start", *names_, "end"])))


def test_a_client_that_takes_nothing_any_more_is_dropped(log: MemoryLog) -> None:
    executor = ScriptedExecutor(log, nothing)
    server = Server(log, limits=Limits(ping_s=0.05, stuck_s=0.2))
    try:
        key = server.import_app(wide(100))["api_key"]
        with server.running(key) as stream:
            run_id = executor.run()
            executor.emit(run_id, RunStarted(max_steps=1000))
            for index in range(100):
                executor.emit(
                    run_id,
                    NodeStarted(node_id=f"n{index}", node_type="code", index=index + 1),
                    NodeSucceeded(node_id=f"n{index}", outputs={"t": "z" * 60_000}),
                )
            until(lambda: server.parts.streams.clients == 0)
            assert stream.run_id == run_id
    finally:
        server.close()
        executor.close()


def test_a_replica_whose_tail_has_failed_sends_its_clients_away(log: MemoryLog) -> None:
    executor = ScriptedExecutor(log, nothing)
    server = Server(log)
    try:
        key = server.import_app()["api_key"]
        with server.running(key) as stream:
            executor.run()
            tail = server.parts.tail
            tail.loop.call_soon_threadsafe(tail._failed, LogError("broken"))  # noqa: SLF001
            assert stream.rest() == []
        assert server.http.get("/readyz").status_code == 503
    finally:
        server.close()
        executor.close()


def test_closing_the_server_ends_streams_cleanly(log: MemoryLog) -> None:
    executor = ScriptedExecutor(log, nothing)
    server = Server(log)
    try:
        key = server.import_app()["api_key"]
        with server.running(key) as stream:
            executor.run()
            threading.Thread(target=server.stop).start()
            assert stream.rest() == []
    except httpx.RemoteProtocolError:
        pytest.fail("the stream was cut off instead of ended")
    finally:
        server.close()
        executor.close()


def test_the_admin_attaches_to_any_run(server: Server, key: str) -> None:
    run_id = server.start(key).json()["workflow_run_id"]
    with server.attached(run_id, ADMIN, last="0", user="cli") as stream:
        assert names(stream.rest())[-1] == "workflow_finished"


def test_another_user_cannot_attach(server: Server, key: str) -> None:
    run_id = server.start(key).json()["workflow_run_id"]
    with server.attached(run_id, key, user="u2") as stream:
        assert stream.response.status_code == 404
