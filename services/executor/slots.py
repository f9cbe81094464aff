"""How many attempts may run at once, by kind. `NodeStarted` is written only when a slot is free."""

from collections.abc import Callable, Mapping

from services.executor.fair import FairQueue


class Slots:
    """Counts free slots, and wakes who found none: apps take turns, within an app first come first served.

    A wake-up gives nothing away: who is woken tries `take` again, and whoever frees or leaves a slot calls `pump`, so
    no slot stays free while somebody waits. One event loop; not thread-safe.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._free = dict(sizes)
        self._waiting: dict[str, FairQueue[Callable[[], bool]]] = {kind: FairQueue() for kind in sizes}

    def take(self, kind: str) -> bool:
        """Take a slot; False when none is free."""
        if self._free[kind] <= 0:
            return False
        self._free[kind] -= 1
        return True

    def wait(self, kind: str, wake: Callable[[], bool], app_id: str = "") -> None:
        """Have `wake` called once, when a slot of this kind may be free. It answers whether it will try to take it."""
        self._waiting[kind].append(app_id, wake)

    def release(self, kind: str) -> None:
        self._free[kind] += 1
        self.pump()

    def pump(self) -> None:
        """Wake as many waiters as there are free slots. One that has lost its interest must not use up a wake-up."""
        for kind, waiting in self._waiting.items():
            free = self._free[kind]
            while waiting and free > 0:
                if waiting.popleft()():
                    free -= 1
