"""How much of a conversation reaches a model, against a real server of the OpenAI-compatible form on 127.0.0.1."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from libs.settings import Provider
from libs.workflow.conversation import Turn
from libs.workflow.outcome import Succeeded
from services.executor.models import Models
from services.executor.nodes.llm import LlmHandler
from services.executor.nodes.memory import ConversationMemory
from services.executor.nodes.parameter_extractor import ParameterExtractorHandler
from services.executor.nodes.port import Handler
from services.executor.nodes.question_classifier import QuestionClassifierHandler
from tests.attempts import attempt_of
from tests.model_server import ModelServer

TURNS = tuple(Turn(f"question {number} " + "x" * 400, f"answer {number}") for number in range(4))
"""Some 100 tokens each."""


async def no_templates(*_: object, **__: object) -> str:
    raise AssertionError("no template here")


def remembered(
    context: dict[str, int],
    kind: str = "llm",
    model: str = "echo",
    completion_params: dict[str, Any] | None = None,
    **data: Any,
) -> list[int]:
    """Numbers of the earlier messages that the model was sent."""

    async def go() -> list[int]:
        async with ModelServer() as server:
            models = Models({"OPENAI": Provider(server.url, context_tokens=context)})
            settings = {
                "provider": "openai",
                "name": model,
                "mode": "chat",
                "completion_params": completion_params or {},
            }
            whole = {"model": settings, "prompt_template": [], "memory": {"window": {"enabled": False}}, **data}
            attempt = attempt_of(kind, whole, {"sys.query": "now"}, mode="advanced-chat")
            memory = ConversationMemory()
            handlers: dict[str, Handler] = {
                "llm": LlmHandler(models, no_templates, history=memory),
                "question-classifier": QuestionClassifierHandler(models, history=memory),
                "parameter-extractor": ParameterExtractorHandler(models, history=memory),
            }
            try:
                outcome = await handlers[kind].run(replace(attempt, history=TURNS))
            finally:
                await models.aclose()
            assert isinstance(outcome, Succeeded), outcome
            (request,) = server.requests
            told = " ".join(message["content"] for message in request["body"]["messages"])
            found = [number for number in range(4) if f"question {number}" in told]
            assert [number for number in range(4) if f"answer {number}" in told] == found, "whole turns only"
            return found

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("context", "parameters", "kept"),
    [
        ({}, {}, [0, 1, 2, 3]),
        ({"*": 350}, {}, [2, 3]),
        ({"echo": 350, "*": 9000}, {}, [2, 3]),
        ({"other": 350}, {}, [0, 1, 2, 3]),
        ({"*": 350}, {"max_tokens": 100}, [3]),
        ({"*": 9000}, {"num_ctx": 350}, [2, 3]),
        ({"*": 50}, {}, []),
    ],
)
def test_the_oldest_messages_are_forgotten_until_the_rest_fits(
    context: dict[str, int], parameters: dict[str, Any], kept: list[int]
) -> None:
    assert remembered(context, completion_params=parameters) == kept


def test_what_the_rest_of_the_prompt_fills_counts() -> None:
    prompt = [{"role": "system", "text": "y" * 400}]
    assert remembered({"*": 350}, prompt_template=prompt) == [3]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("question-classifier", {"classes": [{"id": "1", "name": "A"}], "query_variable_selector": ["sys", "query"]}),
        ("parameter-extractor", {"parameters": [{"name": "city", "type": "string"}], "query": ["sys", "query"]}),
    ],
)
def test_classifiers_and_extractors_forget_the_oldest_too(kind: str, data: dict[str, Any]) -> None:
    assert remembered({}, kind, "choose-1", **data) == [0, 1, 2, 3]
    assert remembered({"*": 450}, kind, "choose-1", **data) == [2, 3]
