"""Live runs and replays: what a client gets that comes back, at every place it may have stopped."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from libs.events.chunks import Chunk
from libs.events.codec import Recorded, encode_event
from libs.events.log import Record, Topic
from libs.events.model import Event, NodeRestarted, NodeSucceeded, RunStarted, RunStopped, RunSucceeded
from libs.workflow.definition import Definition, compile_document
from services.api.frames import Cursor, Frame
from services.api.live import Fold, LiveRun, Ring
from services.api.replay import Step, replay
from services.api.sse import Outbox
from tests.documents import document, edges, end, start
from tests.unit.api.speaking import llm
from tests.unit.api.test_frames import RUN, accepted, body, started

AT_US = 1_767_000_000_000_000


@pytest.fixture(scope="module")
def definition() -> Definition:
    nodes = [start("q"), llm("llm"), llm("other"), end(text="llm.text")]
    return compile_document(document(nodes, edges("start > llm > end", "start > other")))


def record(event: Event, seq: int) -> Record:
    entry = encode_event(event, partition=0, run_id=RUN, seq=seq, epoch=1, n=seq, at_us=AT_US + seq, cause="derived")
    return Record(Topic.EVENTS, 0, seq, 0, entry.key, entry.value, dict(entry.headers))


class Client:
    """Takes frames as they come."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.failed: str | None = None
        self.finished = False

    def push(self, frames: list[Frame]) -> None:
        self.frames += frames

    def fail(self, code: str, message: str) -> None:
        self.failed = code

    def finish(self) -> None:
        self.finished = True

    @property
    def text(self) -> str:
        return shown("", self.frames)


def shown(before: str, frames: list[Frame]) -> str:
    for frame in frames:
        if frame.kind == "replace":
            before = frame.text
        elif frame.kind == "text":
            before += frame.text
    return before


class World:
    """A run of `start > llm > end` with another model node beside it, as one replica sees it."""

    def __init__(self, definition: Definition) -> None:
        self.live = LiveRun(RUN, lambda _: definition, lambda *_: None)
        self.client = Client()
        self.live.attach(self.client, Cursor())
        self.history: list[Event] = []
        self.definition = definition

    def add(self, *events: Event) -> "World":
        for event in events:
            self.history.append(event)
            self.live.on_record(record(event, len(self.history)))
        return self

    def begin(self) -> "World":
        """Up to sequence 5: the model runs."""
        return self.add(
            accepted(),
            RunStarted(max_steps=9),
            started("start", "start"),
            NodeSucceeded(node_id="start"),
            started("llm", "llm", index=2),
        )

    def finish(self, text: str) -> "World":
        return self.add(
            NodeSucceeded(node_id="llm", outputs={"text": text}),
            started("end", "end", index=3),
            NodeSucceeded(node_id="end", outputs={"text": text}),
            RunSucceeded(outputs={"text": text}),
        )

    def speak(self, text: str, position: int, *, after: int = 5, epoch: int = 1) -> "World":
        chunk = Chunk(run_id=RUN, epoch=epoch, node_id="llm", field="text", position=position, text=text, after=after)
        self.live.on_chunk(chunk)
        return self

    def steps(self) -> Iterator[Step]:
        """The history as the log tells it: without chunks."""
        fold = Fold(RUN, self.definition)
        for seq, event in enumerate(self.history, 1):
            recorded = Recorded(event, RUN, seq, 1, seq, AT_US + seq, "derived", 0, seq)
            yield recorded, fold.on_event(recorded), fold

    def replayed(self, after: Cursor, to_seq: int | None = None) -> list[Frame]:
        pages = replay(self.steps(), after, len(self.history) if to_seq is None else to_seq)
        return [frame for page, _ in pages for frame in page]


@pytest.fixture
def world(definition: Definition) -> World:
    return World(definition)


def test_every_place_of_a_live_stream_can_be_resumed_from_the_ring(world: World) -> None:
    world.begin().speak("Hel", 0).speak("lo", 3).finish("Hello!")
    whole = world.client.frames
    assert world.client.text == "Hello!"
    for number, frame in enumerate(whole):
        again = Client()
        assert world.live.attach(again, frame.cursor)
        assert again.frames == whole[number + 1 :]


