"""How often a key may ask: so many requests a minute, all at once or spread, counted in this process.

Every replica counts for itself: with n replicas behind an even balancer a key has n times as many. What is counted
exactly, wherever it is asked for, are runs (`services/api/submit.py`).
"""

from collections.abc import Callable
from math import ceil

from services.api.errors import too_many_requests

MINUTE_S = 60.0


class RequestRate:
    """One number a key: when its quota would be whole again, had it asked evenly (GCRA, ITU-T I.371)."""

    def __init__(self, per_minute: int, monotonic: Callable[[], float]) -> None:
        """`per_minute` 0: no limit."""
        self._every_s = MINUTE_S / per_minute if per_minute else 0.0
        self._per_minute = per_minute
        self._monotonic = monotonic
        self._whole_at: dict[str, float] = {}

    def count(self, key_hash: str) -> None:
        """Count a request of a known key. Raises ApiError 429 when it is one too many; that one is not counted."""
        if not self._per_minute:
            return
        now = self._monotonic()
        whole_at = max(self._whole_at.get(key_hash, now), now) + self._every_s
        wait_s = whole_at - now - MINUTE_S
        if wait_s > 1e-6:
            raise too_many_requests(
                f"this key has asked {self._per_minute} times within a minute, the most it may. Ask again later",
                ceil(wait_s),
            )
        self._whole_at[key_hash] = whole_at
