"""A queue in which apps take turns: ten thousand entries of one do not delay another's first."""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First come first served within a group; the groups that have something take turns. Not thread-safe."""

    def __init__(self) -> None:
        self._turns: deque[str] = deque()
        """Groups that have something, in the order of their turns; each once."""
        self._items: dict[str, deque[T]] = {}

    def append(self, group: str, item: T) -> None:
        items = self._items.get(group)
        if items is None:
            items = self._items[group] = deque()
            self._turns.append(group)
        items.append(item)

    def popleft(self) -> T:
        """The next item. Raises IndexError when there is none."""
        group = self._turns.popleft()
        items = self._items[group]
        item = items.popleft()
        if items:
            self._turns.append(group)
        else:
            del self._items[group]
        return item

    def clear(self) -> None:
        self._turns.clear()
        self._items.clear()

    def __bool__(self) -> bool:
        return bool(self._turns)

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))
