"""Parts of the model layer that need no network: streams, reasoning, settings, the offline stand-in."""

import asyncio
import json
import random
import re
from pathlib import Path

import pytest

from libs.providers import KNOWN, setting_name
from libs.settings import Provider
from services.executor.models import (
    Delta,
    Message,
    ModelError,
    ModelRequest,
    Models,
    ReasoningSplitter,
    Split,
    split_reasoning,
)
from services.executor.models.context import UNKNOWN_TOKENS, context_tokens, tokens_of
from services.executor.models.offline import answer_of, pieces_of
from services.executor.models.openai_compatible import OpenAICompatible
from services.executor.models.sse import MAX_EVENT_CHARACTERS, EventReader

STREAM = (
    b"\xef\xbb\xbf: comment\r\n\r\nevent: x\r\ndata: one\r\n\r\ndata:two\ndata: lines\n\n"
    b"id: 7\n\nretry: 5\n\rdata: \xf0\x9f\x98\x80 gr\xc3\xbc\xc3\x9fe\r\rdata\n\ndata: [DONE]"
)
EVENTS = ["one", "two\nlines", "😀 grüße", "[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_wherever_the_stream_is_cut(size: int) -> None:
    reader = EventReader()
    found = [event for at in range(0, len(STREAM), size) for event in reader.feed(STREAM[at : at + size])]
    assert found + list(reader.finish()) == EVENTS


def test_an_event_without_end_does_not_fill_the_memory() -> None:
    reader = EventReader()
    piece = b"x" * (MAX_EVENT_CHARACTERS // 2 + 1)
    list(reader.feed(piece))
    with pytest.raises(ValueError, match="longer than"):
        list(reader.feed(piece))


ANSWERS = [
    ("plain", "plain", ""),
    ("<think>a</think>b", "b", "a"),
    ("<think>\n a \n</think>\n\n b", "b", "a"),
    ("x<THINK foo='1'>a</Think >  y", "xy", "a"),
    ("<think>a</think><think>b</think> c", "c", "a\nb"),
    ("1 <think>a</think> 2 <think></think> 3 <think>b c</think> 4", "1 2 3 4", "a\nb c"),
    ("x <think>never closed", "x ", "never closed"),
    ("x <think>never closed <b", "x ", "never closed <b"),
    ("<thinking>no</thinking> <thin> <think", "<thinking>no</thinking> <thin> <think", ""),
    ("a < b <", "a < b <", ""),
    ("a</think>b", "a</think>b", ""),
    ("<think>a <think> b</think>c", "c", "a <think> b"),
    (f"<think {'x' * 511}>a</think>b", "b", "a"),
    (f"<think {'x' * 600}>a", f"<think {'x' * 600}>a", ""),
    ("<think>a</thinker></think>b", "b", "a</thinker>"),
    ("", "", ""),
]


@pytest.mark.parametrize(("answer", "text", "reasoning"), ANSWERS)
def test_reasoning_is_separated_from_the_text(answer: str, text: str, reasoning: str) -> None:
    assert split_reasoning(answer) == Split(text, reasoning)


@pytest.mark.parametrize("answer", [answer for answer, _, _ in ANSWERS])
def test_the_separation_is_the_same_wherever_the_answer_is_cut(answer: str) -> None:
    chance = random.Random(answer)
    for size in (1, 2, 5, None):
        splitter, at, parts = ReasoningSplitter(), 0, []
        while at < len(answer):
            step = size or chance.randint(1, 9)
            parts.append(splitter.feed(answer[at : at + step]))
            at += step
        parts.append(splitter.finish())
        joined = Split("".join(part.text for part in parts), "".join(part.reasoning for part in parts))
        assert joined == split_reasoning(answer)


@pytest.mark.parametrize(
    ("provider_id", "name"),
    [
        ("langgenius/openai/openai", "OPENAI"),
        ("openai", "OPENAI"),
        ("langgenius/openai_api_compatible/openai_api_compatible", "OPENAI_API_COMPATIBLE"),
        ("me/my-own.models", "MY_OWN_MODELS"),
        ("", ""),
    ],
)
def test_the_setting_of_a_provider_is_the_last_part_of_its_id(provider_id: str, name: str) -> None:
    assert setting_name(provider_id) == name


def found(providers: dict[str, Provider], provider_id: str) -> object:
    async def go() -> object:
        models = Models(providers)
        try:
            return models.provider(provider_id)
        finally:
            await models.aclose()

    return asyncio.run(go())


def test_a_key_is_enough_for_a_well_known_provider() -> None:
    assert isinstance(found({"OPENAI": Provider(None, "k")}, "x/openai"), OpenAICompatible)
    urls = [known.base_url for known in KNOWN.values() if known.base_url]
    assert all(url.startswith(("https://", "http://127.0.0.1")) for url in urls)


@pytest.mark.parametrize(
    ("provider_id", "words"),
    [
        ("langgenius/azure_openai/azure_openai", "https://RESOURCE.openai.azure.com/openai/v1"),
        ("langgenius/bedrock/bedrock", "https://bedrock-runtime.REGION.amazonaws.com/openai/v1"),
        ("openai_api_compatible", "up to where /chat/completions would follow"),
        ("langgenius/ollama/ollama", "http://HOST:11434/v1, and no key"),
        ("vertex_ai", "a gateway"),
    ],
)
def test_a_provider_without_one_address_says_the_form_of_its_addresses(provider_id: str, words: str) -> None:
    with pytest.raises(ModelError, match="BASE_URL") as caught:
        found({}, provider_id)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "name",
    "openai openai_api_compatible tongyi deepseek siliconflow ollama volcengine_maas azure_openai anthropic bedrock "
    "gemini".split(),
)
def test_providers_of_many_documents_are_known(name: str) -> None:
    known = KNOWN[setting_name(f"langgenius/{name}/{name}")]
    assert known.base_url or known.hint


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-4o-mini", 128_000),
        ("gpt-4", 8_192),
        ("openai/gpt-4.1-nano", 1_047_576),
        ("moonshot-v1-32k", 32 * 1024),
        ("gpt-4-32k-0613", 32 * 1024),
        ("llama3.1:8b", 131_072),
        ("llama3:8b", 8_192),
        ("o1-mini", 128_000),
        ("orca", UNKNOWN_TOKENS),
        ("yinyang", UNKNOWN_TOKENS),
        ("", UNKNOWN_TOKENS),
    ],
)
def test_the_context_of_a_model_is_known_by_its_name(model: str, tokens: int) -> None:
    assert context_tokens(model, {}) == tokens
    assert context_tokens(model, {"*": 5}) == 5
    assert context_tokens(model, {"*": 5, model: 7}) == 7


