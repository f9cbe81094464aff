"""The OpenAI-compatible adapter against a real server on 127.0.0.1."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import pytest

from libs.settings import Provider
from libs.workflow.outcome import Failed, Outcome, Succeeded
from services.executor.models import Delta, Media, Message, ModelError, ModelRequest, Models, Usage
from services.executor.nodes.llm import LlmHandler
from tests.attempts import Emitted, attempt_of
from tests.model_server import ModelServer, serving

KEY = "sk-test-0123456789"


def asking(model: str, text: str = "hi there", **rest: Any) -> ModelRequest:
    return ModelRequest(model, (Message("system", "be brief"), Message("user", text)), **rest)


def answer(request: ModelRequest, provider: Provider | None = None) -> tuple[list[Delta], list[dict[str, Any]]]:
    async def go() -> tuple[list[Delta], list[dict[str, Any]]]:
        async with ModelServer() as server:
            models = Models({"OPENAI": provider or Provider(server.url, KEY)})
            try:
                found = [delta async for delta in models.provider("langgenius/openai/openai").stream(request)]
                return found, server.requests
            finally:
                await models.aclose()

    return asyncio.run(go())


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def failure(model: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        answer(asking(model))
    return caught.value


def last(deltas: list[Delta]) -> tuple[str | None, Usage | None]:
    reasons = [delta.finish_reason for delta in deltas if delta.finish_reason]
    usages = [delta.usage for delta in deltas if delta.usage]
    return (reasons[-1] if reasons else None), (usages[-1] if usages else None)


def test_an_answer_is_streamed_with_its_end_and_usage() -> None:
    deltas, requests = answer(
        asking("echo", parameters={"temperature": 0.5, "max_tokens": 5, "model": "other"}, key="k")
    )
    assert text_of(deltas) == "echo: hi there"
    assert sum(1 for delta in deltas if delta.text) > 3
    reason, usage = last(deltas)
    assert reason == "stop"
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    (request,) = requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["authorization"] == f"Bearer {KEY}"
    assert request["headers"]["idempotency-key"] == "k"
    assert request["body"] == {
        "model": "echo",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi there"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "max_tokens": 5,
    }


def test_completion_mode_uses_the_completions_path() -> None:
    deltas, requests = answer(ModelRequest("echo", (Message("user", "once upon"),), mode="completion"))
    assert text_of(deltas) == "echo: once upon"
    assert requests[0]["path"] == "/v1/completions"
    assert last(deltas)[0] == "stop"


def test_a_stream_of_odd_form_is_read_all_the_same() -> None:
    deltas, _ = answer(asking("odd-stream", "grüße 你好 😀"))
    assert text_of(deltas) == "echo: grüße 你好 😀"
    assert last(deltas)[1] is not None


def test_an_answer_that_is_not_streamed_is_one_piece() -> None:
    deltas, _ = answer(asking("blocking"))
    assert len(deltas) == 1
    assert text_of(deltas) == "echo: hi there"
    assert last(deltas)[0] == "stop"


def test_usage_may_be_missing() -> None:
    deltas, _ = answer(asking("no-usage"))
    assert text_of(deltas) == "echo: hi there"
    assert last(deltas) == ("stop", None)


def test_reasoning_in_a_field_of_its_own_is_kept_apart() -> None:
    deltas, _ = answer(asking("reasoning"))
    assert "".join(delta.reasoning for delta in deltas) == "let me see"
    assert text_of(deltas) == "done"


def test_images_become_parts_of_the_message() -> None:
    request = ModelRequest(
        "echo", (Message("user", "what?", (Media("image", "https://x.example/cat.png", detail="low"),)),)
    )
    _, requests = answer(request)
    assert requests[0]["body"]["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": "https://x.example/cat.png", "detail": "low"}},
        {"type": "text", "text": "what?"},
    ]


@pytest.mark.parametrize(
    ("status", "error_type", "retryable"),
    [
        (400, "InvokeBadRequestError", False),
        (401, "InvokeAuthorizationError", False),
        (403, "InvokeAuthorizationError", False),
        (404, "InvokeBadRequestError", False),
        (429, "InvokeRateLimitError", True),
        (500, "InvokeServerUnavailableError", True),
        (503, "InvokeServerUnavailableError", True),
    ],
)
def test_a_refusal_has_its_class_the_providers_words_and_no_key(status: int, error_type: str, retryable: bool) -> None:
    error = failure(f"status-{status}")
    assert (error.error_type, error.retryable) == (error_type, retryable)
    assert str(error) == f"openai: status {status}: refused with {status}; you sent Bearer ***"
    assert KEY not in repr(error.__context__)


@pytest.mark.parametrize("before", range(460, 520, 4))
def test_no_part_of_a_key_is_left_where_the_words_of_a_server_are_cut(before: int) -> None:
    assert KEY[:6] not in str(failure(f"quoting-{before}"))


@pytest.mark.parametrize(
    ("model", "error_type", "words"),
    [
        ("broken", "InvokeConnectionError", "openai: "),
        ("unfinished", "InvokeConnectionError", "the stream ended before the answer did"),
        ("garbage", "InvokeServerUnavailableError", "not JSON"),
        ("stream-error", "InvokeServerUnavailableError", "the model fell over"),
        ("limited", "InvokeRateLimitError", "slow down"),
        ("empty", "InvokeServerUnavailableError", "no choices"),
        ("empty-blocking", "InvokeServerUnavailableError", "no choices"),
    ],
)
def test_a_stream_that_breaks_is_an_error_that_may_be_retried(model: str, error_type: str, words: str) -> None:
    error = failure(model)
    assert error.error_type == error_type
    assert error.retryable
    assert words in str(error)


def test_nobody_listening_is_a_connection_error() -> None:
    with pytest.raises(ModelError) as caught:
        answer(asking("echo"), Provider("http://127.0.0.1:9/v1", KEY))
    assert caught.value.error_type == "InvokeConnectionError"
    assert caught.value.retryable


@pytest.mark.parametrize("option", ["stream_options", "response_format"])
def test_an_option_that_the_server_does_not_know_is_left_out(option: str) -> None:
    deltas, requests = answer(asking(f"refuse-{option}", schema={"type": "object"}))
    assert text_of(deltas) == "echo: hi there"
    tries = 2 if option == "stream_options" else 3  # a schema, then JSON of any form, then words alone
    assert [option in request["body"] for request in requests] == [True] * (tries - 1) + [False]


def test_a_server_that_knows_json_but_no_schemas_is_asked_for_json() -> None:
    deltas, requests = answer(asking("no-schema", schema={"type": "object"}))
    assert text_of(deltas) == '{"answer": 42}'
    assert [request["body"]["response_format"]["type"] for request in requests] == ["json_schema", "json_object"]


@pytest.mark.parametrize(
    ("model", "parameters", "kept"),
    [
        ("refuse-top_k", {"top_k": 3, "temperature": 0.5}, {"temperature": 0.5}),
        ("refuse-enable_thinking", {"enable_thinking": False, "top_p": 1}, {"top_p": 1}),
    ],
)
def test_a_parameter_that_the_server_does_not_know_is_left_out(
    model: str, parameters: dict[str, Any], kept: dict[str, Any]
) -> None:
    deltas, requests = answer(asking(model, parameters=parameters))
    assert text_of(deltas) == "echo: hi there"
    assert len(requests) == 2
    assert {
        name: requests[1]["body"][name] for name in (*parameters, "max_tokens") if name in requests[1]["body"]
    } == kept


def test_the_bound_of_an_answer_is_renamed_where_the_server_knows_it_by_its_newer_name_only() -> None:
    deltas, requests = answer(asking("newer-bound", parameters={"max_tokens": 5}))
    assert text_of(deltas) == "echo: hi there"
    assert (requests[1]["body"].get("max_tokens"), requests[1]["body"]["max_completion_tokens"]) == (None, 5)


def test_the_bound_of_an_answer_is_never_left_out() -> None:
    with pytest.raises(ModelError, match="max_tokens"):
        answer(asking("refuse-max_tokens", parameters={"max_tokens": 5}))


def test_an_address_may_have_a_query_and_a_key_its_own_header_and_a_model_another_name() -> None:
    """As one deployment of Azure: path, version, header and name are its own."""

    async def go() -> list[dict[str, Any]]:
        async with ModelServer() as server:
            base = server.url.removesuffix("/v1") + "/openai/deployments/eu?api-version=2024-10-21"
            own = Provider(base, KEY, models={"gpt-4o": "echo"})
            models = Models({"AZURE_OPENAI": own})
            try:
                deltas = [each async for each in models.provider("azure_openai").stream(asking("gpt-4o"))]
                assert text_of(deltas) == "echo: hi there"
                return server.requests
            finally:
                await models.aclose()

    (request,) = asyncio.run(go())
    assert request["path"] == "/openai/deployments/eu/chat/completions?api-version=2024-10-21"
    assert (request["headers"]["api-key"], "authorization" in request["headers"]) == (KEY, False)
    assert request["body"]["model"] == "echo"


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/chat/completions"])
def test_an_address_on_ones_own_machine_may_be_copied_without_its_path(ending: str) -> None:
    async def go() -> str:
        async with ModelServer() as server:
            models = Models({"OLLAMA": Provider(server.url.removesuffix("/v1") + ending)})
            try:
                async for _ in models.provider("langgenius/ollama/ollama").stream(asking("echo")):
                    pass
                return str(server.requests[0]["path"])
            finally:
                await models.aclose()

    assert asyncio.run(go()) == "/v1/chat/completions"


def test_a_slow_first_word_is_waited_for() -> None:
    assert text_of(answer(asking("slow-0.2"))[0]) == "echo: hi there"


def test_cancelling_closes_the_connection_at_once() -> None:
    async def go() -> None:
        async with ModelServer() as server:
            models = Models({"DEFAULT": Provider(server.url, KEY)})

            async def read() -> None:
                async with aclosing(models.provider("any/thing").stream(asking("slow-600"))) as deltas:
                    async for _ in deltas:
                        pass

            task = asyncio.create_task(read())
            async with asyncio.timeout(5):
                await server.arrived.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await server.hung_up.wait()
            await models.aclose()

    asyncio.run(go())


def test_parameters_of_documents_are_translated() -> None:
    parameters: Mapping[str, Any] = {"response_format": "json_object", "stop": ["x"], "seed": None}
    body = answer(asking("echo", parameters=parameters))[1][0]["body"]
    assert body["response_format"] == {"type": "json_object"}
    assert body["stop"] == ["x"]
    assert "seed" not in body
    assert "stop" not in answer(asking("echo", parameters={"stop": []}))[1][0]["body"]


def test_a_json_schema_among_the_parameters_goes_in_the_servers_form() -> None:
    schema = {"name": "city", "schema": {"type": "object"}, "strict": True}

    def form(schema: Any) -> Any:
        parameters = {"response_format": "json_schema", "json_schema": schema}
        return answer(asking("echo", parameters=parameters))[1][0]["body"]["response_format"]

    assert form(json.dumps(schema)) == {"type": "json_schema", "json_schema": schema}
    assert form({"type": "object"})["json_schema"] == {"name": "answer", "schema": {"type": "object"}}
    with pytest.raises(ModelError, match="json_schema"):
        form("{no json")


@pytest.mark.parametrize("name", ["num_predict", "max_output_tokens", "max_tokens_to_sample"])
def test_the_bound_of_an_answer_has_one_name_at_the_server(name: str) -> None:
    body = answer(asking("echo", parameters={name: 5}))[1][0]["body"]
    assert (body.get("max_tokens"), name in body) == (5, False)
    unbounded = answer(asking("echo", parameters={name: -1, "max_tokens": 7}))[1][0]["body"]
    assert (unbounded["max_tokens"], name in unbounded) == (7, False)


def test_a_server_that_says_when_to_come_back_is_asked_again_then() -> None:
    deltas, requests = answer(asking("busy-2"))
    assert text_of(deltas) == "echo: hi there"
    assert len(requests) == 3
    assert len({request["headers"]["idempotency-key"] for request in answer(asking("busy-2", key="k"))[1]}) == 1


@pytest.mark.parametrize("model", ["busy-9", "busy-later"])
def test_a_server_that_stays_busy_or_says_to_come_back_much_later_is_left_to_the_nodes_retries(model: str) -> None:
    error = failure(model)
    assert (error.error_type, error.retryable) == ("InvokeRateLimitError", True)


def test_a_server_that_says_nothing_for_too_long_is_an_error_that_may_be_retried() -> None:
    async def go() -> None:
        async with ModelServer() as server:
            models = Models({"OPENAI": Provider(server.url, KEY, timeout_s=0.2)})
            try:
                async for _ in models.provider("openai").stream(asking("slow-600")):
                    pass
            finally:
                await models.aclose()

    with pytest.raises(ModelError, match="no answer in time") as caught:
        asyncio.run(go())
    assert (caught.value.error_type, caught.value.retryable) == ("InvokeConnectionError", True)


def test_an_answer_in_one_piece_is_known_by_its_form_also_without_its_type() -> None:
    assert text_of(answer(asking("mislabelled"))[0]) == "echo: hi there"


def test_a_refusal_of_the_model_is_its_answer() -> None:
    assert text_of(answer(asking("refusing"))[0]) == "I will not"


def test_a_server_that_refuses_to_stream_is_asked_for_the_whole_answer() -> None:
    deltas, requests = answer(asking("no-stream"))
    assert text_of(deltas) == "echo: hi there"
    assert [request["body"]["stream"] for request in requests] == [True, False]
    assert "stream_options" not in requests[1]["body"]


def test_instructions_go_as_a_users_message_where_there_is_no_role_for_them() -> None:
    deltas, requests = answer(asking("no-system"))
    assert text_of(deltas) == "echo: hi there"
    assert [message["role"] for message in requests[1]["body"]["messages"]] == ["user", "user"]


def test_usage_may_come_inside_of_the_choice() -> None:
    usage = last(answer(asking("kimi"))[0])[1]
    assert usage is not None
    assert usage.total_tokens > 0


def test_what_stands_behind_a_gateway_is_said() -> None:
    assert "Provider returned error: model is warming up" in str(failure("gateway"))


# --- the llm node on top ----------------------------------------------------------------------------------------------


async def no_templates(*_: object, **__: object) -> str:
    raise AssertionError("no template here")


def node_run(model: str, emitted: Emitted, **data: Any) -> Outcome:
    complete = {
        "model": {"provider": "x/openai", "name": model, "mode": "chat", "completion_params": {}},
        "prompt_template": [{"role": "user", "text": "{{#s.q#}}"}],
        **data,
    }

    async def go() -> Outcome:
        async with ModelServer() as server:
            models = Models({"OPENAI": Provider(server.url, KEY)})
            try:
                attempt = attempt_of("llm", complete, {"s.q": "hi there"}, emit=emitted)
                return await LlmHandler(models, no_templates).run(attempt)
            finally:
                await models.aclose()

    return asyncio.run(go())


def test_a_node_streams_what_it_answers() -> None:
    emitted = Emitted()
    outcome = node_run("echo", emitted)
    assert isinstance(outcome, Succeeded), outcome
    assert outcome.outputs["text"] == emitted.text() == "echo: hi there"
    assert len(emitted.pieces) > 3


def test_a_node_separates_reasoning_from_a_real_stream() -> None:
    emitted = Emitted()
    outcome = node_run("thinking", emitted, reasoning_format="separated")
    assert isinstance(outcome, Succeeded), outcome
    assert (outcome.outputs["text"], emitted.text()) == ("done", "done")
    assert outcome.outputs["reasoning_content"] == emitted.text("reasoning_content") == "let me see"


def test_a_node_gets_structured_output_from_a_real_server() -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
    outcome = node_run("json", Emitted(), structured_output={"schema": schema}, structured_output_enabled=True)
    assert isinstance(outcome, Succeeded), outcome
    assert outcome.outputs["structured_output"] == {"answer": 42}


def test_calls_of_functions_that_nobody_offered_say_nothing() -> None:
    emitted = Emitted()
    outcome = node_run("calling", emitted)
    assert isinstance(outcome, Succeeded), outcome
    assert outcome.outputs["text"] == emitted.text() == "wait"
    assert outcome.outputs["finish_reason"] == "tool_calls"


def test_an_answer_that_was_cut_off_says_so_and_is_no_structured_output() -> None:
    assert isinstance(outcome := node_run("cut-off", Emitted()), Succeeded)
    assert outcome.outputs["finish_reason"] == "length"
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
    failed = node_run("cut-off", Emitted(), structured_output={"schema": schema}, structured_output_enabled=True)
    assert isinstance(failed, Failed)
    assert failed.error_type == "LLMNodeError"
    assert "max_tokens" in failed.error


def test_no_field_of_a_failed_node_holds_the_key() -> None:
    outcome = node_run("status-401", Emitted())
    assert isinstance(outcome, Failed)
    assert outcome.error_type == "InvokeAuthorizationError"
    assert KEY not in repr(outcome)


def test_the_server_in_a_thread_of_its_own_answers_too() -> None:
    with serving() as server:
        models = Models({"DEFAULT": Provider(server.url)})

        async def go() -> str:
            try:
                return text_of([delta async for delta in models.provider("x/y").stream(asking("echo"))])
            finally:
                await models.aclose()

        assert asyncio.run(go()) == "echo: hi there"
        assert "authorization" not in server.requests[0]["headers"]
