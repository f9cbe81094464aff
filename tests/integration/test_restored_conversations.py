"""Conversations of a log that was imported: commands count from 0 again there, so causes of records repeat."""

from pathlib import Path
from typing import Any

import httpx

from flowledger.cli import run as command_line
from flowledger.dev import start_embedded
from libs.settings import Settings
from tests.documents import document, edges, node, start

SPEAKING = document(
    [start(), node("answer", "answer", answer="{{#conversation.address#}}, {{#conversation.lang#}}", variables=[])],
    edges("start > answer"),
    mode="advanced-chat",
    conversation_variables=[
        {"id": name, "name": name, "value_type": "string", "value": "none", "selector": ["conversation", name]}
        for name in ("address", "lang")
    ],
)


class Talk:
    """A server over a folder, and what its clients say."""

    def __init__(self, folder: Path, key: str = "") -> None:
        self.instance = start_embedded(folder, "127.0.0.1", 0, Settings(models="offline", data=folder))
        self.key = key or self._import()
        headers = {"Authorization": f"Bearer {self.key}"}
        self.http = httpx.Client(base_url=self.instance.url, headers=headers, trust_env=False, timeout=30)

    def _import(self) -> str:
        admin = {"Authorization": f"Bearer {self.instance.admin_token}"}
        made = httpx.post(f"{self.instance.url}/v1/apps/import?key=true", content=SPEAKING, headers=admin)
        return str(made.json()["api_key"])

    def ask(self, method: str, path: str, **parts: Any) -> Any:
        answer = self.http.request(method, f"/v1{path}", **parts)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def say(self, user: str, conversation_id: str = "") -> Any:
        body = {"inputs": {}, "query": "hi", "user": user, "response_mode": "blocking"}
        return self.ask("POST", "/chat-messages", json=body | {"conversation_id": conversation_id})

    def edit(self, user: str, conversation_id: str, name: str, value: str) -> None:
        path = f"/conversations/{conversation_id}/variables"
        known = {each["name"]: each["id"] for each in self.ask("GET", path, params={"user": user})["data"]}
        self.ask("PUT", f"{path}/{known[name]}", json={"user": user, "value": value})

    def rename(self, user: str, conversation_id: str, name: str) -> None:
        self.ask("POST", f"/conversations/{conversation_id}/name", json={"user": user, "name": name})

    def close(self) -> None:
        self.http.close()
        self.instance.stop()


def brought(source: Path, target: Path) -> None:
    archive = target.with_suffix(".ledger")
    assert command_line(["log", "export", "-o", str(archive), "--data", str(source)]) == 0
    assert command_line(["log", "import", str(archive), "--yes", "--data", str(target)]) == 0


def test_edits_of_two_conversations_have_the_same_command_before_and_after_an_import(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    talk = Talk(one)
    ann, carl = talk.say("ann")["conversation_id"], talk.say("carl")["conversation_id"]
    talk.edit("carl", carl, "address", "12 Quiet Street")  # command 2
    talk.close()
    brought(one, two)
    talk = Talk(two, talk.key)
    for name in ("a", "b"):
        talk.rename("ann", ann, name)
    talk.edit("ann", ann, "lang", "fr")  # command 2 of this log
    assert talk.say("ann", ann)["answer"] == "none, fr"
    assert talk.say("carl", carl)["answer"] == "12 Quiet Street, none"
    talk.close()
    brought(two, three)
    talk = Talk(three, talk.key)
    assert talk.say("ann", ann)["answer"] == "none, fr"
    assert talk.say("carl", carl)["answer"] == "12 Quiet Street, none"
    talk.close()