def test_every_place_of_a_live_stream_can_be_resumed_from_the_log_alone(world: World) -> None:
    world.begin().speak("Hel", 0).speak("lo", 3).finish("Hello!")
    whole = world.client.frames
    for number, frame in enumerate(whole):
        rest = world.replayed(frame.cursor)
        assert [body(each) for each in rest if each.kind == "event"] == [
            body(each) for each in whole[number + 1 :] if each.kind == "event"
        ]
        assert shown(shown("", whole[: number + 1]), rest) == "Hello!"


@pytest.mark.parametrize("seen", range(7))
def test_a_client_with_any_part_of_the_text_gets_exactly_the_rest(world: World, seen: int) -> None:
    world.begin().speak("Hel", 0).speak("lo", 3)
    again = Client()
    assert world.live.attach(again, Cursor(5, min(seen, 5)))
    world.finish("Hello!")
    assert shown("Hello!"[: min(seen, 5)], again.frames) == "Hello!"
    assert shown("Hello!"[:seen], world.replayed(Cursor(5, seen))) == "Hello!"


def test_a_client_that_has_seen_more_than_this_replica_is_set_right(world: World) -> None:
    world.begin().speak("Hel", 0)
    ahead = Client()
    assert world.live.attach(ahead, Cursor(5, 5))
    assert shown("Hello", ahead.frames) == "Hel"
    world.finish("Hello!")
    assert shown("Hello", ahead.frames) == "Hello!"


def test_text_of_a_lost_attempt_is_taken_back_from_who_saw_it_elsewhere(world: World) -> None:
    world.begin().add(NodeRestarted(node_id="llm")).finish("new")
    assert shown("old text", world.replayed(Cursor(5, 8))) == "new"


def test_a_plain_sequence_is_settled_by_all_text_while_somebody_streams(world: World) -> None:
    world.begin().speak("Hel", 0).add(started("other", "llm", index=3)).speak("lo", 3, after=6)
    again = Client()
    assert world.live.attach(again, Cursor(6, None))
    assert [frame.kind for frame in again.frames] == ["replace"]
    assert again.text == "Hello"
    world.add(NodeSucceeded(node_id="other")).finish("Hello!")
    assert again.text == "Hello!"


def test_a_plain_sequence_needs_no_replacement_when_nobody_streamed_before_it(world: World) -> None:
    world.begin().speak("Hel", 0).finish("Hello!")
    again = Client()
    assert world.live.attach(again, Cursor(5, None))
    assert [frame.kind for frame in again.frames][:2] == ["text", "text"]
    assert again.text == "Hello!"


def test_a_restart_replaces_text_for_who_attaches_later_too(world: World) -> None:
    world.begin().speak("old", 0).add(NodeRestarted(node_id="llm")).speak("new", 0, after=6)
    for after, before in ((Cursor(5, 3), "old"), (Cursor(5, 1), "o"), (Cursor(), "")):
        again = Client()
        assert world.live.attach(again, after)
        assert shown(before, again.frames) == "new"


def test_a_chunk_waits_for_the_event_it_follows(world: World) -> None:
    world.speak("Hi", 0)
    assert world.client.frames == []
    world.begin()
    assert world.client.text == "Hi"


def test_an_ended_run_finishes_who_has_seen_everything(world: World) -> None:
    world.begin().finish("x")
    late = Client()
    assert world.live.attach(late, world.client.frames[-1].cursor)
    assert (late.frames, late.finished) == ([], True)
    assert world.live.receivers == []


def test_a_client_that_is_ahead_of_this_replica_gets_nothing_twice(world: World) -> None:
    early = Client()
    assert world.live.attach(early, Cursor(5, 0))
    world.begin()
    assert early.frames == []
    world.finish("x")
    assert [frame.seq for frame in early.frames if frame.kind == "event"] == [6, 7, 8, 9]


def test_a_client_that_claims_to_have_seen_what_never_comes_is_finished(world: World) -> None:
    ahead = Client()
    assert world.live.attach(ahead, Cursor(99, None))
    world.begin().finish("x")
    assert (ahead.frames, ahead.finished) == ([], True)


