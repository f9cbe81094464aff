"""The examples of docs/api.md, typed in order against a server as the page says it is started."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx

from flowledger.dev import start_embedded
from libs.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text("utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ELSEWHERE = ("/v1/form/", "/v1/end-users", "/v1/completion-messages", "/v1/audio-to-text", "/v1/text-to-audio")
"""Of forms and what no app here can do: the reference's documentation is theirs."""


def test_every_example_works_and_every_path_has_one(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    instance = start_embedded(tmp_path / "data", "127.0.0.1", 0, Settings(models="offline", data=tmp_path / "data"))
    try:
        script = "set -eu -o pipefail\n" + "\n".join(f"echo; echo '=== {n}'\n{b}" for n, b in enumerate(BLOCKS))
        given = {"FLOWLEDGER_URL": instance.url, "FLOWLEDGER_ADMIN_TOKEN": instance.admin_token, "no_proxy": "*"}
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=os.environ | given, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr}"
        paths = httpx.get(f"{instance.url}/openapi.json").json()["paths"]
    finally:
        instance.stop()
    ours = [path for path in paths if path.startswith("/v1/") and not path.startswith(ELSEWHERE)]
    assert len(ours) > 20
    shown = re.sub(r"\$\w+", "{}", "".join(BLOCKS))
    assert [path for path in ours if re.sub(r"\{\w+\}", "{}", path).rstrip("/") not in shown] == []