def test_text_is_counted_by_its_characters() -> None:
    assert [tokens_of(text) for text in ("", "four", "twelve chars", "你好", "привет", "\ud800")] == [0, 1, 3, 2, 4, 1]


def test_what_providers_are_known_is_documented() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "providers.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE))
    assert rows == {name: f"`{each.base_url}`" if each.base_url else each.hint for name, each in KNOWN.items()}


def test_the_default_serves_a_provider_without_settings_of_its_own() -> None:
    default = {"DEFAULT": Provider("http://127.0.0.1:1", None), "OPENAI": Provider(None, None)}
    assert isinstance(found(default, "x/bedrock"), OpenAICompatible)


@pytest.mark.parametrize(
    ("providers", "provider_id", "setting"),
    [
        ({}, "langgenius/openai/openai", "set FLOWLEDGER_PROVIDER_OPENAI_API_KEY"),
        ({}, "me/mine", "set FLOWLEDGER_PROVIDER_MINE_BASE_URL and FLOWLEDGER_PROVIDER_MINE_API_KEY"),
        ({"MINE": Provider(None, "s3cret")}, "me/mine", "set FLOWLEDGER_PROVIDER_MINE_BASE_URL"),
        ({"DEFAULT": Provider(None, "s3cret")}, "x/openai", "set FLOWLEDGER_PROVIDER_OPENAI_API_KEY"),
        ({}, "", "(none named)"),
    ],
)
def test_missing_settings_say_what_to_set(providers: dict[str, Provider], provider_id: str, setting: str) -> None:
    with pytest.raises(ModelError) as caught:
        found(providers, provider_id)
    message = str(caught.value)
    assert setting in message
    for way in ("FLOWLEDGER_PROVIDER_DEFAULT_BASE_URL", "FLOWLEDGER_MODELS=offline", "pin the node"):
        assert way in message
    assert "s3cret" not in message


def test_a_key_that_no_header_can_carry_is_refused_without_being_shown() -> None:
    with pytest.raises(ModelError) as caught:
        found({"OPENAI": Provider(None, "geheim\nü")}, "openai")
    assert "geheim" not in str(caught.value)


QUESTION = ModelRequest("m", (Message("system", "s"), Message("user", "how many words are in here")))


def offline(request: ModelRequest) -> list[Delta]:
    async def go() -> list[Delta]:
        provider = Models({}, offline=True, offline_delay_s=0).provider("any/thing")
        return [delta async for delta in provider.stream(request)]

    return asyncio.run(go())


def test_the_stand_in_answers_the_same_question_alike_and_in_pieces() -> None:
    first, second = offline(QUESTION), offline(QUESTION)
    assert first == second
    assert 8 <= sum(1 for delta in first if delta.text) <= 20
    assert "how many words are in here" in "".join(delta.text for delta in first)
    assert first[-1].finish_reason == "stop"
    assert first[-1].usage is not None
    assert first[-1].usage.prompt_tokens == 7


def test_the_stand_in_answers_another_question_differently() -> None:
    other = ModelRequest("m", (Message("system", "t"), *QUESTION.messages[1:]))
    assert answer_of(other) != answer_of(QUESTION)
    assert answer_of(ModelRequest("n", QUESTION.messages)) != answer_of(QUESTION)


def test_the_stand_in_keeps_to_a_schema() -> None:
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}, "n": {"type": "integer"}}}
    text = "".join(delta.text for delta in offline(ModelRequest("m", QUESTION.messages, schema=schema)))
    assert json.loads(text) == {"mood": "good", "n": 1}


@pytest.mark.parametrize("length", [1, 5, 95, 96, 200, 10_000])
def test_pieces_make_up_the_whole(length: int) -> None:
    text = "x" * length
    assert "".join(pieces_of(text)) == text
    assert len(pieces_of(text)) <= 20
