"""Jobs that let annotations answer: one of an app at a time, and each has an end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from libs.events.annotations import AnnotationFact
from libs.events.registry import AppCreated
from services.api.annotating import OVERTAKEN, Annotating
from services.api.embeddings import BATCH
from services.api.matching import Vector
from services.api.publishing import Publisher
from tests.unit.api.test_matcher import REFUND, World
from tests.unit.test_annotation_book import written

T = TypeVar("T")

APP = AppCreated(app_id="a", name="A", created_at_us=1)


class Recorder:
    """In place of the publisher. `turns`: how many of the loop the next call takes stands last."""

    def __init__(self, world: World) -> None:
        self._book = world.book
        self.turns: list[int] = []

    async def record(self, facts: Sequence[AnnotationFact]) -> None:
        for fact in facts:
            self._book.evolve(fact)
        for _ in range(self.turns.pop() if self.turns else 1):
            await asyncio.sleep(0)


async def until(look: Callable[[], T | None]) -> T:
    for _ in range(2_000):
        if found := look():
            return found
        await asyncio.sleep(0.001)
    raise AssertionError("it does not come")


class Jobs:
    def __init__(self, world: World, **settings: Any) -> None:
        self.world = world
        self.recorder = Recorder(world)
        self.annotating = Annotating(
            world.book,
            cast(Publisher, self.recorder),
            world.matcher,
            now_us=lambda: 1,
            new_uuid=iter(map(str, range(99))).__next__,
            **settings,
        )

    async def enable(self, model: str) -> str:
        return await self.annotating.enable(APP, 0.7, "p", model)

    async def end(self, job_id: str) -> str | None:
        """What went wrong with the job, when it is over."""
        end = await until(lambda: (found := self.world.book.job("a", job_id)) and found[1])
        return end.error

    def made(self) -> int:
        """How often a vector of the first question was asked for."""
        return sum(REFUND in texts for texts in self.world.provider.asked)


def within(test: Callable[[Jobs], Awaitable[None]], **settings: Any) -> None:
    async def go() -> None:
        world = World()
        for number in range(BATCH):
            world.book.evolve(written(f"3-{number:02}", f"Another question, number {number}?"))
        world.book.evolve(written("4", "the last"))
        jobs = Jobs(world, **settings)
        try:
            await test(jobs)
        finally:
            await jobs.annotating.stop()
            world.threads.close()

    asyncio.run(go())


async def under_way(jobs: Jobs) -> str:
    """A job that has made many vectors, and waits."""
    jobs.world.provider.slow_for = {"the last"}
    asked = jobs.world.provider.asked
    before = len(asked)
    job_id = await jobs.enable("slow")
    await until(lambda: any("the last" in texts for texts in asked[before:]))
    jobs.world.provider.slow_for = set()
    return job_id


def test_a_later_wish_ends_the_one_that_is_worked_on() -> None:
    async def test(jobs: Jobs) -> None:
        slow = await under_way(jobs)
        quick = await jobs.enable("quick")
        assert [await jobs.end(slow), await jobs.end(quick)] == [OVERTAKEN, None]
        slow = await under_way(jobs)
        await jobs.annotating.disable(APP)
        assert await jobs.end(slow) == OVERTAKEN
        assert jobs.world.book.answering("a") is None

    within(test)


def test_of_wishes_at_the_same_time_the_last_in_the_log_is_worked_on() -> None:
    async def test(jobs: Jobs) -> None:
        jobs.world.provider.slow_s = 0.02
        jobs.recorder.turns = [1, 4, 3, 5, 2]
        ids = await asyncio.gather(*(jobs.enable(f"m{number}") for number in range(5)))
        assert [await jobs.end(job_id) for job_id in ids] == [OVERTAKEN] * 4 + [None]
        assert (found := jobs.world.book.answering("a")) is not None
        assert found.job_id == ids[-1]

    within(test)


def test_vectors_of_a_job_that_does_not_come_to_answer_are_forgotten() -> None:
    async def test(jobs: Jobs) -> None:
        slow = await under_way(jobs)
        quick = await jobs.enable("quick")
        await jobs.end(slow)
        await jobs.end(quick)
        assert jobs.made() == 2
        assert await jobs.world.who("What is the refund policy") == "1"
        assert jobs.made() == 2, "those of the one that answers stay"
        assert await jobs.end(await jobs.enable("slow")) is None
        assert jobs.made() == 3
        assert await jobs.end(await jobs.enable("quick")) is None
        assert jobs.made() == 4, "nor are those of one that answered before kept"

    within(test)


def test_vectors_that_a_job_makes_stay_although_messages_are_compared_with_others() -> None:
    async def test(jobs: Jobs) -> None:
        await jobs.end(await jobs.enable("quick"))
        await under_way(jobs)
        assert await jobs.world.who("What is the refund policy") == "1"
        assert await jobs.end(await jobs.enable("slow")) is None
        assert await jobs.world.who("What is your own refund policy") == "1"
        assert jobs.made() == 2

    within(test)


def test_a_job_that_takes_too_long_or_fails_unexpectedly_has_an_end() -> None:
    async def slow(jobs: Jobs) -> None:
        assert "longer than 0.05 s" in str(await jobs.end(await under_way(jobs)))

    async def broken(jobs: Jobs) -> None:
        async def embed(model: str, texts: Sequence[str]) -> list["Vector[float]"]:
            raise ZeroDivisionError("a secret")

        jobs.world.provider.embed = embed  # type: ignore[method-assign]
        assert await jobs.end(await jobs.enable("m")) == (
            "unexpected ZeroDivisionError: the log of the process says more"
        )

    within(slow, job_s=0.05)
    within(broken)
