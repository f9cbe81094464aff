"""Secrets through crashes: successors get them back from the log, and no record shows them."""

from collections.abc import Iterator
from typing import Any

import pytest

from libs.events.claim_check import restore
from libs.events.codec import decode_event
from libs.events.commands import Origin
from libs.events.log import Record, Topic
from libs.events.model import RunSucceeded
from libs.events.sealing import Unopened
from libs.workflow.definition import compile_document
from libs.workflow.fork import fork
from libs.workflow.outcome import Failed, Outcome, Succeeded
from services.executor.nodes.port import Attempt
from tests.documents import code, document, edges, end, start, template
from tests.simulation.world import World

SECRET = 'sk-live-"0123456789/abcdef'
MASKED = "sk-liv************ef"
DOCUMENT = document(
    [
        start("q"),
        template("header", "Bearer {{ key }}", key="env.key"),
        code("call", error_strategy="fail-branch"),
        code("again"),
        end(out="header.output", seen="again.result"),
        end("bad", why="call.error_message"),
    ],
    edges("start > header > call > again > end", "call[fail-branch] > bad"),
    environment_variables=[{"name": "key", "value_type": "secret", "value": SECRET}],
)


def speaking(attempt: Attempt) -> Outcome:
    """Fails unless it sees the secret, and gives it on in every way there is."""
    header = attempt.pool.get(("header", "output"))
    assert header is not None
    if header.value != f"Bearer {SECRET}":
        return Failed(f"the header was {header.value}")
    return Succeeded(
        outputs={"result": f"{attempt.node.id} sent {SECRET}", "nested": [{SECRET: [SECRET]}], "large": SECRET * 4_000},
        inputs={"header": header.value},
        process_data={"url": f"https://x/?key={SECRET}"},
    )


def records(world: World) -> Iterator[Record]:
    for topic in (Topic.EVENTS, Topic.COMMANDS, Topic.BLOBS):
        for batch in world.log.read(topic, 0, 0):
            yield from batch


def check(world: World, run_id: str) -> None:
    told = world.events(run_id)[-1].event
    assert isinstance(told, RunSucceeded), told
    assert told.outputs == {"out": f"Bearer {MASKED}", "seen": f"again sent {MASKED}"}
    pieces = ("0123456789/abcdef", "0123456789%2Fabcdef", "0123456789\\/abcdef")
    for value in (*(record.value or b"" for record in records(world)), *world.blobs.kept.values()):
        assert not any(piece in value.decode() for piece in pieces), value
    assert world.blobs.kept


@pytest.mark.parametrize("after", [False, True], ids=["before it lands", "after it lands"])
@pytest.mark.parametrize("snapshot_events", [2, 1_000])
def test_a_secret_comes_back_wherever_the_executor_dies_and_stands_in_no_record(
    snapshot_events: int, after: bool
) -> None:
    def made() -> tuple[World, str]:
        world = World(script=speaking, snapshot_events=snapshot_events)
        return world, world.submit(world.add("document", DOCUMENT), q="x")

    world, run_id = made()
    world.start_executor()
    world.run()
    check(world, run_id)
    count = world.landed
    world.close()
    for crash_at in range(1, count):
        world, run_id = made()
        world.start_executor()
        world.run(landings=crash_at)
        if after:
            world.log.land()
        world.crash()
        world.start_executor()
        world.run()
        check(world, run_id)
        world.close()


def test_an_error_text_is_masked() -> None:
    world = World(script=lambda attempt: Failed(f"401 for {SECRET}"))
    run_id = world.submit(world.add("document", DOCUMENT), q="x")
    world.start_executor()
    world.run()
    assert world.fold(run_id).outputs == {"why": f"401 for {MASKED}"}
    assert not any(b"0123456789/abcdef" in (record.value or b"") for record in records(world))
    world.close()


def test_what_only_looks_like_a_sealed_value_comes_back_as_it_was() -> None:
    alike = {"$sealed": "1.abc.def", "shown": "me"}
    world = World(script=lambda attempt: Succeeded(outputs={"result": alike}))
    plain = document([start(), code("a"), end(out="a.result")], edges("start > a > end"))
    run_id = world.submit(world.add("document", plain))
    world.start_executor()
    world.run()
    world.crash()
    world.start_executor()
    assert world.fold(run_id).outputs == {"out": alike}
    world.close()


def test_streamed_text_ends_before_a_secret() -> None:
    def echoing(attempt: Attempt) -> Outcome:
        for piece in ("the key is ", SECRET[:7], SECRET[7:], " and more"):
            attempt.emit("text", piece)
        return Succeeded(outputs={"result": f"the key is {SECRET} and more"})

    world = World(script=echoing)
    said: list[bytes] = []
    world.log.tail(Topic.CHUNKS, {0: 0}, lambda batch: said.extend(each.value or b"" for each in batch), _ignore)
    world.submit(world.add("document", DOCUMENT), q="x")
    world.start_executor()
    world.run()
    text = b"".join(said).decode()
    assert "the key is " in text
    assert "sk-live" not in text
    assert "and more" not in text
    world.close()


def _ignore(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("snapshot_events", [2, 1_000])
def test_a_fork_copies_secrets_sealed_and_works_with_them(snapshot_events: int) -> None:
    world = World(script=speaking, snapshot_events=snapshot_events)
    origin = world.submit(world.add("document", DOCUMENT), q="x")
    world.start_executor()
    world.run()
    keep = Unopened()
    events: list[Any] = [
        restore(decode_event(record, keep).event, world.blobs, keep) for record in world.records(origin)
    ]
    at = next(n for n, event in enumerate(events, 1) if event.type == "NodeSucceeded" and event.node_id == "call")
    made = fork(compile_document(DOCUMENT), events, at, {"start.q": "y"})
    run_id = world.request("document", forked_from=Origin(run_id=origin, seq=at), prefix=made.prefix, inputs={"q": "y"})
    world.run(landings=5)
    world.crash()
    world.start_executor()
    world.run()
    check(world, run_id)
    world.close()
