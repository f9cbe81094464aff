"""A real executor on a thread of its own, over whichever log a test has."""

import asyncio
import threading
import uuid
from pathlib import Path

from libs.events.blobs import LogBlobs
from libs.events.log import Log
from libs.events.registry import RegistryTail
from libs.events.sealing import Vault
from libs.settings import Settings
from libs.workflow.catalog import Catalog
from services.executor.build import build_executor, build_handlers


class RealExecutor:
    """Has begun when the constructor returns; `close()` hands its partitions over."""

    def __init__(self, log: Log, folder: Path, vault: Vault) -> None:
        self._log = log
        self._settings = Settings(models="offline", data=folder, sandbox="process")
        self._vault = vault
        self._begun = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._asked = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._begun.wait(30)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        registry = RegistryTail(self._log, self._vault)
        blobs = LogBlobs(self._log)
        handlers = build_handlers(self._settings, self._log, blobs)
        executor = build_executor(
            self._settings,
            self._log,
            Catalog(registry.document),
            registry.refresh,
            blobs,
            self._vault,
            uuid.uuid4().hex,
            handlers,
        )
        await executor.start()
        self._begun.set()
        await self._asked.wait()
        await executor.stop()
        await handlers.close()
        registry.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._asked.set)
        self._thread.join(30)
