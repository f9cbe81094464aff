"""Which annotation answers a message: compared when the message comes, with vectors that are kept in memory.

Equal texts need nobody. For the others a provider is asked, and waited for a moment only: a message is never refused
nor held up because of it. A provider that fails is left alone for a while, with one line in the log.

Vectors are kept per app, provider and model, and made when they are first needed: they follow from texts that are in
the log, so a process that begins asks for them again. Kept in the log they would be many times its size, and read by
every process at every start.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from libs.events.annotations import AnnotationBook, AnnotationJobBegun, AnnotationWritten
from libs.events.commands import Annotation
from services.api.account import ADMIN_ID, ADMIN_NAME
from services.api.embeddings import BATCH, Embedder, Embedders, EmbeddingError, TextRefused
from services.api.matching import EQUAL, Vector, closest, normal
from services.api.threads import Threads

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 1.5
"""How long a message waits for vectors, and how long after its beginning making those of all questions is waited for.
Providers on the network answer within half of it."""
REST_S: Final = 10.0
"""How long a provider that has failed is not asked by messages."""
MOST_CHARACTERS: Final = 4_000
"""A longer message is like no question, which has half of it at most; models refuse what is much longer."""


_PLAIN: Final = ("hello",)
"""What a model that makes vectors takes."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The annotations of an app, by what counts of their questions."""

    of: tuple[AnnotationWritten, ...] = ()
    normal: Mapping[str, str] = field(default_factory=dict)
    """By question."""
    equal: Mapping[str, AnnotationWritten] = field(default_factory=dict)


@dataclass(slots=True)
class _Space:
    """What a model has made of an app's questions."""

    app_id: str
    provider_id: str
    model: str
    vectors: dict[str, "Vector[float]"] = field(default_factory=dict)
    """By question."""
    refused: dict[str, str] = field(default_factory=dict)
    """Questions that the provider makes no vector of, and what it says. They answer messages that are equal."""
    filling: "asyncio.Task[None] | None" = None
    waited_for_until: float = 0.0
    """On the loop's clock: messages behind it are compared with the vectors that are there."""
    rests_until: float = 0.0
    held: int = 0
    """By how many jobs that may make it the one that answers."""

    def lacks(self, question: str) -> bool:
        return question not in self.vectors and question not in self.refused


