"""What the models of a run have used, added up for the message that it answers. Prices are decimal texts."""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

_COUNTS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_PRICES: Final = ("prompt_price", "completion_price", "total_price")
_UNITS: Final = ("prompt_unit_price", "prompt_price_unit", "completion_unit_price", "completion_price_unit")


class Usage:
    """The sum so far; `of` gives it as records show it."""

    __slots__ = ("_currency", "_first_s", "_latency_s", "_sums", "_units", "_writing_s")

    def __init__(self) -> None:
        self._sums: dict[str, Any] = dict.fromkeys(_COUNTS, 0) | dict.fromkeys(_PRICES, Decimal(0))
        self._units: dict[str, str] = dict.fromkeys(_UNITS, "0")
        self._currency = "USD"
        self._latency_s = 0.0
        self._first_s: float | None = None
        self._writing_s: float | None = None

    def add(self, usage: Mapping[str, Any]) -> None:
        """What one model call used; members that make no sense are left out."""
        for name in _COUNTS:
            value = usage.get(name)
            if isinstance(value, int):
                self._sums[name] += value
        for name in _PRICES:
            try:
                self._sums[name] += Decimal(str(usage.get(name) or 0))
            except InvalidOperation:
                continue
        self._units |= {name: str(usage[name]) for name in _UNITS if usage.get(name)}
        self._currency = str(usage.get("currency") or self._currency)
        self._latency_s += _seconds(usage.get("latency")) or 0.0
        if self._first_s is None:
            self._first_s = _seconds(usage.get("time_to_first_token"))
        writing_s = _seconds(usage.get("time_to_generate"))
        if writing_s is not None:
            self._writing_s = (self._writing_s or 0.0) + writing_s

    def of(self, total_tokens: int) -> dict[str, Any]:
        """`total_tokens`: what the run has counted, also of nodes that tell no more than that."""
        return {
            "prompt_tokens": self._sums["prompt_tokens"],
            "prompt_unit_price": self._units["prompt_unit_price"],
            "prompt_price_unit": self._units["prompt_price_unit"],
            "prompt_price": format(self._sums["prompt_price"], "f"),
            "completion_tokens": self._sums["completion_tokens"],
            "completion_unit_price": self._units["completion_unit_price"],
            "completion_price_unit": self._units["completion_price_unit"],
            "completion_price": format(self._sums["completion_price"], "f"),
            "total_tokens": max(self._sums["total_tokens"], total_tokens),
            "total_price": format(self._sums["total_price"], "f"),
            "currency": self._currency,
            "latency": round(self._latency_s, 3),
            "time_to_first_token": self._first_s,
            "time_to_generate": None if self._writing_s is None else round(self._writing_s, 3),
        }


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
