"""The snippets of docs/client.md, run in order against a server as the page says it is started."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowledger.dev import start_embedded
from libs.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "client.md").read_text("utf-8"), re.DOTALL | re.M)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(ROOT)
    instance = start_embedded(tmp_path, "127.0.0.1", 0, Settings(models="offline", data=tmp_path))
    monkeypatch.setenv("FLOWLEDGER_URL", instance.url)
    monkeypatch.setenv("FLOWLEDGER_ADMIN_TOKEN", instance.admin_token)
    yield instance.url
    instance.stop()


def test_every_snippet_of_the_page_runs(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(SNIPPETS) >= 5
    names: dict[str, object] = {}
    for number, snippet in enumerate(SNIPPETS):
        exec(compile(snippet, f"docs/client.md, snippet {number + 1}", "exec"), names)
    said = capsys.readouterr().out
    assert "workflow_finished" in said
    assert "503 from upstream" in said
    assert "RunSucceeded" in said
