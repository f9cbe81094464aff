"""Where a figure was measured: commit, processor count, Python, date."""

import os
import platform
import subprocess
from datetime import UTC, datetime


def machine() -> dict[str, object]:
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "commit": revision or "unknown",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }
