"""Annotations written, changed and deleted; and the jobs that let them answer messages, or not. All of it is facts.

A job works in the process that was asked. That process may die: then its job has no end, and counts as failed once it
should have ended. Nobody takes it over, because whoever wants it asks again. A process works on one wish of an app at
a time: a later one ends the one before.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, Literal

from libs.events.annotations import (
    AnnotationBook,
    AnnotationDeleted,
    AnnotationJobBegun,
    AnnotationJobEnded,
    AnnotationWritten,
)
from libs.events.registry import AppCreated
from services.api.embeddings import EmbeddingError
from services.api.errors import ApiError, bad_request
from services.api.frames import Json
from services.api.matcher import Matcher
from services.api.publishing import Publisher

logger = logging.getLogger(__name__)

MOST: Final = 5_000
"""Annotations of an app: every message is compared with all of them. Two replicas may go over it together by a few."""
JOB_S: Final = 600.0
"""How long all vectors of an app may take."""
_TO_END_S: Final = 20.0
"""How much longer the record of a job's end may take."""

OVERTAKEN: Final = "another wish came behind it"

JobStatus = Literal["processing", "completed", "error"]


class Annotating:
    def __init__(
        self,
        book: AnnotationBook,
        publisher: Publisher,
        matcher: Matcher,
        *,
        now_us: Callable[[], int],
        new_uuid: Callable[[], str],
        job_s: float = JOB_S,
    ) -> None:
        self._book = book
        self._publisher = publisher
        self._matcher = matcher
        self._now_us = now_us
        self._new_uuid = new_uuid
        self._job_s = job_s
        self._working: set[asyncio.Task[None]] = set()
        self._preparing: dict[str, tuple[AnnotationJobBegun, asyncio.Task[None]]] = {}
        """By app."""

    async def stop(self) -> None:
        """End what is under way."""
        working = tuple(self._working)
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        await self._matcher.stop()

    # --- what is written ---

    async def write(self, app: AppCreated, question: str, answer: str) -> AnnotationWritten:
        """Raises ApiError."""
        if len(self._book.of_app(app.app_id)) >= MOST:
            raise bad_request(f'app "{app.name}" has {MOST} annotations, which is the most. Delete one first')
        now_us = self._now_us()
        fact = AnnotationWritten(
            annotation_id=self._new_uuid(),
            change_id=self._new_uuid(),
            app_id=app.app_id,
            question=question,
            answer=answer,
            created_at_us=now_us,
            written_at_us=now_us,
        )
        await self._publisher.record([fact])
        return fact

    async def rewrite(self, annotation: AnnotationWritten, question: str, answer: str) -> AnnotationWritten:
        """Raises ApiError."""
        now_us, before = self._now_us(), self._book.records(annotation.annotation_id)
        changed = {"question": question, "answer": answer, "change_id": self._new_uuid(), "written_at_us": now_us}
        fact = annotation.model_copy(update=changed)
        await self._publisher.record([fact])
        await self._publisher.take_back(*before)
        return fact

    async def delete(self, annotation: AnnotationWritten) -> None:
        """Raises ApiError."""
        annotation_id = annotation.annotation_id
        before = self._book.records(annotation_id)
        await self._publisher.record(
            [AnnotationDeleted(annotation_id=annotation_id, app_id=annotation.app_id, deleted_at_us=self._now_us())]
        )
        await self._publisher.take_back(*before)

    # --- whether they answer ---

    async def enable(self, app: AppCreated, threshold: float, provider_id: str, model: str) -> str:
        """Begin a job; its id. Raises ApiError."""
        job = self._job(
            app, "enable", score_threshold=threshold, embedding_provider_name=provider_id, embedding_model_name=model
        )
        await self._publisher.record([job])
        preparing = self._spawn(self._matcher.prepare(app.app_id, provider_id, model))
        if self._overtake(job):
            self._preparing[app.app_id] = job, preparing
        else:
            preparing.cancel()
        self._spawn(self._work(job, preparing))
        return job.job_id

    async def disable(self, app: AppCreated) -> str:
        """A job that is done; its id. Raises ApiError."""
        job = self._job(app, "disable")
        await self._publisher.record([job, self._end(job, None)])
        self._overtake(job)
        return job.job_id

    def status(self, job: AnnotationJobBegun, end: AnnotationJobEnded | None) -> tuple[JobStatus, str]:
        """How far a job is, and what went wrong."""
        if end is not None:
            return ("completed", "") if end.error is None else ("error", end.error)
        if self._now_us() <= job.ends_by_us:
            return "processing", ""
        return "error", "the process that worked on it has ended before. Ask for it again"

    def _job(self, app: AppCreated, action: Literal["enable", "disable"], **settings: Any) -> AnnotationJobBegun:
        now_us = self._now_us()
        return AnnotationJobBegun(
            job_id=self._new_uuid(),
            app_id=app.app_id,
            action=action,
            begun_at_us=now_us,
            ends_by_us=now_us + int((self._job_s + _TO_END_S) * 1e6),
            **settings,
        )

    def _end(self, job: AnnotationJobBegun, error: str | None) -> AnnotationJobEnded:
        return AnnotationJobEnded(job_id=job.job_id, app_id=job.app_id, error=error, ended_at_us=self._now_us())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return task

    def _overtake(self, job: AnnotationJobBegun) -> bool:
        """End the wish that is worked on, unless it was the later one: the log says which."""
        other, preparing = self._preparing.get(job.app_id, (None, None))
        if other is None or preparing is None:
            return True
        if self._book.later(other, job):
            return False
        preparing.cancel()
        return True

    async def _work(self, job: AnnotationJobBegun, preparing: "asyncio.Task[None]") -> None:
        names = job.embedding_provider_name or "", job.embedding_model_name or ""
        with self._matcher.holding(job.app_id, *names):
            try:
                await asyncio.wait((preparing,), timeout=self._job_s)
                error = self._problem(job, preparing)
            finally:
                preparing.cancel()
                if self._preparing.get(job.app_id) == (job, preparing):
                    del self._preparing[job.app_id]
            try:
                await self._publisher.record([self._end(job, error)])
            except ApiError as unconfirmed:  # the job counts as failed when its time is over
                logger.warning("annotation_job_not_ended", extra={"job_id": job.job_id, "problem": unconfirmed.message})

    def _problem(self, job: AnnotationJobBegun, preparing: "asyncio.Task[None]") -> str | None:
        if not preparing.done():
            return f"the vectors of all questions took longer than {self._job_s:g} s"
        if preparing.cancelled():
            return OVERTAKEN
        match preparing.exception():
            case None:
                return None
            case EmbeddingError() as refused:
                return str(refused)
            case broken:  # its text was not made to be shown
                logger.error("annotation_job_broken", extra={"job_id": job.job_id}, exc_info=broken)
                return f"unexpected {type(broken).__name__}: the log of the process says more"


def reply_of(book: AnnotationBook, app_id: str) -> Json:
    """`annotation_reply`, as an app's parameters say it."""
    job = book.answering(app_id)
    if job is None:
        return {"enabled": False}
    return {
        "enabled": True,
        "id": job.job_id,
        "score_threshold": job.score_threshold,
        "embedding_model": {
            "embedding_provider_name": job.embedding_provider_name,
            "embedding_model_name": job.embedding_model_name,
        },
    }
