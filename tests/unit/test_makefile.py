"""The commands people type first are each defined once."""

import re
from collections import Counter
from pathlib import Path

MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"


def test_every_target_has_one_recipe() -> None:
    targets = Counter(re.findall(r"^([a-z-]+):(?!=)", MAKEFILE.read_text("utf-8"), re.MULTILINE))
    assert {"run", "test", "check", "bench", "up", "down", "setup"} <= targets.keys()
    assert [name for name, count in targets.items() if count > 1] == []
