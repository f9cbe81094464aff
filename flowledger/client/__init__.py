"""The Python client: start runs, follow them, read what happened. `Client` blocks, `AsyncClient` is its twin.

It needs a server and nothing of it: no log, no database, no event model is loaded. `answers` says what comes back,
`steps` what is asked and when it is asked again, `blocking` and `asynchronous` do the asking.
"""

from flowledger.client.answers import (
    Bulk,
    BulkChange,
    BulkFailure,
    Event,
    FlowledgerError,
    HistoryEvent,
    Refused,
    Result,
    RunFailed,
    RunInfo,
    RunState,
    RunStopped,
    StillRunning,
    Unreachable,
)
from flowledger.client.asynchronous import AsyncClient, AsyncRun
from flowledger.client.blocking import Client, Run

__all__ = [
    "AsyncClient",
    "AsyncRun",
    "Bulk",
    "BulkChange",
    "BulkFailure",
    "Client",
    "Event",
    "FlowledgerError",
    "HistoryEvent",
    "Refused",
    "Result",
    "Run",
    "RunFailed",
    "RunInfo",
    "RunState",
    "RunStopped",
    "StillRunning",
    "Unreachable",
]
