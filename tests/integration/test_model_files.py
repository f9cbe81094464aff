"""Files in prompts and answers, against a real server of the OpenAI-compatible form on 127.0.0.1."""

import asyncio
import base64
import io
import wave
from dataclasses import replace
from typing import Any, cast

import pytest

from libs.events.ids import new_run_id
from libs.net import GuardedHttp
from libs.settings import Provider
from libs.workflow.outcome import Failed, Outcome, Succeeded
from services.executor.models import Models
from services.executor.nodes.llm import LlmHandler
from services.executor.nodes.parameter_extractor import ParameterExtractorHandler
from services.executor.nodes.port import Handler
from services.executor.nodes.question_classifier import QuestionClassifierHandler
from tests.attempts import Emitted, attempt_of
from tests.model_server import PICTURE, SOUND, ModelServer
from tests.unit.nodes.kept import kept_files

PROVIDER = "langgenius/openai/openai"
SEEING = {"vision": {"enabled": True, "configs": {"variable_selector": ["s", "f"], "detail": "low"}}}


async def no_templates(*_: object, **__: object) -> str:
    raise AssertionError("no template here")


def uploaded(name: str, kind: str, mime_type: str | None, content: bytes) -> tuple[dict[str, Any], Any]:
    store, values = kept_files({name: content})
    return values[name] | {"type": kind, "mime_type": mime_type}, store


def at_url(url: str, kind: str, name: str) -> dict[str, Any]:
    return {
        "dify_model_identity": "__dify__file__",
        "type": kind,
        "transfer_method": "remote_url",
        "remote_url": url,
        "filename": name,
    }


def ask(
    files: Any,
    *,
    store: Any = None,
    model: str = "echo",
    parts: dict[str, str] | None = None,
    provider: str = PROVIDER,
    kind: str = "llm",
    mode: str = "chat",
    completion_params: dict[str, Any] | None = None,
    emit: Emitted | None = None,
    **data: Any,
) -> tuple[Outcome, list[dict[str, Any]]]:
    """The outcome of a node that sees the files, and the contents of the messages it sent. `{url}`: of the server."""

    async def go() -> tuple[Outcome, list[dict[str, Any]]]:
        async with ModelServer() as server:
            name = provider.rpartition("/")[2].upper()
            models = Models({name: Provider(server.url, "sk-test-0123456789", files=parts)})
            http = GuardedHttp((f"127.0.0.1:{server.port}",))
            settings = {"provider": provider, "name": model, "mode": mode, "completion_params": completion_params or {}}
            given = [
                {**each, "remote_url": each["remote_url"] and each["remote_url"].format(url=server.url)}
                for each in files
            ]
            made = {"model": settings, "prompt_template": [{"role": "user", "text": "what?"}], **SEEING, **data}
            handler: Handler
            if kind == "llm":
                handler = LlmHandler(models, no_templates, files=store, http=http)
            elif kind == "question-classifier":
                handler = QuestionClassifierHandler(models, files=store, http=http)
            else:
                handler = ParameterExtractorHandler(models, files=store, http=http)
            try:
                attempt = attempt_of(kind, made, {"s.f": given, "s.q": "hi"}, emit=emit)
                outcome = await handler.run(replace(attempt, run_id=new_run_id(0, 0, 1)))
            finally:
                await models.aclose()
                await http.aclose()
            asked = [each for each in server.requests if each["path"].endswith("completions")]
            return outcome, [message["content"] for each in asked for message in each["body"].get("messages", [])]

    return asyncio.run(go())


TEXT = {"type": "text", "text": "what?"}


@pytest.mark.parametrize(
    ("name", "kind", "mime_type", "part"),
    [
        ("a.png", "image", "image/png", {"image_url": {"url": "data:image/png;base64,MTIz", "detail": "low"}}),
        ("a.mp3", "audio", "audio/mpeg", {"input_audio": {"data": "MTIz", "format": "mp3"}}),
        ("a.wav", "audio", None, {"input_audio": {"data": "MTIz", "format": "wav"}}),
        ("a.mp4", "video", "video/mp4", {"video_url": {"url": "data:video/mp4;base64,MTIz"}}),
        (
            "a.pdf",
            "document",
            "application/pdf",
            {"file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,MTIz"}},
        ),
    ],
)
def test_an_uploaded_file_goes_with_its_content_in_the_part_of_its_type(
    name: str, kind: str, mime_type: str | None, part: dict[str, Any]
) -> None:
    file, store = uploaded(name, kind, mime_type, b"123")
    outcome, asked = ask([file], store=store)
    assert isinstance(outcome, Succeeded), outcome
    assert asked == [[{"type": next(iter(part)), **part}, TEXT]]
    assert "MTIz" not in repr(outcome.process_data), "contents are in no record"


