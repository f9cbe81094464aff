"""Apps take turns, for their share of a turn and for free slots."""

import pytest

from services.executor.fair import FairQueue
from services.executor.slots import Slots


def test_groups_take_turns_and_keep_their_own_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "a4"):
        queue.append("a", item)
    queue.append("b", "b1")
    assert (queue.popleft(), len(queue)) == ("a1", 4)
    queue.append("c", "c1")
    queue.append("b", "b2")
    assert [queue.popleft() for _ in range(len(queue))] == ["b1", "a2", "c1", "b2", "a3", "a4"]
    assert not queue
    with pytest.raises(IndexError):
        queue.popleft()


def test_a_group_that_was_emptied_stands_behind_the_others_again() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.append("a", 1)
    queue.append("b", 2)
    assert queue.popleft() == 1
    queue.append("a", 3)
    assert [queue.popleft(), queue.popleft()] == [2, 3]
    queue.append("a", 4)
    queue.clear()
    assert (bool(queue), len(queue)) == (False, 0)


def test_ten_thousand_who_wait_for_a_slot_do_not_delay_another_apps_first() -> None:
    slots = Slots({"wait": 1})
    woken: list[str] = []

    def waits(app: str) -> None:
        slots.wait("wait", lambda: woken.append(app) or slots.take("wait"), app)  # type: ignore[func-returns-value]

    assert slots.take("wait")
    for _ in range(10_000):
        waits("a")
    waits("b")
    for _ in range(3):
        slots.release("wait")
    assert woken[:3].index("b") <= 1
