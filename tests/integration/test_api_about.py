"""What an app says of itself over HTTP: info, parameters, meta, site; and who may ask."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from libs.events.log import Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.registry import AppCreated, KeyCreated, encode_fact, hash_key
from tests.api_world import Server
from tests.documents import document, edges, end, node

CITY = {"variable": "city", "label": "City", "type": "text-input", "required": True, "max_length": 48, "options": []}
DOC = {"variable": "doc", "label": "Doc", "type": "file", "required": False, "allowed_file_types": ["document"]}
PATHS = ("info", "parameters", "meta", "site")


def described(**features: Any) -> str:
    made = json.loads(
        document([node("start", "start", variables=[CITY, DOC]), end(o="start.city")], edges("start > end"))
    )
    made["app"] |= {"name": "Weather", "description": "Says it", "icon": "🌦", "icon_background": "#FFEAD5"}
    made["workflow"]["features"] = features
    return json.dumps(made)


@pytest.fixture(scope="module")
def log() -> Iterator[MemoryLog]:
    made = MemoryLog(MemoryStore(partitions=1))
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(log: MemoryLog) -> Iterator[Server]:
    made = Server(log)
    yield made
    made.close()


def ask(server: Server, what: str, key: str, **query: str) -> Any:
    return server.http.get(f"/v1/{what}", headers={"Authorization": f"Bearer {key}"}, params=query)


def test_info_and_site_describe_the_app(server: Server) -> None:
    key = server.import_app(described())["api_key"]
    assert ask(server, "info", key).json() == {
        "name": "Weather", "description": "Says it", "tags": [], "mode": "workflow", "author_name": None,
    }  # fmt: skip
    site = ask(server, "site", key).json()
    assert (site["title"], site["icon"], site["icon_type"]) == ("Weather", "🌦", "emoji")
    assert (site["icon_background"], site["show_workflow_steps"]) == ("#FFEAD5", True)
    assert ask(server, "meta", key).json() == {"tool_icons": {}}


def test_parameters_show_the_input_form_as_the_document_has_it(server: Server) -> None:
    key = server.import_app(described())["api_key"]
    answer = ask(server, "parameters", key, user="whoever")
    assert answer.status_code == 200
    found = answer.json()
    assert found["user_input_form"] == [{"text-input": CITY}, {"file": DOC}]
    assert found["system_parameters"] == {
        "image_file_size_limit": 10, "video_file_size_limit": 100, "audio_file_size_limit": 50, "file_size_limit": 15,
        "workflow_file_upload_limit": 10,
    }  # fmt: skip
    assert (found["opening_statement"], found["suggested_questions"]) == (None, [])
    for feature in ("speech_to_text", "text_to_speech", "retriever_resource", "annotation_reply", "more_like_this"):
        assert found[feature] == {"enabled": False}
    assert found["sensitive_word_avoidance"] == {"enabled": False, "type": "", "configs": []}
    assert found["file_upload"]["image"]["number_limits"] == 3


def test_parameters_show_the_features_of_the_document(server: Server) -> None:
    upload = {"enabled": True, "number_limits": 7}
    document_ = described(
        opening_statement="Hi", suggested_questions=["a"], speech_to_text={"enabled": True}, file_upload=upload
    )
    found = ask(server, "parameters", server.import_app(document_)["api_key"]).json()
    assert (found["opening_statement"], found["suggested_questions"]) == ("Hi", ["a"])
    assert (found["speech_to_text"], found["file_upload"]) == ({"enabled": True}, upload)


def test_an_app_without_a_version_is_unavailable(server: Server, log: MemoryLog) -> None:
    key = "app-withoutaversionatall0000"
    for fact in (
        AppCreated(app_id="a1", name="Empty", created_at_us=1),
        KeyCreated(key_id="k1", app_id="a1", hash=hash_key(key), prefix="app-with", created_at_us=1),
    ):
        log.send(Topic.DEFINITIONS, 0, encode_fact(fact)).result(30)
    answer = ask(server, "parameters", key)
    assert (answer.status_code, answer.json()["code"]) == (400, "app_unavailable")
    assert ask(server, "site", key).json()["title"] == "Empty"


# --- what no app here can do ---

WAV = ("a.wav", b"RIFF", "audio/wav")
SPEAKING: dict[str, Any] = {"speech_to_text": {"enabled": True}, "text_to_speech": {"enabled": True}}


@pytest.mark.parametrize(
    ("features", "files", "status", "code"),
    [
        ({}, {"file": WAV}, 400, "invalid_param"),
        (SPEAKING, {"other": WAV}, 400, "no_audio_uploaded"),
        (SPEAKING, {"file": ("a.mp3", b"x", "audio/mpeg")}, 415, "unsupported_audio_type"),
        (SPEAKING, {"file": ("a.wav", bytes((30 << 20) + 1), "audio/wav")}, 413, "audio_too_large"),
        (SPEAKING, {"file": ("a.wav", bytes(31 << 20), "audio/wav")}, 413, "audio_too_large"),
        (SPEAKING, {"file": WAV}, 400, "provider_not_support_speech_to_text"),
    ],
)
def test_speech_is_refused_with_the_codes_of_the_contract(
    server: Server, features: dict[str, Any], files: dict[str, Any], status: int, code: str
) -> None:
    key = server.import_app(described(**features))["api_key"]
    answer = server.http.post("/v1/audio-to-text", headers={"Authorization": f"Bearer {key}"}, files=files)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("features", "body", "refusal"),
    [
        ({}, {"text": "hi", "user": "u"}, (400, "invalid_param")),
        (SPEAKING, {"user": "u"}, (400, "invalid_param")),
        (SPEAKING, {"text": "hi"}, (400, "provider_not_initialize")),
    ],
)
def test_speaking_is_refused_with_the_codes_of_the_contract(
    server: Server, features: dict[str, Any], body: dict[str, Any], refusal: tuple[int, str]
) -> None:
    key = server.import_app(described(**features))["api_key"]
    answer = server.http.post("/v1/text-to-audio", headers={"Authorization": f"Bearer {key}"}, json=body)
    assert (answer.status_code, answer.json()["code"]) == refusal


def test_completion_apps_do_not_exist(server: Server) -> None:
    headers = {"Authorization": f"Bearer {server.import_app(described())['api_key']}"}
    body = {"inputs": {}, "response_mode": "blocking", "user": "u"}
    answer = server.http.post("/v1/completion-messages", headers=headers, json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "app_unavailable")
    answer = server.http.post("/v1/completion-messages", headers=headers, json=body | {"user": ""})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")


@pytest.mark.parametrize("what", PATHS)
def test_who_has_no_key_is_told_so(server: Server, what: str) -> None:
    for headers in (
        {},
        {"Authorization": "app-x"},
        {"Authorization": "Basic app-x"},
        {"Authorization": "Bearer app-x"},
    ):
        answer = server.http.get(f"/v1/{what}", headers=headers)
        assert (answer.status_code, answer.json()["code"], answer.json()["status"]) == (401, "unauthorized", 401)
        assert answer.headers["www-authenticate"] == 'Bearer realm="api"'
