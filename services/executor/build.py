"""Builds an executor from settings; used by `main` and by the embedded mode."""

import os
import secrets
import time
from collections.abc import Callable

from libs.events.blobs import Blobs
from libs.events.files import Files
from libs.events.log import Log
from libs.events.sealing import Vault
from libs.settings import Settings
from libs.workflow.catalog import Catalog
from services.executor.executor import Executor
from services.executor.files import KeptFiles
from services.executor.nodes import NodeHandlers

WAITING_SLOTS = 4_000
"""Attempts that wait (HTTP, models) at once per process."""

PROCESS_SLOTS = max(4, 2 * (os.cpu_count() or 1))
"""Sandboxed processes at once."""


def build_handlers(settings: Settings, log: Log, blobs: Blobs) -> NodeHandlers:
    """The handlers of a process, with the files that runs refer to."""
    files = Files(log, blobs, now_us=lambda: time.time_ns() // 1000, random_bits=secrets.randbits)
    return NodeHandlers.build(settings, KeptFiles(files))


def build_executor(
    settings: Settings,
    log: Log,
    catalog: Catalog,
    refresh_definitions: Callable[[], None],
    blobs: Blobs,
    vault: Vault,
    owner_id: str,
    handlers: NodeHandlers,
) -> Executor:
    return Executor(
        log=log,
        catalog=catalog,
        refresh_definitions=refresh_definitions,
        handlers=handlers.by_type,
        blobs=blobs,
        vault=vault,
        owner_id=owner_id,
        slots={"wait": WAITING_SLOTS, "process": PROCESS_SLOTS},
        max_steps=settings.max_steps,
        max_time_s=settings.max_time_s,
        now_us=lambda: time.time_ns() // 1000,
    )
