"""What models leave for the messages of chatflows: pictures, and the sources that they were given. Over HTTP."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowledger.dev import start_embedded
from libs.settings import Provider, load_settings
from tests.conversations import citing, found, model_named
from tests.model_server import PICTURE, serving


@dataclass
class There:
    http: httpx.Client
    admin: dict[str, str]

    def app(self, text: str) -> dict[str, Any]:
        answer = self.http.post("/v1/apps/import", content=text, headers=self.admin)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def said(self, app: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The frames of a message, and the message as it is listed."""
        key = {"Authorization": f"Bearer {app['api_key']}"}
        body = {"inputs": {}, "query": "q", "user": "ann", "response_mode": "streaming"}
        answer = self.http.post("/v1/chat-messages", json=body, headers=key)
        assert answer.status_code == 200, answer.text
        frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        query = {"user": "ann", "conversation_id": frames[-1]["conversation_id"]}
        listed = self.http.get("/v1/messages", params=query, headers=key)
        assert listed.status_code == 200, listed.text
        return frames, listed.json()["data"][0]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[There]:
    folder: Path = tmp_path_factory.mktemp("models")
    with serving() as server:
        settings = replace(load_settings({}, None), providers={"OPENAI": Provider(server.url)}, data=folder)
        instance = start_embedded(folder, "127.0.0.1", 0, settings)
        with httpx.Client(base_url=instance.url, timeout=20, trust_env=False) as http:
            yield There(http, {"Authorization": f"Bearer {instance.admin_token}"})
        instance.stop()


def test_a_picture_of_a_model_is_streamed_as_a_link_listed_with_the_message_and_can_be_read(there: There) -> None:
    app = there.app(citing("{{#llm.text#}}{{#llm.files#}}", [], model=model_named("drawing")))
    frames, message = there.said(app)
    (end,) = (frame for frame in frames if frame["event"] == "message_end")
    (file,) = end["files"]
    assert (file["type"], file["filename"], file["size"]) == ("image", "image-1.png", len(PICTURE))
    streamed = "".join(frame["answer"] for frame in frames if frame["event"] == "message")
    assert streamed.startswith(f"a ![image-1.png]({file['url']}) b")
    assert message["answer"] == streamed
    (listed,) = message["message_files"]
    assert (listed["belongs_to"], listed["type"], listed["url"]) == ("assistant", "image", file["url"])
    preview = there.http.get(file["url"], headers={"Authorization": f"Bearer {app['api_key']}"})
    assert (preview.status_code, preview.headers["content-type"], preview.content) == (200, "image/png", PICTURE)


def test_a_message_names_the_sources_that_its_model_was_given(there: There) -> None:
    results = [found("h", "one"), found("h", "two"), {"content": "from elsewhere"}]
    frames, message = there.said(there.app(citing("{{#llm.text#}}", results, model=model_named("echo"))))
    (end,) = (frame for frame in frames if frame["event"] == "message_end")
    cited = end["metadata"]["retriever_resources"]
    assert [(each["position"], each["content"], each["segment_id"]) for each in cited] == [
        (1, "one", "s-one"),
        (2, "two", "s-two"),
    ]
    assert (cited[0]["dataset_name"], cited[0]["document_id"], cited[0]["word_count"]) == ("Docs", "h", 3)
    assert message["retriever_resources"] == cited


def test_a_message_of_an_app_that_does_not_cite_names_no_sources(there: There) -> None:
    text = citing("{{#llm.text#}}", [found("h", "one")], cites=False, model=model_named("echo"))
    frames, message = there.said(there.app(text))
    (end,) = (frame for frame in frames if frame["event"] == "message_end")
    assert end["metadata"]["retriever_resources"] == message["retriever_resources"] == []
