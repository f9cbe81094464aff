"""Vectors from a real HTTP server in the OpenAI-compatible form."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from libs.providers import reach
from libs.settings import Provider
from services.api.embeddings import BATCH, Embedders, EmbeddingError, OpenAICompatible, TextRefused
from services.api.matching import likeness
from tests.model_server import ModelServer

KEY = "sk-embeddings-secret"
Test = Callable[[Embedders, ModelServer], Awaitable[Any]]


def with_server(test: Test, **settings: Any) -> Any:
    async def go() -> Any:
        async with ModelServer() as server:
            embedders = Embedders({"OPENAI": Provider(server.url, KEY, **settings)})
            try:
                return await test(embedders, server)
            finally:
                await embedders.aclose()

    return asyncio.run(go())


def embed(model: str, texts: list[str], **settings: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    async def ask(embedders: Embedders, server: ModelServer) -> Any:
        return await embedders.of("langgenius/openai/openai").embed(model, texts), server.requests

    found: tuple[list[Any], list[dict[str, Any]]] = with_server(ask, **settings)
    return found


def refused(model: str) -> str:
    with pytest.raises(EmbeddingError) as caught:
        embed(model, ["a", "b"])
    return str(caught.value)


def test_vectors_come_in_the_order_of_the_texts_in_batches() -> None:
    texts = [letter * 2 for letter in "abcdefghijklmnopqrstuvwxyz"] * 2
    vectors, requests = embed("small", texts)
    assert [list(vector).index(1.0) for vector in vectors] == [*range(26), *range(26)]
    assert [len(each["body"]["input"]) for each in requests] == [BATCH, len(texts) - BATCH]
    assert {each["path"] for each in requests} == {"/v1/embeddings"}
    assert likeness(vectors[0], vectors[26]) == 1


def test_the_key_and_the_servers_own_name_of_the_model_are_sent() -> None:
    _, (request,) = embed("text-embedding-3", ["a"], models={"text-embedding-3": "deployment"}, auth="api-key")
    assert (request["headers"]["api-key"], request["body"]) == (KEY, {"model": "deployment", "input": ["a"]})


def test_a_server_that_takes_fewer_texts_is_asked_in_halves() -> None:
    vectors, requests = embed("few-3", ["a", "b", "c", "d", "e", "f", "g"])
    assert [list(vector).index(1.0) for vector in vectors] == list(range(7))
    assert max(len(each["body"]["input"]) for each in requests[-2:]) <= 3


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("status-401", "openai: status 401: refused with 401"),
        ("status-400", "openai: status 400"),
        ("status-503", "openai: status 503"),
        ("lacking", "it sent no 2 vectors. Is lacking a model for embeddings?"),
        ("quoting-280", "openai: status 401"),
    ],
)
def test_a_refusal_says_why_and_never_shows_the_key(model: str, words: str) -> None:
    said = refused(model)
    assert words in said
    assert "sk-emb" not in said


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_text_that_is_refused_is_told_from_a_provider_that_is_not_well(status: int) -> None:
    with pytest.raises(TextRefused, match=str(status)) as caught:
        embed(f"status-{status}", ["a", "b"])
    assert caught.value.text == "a"
    with pytest.raises(EmbeddingError) as other:
        embed("status-401", ["a"])
    assert not isinstance(other.value, TextRefused)


def test_half_a_surrogate_pair_is_no_reason_against_a_provider() -> None:
    _, (request,) = embed("small", ["a\ud83d"])
    assert request["body"]["input"] == ["a?"]


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"data": 1}',
        b'{"data": [{"embedding": [1' + b"0" * 400 + b"]}]}",
        b'{"data": [{"embedding": [1e400]}]}',
        b"[" * 100_000,
        b'{"error":' * 100_000,
        b"1" * 5_000,
    ],
    ids=lambda body: str(body[:24]),
)
def test_whatever_a_server_answers_is_no_more_than_an_error(body: bytes, status: int) -> None:
    async def ask() -> None:
        answering = httpx.MockTransport(lambda _: httpx.Response(status, content=body))
        async with httpx.AsyncClient(transport=answering) as client:
            to = reach({"OPENAI": Provider("http://models", KEY)}, "openai")
            with pytest.raises(EmbeddingError, match="openai: "):
                await OpenAICompatible(client, to).embed("m", ["a"])

    asyncio.run(ask())


def test_a_server_that_is_away_or_unknown_says_so() -> None:
    async def ask(embedders: Embedders) -> str:
        with pytest.raises(EmbeddingError) as caught:
            await embedders.of("openai").embed("m", ["a"])
        return str(caught.value)

    assert "openai: " in asyncio.run(ask(Embedders({"OPENAI": Provider("http://127.0.0.1:9", KEY)})))
    assert "FLOWLEDGER_PROVIDER_OPENAI_API_KEY" in asyncio.run(ask(Embedders({})))


def test_the_stand_in_needs_no_settings() -> None:
    async def ask() -> Any:
        return await Embedders({}, offline=True).of("whoever").embed("whatever", ["a", "b"])

    assert len(asyncio.run(ask())) == 2
