"""Clients that others published run unmodified, with a key that they have already.

The Python one from PyPI is a test dependency; the one from npm has a script of its own: `examples/clients/tour.mjs`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.documents import document, edges, end, start
from tests.e2e.deployment import ADMIN_TOKEN, Service

dify_client = pytest.importorskip("dify_client", reason="pip install dify-client, or make setup")

KEY = "app-KeyThatClientsHaveAlready"
CHAT_KEY = "app-KeyOfAChatThatExisted"
CHAT = Path(__file__).resolve().parents[2] / "examples" / "clients" / "chat.yml"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = {"FLOWLEDGER_DATA": str(tmp_path_factory.mktemp("dev")), "FLOWLEDGER_ADMIN_TOKEN": ADMIN_TOKEN}
    service = Service("dev", settings, "--port", "0", "--offline")
    yield service.url
    assert service.terminate() == 0


def with_key(url: str, text: str, key: str) -> str:
    """Import the document as an app that the existing key opens; its id."""
    admin = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    app_id = str(httpx.post(f"{url}/v1/apps/import", content=text, headers=admin, trust_env=False).json()["app_id"])
    added = httpx.post(f"{url}/v1/apps/{app_id}/keys", json={"key": key}, headers=admin, trust_env=False)
    assert added.status_code == 201, added.text
    return app_id


def client_of(kind: str, url: str, key: str) -> Any:
    client = getattr(dify_client, kind)(key)
    client.base_url = f"{url}/v1"  # the one thing that changes
    return client


def test_a_workflow_app_answers_all_that_the_client_asks(url: str, tmp_path: Path) -> None:
    with_key(url, document([start("q"), end(answer="start.q")], edges("start > end")), KEY)
    client = client_of("CompletionClient", url, KEY)
    parameters = client.get_application_parameters(user="u")
    assert parameters.status_code == 200
    assert [list(each) for each in parameters.json()["user_input_form"]] == [["paragraph"]]
    (tmp_path / "note.txt").write_text("hello")
    with (tmp_path / "note.txt").open("rb") as file:
        uploaded = client.file_upload("u", {"file": ("note.txt", file, "text/plain")})
    assert (uploaded.status_code, uploaded.json()["name"], uploaded.json()["size"]) == (201, "note.txt", 5)
    for mode in ("blocking", "streaming"):
        answer = client.create_completion_message({"q": "hi"}, mode, "u")
        assert (answer.status_code, answer.json()["code"]) == (400, "app_unavailable")


def test_a_chatflow_answers_all_that_the_client_asks(url: str) -> None:
    with_key(url, CHAT.read_text(), CHAT_KEY)
    client = client_of("ChatClient", url, CHAT_KEY)
    first = client.create_chat_message({}, "Hello", "u").json()
    assert first["answer"]
    talk = first["conversation_id"]
    with client.create_chat_message({}, "Again", "u", "streaming", talk) as stream:
        told = [frame["event"] for frame in spoken(stream.iter_lines(decode_unicode=True))]
    assert "message_end" in told
    messages = client.get_conversation_messages("u", talk, limit=10).json()
    assert [message["query"] for message in messages["data"]] == ["Hello", "Again"]
    assert client.message_feedback(first["message_id"], "like", "u").json() == {"result": "success"}
    assert client.rename_conversation(talk, "Greetings", "u").json()["name"] == "Greetings"
    (listed,) = client.get_conversations("u", limit=20).json()["data"]
    assert (listed["id"], listed["name"]) == (talk, "Greetings")


def spoken(lines: Iterable[str]) -> list[dict[str, Any]]:
    """What the client's own example makes of a stream: whatever stands behind `data:`."""
    pieces = (line.split("data:", 1)[1].strip() for line in lines if line.startswith("data:"))
    return [json.loads(piece) for piece in pieces if piece]
