"""The outbox against a log and an appender that do what brokers do: refuse, reorder nothing, insert, lose."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from libs.events.log import Ack, AppendRefused, Entry, Record, Topic
from libs.events.model import OwnerConfirmed
from services.executor.outbox import Outbox, Outgoing


class Appends:
    """Takes what it is given, or refuses as often as it is told."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.entries: list[Entry] = []

    def append(self, partition: int, entries: Sequence[Entry]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise AppendRefused("full of other partitions' records")
        self.entries += entries


class Reads:
    """An events partition by offset."""

    def __init__(self) -> None:
        self.records: dict[int, dict[str, bytes]] = {}

    def read(self, topic: Topic, partition: int, start: int, stop: int | None = None) -> Iterator[list[Record]]:
        yield [
            Record(topic, partition, offset, 0, None, b"", headers)
            for offset, headers in sorted(self.records.items())
            if offset >= start and (stop is None or offset < stop)
        ]


class Bench:
    """One outbox of epoch 3, whose claim stands at offset 100."""

    def __init__(self, refusals: int = 0) -> None:
        self.appends, self.reads = Appends(refusals), Reads()
        self.lost: list[tuple[str, bool]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.outbox = Outbox(
            partition=0,
            epoch=3,
            claim_offset=100,
            claimed_at=0.0,
            log=self.reads,  # type: ignore[arg-type]  # only what an outbox asks for
            appender=self.appends,  # type: ignore[arg-type]  # as above
            blobs=None,  # type: ignore[arg-type]  # nothing here is large
            monotonic=lambda: 0.0,
            blocking=self._blocking,
            spawn=lambda work: self.tasks.add(asyncio.get_running_loop().create_task(work)),
            lost=self._lost,
            wake=lambda: None,
            roomier=lambda: None,
            appended=lambda: None,
            took=lambda seconds: None,
        )

    async def _blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def _lost(self, reason: str, *, again: bool, alarm: bool = False) -> None:
        self.lost.append((reason, again))

    def put(self, count: int) -> list[Outgoing]:
        outs = [self.outbox.put(OwnerConfirmed(), "", 0, 1, "owner") for _ in range(count)]
        self.outbox.flush()
        return outs

    async def settle(self) -> None:
        while self.tasks:
            await self.tasks.pop()


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


def _ack(n: int, offset: int, error: str | None = None) -> Ack:
    return Ack(0, 3, n, offset, error)


@in_a_loop
async def test_a_refused_append_is_tried_again_although_nothing_of_ours_is_under_way() -> None:
    bench = Bench(refusals=2)
    bench.put(2)
    assert bench.appends.entries == []
    await bench.settle()
    assert [entry.n for entry in bench.appends.entries] == [1, 2]


@in_a_loop
async def test_what_waits_behind_a_refused_append_keeps_its_place() -> None:
    bench = Bench(refusals=1)
    bench.put(1)
    bench.put(2)
    await bench.settle()
    assert [entry.n for entry in bench.appends.entries] == [1, 2, 3]


@in_a_loop
async def test_places_are_exact_when_foreign_records_stand_in_several_gaps() -> None:
    """One batch of acknowledgements with two gaps: what lies between them does not move with the second."""
    bench = Bench()
    outs = bench.put(3)
    places: list[int] = []
    for out in outs:
        bench.outbox.when_confirmed(out, lambda out=out: places.append(bench.outbox.before(out).offset))  # type: ignore[misc]
    bench.outbox.on_acks([_ack(1, 102), _ack(2, 104), _ack(3, 105)])
    await bench.settle()
    assert places == [102, 104, 105]


@in_a_loop
async def test_a_claim_among_foreign_records_ends_the_epoch_before_anything_behind_it_counts() -> None:
    bench = Bench()
    bench.reads.records[102] = {"ce_epoch": b"4", "ce_n": b"0", "ce_type": b"flowledger.PartitionClaimed.1"}
    outs = bench.put(2)
    acted: list[int] = []
    for out in outs:
        bench.outbox.when_confirmed(out, lambda out=out: acted.append(out.n))  # type: ignore[misc]
    bench.outbox.on_acks([_ack(1, 101), _ack(2, 103)])
    await bench.settle()
    assert acted == [1]
    assert bench.lost == [("another executor has claimed the partition", False)]


@in_a_loop
async def test_a_record_acknowledged_without_a_place_is_read_back() -> None:
    bench = Bench()
    [out] = bench.put(1)
    bench.reads.records[101] = {"ce_epoch": b"3", "ce_n": b"1", "ce_type": b"flowledger.OwnerConfirmed.1"}
    acted: list[int] = []
    bench.outbox.when_confirmed(out, lambda: acted.append(out.n))
    bench.outbox.on_acks([_ack(1, -1)])
    await bench.settle()
    assert acted == [1]


@in_a_loop
async def test_an_error_ends_the_epoch_and_nothing_behind_it_counts() -> None:
    bench = Bench()
    outs = bench.put(3)
    acted: list[int] = []
    for out in outs:
        bench.outbox.when_confirmed(out, lambda out=out: acted.append(out.n))  # type: ignore[misc]
    bench.outbox.on_acks([_ack(1, 101), _ack(2, -1, "timed out"), _ack(3, 103)])
    assert acted == [1]
    assert [again for _, again in bench.lost] == [True]
