"""Who waits for an event: the fold of the facts, in whatever order two replicas write them."""

import pytest

from libs.events.triggers import TriggerAwaited, TriggerBook, awaited_key


def wait(wait_id: str = "w1", since: int = 0, until: int = 30, run: str | None = None) -> TriggerAwaited:
    return TriggerAwaited(
        wait_id=wait_id, app_id="a", node_id="hook", alone=False, since_us=since, until_us=until, run_id=run
    )


def fold(*facts: TriggerAwaited) -> TriggerAwaited | None:
    book = TriggerBook()
    for fact in facts:
        book.evolve(fact)
    assert book.awaited("a", "hook", alone=True) is None
    return book.awaited("a", "hook", alone=False)


@pytest.mark.parametrize(
    ("facts", "known"),
    [
        ([wait(), wait(until=40)], wait(until=40)),
        ([wait(), wait("w2", 10, 40)], wait(until=40)),
        ([wait(), wait("w2", 30, 60)], wait("w2", 30, 60)),
        ([wait(), wait(run="r", until=50)], wait(run="r", until=50)),
        ([wait(run="r", until=50), wait(until=60)], wait(run="r", until=50)),
        ([wait(run="r", until=50), wait("w2", 20, 60)], wait(run="r", until=50)),
        ([wait(run="r", until=50), wait("w2", 50, 80)], wait("w2", 50, 80)),
        ([wait("w2", 30, 60), wait(run="r")], wait("w2", 30, 60)),
    ],
    ids=[
        "a wait is made longer",
        "of two that begin at once the first keeps its id",
        "one that is over is replaced",
        "the event has come",
        "a question that was late does not take the event back",
        "nor does one from elsewhere",
        "what nobody was told of in time is over",
        "an event for a wait that is over changes nothing",
    ],
)
def test_of_the_waits_for_a_node_one_counts(facts: list[TriggerAwaited], known: TriggerAwaited) -> None:
    assert fold(*facts) == known


def test_a_wait_that_is_taken_back_is_forgotten() -> None:
    book = TriggerBook()
    book.evolve(wait())
    book.forget(awaited_key("a", "hook", alone=False))
    assert book.awaited("a", "hook", alone=False) is None
