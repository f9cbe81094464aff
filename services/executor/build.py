"""Builds an executor from settings; used by `main` and by the embedded mode."""

import time
from collections.abc import Callable

from libs.events.blobs import Blobs
from libs.events.log import Log
from libs.settings import Settings
from libs.workflow.catalog import Catalog
from services.executor.executor import Executor
from services.executor.nodes import build_handlers

WAITING_SLOTS = 4_000
"""Attempts that wait (HTTP, models) at once per process."""


def build_executor(
    settings: Settings,
    log: Log,
    catalog: Catalog,
    refresh_definitions: Callable[[], None],
    blobs: Blobs,
    owner_id: str,
) -> Executor:
    handlers, processes = build_handlers(settings)
    return Executor(
        log=log,
        catalog=catalog,
        refresh_definitions=refresh_definitions,
        handlers=handlers,
        blobs=blobs,
        owner_id=owner_id,
        slots={"wait": WAITING_SLOTS, "process": processes},
        max_steps=settings.max_steps,
        max_time_s=settings.max_time_s,
        now_us=lambda: time.time_ns() // 1000,
    )