def test_an_address_goes_as_it_is_where_the_server_takes_one_and_with_its_content_elsewhere() -> None:
    files = [
        at_url("https://x.example/cat.mp4", "video", "cat.mp4"),
        at_url("{url}/notes.pdf", "document", "notes.pdf"),
    ]
    outcome, asked = ask(files)
    assert isinstance(outcome, Succeeded), outcome
    fetched = {"filename": "notes.pdf", "file_data": "data:application/pdf;base64,W10="}
    assert asked == [
        [
            {"type": "video_url", "video_url": {"url": "https://x.example/cat.mp4"}},
            {"type": "file", "file": fetched},
            TEXT,
        ]
    ]


@pytest.mark.parametrize(
    ("provider", "kind", "part"),
    [
        (
            "tongyi",
            "audio",
            {"type": "input_audio", "input_audio": {"data": "https://x.example/f.mp3", "format": "mp3"}},
        ),
        ("siliconflow", "audio", {"type": "audio_url", "audio_url": {"url": "https://x.example/f.mp3"}}),
        ("zhipuai", "document", {"type": "file_url", "file_url": {"url": "https://x.example/f.mp3"}}),
        ("mistralai", "document", {"type": "document_url", "document_url": "https://x.example/f.mp3"}),
    ],
)
def test_providers_with_parts_of_their_own_get_them(provider: str, kind: str, part: dict[str, Any]) -> None:
    outcome, asked = ask([at_url("https://x.example/f.mp3", kind, "f.mp3")], provider=f"x/y/{provider}")
    assert isinstance(outcome, Succeeded), outcome
    assert asked == [[part, TEXT]]


@pytest.mark.parametrize("provider", ["ollama", "google", "moonshot", "lm_studio"])
def test_providers_that_take_no_addresses_get_the_content(provider: str) -> None:
    outcome, asked = ask([at_url("{url}/cat.png", "image", "cat.png")], provider=f"x/y/{provider}")
    assert isinstance(outcome, Succeeded), outcome
    ((image, _),) = asked
    content = base64.b64encode(PICTURE).decode()
    assert image == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}", "detail": "low"}}


def test_files_that_a_provider_is_said_not_to_take_are_left_out_and_named() -> None:
    files = [at_url("https://x.example/a.png", "image", "a.png"), at_url("https://x.example/b.mp3", "audio", "b.mp3")]
    outcome, asked = ask(files, parts={"image": "image_url"})
    assert isinstance(outcome, Succeeded), outcome
    assert [[each["type"] for each in content] for content in asked] == [["image_url", "text"]]
    assert outcome.process_data is not None
    assert outcome.process_data["files_left_out"] == ["b.mp3"]
    assert ask(files, provider="langgenius/deepseek/deepseek")[1] == ["what?"]


def test_a_completion_has_no_place_for_files() -> None:
    outcome, _ = ask(
        [at_url("https://x.example/a.png", "image", "a.png")], mode="completion", prompt_template={"text": "go on"}
    )
    assert isinstance(outcome, Succeeded), outcome
    assert outcome.outputs["text"] == "echo: go on"
    assert outcome.process_data is not None
    assert outcome.process_data["files_left_out"] == ["a.png"]


def test_a_refusal_of_files_says_how_to_leave_them_out() -> None:
    outcome, _ = ask([at_url("https://x.example/a.png", "image", "a.png")], model="text-only")
    assert isinstance(outcome, Failed)
    assert outcome.error_type == "InvokeBadRequestError"
    assert "expected `text`" in outcome.error
    assert "files (image)" in outcome.error
    assert "FLOWLEDGER_PROVIDER_<NAME>_FILES" in outcome.error


