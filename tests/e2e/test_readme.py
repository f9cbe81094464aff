"""The README's five minutes, typed as they stand there, beside what `make run` starts."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.deployment import Service, wait_until
from tests.e2e.test_front_door import ROOT, environment
from tests.servers import free_port

README = (ROOT / "README.md").read_text("utf-8")


def blocks(heading: str) -> list[str]:
    """The code blocks under a heading of the README."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A place that looks like a clone after `make run` has installed; whatever serves in it ends with the test."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    bin_ = tmp_path / ".venv" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "activate").write_text(f"PATH={bin_}:$PATH\n")
    script = bin_ / "flowledger"
    script.write_text(f"#!{sys.executable}\nfrom flowledger.cli import main\nmain()\n")
    script.chmod(0o755)
    yield tmp_path
    address = tmp_path / ".flowledger" / "server.json"
    if address.exists():
        found = re.search(r'"pid": (\d+)', address.read_text())
        assert found is not None
        os.kill(int(found[1]), signal.SIGTERM)
        wait_until(lambda: not address.exists(), "the server of the tour ends")


@pytest.mark.timeout(300)
def test_the_five_minutes_work_as_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    port = str(free_port())
    service = Service("dev", {"PYTHONPATH": str(ROOT)}, "examples/hello.yml", "--run", "--offline", "--port", port)
    try:
        wait_until(lambda: any("Serving on" in line for line in service.log), "the first run is over")
        script = "\n".join(f"echo '=== {number}'\n{block}" for number, block in enumerate(blocks("Five minutes")))
        assert "5001" in script
        # A script is faster than a person: it waits where the person reads.
        script = script.replace("5001", port).replace(
            "flowledger dev --offline &",
            f"flowledger dev --offline --port {port} > dev.log 2>&1 & until grep -q ready dev.log; do sleep 0.1; done",
        )
        done = subprocess.run(
            ["bash", "-c", script], env=environment(), capture_output=True, text=True, timeout=250, cwd=folder
        )
    finally:
        service.kill()
    said = re.split(r"=== \d\n", done.stdout)[1:]
    assert done.returncode == 0, done.stderr
    first, killed, broken, retries, called, asked = said[:6]
    assert "Dear Ada" in first
    assert "RunSucceeded" in first
    assert "NodeRestarted" in killed
    assert "RunSucceeded" in killed
    assert "gret" in broken
    assert '"length": 10' in retries
    assert "workflow_finished" in called
    assert '"note": "well done"' in asked
    assert "Traceback" not in done.stderr
