"""Lines of JSON, as the API writes histories."""

from collections.abc import Mapping
from typing import Any


def broken_off(line: Mapping[str, Any]) -> str | None:
    """Why a history goes no further than this line of it; None where the line is an event."""
    return str(line["error"].get("message")) if "error" in line and "seq" not in line else None
