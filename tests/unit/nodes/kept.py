"""Files in a store of its own, for tests of nodes that read or make them."""

import random
import time
from collections.abc import Mapping
from typing import Any

from libs.events.blobs import LogBlobs
from libs.events.files import Files
from libs.events.memory import MemoryLog, MemoryStore
from libs.workflow.inputs import file_value
from services.executor.files import KeptFiles


def kept_files(contents: Mapping[str, bytes] | None = None) -> tuple[KeptFiles, dict[str, Any]]:
    """A store, and the values of the uploaded files in it by name; all of them are of the type text/plain."""
    log = MemoryLog(MemoryStore(1))
    files = Files(log, LogBlobs(log), now_us=lambda: time.time_ns() // 1000, random_bits=random.getrandbits)
    values: dict[str, Any] = {}
    for name, content in (contents or {}).items():
        made = files.store(content, app_id="app-1", owner="", name=name, mime_type="text/plain")
        known = {"upload_file_id": made.file_id, "filename": name, "mime_type": made.mime_type, "size": made.size}
        values[name] = file_value({"type": "document", "transfer_method": "local_file"} | known)
    return KeptFiles(files), values
