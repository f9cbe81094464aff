"""The examples of docs/api.md and docs/console.md, typed in order against a server as the page says it is started."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowledger.dev import start_embedded
from libs.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = "\n".join((ROOT / "docs" / name).read_text("utf-8") for name in ("api.md", "console.md"))
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGES, re.DOTALL | re.MULTILINE)
METHODS = {"get", "post", "put", "patch", "delete"}
REFUSED = {
    ("POST", "/v1/runs/{run_id}/release"),
    ("POST", "/v1/audio-to-text"),
    ("POST", "/v1/text-to-audio"),
    ("POST", "/v1/completion-messages"),
    ("POST", "/console/api/apps/{app_id}/convert-to-workflow"),
    ("POST", "/console/api/apps/{app_id}/workflows/draft/human-input/nodes/{node_id}/delivery-test"),
}
"""What no app here can do, and what only a damaged run needs: the examples show the refusal."""


@pytest.mark.timeout(450)
def test_every_example_works_and_every_operation_has_one(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    instance = start_embedded(tmp_path / "data", "127.0.0.1", 0, Settings(models="offline", data=tmp_path / "data"))
    try:
        script = "set -eu -o pipefail\n" + "\n".join(f"echo; echo '=== {n}'\n{b}" for n, b in enumerate(BLOCKS))
        given = {"FLOWLEDGER_URL": instance.url, "FLOWLEDGER_ADMIN_TOKEN": instance.admin_token, "no_proxy": "*"}
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=os.environ | given, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr}"
        paths = httpx.get(f"{instance.url}/openapi.json", trust_env=False).json()["paths"]
        shown = set(answered(httpx.get(f"{instance.url}/metrics", trust_env=False).text))
    finally:
        instance.stop()
    offered = {(method.upper(), path) for path, methods in paths.items() for method in methods if method in METHODS}
    assert len(offered) > 100
    assert sorted(offered - {(method, path) for method, path, ok in shown if ok} - REFUSED) == []
    assert sorted(REFUSED - {(method, path) for method, path, _ in shown}) == []


def answered(metrics: str) -> Iterator[tuple[str, str, bool]]:
    """(method, path as the document has it, whether it did what was asked), of every answer that was counted."""
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "flowledger_api_requests_total":
                label = sample.labels
                yield label["method"], label["route"], label["status"].startswith("2")