def test_an_id_behind_the_end_of_a_text_gets_the_text_and_the_end(world: World) -> None:
    world.begin().speak("Hi", 0)
    world.finish("Hi")
    ahead = Outbox(1 << 20)
    assert world.live.attach(ahead, Cursor(world.client.frames[-1].seq, 99))

    async def rest() -> list[bytes]:
        return [piece async for piece in pieces(ahead)]

    async def pieces(outbox: Outbox) -> AsyncIterator[bytes]:
        while piece := await outbox.take():
            yield piece

    (text,) = asyncio.run(asyncio.wait_for(rest(), 5))
    assert b"text_replace" in text


def test_a_gap_in_the_history_ends_the_streams_of_this_run(world: World) -> None:
    world.begin()
    world.live.on_record(record(RunStopped(), 9))
    assert world.client.failed == "internal_server_error"


def test_a_repeated_record_changes_nothing(world: World) -> None:
    world.begin()
    before = list(world.client.frames)
    world.live.on_record(record(started("llm", "llm", index=2), 5))
    assert world.client.frames == before


def test_what_comes_while_the_log_is_read_is_joined_by_sequence(world: World, definition: Definition) -> None:
    world.begin()
    joined = LiveRun(RUN, lambda _: definition, lambda *_: None)
    joined.hold()
    for seq, event in enumerate(world.history[2:], 3):
        joined.on_record(record(event, seq))
    fold, ring = Fold(RUN, definition), Ring()
    for recorded, _, _ in list(world.steps())[:4]:
        for frame in fold.on_event(recorded):
            ring.keep(frame)
    joined.fill(fold, ring)
    client = Client()
    assert joined.attach(client, Cursor())
    assert [body(frame) for frame in client.frames] == [body(frame) for frame in world.client.frames]


def test_a_ring_is_bounded_and_says_how_far_it_reaches(world: World) -> None:
    world.add(accepted(), RunStarted(max_steps=9))
    fresh = Ring()
    for frame in world.client.frames:
        fresh.keep(frame)
    for number in range(40):
        seq = 100 + number
        fresh.keep(Frame("event", seq, b"x" * 20_000, True, 0))
    assert fresh.size_bytes <= 256 * 1024
    assert fresh.base.seq == fresh.frames[0].seq - 1


def run(coroutine: object) -> object:
    return asyncio.run(coroutine)  # type: ignore[arg-type]


def frame(seq: int, size: int = 10, *, identified: bool = True, last: bool = False) -> Frame:
    return Frame("event", seq, b"%d" % seq + b"x" * (size - 1), identified, 0, last=last)


def test_an_outbox_joins_what_has_piled_up_and_remembers_its_place() -> None:
    async def scenario() -> None:
        outbox = Outbox(1000)
        outbox.push([frame(1), frame(2)])
        outbox.push([frame(3, identified=False)])
        assert await outbox.take() == b"".join(frame(seq).wire for seq in (1, 2, 3))
        assert outbox.cursor == Cursor(2, 0)

    run(scenario())


def test_an_outbox_that_is_too_full_drops_its_frames_but_not_its_place() -> None:
    async def scenario() -> None:
        outbox = Outbox(100)
        outbox.push([frame(1)])
        await outbox.take()
        outbox.push([frame(seq, 60) for seq in (2, 3)])
        assert outbox.overflowed
        assert outbox.waiting_bytes == 0
        outbox.push([frame(4)])
        assert await outbox.take() == b""
        assert outbox.cursor == Cursor(1, 0)
        outbox.recover()
        outbox.push([frame(2, last=True)])
        assert await outbox.take() == frame(2).wire
        assert outbox.finished

    run(scenario())


def test_an_outbox_wakes_its_taker_once_per_push() -> None:
    async def scenario() -> None:
        outbox = Outbox(1000)
        taken = asyncio.ensure_future(outbox.take())
        await asyncio.sleep(0)
        outbox.push([frame(1), frame(2)])
        outbox.push([frame(3)])
        assert await taken == frame(1).wire + frame(2).wire + frame(3).wire
        closed = asyncio.ensure_future(outbox.take())
        await asyncio.sleep(0)
        outbox.close()
        assert await closed == b""

    run(scenario())