class Matcher:
    """On one event loop. `stop()` at the end."""

    def __init__(
        self,
        book: AnnotationBook,
        embedders: Embedders,
        threads: Threads,
        *,
        patience_s: float = PATIENCE_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book = book
        self._embedders = embedders
        self._threads = threads
        self._patience_s = patience_s
        self._monotonic = monotonic
        self._apps: dict[str, _Known] = {}
        self._looking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._spaces: dict[tuple[str, str, str], _Space] = {}

    async def match(self, app_id: str, query: str) -> Annotation | None:
        """The annotation that answers the message; None: the workflow does. Raises nothing."""
        if self._book.answering(app_id) is None:
            if self._apps.pop(app_id, None) is not None:
                self._leave(app_id, None)
            return None
        if len(query) > MOST_CHARACTERS:  # looked at before anything else: it may be of megabytes, and this is the loop
            return None
        known = await self._known(app_id)
        job = self._book.answering(app_id)
        if job is None:
            return None
        found, score = known.equal.get(normal(query)), EQUAL
        if found is None and known.of and query:
            near = await self._near(job, known.of, query)
            if near is not None:
                found, score = near
        if found is None:
            return None
        return Annotation(
            id=found.annotation_id,
            question=found.question,
            answer=found.answer,
            score=score,
            account_id=ADMIN_ID,
            account_name=ADMIN_NAME,
        )

    @contextmanager
    def holding(self, app_id: str, provider_id: str, model: str) -> Iterator[None]:
        """What is made of the app's questions stays meanwhile, and behind it if this is what answers then."""
        space = self._space(app_id, provider_id, model)
        space.held += 1
        try:
            yield
        finally:
            space.held -= 1
            job = self._book.answering(app_id)
            self._leave(app_id, None if job is None else self._space_of(job))

    async def prepare(self, app_id: str, provider_id: str, model: str) -> None:
        """Have a vector for every question of the app. Raises EmbeddingError."""
        embedder = self._embedders.of(provider_id)
        space = self._space(app_id, provider_id, model)
        questions = [each.question for each in self._book.of_app(app_id)]
        if not questions:  # it must answer all the same
            await embedder.embed(model, _PLAIN)
        space.refused.clear()  # whoever asks may have made the provider take them
        await _fill(space, embedder, questions)
        if questions and not space.vectors:
            raise EmbeddingError(next(iter(space.refused.values()), "all questions were deleted meanwhile"))
        space.rests_until = 0.0

    async def stop(self) -> None:
        filling = [space.filling for space in self._spaces.values() if space.filling is not None]
        for task in filling:
            task.cancel()
        await asyncio.gather(*filling, return_exceptions=True)
        await self._embedders.aclose()

    async def _known(self, app_id: str) -> _Known:
        async with self._looking[app_id]:  # messages at the same time share what one has them wait for
            written = self._book.of_app(app_id)
            known = self._apps.get(app_id, _Known())
            if known.of is not written:
                known = self._apps[app_id] = await self._threads.run(_look, written, known.normal)
            return known

    def _space(self, app_id: str, provider_id: str, model: str) -> _Space:
        return self._spaces.setdefault((app_id, provider_id, model), _Space(app_id, provider_id, model))

    def _space_of(self, job: AnnotationJobBegun) -> _Space:
        return self._space(job.app_id, job.embedding_provider_name or "", job.embedding_model_name or "")

    async def _near(
        self, job: AnnotationJobBegun, written: tuple[AnnotationWritten, ...], query: str
    ) -> tuple[AnnotationWritten, float] | None:
        """The annotation whose question means nearly the same, and how nearly."""
        space = self._space_of(job)
        self._leave(job.app_id, space)
        if self._monotonic() < space.rests_until:
            return None
        ends = asyncio.get_running_loop().time() + self._patience_s
        try:
            embedder = self._embedders.of(space.provider_id)
            filling = self._filling(space, embedder, [each.question for each in written])
            async with asyncio.timeout_at(ends):
                (asked,) = await embedder.embed(space.model, [query])
        except TextRefused as error:  # the provider is well
            self._not_compared(job.app_id, str(error))
            return None
        except (EmbeddingError, TimeoutError) as error:
            self._rest(space, str(error) or f"no answer within {self._patience_s:g} s")
            return None
        if filling is not None:
            left_s = min(ends, space.waited_for_until) - asyncio.get_running_loop().time()
            await asyncio.wait((filling,), timeout=max(0.0, left_s))  # it goes on for the messages behind this one
        by_id = {each.annotation_id: each for each in reversed(written)}  # of equals the newest
        vectors = {
            each: vector for each, one in by_id.items() if (vector := space.vectors.get(one.question)) is not None
        }
        found = await self._threads.run(closest, asked, vectors, job.score_threshold or 0.0)
        return None if found is None else (by_id[found.key], found.score)

    def _filling(self, space: _Space, embedder: Embedder, questions: list[str]) -> "asyncio.Task[None] | None":
        """What makes the vectors that are missing; None: none is."""
        if not any(map(space.lacks, questions)):
            return None
        if space.filling is None or space.filling.done():
            space.filling = asyncio.ensure_future(_fill(space, embedder, questions))
            space.filling.add_done_callback(partial(self._filled, space))
            space.waited_for_until = asyncio.get_running_loop().time() + self._patience_s
        return space.filling

    def _filled(self, space: _Space, done: "asyncio.Task[None]") -> None:
        problem = None if done.cancelled() else done.exception()
        if problem is not None:
            self._rest(space, str(problem) or type(problem).__name__)

    def _rest(self, space: _Space, problem: str) -> None:
        if self._monotonic() >= space.rests_until:  # else it has been said
            self._not_compared(space.app_id, problem)
        space.rests_until = self._monotonic() + REST_S

    def _not_compared(self, app_id: str, problem: str) -> None:
        logger.warning("annotations_not_compared", extra={"app_id": app_id, "problem": problem})

    def _leave(self, app_id: str, space: _Space | None) -> None:
        """Forget what all other models have made of the app's questions, but for what jobs hold."""
        for key, other in list(self._spaces.items()):
            if key[0] == app_id and other is not space and other.held == 0:
                if other.filling is not None:
                    other.filling.cancel()
                del self._spaces[key]


def _look(written: tuple[AnnotationWritten, ...], before: Mapping[str, str]) -> _Known:
    """Questions may be millions of characters together. `before`: what is known of questions."""
    questions = {each.question: before.get(each.question) or normal(each.question) for each in written}
    equal = {questions[each.question]: each for each in written}  # of equal questions the newest answers
    equal.pop("", None)
    return _Known(written, questions, equal)


async def _fill(space: _Space, embedder: Embedder, questions: Iterable[str]) -> None:
    """Raises EmbeddingError; what was made before it stays."""
    wanted = dict.fromkeys(questions)
    for gone in (space.vectors.keys() | space.refused.keys()) - wanted.keys():
        space.vectors.pop(gone, None)
        space.refused.pop(gone, None)
    missing = list(filter(space.lacks, wanted))
    while batch := missing[:BATCH]:
        try:
            vectors = await embedder.embed(space.model, batch)
        except TextRefused as error:
            await embedder.embed(space.model, _PLAIN)  # who refuses this, too, refuses everything: that is no answer
            space.refused[error.text] = str(error)
            missing.remove(error.text)
        else:
            space.vectors.update(zip(batch, vectors, strict=True))
            del missing[: len(batch)]
