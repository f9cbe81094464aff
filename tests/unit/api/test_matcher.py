"""Which annotation answers, while providers are quick, slow, away, or come back."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from libs.events.annotations import AnnotationBook, AnnotationDeleted, AnnotationJobBegun, AnnotationJobEnded
from services.api.embeddings import BATCH, Embedders, EmbeddingError, Offline, TextRefused
from services.api.matcher import MOST_CHARACTERS, REST_S, Matcher
from services.api.matching import Vector, normal
from services.api.threads import Threads
from tests.unit.test_annotation_book import written

REFUND = "What is your refund policy?"


class Provider(Embedders):
    """The stand-in, at a server that can be slow or away.

    `asked`: the texts of every call; `given`: those that have vectors.
    """

    def __init__(self) -> None:
        super().__init__({})
        self.asked: list[list[str]] = []
        self.given: set[str] = set()
        self.away = False
        self.slow_s = 0.0
        self.slow_for: set[str] = set()
        """Texts whose vectors never come."""
        self.refuses: Callable[[str], bool] = lambda text: False

    def of(self, provider_id: str) -> "Provider":
        return self

    async def embed(self, model: str, texts: Sequence[str]) -> list["Vector[float]"]:
        self.asked.append(list(texts))
        await asyncio.sleep(1000.0 if self.slow_for & set(texts) else self.slow_s)
        if self.away:
            raise EmbeddingError("openai: no answer in time")
        for text in filter(self.refuses, texts):
            raise TextRefused("openai: status 400: too long", text)
        self.given.update(texts)
        return await Offline().embed(model, texts)


class World:
    def __init__(self, threshold: float = 0.7, patience_s: float = 0.05) -> None:
        self.book = AnnotationBook()
        self.provider = Provider()
        self.threads = Threads(1)
        self.now = 100.0
        self.matcher = Matcher(
            self.book, self.provider, self.threads, patience_s=patience_s, monotonic=lambda: self.now
        )
        for fact in (
            written("1", REFUND),
            written("2", "Where are you?"),
            AnnotationJobBegun(
                job_id="j", app_id="a", action="enable", score_threshold=threshold, embedding_provider_name="p",
                embedding_model_name="m", begun_at_us=1, ends_by_us=2,
            ),
            AnnotationJobEnded(job_id="j", app_id="a", ended_at_us=2),
        ):  # fmt: skip
            self.book.evolve(fact)

    async def who(self, query: str) -> str | None:
        found = await self.matcher.match("a", query)
        return None if found is None else found.id


def within(test: Callable[[World], Awaitable[None]], **fields: Any) -> None:
    async def go() -> None:
        world = World(**fields)
        try:
            await test(world)
        finally:
            await world.matcher.stop()
            world.threads.close()

    asyncio.run(go())


def test_equal_texts_answer_with_the_full_score_and_ask_nobody() -> None:
    async def test(world: World) -> None:
        found = await world.matcher.match("a", "what is your REFUND policy")
        assert found is not None
        assert (found.id, found.question, found.answer, found.score) == ("1", REFUND, "!", 1.0)
        assert world.provider.asked == []

    within(test, threshold=1.0)


def test_near_texts_answer_when_they_reach_the_threshold() -> None:
    async def test(world: World) -> None:
        found = await world.matcher.match("a", "What is the refund policy")
        assert found is not None
        assert found.id == "1"
        assert 0.7 < found.score < 1
        assert await world.who("Tell me a story") is None

    within(test)
    within(lambda world: _nobody(world, "What is the refund policy"), threshold=0.99)


async def _nobody(world: World, query: str) -> None:
    assert await world.who(query) is None


def test_vectors_of_questions_are_made_once_and_again_for_what_has_changed() -> None:
    async def test(world: World) -> None:
        for query in ("first one", "second one"):
            await world.who(query)
        assert sorted(world.provider.asked) == [["What is your refund policy?", "Where are you?"], ["first one"],
                                                ["second one"]]  # fmt: skip
        world.book.evolve(written("2", "Where do you live?"))
        assert await world.who("Where do you live now?") == "2"
        assert ["Where do you live?"] in world.provider.asked

    within(test)


def test_of_equal_questions_the_newest_answers_and_a_deleted_one_does_not() -> None:
    async def test(world: World) -> None:
        world.book.evolve(written("3", "what is your refund policy"))
        assert await world.who(REFUND) == "3"
        assert await world.who("What is your own refund policy?") == "3"
        world.book.evolve(AnnotationDeleted(annotation_id="3", app_id="a", deleted_at_us=9))
        assert await world.who(REFUND) == "1"

    within(test)


def test_nothing_answers_unless_it_was_enabled() -> None:
    async def test(world: World) -> None:
        assert await world.matcher.match("b", REFUND) is None
        world.book.evolve(AnnotationJobBegun(job_id="k", app_id="a", action="disable", begun_at_us=3, ends_by_us=4))
        world.book.evolve(AnnotationJobEnded(job_id="k", app_id="a", ended_at_us=4))
        assert await world.who(REFUND) is None

    within(test)


def test_vectors_of_an_app_whose_annotations_were_disabled_are_forgotten() -> None:
    async def test(world: World) -> None:
        assert await world.who("What is the refund policy") == "1"
        for number, action in enumerate(("disable", "enable")):
            world.book.evolve(
                AnnotationJobBegun(
                    job_id=action, app_id="a", action=action, score_threshold=0.7, embedding_provider_name="p",
                    embedding_model_name="m", begun_at_us=3, ends_by_us=4,
                )
            )  # fmt: skip
            world.book.evolve(AnnotationJobEnded(job_id=action, app_id="a", ended_at_us=4))
            assert await world.who("What is the refund policy") == ("1" if number else None)
        assert sum(REFUND in texts for texts in world.provider.asked) == 2

    within(test)


@pytest.mark.parametrize("trouble", ["away", "slow"])
def test_a_provider_that_is_away_or_slow_holds_up_one_message_a_moment(
    trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(world: World) -> None:
        world.provider.away, world.provider.slow_s = trouble == "away", 5.0 if trouble == "slow" else 0.0
        async with asyncio.timeout(1):
            assert await world.who("What is the refund policy") is None
            asked = len(world.provider.asked)
            for _ in range(3):
                assert await world.who("What is the refund policy") is None
            assert await world.who(REFUND) == "1"
        assert len(world.provider.asked) == asked
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert [record.message for record in warnings] == ["annotations_not_compared"]
        world.provider.away, world.provider.slow_s = False, 0.0
        world.now += REST_S + 1
        await world.matcher.prepare("a", "p", "m")
        assert await world.who("What is the refund policy") == "1"

    within(test)


def test_a_question_that_the_provider_refuses_leaves_the_others_their_vectors() -> None:
    async def test(world: World) -> None:
        world.book.evolve(written("3", "too long"))
        world.provider.refuses = lambda text: text.startswith("too long")
        await world.matcher.prepare("a", "p", "m")
        asked = len(world.provider.asked)
        assert await world.who("What is the refund policy") == "1"
        assert await world.who("Too long!") == "3", "equal texts need no vector"
        assert world.provider.asked[asked:] == [["What is the refund policy"]], "nobody asks for it again"

    within(test)


def test_a_message_that_the_provider_refuses_is_the_only_one_that_is_not_compared() -> None:
    async def test(world: World) -> None:
        world.provider.refuses = lambda text: text.startswith("too long")
        assert await world.who("too long, this message") is None
        assert await world.who("What is the refund policy") == "1"

    within(test)


@pytest.mark.parametrize("everything", ["whatever is sent", "the questions"])
def test_a_provider_that_refuses_everything_has_made_no_vectors(everything: str) -> None:
    async def test(world: World) -> None:
        world.provider.refuses = lambda text: everything == "whatever is sent" or text in (REFUND, "Where are you?")
        with pytest.raises(EmbeddingError, match="status 400"):
            await world.matcher.prepare("a", "p", "m")
        world.provider.refuses = lambda text: False
        await world.matcher.prepare("a", "p", "m")
        assert await world.who("What is the refund policy") == "1", "whoever asks again is heard"

    within(test)


def test_messages_do_not_wait_for_all_vectors_of_a_process_that_has_just_begun() -> None:
    async def test(world: World) -> None:
        for number in range(BATCH):
            world.book.evolve(written(f"3-{number:02}", f"Another question, number {number}?"))
        world.book.evolve(written("4", "the last"))
        world.provider.slow_for = {"the last"}
        begun = time.monotonic()
        assert await world.who("What is the refund policy") == "1", "compared with what is there"
        assert time.monotonic() - begun > 0.04, "it was waited for"
        world.matcher._patience_s = 60.0  # noqa: SLF001  # who waits again is caught by the limit below
        async with asyncio.timeout(10):  # it is waited for once, not by every message until it is done
            assert await world.who("What is your own refund policy") == "1"
            assert await world.who("Your refund policy?") == "1"
        assert "the last" not in world.provider.given
        assert sum("the last" in texts for texts in world.provider.asked) == 1

    within(test)


def test_vectors_that_could_not_be_made_behind_the_messages_are_left_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(world: World) -> None:
        world.provider.refuses = lambda text: REFUND == text or text == "hello"
        assert await world.who("Another") is None
        asked = len(world.provider.asked)
        assert await world.who("One more") is None
        assert len(world.provider.asked) == asked
        assert [record.message for record in caplog.records] == ["annotations_not_compared"]
        world.provider.refuses = lambda text: False
        world.now += REST_S + 1
        assert await world.who("What is the refund policy") == "1"

    within(test)


def test_what_is_longer_than_a_model_takes_is_not_compared() -> None:
    async def test(world: World) -> None:
        assert await world.who("x" * (MOST_CHARACTERS + 1)) is None
        assert await world.who("") is None
        assert world.provider.asked == []

    within(test)


def test_a_message_of_megabytes_holds_up_nobody() -> None:
    async def test(world: World) -> None:
        begun = time.monotonic()
        assert await world.who("\ufdfa" * 500_000) is None, "NFKC makes 18 characters of it"
        assert time.monotonic() - begun < 0.5
        assert await world.who(REFUND + " " * MOST_CHARACTERS) is None, "not compared for equality either"

    within(test)


def test_the_questions_of_an_app_hold_up_nobody_and_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[tuple[str, bool]] = []

    def look(text: str) -> str:
        looked.append((text, threading.current_thread() is threading.main_thread()))
        return normal(text)

    async def test(world: World) -> None:
        monkeypatch.setattr("services.api.matcher.normal", look)
        assert await asyncio.gather(world.who(REFUND), world.who(REFUND)) == ["1", "1"]
        messages = [(REFUND, True)] * 2
        assert looked == [(REFUND, False), ("Where are you?", False), *messages], "messages only on the loop"
        looked.clear()
        world.book.evolve(written("3", "How late?"))
        assert await world.who("how late") == "3"
        assert looked == [("How late?", False), ("how late", True)]

    within(test)


def test_an_app_without_annotations_prepares_by_asking_the_provider_anyway() -> None:
    async def test(world: World) -> None:
        world.provider.away = True
        with pytest.raises(EmbeddingError):
            await world.matcher.prepare("b", "p", "m")

    within(test)
