"""`question-classifier` and `parameter-extractor` against a real server of the OpenAI-compatible form on 127.0.0.1."""

import asyncio
from typing import Any

from libs.settings import Provider
from libs.workflow.outcome import Failed, Outcome, Succeeded
from services.executor.models import Models
from services.executor.nodes.parameter_extractor import ParameterExtractorHandler
from services.executor.nodes.question_classifier import QuestionClassifierHandler
from tests.attempts import attempt_of
from tests.model_server import ModelServer

CLASSES = [{"id": "1", "name": "Billing"}, {"id": "2", "name": "Technical"}]
PARAMETERS = [
    {"name": "city", "type": "string", "description": "where to", "required": True},
    {"name": "count", "type": "number", "description": "how many", "required": True},
]


def run(kind: str, model: str, **data: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    async def go() -> tuple[Outcome, list[dict[str, Any]]]:
        async with ModelServer() as server:
            models = Models({"OPENAI": Provider(server.url, "sk-test-0123456789")})
            settings = {"provider": "langgenius/openai/openai", "name": model, "mode": "chat", "completion_params": {}}
            attempt = attempt_of(kind, {"model": settings, **data}, {"s.q": "2 tickets to Rome"})
            handler = (
                QuestionClassifierHandler(models)
                if kind == "question-classifier"
                else ParameterExtractorHandler(models)
            )
            try:
                return await handler.run(attempt), server.requests
            finally:
                await models.aclose()

    return asyncio.run(go())


def classify(model: str) -> tuple[Outcome, list[dict[str, Any]]]:
    return run("question-classifier", model, classes=CLASSES, query_variable_selector=["s", "q"])


def extract(model: str, mode: str = "function_call") -> tuple[Outcome, list[dict[str, Any]]]:
    return run("parameter-extractor", model, parameters=PARAMETERS, query=["s", "q"], reasoning_mode=mode)


def test_a_classifier_takes_the_branch_that_the_model_chose() -> None:
    outcome, requests = classify("choose-2")
    assert isinstance(outcome, Succeeded), outcome
    assert (outcome.handle, outcome.outputs["class_name"]) == ("2", "Technical")
    assert (outcome.metadata or {})["total_tokens"] == outcome.outputs["usage"]["total_tokens"]  # type: ignore[index, call-overload]
    (request,) = requests
    assert request["headers"]["idempotency-key"] == "run-1/n//1"
    assert request["body"]["messages"][1] == {"role": "user", "content": "Text to sort:\n2 tickets to Rome"}
    assert "tools" not in request["body"]
    assert "response_format" not in request["body"]


def test_a_classifier_whose_model_refuses_fails_without_showing_the_key() -> None:
    outcome, _ = classify("status-401")
    assert isinstance(outcome, Failed), outcome
    assert outcome.error_type == "InvokeAuthorizationError"
    assert "sk-test-0123456789" not in repr(outcome)


def test_an_extractor_reads_the_arguments_of_the_function_that_the_model_calls() -> None:
    outcome, requests = extract("call")
    assert isinstance(outcome, Succeeded), outcome
    assert (outcome.outputs["__is_success"], outcome.outputs["city"], outcome.outputs["count"]) == (1, "Rome", 2)
    (request,) = requests
    (tool,) = request["body"]["tools"]
    assert tool["function"]["parameters"]["required"] == ["city", "count"]
    assert request["body"]["tool_choice"] == {"type": "function", "function": {"name": tool["function"]["name"]}}


def test_an_extractor_asks_again_without_a_function_when_the_server_knows_none() -> None:
    outcome, requests = extract("refuse-tools")
    assert isinstance(outcome, Succeeded), outcome
    assert (outcome.outputs["__is_success"], outcome.outputs["city"]) == (1, "Oslo")
    assert ["tools" in request["body"] for request in requests] == [True, False]
    assert "tool_choice" not in requests[1]["body"]


def test_an_extractor_in_prompt_mode_sends_no_function_and_takes_what_comes() -> None:
    outcome, requests = extract("json", "prompt")
    assert isinstance(outcome, Succeeded), outcome
    assert (outcome.outputs["__is_success"], outcome.outputs["city"], outcome.outputs["count"]) == (0, "", 0)
    assert "tools" not in requests[0]["body"]
