"""What people type and import: `Client` and `AsyncClient`, `flowledger.testing`, and the command line.

Importing this package loads nothing else: a name is loaded when it is asked for, so that `flowledger --help` stays
quick and a program that only starts runs loads no server.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "FlowledgerError",
    "Refused",
    "RunFailed",
    "RunStopped",
    "StillRunning",
    "Unreachable",
    "__version__",
]

if TYPE_CHECKING:
    from flowledger.client import (
        AsyncClient,
        Client,
        FlowledgerError,
        Refused,
        RunFailed,
        RunStopped,
        StillRunning,
        Unreachable,
    )


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flowledger import client

    return getattr(client, name)
