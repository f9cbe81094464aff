"""What an epoch that is over leaves behind of what it was reading."""

import gc
import warnings
from collections.abc import Coroutine
from typing import Any, cast

from services.executor.executor import Executor
from services.executor.hydration import Hydration
from services.executor.live import LiveRun


class _Catalog:
    def cached(self, digest: str) -> None:
        return None


class _Executor:
    catalog = _Catalog()


def _cancelled_before_its_first_step(work: Coroutine[Any, Any, None]) -> None:
    work.close()


def _unexpected(*_: object) -> None:
    raise AssertionError("nothing of the run was read")


def test_a_reading_that_never_began_leaves_nothing_behind() -> None:
    hydration = Hydration(
        0,
        1,
        cast(Executor, _Executor()),
        spawn=_cancelled_before_its_first_step,
        go_on=_unexpected,
        set_aside=_unexpected,
        fail=_unexpected,
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert hydration.state_of(LiveRun("r", "a", "d")) is None
        gc.collect()
    assert [str(one.message) for one in told] == []
