"""Annotations of apps: answers that people have written to questions, and whether they answer messages. Facts, fold.

| fact | record key |
|---|---|
| `AnnotationWritten` | `annotation/<annotation id>/<change id>` |
| `AnnotationDeleted` | `annotation-deleted/<annotation id>` |
| `AnnotationJobBegun` | `annotation-job/<job id>` |
| `AnnotationJobEnded` | `annotation-job-ended/<job id>` |

Of what was written of an annotation the newest counts: who writes again takes the older records back. One that is
deleted stays so, whoever writes it again at another replica. A job switches answering on or off where it ends well,
unless a job that was begun later has ended well before: the later wish counts, although the earlier one took longer.

Vectors of questions are in no fact: they follow from the texts and a provider, which is asked for them again.
"""

from bisect import insort
from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class AnnotationWritten(_Fact):
    """A question and its answer, as they are from here on."""

    type: Literal["AnnotationWritten"] = "AnnotationWritten"
    annotation_id: str
    change_id: str
    app_id: str
    question: str
    answer: str
    created_at_us: int
    written_at_us: int


class AnnotationDeleted(_Fact):
    """It answers nothing any more. Messages that it has answered stay what they are."""

    type: Literal["AnnotationDeleted"] = "AnnotationDeleted"
    annotation_id: str
    app_id: str
    deleted_at_us: int


class AnnotationJobBegun(_Fact):
    """Somebody wants annotations to answer messages, or not to."""

    type: Literal["AnnotationJobBegun"] = "AnnotationJobBegun"
    job_id: str
    app_id: str
    action: Literal["enable", "disable"]
    score_threshold: float | None = None
    """To enable: how much a message must be like a question, 0 to 1."""
    embedding_provider_name: str | None = None
    embedding_model_name: str | None = None
    begun_at_us: int
    ends_by_us: int
    """A job without an end by then has lost its process."""


class AnnotationJobEnded(_Fact):
    """What was wanted holds, or why it does not."""

    type: Literal["AnnotationJobEnded"] = "AnnotationJobEnded"
    job_id: str
    app_id: str
    error: str | None = None
    ended_at_us: int


AnnotationFact = AnnotationWritten | AnnotationDeleted | AnnotationJobBegun | AnnotationJobEnded


def key_of_annotation_fact(fact: AnnotationFact) -> str:
    match fact:
        case AnnotationWritten():
            return f"annotation/{fact.annotation_id}/{fact.change_id}"
        case AnnotationDeleted():
            return f"annotation-deleted/{fact.annotation_id}"
        case AnnotationJobBegun():
            return f"annotation-job/{fact.job_id}"
        case AnnotationJobEnded():
            return f"annotation-job-ended/{fact.job_id}"


def _age(fact: AnnotationWritten) -> tuple[int, str]:
    """Not the place in the log: compaction leaves the last change of each, which may be behind younger ones."""
    return fact.created_at_us, fact.annotation_id


class AnnotationBook:
    """The fold. Like the registry it belongs to: one thread applies, any thread looks up."""

    # What look-ups walk over is replaced, never changed in place: also how a reader knows that it has changed.

    def __init__(self) -> None:
        self._written: dict[str, tuple[AnnotationWritten, ...]] = {}
        self._records: dict[str, tuple[str, ...]] = {}
        self._deleted: set[str] = set()
        self._jobs: dict[str, AnnotationJobBegun] = {}
        self._order: dict[str, int] = {}
        self._ended: dict[str, AnnotationJobEnded] = {}
        self._settled: dict[str, AnnotationJobBegun] = {}

    def evolve(self, fact: AnnotationFact) -> None:
        match fact:
            case AnnotationWritten():
                if fact.annotation_id not in self._deleted:
                    self._keep(fact)
            case AnnotationDeleted():
                self._deleted.add(fact.annotation_id)
                self._records.pop(fact.annotation_id, None)
                known = self._written.get(fact.app_id, ())
                self._written[fact.app_id] = tuple(one for one in known if one.annotation_id != fact.annotation_id)
            case AnnotationJobBegun():
                self._jobs[fact.job_id] = fact
                self._order.setdefault(fact.job_id, len(self._order))
            case AnnotationJobEnded():
                self._end(fact)

    def _keep(self, fact: AnnotationWritten) -> None:
        self._records[fact.annotation_id] = (*self.records(fact.annotation_id), key_of_annotation_fact(fact))
        others = [one for one in self._written.get(fact.app_id, ()) if one.annotation_id != fact.annotation_id]
        insort(others, fact, key=_age)
        self._written[fact.app_id] = tuple(others)

    def _end(self, fact: AnnotationJobEnded) -> None:
        job = self._jobs.get(fact.job_id)
        if job is None or fact.job_id in self._ended:
            return
        self._ended[fact.job_id] = fact
        settled = self._settled.get(job.app_id)
        if fact.error is None and (settled is None or self.later(job, settled)):
            self._settled[job.app_id] = job

    def forget(self, key: str) -> None:
        """The record with this key was taken back: a newer one has said since what its annotation is."""
        kind, _, rest = key.partition("/")
        annotation_id = rest.partition("/")[0]
        if kind != "annotation" or annotation_id not in self._records:
            return
        kept = tuple(known for known in self._records[annotation_id] if known != key)
        if kept:
            self._records[annotation_id] = kept
        else:
            del self._records[annotation_id]

    def forget_app(self, app_id: str) -> None:
        """The app is gone."""
        self._written.pop(app_id, None)
        self._settled.pop(app_id, None)

    def of_app(self, app_id: str) -> tuple[AnnotationWritten, ...]:
        """Oldest first; the same object until one of them changes."""
        return self._written.get(app_id, ())

    def one(self, app_id: str, annotation_id: str) -> AnnotationWritten | None:
        return next((one for one in self.of_app(app_id) if one.annotation_id == annotation_id), None)

    def records(self, annotation_id: str) -> tuple[str, ...]:
        """Keys of the records that say what it is, or was, unless it is deleted or they were taken back."""
        return self._records.get(annotation_id, ())

    def answering(self, app_id: str) -> AnnotationJobBegun | None:
        """The job that made the app's annotations answer messages; None: they do not."""
        settled = self._settled.get(app_id)
        return settled if settled is not None and settled.action == "enable" else None

    def later(self, job: AnnotationJobBegun, other: AnnotationJobBegun) -> bool:
        """Whether the job was asked for behind the other. Both are known."""
        return self._order[job.job_id] > self._order[other.job_id]

    def job(self, app_id: str, job_id: str) -> tuple[AnnotationJobBegun, AnnotationJobEnded | None] | None:
        """A job of the app, and its end if it has come."""
        job = self._jobs.get(job_id)
        return (job, self._ended.get(job_id)) if job is not None and job.app_id == app_id else None