def test_a_file_that_cannot_be_fetched_is_an_error_that_names_it() -> None:
    outcome, asked = ask([at_url("http://127.0.0.1:9/a.mp3", "audio", "a.mp3")])
    assert isinstance(outcome, Failed)
    assert outcome.error_type == "LLMNodeError"
    assert outcome.error.startswith("audio a.mp3: it cannot be fetched")
    assert asked == []


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("question-classifier", {"classes": [{"id": "1", "name": "A"}], "query_variable_selector": ["s", "q"]}),
        ("parameter-extractor", {"parameters": [{"name": "city", "type": "string"}], "query": ["s", "q"]}),
    ],
)
def test_classifiers_and_extractors_see_files_of_all_types(kind: str, data: dict[str, Any]) -> None:
    file, store = uploaded("a.mp3", "audio", "audio/mpeg", b"123")
    outcome, asked = ask([file], store=store, model="choose-1", kind=kind, **data)
    assert isinstance(outcome, Succeeded), outcome
    assert asked[-1][0] == {"type": "input_audio", "input_audio": {"data": "MTIz", "format": "mp3"}}


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["drawing", "drawing-blocking", "drawing-beside", "drawing-url"])
def test_a_picture_in_an_answer_is_kept_and_shown_in_its_place(model: str) -> None:
    store, _ = kept_files()
    emitted = Emitted()
    outcome, _ = ask([], store=store, model=model, emit=emitted)
    assert isinstance(outcome, Succeeded), outcome
    (file,) = cast(list[dict[str, Any]], outcome.outputs["files"])
    name = "cat.png" if model == "drawing-url" else "image-1.png"
    assert {key: file[key] for key in ("type", "transfer_method", "filename", "extension", "mime_type", "size")} == {
        "type": "image",
        "transfer_method": "tool_file",
        "filename": name,
        "extension": ".png",
        "mime_type": "image/png",
        "size": len(PICTURE),
    }
    assert file["url"] == f"/v1/files/{file['related_id']}/preview"
    assert asyncio.run(store.of("app-1").read(file)) == PICTURE
    assert outcome.outputs["text"] == emitted.text() == f"a ![{name}]({file['url']}) b"
    assert outcome.output_types == {"files": "array[file]"}


def test_the_name_that_a_model_gives_a_file_is_a_name_and_no_path() -> None:
    store, _ = kept_files()
    outcome, _ = ask([], store=store, model="drawing-file")
    assert isinstance(outcome, Succeeded), outcome
    (file,) = cast(list[dict[str, Any]], outcome.outputs["files"])
    assert (file["filename"], file["type"], file["mime_type"]) == (".._plan_.pdf", "document", "application/pdf")
    assert asyncio.run(store.of("app-1").read(file)) == b"123"


def test_a_picture_that_cannot_be_fetched_stays_where_it_is() -> None:
    store, _ = kept_files()
    outcome, _ = ask([], store=store, model="drawing-lost")
    assert isinstance(outcome, Succeeded), outcome
    (file,) = cast(list[dict[str, Any]], outcome.outputs["files"])
    assert (file["transfer_method"], file["filename"], file["type"]) == ("remote_url", "lost.png", "image")
    assert file["remote_url"].endswith("/lost.png")
    assert outcome.outputs["text"] == f"a ![lost.png]({file['remote_url']}) b"


@pytest.mark.parametrize("format_", ["pcm16", "wav"])
def test_a_sound_that_comes_in_pieces_is_one_file_that_plays_and_its_words_are_the_text(format_: str) -> None:
    store, _ = kept_files()
    wanted = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": format_}}
    outcome, _ = ask([], store=store, model="speaking", completion_params=wanted)
    assert isinstance(outcome, Succeeded), outcome
    (file,) = cast(list[dict[str, Any]], outcome.outputs["files"])
    assert (file["type"], file["filename"]) == ("audio", "audio-1.wav")
    with wave.open(io.BytesIO(asyncio.run(store.of("app-1").read(file)))) as sound:
        assert (sound.getframerate(), sound.readframes(9)) == (24_000, SOUND)
    assert str(outcome.outputs["text"]).startswith("good day[audio-1.wav](")


def test_without_a_store_a_picture_in_an_answer_is_an_error_that_says_so() -> None:
    outcome, _ = ask([], model="drawing")
    assert isinstance(outcome, Failed)
    assert outcome.error_type == "LLMNodeError"
    assert "keeps no files" in outcome.error
