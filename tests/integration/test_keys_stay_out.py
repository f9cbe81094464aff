"""A provider's key goes to the provider, and into nothing that is kept, shown or printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.documents import document, edges, end, node, start
from tests.model_server import serving

_MAIN = "from flowledger.cli import main; main()"
KEY = "sk-geheim-0123456789-abcdef"


def _document(model: str) -> str:
    settings = {"provider": "langgenius/openai/openai", "name": model, "mode": "chat", "completion_params": {}}
    llm = node(
        "ask",
        "llm",
        model=settings,
        prompt_template=[{"role": "user", "text": "{{#start.q#}}"}],
        context={"enabled": False, "variable_selector": []},
        vision={"enabled": False},
        error_strategy="fail-branch",
    )
    nodes = [start("q"), llm, end("good", out="ask.text"), end("bad", why="ask.error_message")]
    return document(nodes, edges("start > ask > good", "ask[fail-branch] > bad"))


def test_a_key_is_in_no_log_no_table_no_stream_and_no_output(tmp_path: Path) -> None:
    """The server quotes the key that it was sent, as some do."""
    (tmp_path / "key").write_text(KEY)
    data = tmp_path / "data"
    said = ""
    with serving() as server:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLOWLEDGER_")},
            "FLOWLEDGER_PROVIDER_OPENAI_BASE_URL": server.url,
            "FLOWLEDGER_PROVIDER_OPENAI_API_KEY_FILE": str(tmp_path / "key"),
            "FLOWLEDGER_DATA": str(data),
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }

        def flowledger(*arguments: str) -> str:
            done = subprocess.run(
                [sys.executable, "-X", "dev", "-W", "ignore", "-c", _MAIN, *arguments],
                env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            nonlocal said
            said += done.stdout + done.stderr
            return done.stdout

        for model in ("echo", "status-401"):
            (tmp_path / f"{model}.yml").write_text(_document(model))
            out = flowledger("run", f"{model}.yml", "-i", "q=hello", "--watch", "--json")
            result = json.loads(out.splitlines()[-1])
            for verb in ("history", "show"):
                flowledger(verb, result["workflow_run_id"], "--json")
        flowledger("doctor", "--json")
        sent = [request["headers"].get("authorization") for request in server.requests]
    assert sent == [f"Bearer {KEY}", f"Bearer {KEY}"]
    assert result["outputs"]["why"] == "openai: status 401: refused with 401; you sent Bearer ***"
    assert KEY not in said
    kept = [file for file in data.rglob("*") if file.is_file()]
    assert {"log.db", "tables.db"} <= {file.name for file in kept}
    assert [file.name for file in kept if KEY.encode() in file.read_bytes()] == []
