"""Annotations as the registry knows them: written again, deleted for good, and which job's wish holds."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from libs.events.annotations import (
    AnnotationBook,
    AnnotationDeleted,
    AnnotationFact,
    AnnotationJobBegun,
    AnnotationJobEnded,
    AnnotationWritten,
)
from libs.events.registry import AppCreated, AppDeleted, Registry, encode_fact, taken_back
from tests.unit.test_registry import record


def book(*facts: AnnotationFact) -> AnnotationBook:
    made = AnnotationBook()
    for fact in facts:
        made.evolve(fact)
    return made


def written(annotation_id: str, question: str = "q", app_id: str = "a", created_at_us: int = 1) -> AnnotationWritten:
    return AnnotationWritten(
        annotation_id=annotation_id, change_id=f"of {question}", app_id=app_id, question=question, answer="!",
        created_at_us=created_at_us, written_at_us=2,
    )  # fmt: skip


def deleted(annotation_id: str) -> AnnotationDeleted:
    return AnnotationDeleted(annotation_id=annotation_id, app_id="a", deleted_at_us=3)


def begun(job_id: str, action: Any = "enable", app_id: str = "a") -> AnnotationJobBegun:
    return AnnotationJobBegun(job_id=job_id, app_id=app_id, action=action, begun_at_us=4, ends_by_us=5)


def ended(job_id: str, error: str | None = None) -> AnnotationJobEnded:
    return AnnotationJobEnded(job_id=job_id, app_id="a", error=error, ended_at_us=6)


def ids(made: AnnotationBook, app_id: str = "a") -> list[str]:
    return [one.annotation_id for one in made.of_app(app_id)]


def test_an_annotation_that_is_written_again_keeps_its_place() -> None:
    made = book(written("1"), written("2"), written("1", "other"), written("9", app_id="b"))
    assert ids(made) == ["1", "2"]
    assert (found := made.one("a", "1")) is not None
    assert found.question == "other"
    assert made.one("b", "1") is None
    assert ids(made, "b") == ["9"]


def test_annotations_stand_in_the_order_of_their_making_whatever_the_log_has_left() -> None:
    made = book(written("1", created_at_us=3), written("3", created_at_us=2), written("2", created_at_us=2))
    assert ids(made) == ["2", "3", "1"]


def test_what_was_deleted_is_not_written_again() -> None:
    assert ids(book(written("1"), deleted("1"), written("1", "a late edit"))) == []
    assert ids(book(deleted("1"), written("1"), written("2"))) == ["2"]


def test_the_records_of_an_annotation_are_known_until_it_is_deleted() -> None:
    facts = [written("1"), written("2"), written("1", "other")]
    keys = tuple(str((encode_fact(fact).key or b"").decode()) for fact in facts)
    assert book(*facts).records("1") == (keys[0], keys[2])
    assert len({*keys, *(encode_fact(fact).key for fact in (deleted("1"), begun("1"), ended("1")))}) == 6
    assert book(*facts, deleted("1")).records("1") == ()


def test_records_that_were_taken_back_are_not_taken_back_again() -> None:
    registry, count = Registry(), 0
    for number in range(300):
        before = registry.annotations.records("1")
        for entry in (encode_fact(written("1", f"{number}")), *map(taken_back, before)):
            registry.apply(record(entry, count))
            count += 1
    assert count == 599, "a record for every change, and one that takes back the one before"
    for key in ("annotation/1/unknown", "annotation/unknown/1", "annotation", "annotation-deleted/1"):
        registry.apply(record(taken_back(key), count))
    assert registry.annotations.records("1") == ("annotation/1/of 299",)
    registry.apply(record(taken_back("annotation/1/of 299"), count))
    assert registry.annotations.records("1") == ()


def test_annotations_answer_from_the_end_of_a_job_that_went_well() -> None:
    assert book(begun("j")).answering("a") is None
    assert book(begun("j"), ended("j", "away")).answering("a") is None
    assert book(begun("j"), ended("j")).answering("a") == begun("j")
    assert book(begun("j"), ended("j")).answering("b") is None
    assert book(begun("j"), ended("j"), begun("k", "disable"), ended("k")).answering("a") is None
    assert book(begun("j"), ended("j"), begun("k"), ended("k", "away")).answering("a") == begun("j")


def test_of_two_jobs_the_later_wish_holds_although_the_earlier_one_took_longer() -> None:
    assert book(begun("slow"), begun("off", "disable"), ended("off"), ended("slow")).answering("a") is None


def test_a_job_is_known_to_its_app_only_and_ends_once() -> None:
    made = book(begun("j"), ended("j", "away"), ended("j"))
    assert made.job("a", "j") == (begun("j"), ended("j", "away"))
    assert made.job("b", "j") is None
    assert made.job("a", "k") is None
    assert made.answering("a") is None


@given(facts=st.lists(st.sampled_from([written("1"), written("1", "x"), deleted("1"), written("2"), deleted("2")])))
def test_what_is_taken_back_and_compacted_loses_nothing(facts: list[AnnotationFact]) -> None:
    newest = {(fact.type, fact.annotation_id): number for number, fact in enumerate(facts)}  # type: ignore[union-attr]
    kept = [fact for number, fact in enumerate(facts) if number in newest.values()]
    assert book(*kept).of_app("a") == book(*facts).of_app("a"), "the order too: of equal questions the last answers"


def test_a_deleted_app_has_no_annotations() -> None:
    registry = Registry()
    facts = [AppCreated(app_id="a", name="A", created_at_us=1), written("1"), begun("j"), ended("j")]
    for offset, fact in enumerate([*facts, AppDeleted(app_id="a", deleted_at_us=7)]):
        registry.apply(record(encode_fact(fact), offset))  # type: ignore[arg-type]  # facts they are
        if offset == 3:
            assert registry.annotations.answering("a") == begun("j")
    assert ids(registry.annotations) == []
    assert registry.annotations.answering("a") is None
