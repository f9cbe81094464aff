"""How an `llm` node makes its prompt and what it makes of the answer. The model is a script; no network."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import pytest

from libs.workflow.outcome import Failed, Outcome, Succeeded
from services.executor.files import FileStore
from services.executor.models import Delta, Media, Message, ModelError, ModelProvider, ModelRequest, Models, Usage
from services.executor.nodes.llm import LlmHandler
from services.executor.nodes.port import Attempt
from services.executor.nodes.prompts import History
from services.executor.sandbox import SandboxError
from tests.attempts import Emitted, attempt_of
from tests.unit.nodes.kept import kept_files

MODEL = {"provider": "langgenius/openai/openai", "name": "m-1", "mode": "chat", "completion_params": {}}


class Script(Models):
    """A model that says what it was told to, and keeps what it was asked."""

    def __init__(self, *deltas: Delta | ModelError) -> None:
        super().__init__({})
        self.deltas = deltas or (Delta("fine"), Delta(finish_reason="stop", usage=Usage(3, 1, 4)))
        self.asked: list[ModelRequest] = []

    def provider(self, provider_id: str) -> ModelProvider:
        return self

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta, None]:
        self.asked.append(request)
        for delta in self.deltas:
            if isinstance(delta, ModelError):
                raise delta
            yield delta


async def render(template: str, variables: Mapping[str, Any], *, limit_chars: int, timeout_s: float) -> str:
    """Stands for the sandbox: shows what it was given."""
    if template == "fails":
        raise SandboxError("the template failed")
    return f"{template}|{dict(variables)}"


class Ran:
    def __init__(self, outcome: Outcome, script: Script, emitted: Emitted) -> None:
        self.outcome = outcome
        self.script = script
        self.emitted = emitted

    @property
    def outputs(self) -> dict[str, Any]:
        assert isinstance(self.outcome, Succeeded), self.outcome
        return self.outcome.outputs

    @property
    def failure(self) -> Failed:
        assert isinstance(self.outcome, Failed), self.outcome
        return self.outcome

    @property
    def prompt(self) -> list[tuple[str, str]]:
        assert isinstance(self.outcome, Succeeded), self.outcome
        return [(message.role, message.text) for message in self.script.asked[0].messages]


def run(
    data: dict[str, Any],
    values: dict[str, Any] | None = None,
    *,
    script: Script | None = None,
    secrets: dict[str, str] | None = None,
    chatflow: bool = False,
    history: History | None = None,
    files: FileStore | None = None,
) -> Ran:
    model, emitted = script or Script(), Emitted()
    complete = {
        "model": MODEL,
        "prompt_template": [{"role": "user", "text": "hello"}],
        "context": {"enabled": False, "variable_selector": []},
        "vision": {"enabled": False},
        **data,
    }
    mode = "advanced-chat" if chatflow else "workflow"
    attempt = attempt_of("llm", complete, values, secrets=secrets, mode=mode, emit=emitted)
    outcome = asyncio.run(LlmHandler(model, render, history=history, files=files).run(attempt))
    return Ran(outcome, model, emitted)


def prompt(*messages: tuple[str, str]) -> dict[str, Any]:
    return {"prompt_template": [{"role": role, "text": text} for role, text in messages]}


def context(*selector: str) -> dict[str, Any]:
    return {"context": {"enabled": True, "variable_selector": list(selector)}}


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_the_answer_becomes_text_usage_and_records() -> None:
    ran = run(prompt(("system", "be brief"), ("user", "{{#s.q#}}")), {"s.q": "why?"})
    assert ran.outputs["text"] == "fine"
    assert ran.outputs["reasoning_content"] == ""
    assert ran.outputs["finish_reason"] == "stop"
    assert ran.outputs["files"] == []
    usage = ran.outputs["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 1, 4)
    assert (usage["total_price"], usage["currency"]) == ("0", "USD")
    assert usage["latency"] >= usage["time_to_first_token"] >= 0
    assert ran.outcome.inputs == {
        "#s.q#": "why?",
        "model_provider": "langgenius/openai/openai",
        "model_name": "m-1",
    }
    assert ran.outcome.metadata == {"total_tokens": 4, "total_price": "0", "currency": "USD"}
    record = ran.outcome.process_data
    assert record is not None
    assert record["model_mode"] == "chat"
    assert record["finish_reason"] == "stop"
    assert record["usage"] == usage
    assert record["prompts"] == [
        {"role": "system", "text": "be brief", "files": []},
        {"role": "user", "text": "why?", "files": []},
    ]
    assert ran.emitted.pieces == [("text", "fine")]


def test_an_answer_without_usage_counts_nothing() -> None:
    ran = run({}, script=Script(Delta("a"), Delta(finish_reason="stop")))
    assert ran.outputs["usage"]["total_tokens"] == 0


def test_an_error_of_the_model_is_a_failure_of_its_class_with_the_prompt_on_record() -> None:
    error = ModelError("InvokeRateLimitError", "openai: status 429: too fast", retryable=True)
    ran = run({}, script=Script(Delta("half an ans"), error))
    assert (ran.failure.error, ran.failure.error_type) == ("openai: status 429: too fast", "InvokeRateLimitError")
    assert ran.failure.process_data is not None
    assert ran.failure.process_data["prompts"] == [{"role": "user", "text": "hello", "files": []}]


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_messages_that_come_out_empty_are_left_out() -> None:
    ran = run(prompt(("system", "{{#s.none#}}"), ("user", "x"), ("assistant", "")), {"s.none": None})
    assert ran.prompt == [("user", "x")]


def test_a_prompt_without_any_text_is_an_error() -> None:
    assert run(prompt(("user", ""))).failure.error_type == "NoPromptFoundError"


def test_a_missing_variable_is_an_error() -> None:
    failure = run(prompt(("user", "{{#s.q#}}"))).failure
    assert (failure.error, failure.error_type) == ("Variable s.q not found", "VariableNotFoundError")


def test_a_missing_jinja_variable_is_an_error() -> None:
    variables = {"prompt_config": {"jinja2_variables": [{"variable": "q", "value_selector": ["s", "q"]}]}}
    failure = run(variables).failure
    assert (failure.error, failure.error_type) == ("Variable q not found", "VariableNotFoundError")


def test_a_jinja_message_is_rendered_with_the_declared_variables() -> None:
    ran = run(
        {
            "prompt_template": [
                {"role": "user", "text": "old {{#no.such#}}", "edition_type": "jinja2", "jinja2_text": "J {{ q }}"}
            ],
            "prompt_config": {
                "jinja2_variables": [
                    {"variable": "q", "value_selector": ["s", "q"]},
                    {"variable": "n", "value_selector": ["s", "n"]},
                ]
            },
        },
        {"s.q": {"deep": [1]}, "s.n": None},
    )
    assert ran.prompt == [("user", "J {{ q }}|{'q': {'deep': [1]}, 'n': ''}")]
    assert ran.outcome.inputs is not None
    assert ran.outcome.inputs["q"] == {"deep": [1]}


def test_a_jinja_template_that_fails_is_an_llm_node_error() -> None:
    message = {"role": "user", "text": "", "edition_type": "jinja2", "jinja2_text": "fails"}
    failure = run({"prompt_template": [message]}).failure
    assert (failure.error, failure.error_type) == ("the template failed", "LLMNodeError")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "<as it is>"),
        (["one", {"content": "two"}, {"content": "four", "summary": "three"}], "<one\ntwo\nthree\nfour>"),
        (None, "<>"),
        ({"not": "a list"}, "<>"),
    ],
)
def test_the_context_replaces_its_marker(value: Any, text: str) -> None:
    ran = run({**prompt(("user", "<{{#context#}}>")), **context("s", "c")}, {"s.c": value})
    assert ran.prompt == [("user", text)]


def test_a_missing_context_is_empty() -> None:
    assert run({**prompt(("user", "<{{#context#}}>")), **context("s", "c")}).prompt == [("user", "<>")]


def test_a_context_object_without_content_is_an_error() -> None:
    failure = run({**prompt(("user", "{{#context#}}")), **context("s", "c")}, {"s.c": [{"text": "x"}]}).failure
    assert failure.error_type == "InvalidContextStructureError"


def test_placeholders_inside_the_context_are_not_looked_up() -> None:
    values = {"s.c": "found: {{#env.key#}} env.key", "s.q": "{{#env.key#}}"}
    ran = run(
        {**prompt(("user", "{{#context#}} {{#s.q#}}")), **context("s", "c")}, values, secrets={"key": "sk-secret-1"}
    )
    assert ran.prompt == [("user", "found: {{#env.key#}} env.key {{#env.key#}}")]


def test_a_secret_reaches_the_model_but_no_record() -> None:
    ran = run(
        {**prompt(("user", "{{#env.key#}} {{#s.copy#}}"))},
        {"s.copy": {"in": ["<sk-secret-12345>"]}},
        secrets={"key": "sk-secret-12345"},
    )
    assert ran.prompt[0][1].count("sk-secret-12345") == 2
    assert "secret" not in f"{ran.outcome.inputs}{ran.outcome.process_data}"


def test_parameters_with_placeholders_become_the_number_or_boolean_they_spell() -> None:
    parameters = {"temperature": "{{#s.t#}}", "flag": "{{#s.f#}}", "word": "{{#s.w#}}", "top_p": "0.5", "stop": ["x"]}
    ran = run({"model": {**MODEL, "completion_params": parameters}}, {"s.t": 0.25, "s.f": "true", "s.w": "w" * 2000})
    assert ran.script.asked[0].parameters == {
        "temperature": 0.25,
        "flag": True,
        "word": "w" * 1024,
        "top_p": "0.5",
        "stop": ["x"],
    }


# --- completion mode and memory ---------------------------------------------------------------------------------------

COMPLETION = {**MODEL, "mode": "completion"}
MEMORY = {"window": {"enabled": True, "size": 2}, "role_prefix": {"user": "Q", "assistant": "A"}}


class Past:
    async def recent(self, attempt: Attempt, limit: int | None) -> Sequence[Message]:
        assert limit == 2
        return [Message("user", "earlier {{#env.key#}}"), Message("assistant", "indeed")]


def test_a_completion_prompt_is_one_text() -> None:
    data = {"model": COMPLETION, "prompt_template": {"text": "<{{#histories#}}>{{#sys.query#}}|{{#s.q#}}"}}
    ran = run(data, {"s.q": "q", "sys.query": "{{#s.q#}}"})
    assert ran.prompt == [("user", "<>{{#s.q#}}|q")]
    assert ran.script.asked[0].mode == "completion"
    assert run(data, {"s.q": "q"}).prompt == [("user", "<>|q")]  # a workflow has no query


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<{{#histories#}}> {{#sys.query#}}", "<Q: earlier {{#env.key#}}\nA: indeed> now"),
        ("{{#sys.query#}}", "Q: earlier {{#env.key#}}\nA: indeed\nnow"),
    ],
)
def test_the_history_of_a_completion_goes_to_its_marker_or_in_front(text: str, expected: str) -> None:
    data = {"model": COMPLETION, "prompt_template": {"text": text}, "memory": MEMORY}
    assert run(data, {"sys.query": "now"}, chatflow=True, history=Past()).prompt == [("user", expected)]


def test_memory_of_a_completion_needs_role_prefixes() -> None:
    data = {"model": COMPLETION, "prompt_template": {"text": "x"}, "memory": {"window": {"enabled": False}}}
    assert run(data, chatflow=True).failure.error_type == "MemoryRolePrefixRequiredError"


@pytest.mark.parametrize(
    ("template", "last"), [("", "now"), ("{{#sys.query#}}!\n{{#sys.files#}}", "now!\n"), ("{{#s.q#}}", "q")]
)
def test_a_chatflow_with_memory_asks_with_history_and_query(template: str, last: str) -> None:
    values = {"sys.query": "now", "sys.files": [], "s.q": "q"}
    data = {**prompt(("system", "s")), "memory": {**MEMORY, "query_prompt_template": template}}
    assert run(data, values, chatflow=True, history=Past()).prompt == [
        ("system", "s"),
        ("user", "earlier {{#env.key#}}"),
        ("assistant", "indeed"),
        ("user", last),
    ]


def test_a_chatflow_without_a_history_still_asks_the_query() -> None:
    data = {**prompt(("system", "s")), "memory": MEMORY}
    assert run(data, {"sys.query": "now"}, chatflow=True).prompt == [("system", "s"), ("user", "now")]


def test_a_workflow_ignores_memory() -> None:
    data = {**prompt(("user", "u")), "memory": MEMORY}
    assert run(data, {"sys.query": "now"}, history=Past()).prompt == [("user", "u")]


# --- vision -----------------------------------------------------------------------------------------------------------


def image(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "dify_model_identity": "__dify__file__",
        "type": "image",
        "transfer_method": "remote_url",
        "remote_url": f"https://x.example/{name}",
        "filename": name,
        **fields,
    }


def seeing(*selector: str) -> dict[str, Any]:
    return {"vision": {"enabled": True, "configs": {"variable_selector": list(selector), "detail": "low"}}}


def urls(message: Message) -> list[str]:
    return [each.url for each in message.media]


def test_images_go_to_the_last_message_of_the_user() -> None:
    data = {**prompt(("user", "first"), ("user", "look"), ("assistant", "{")), **seeing("s", "f")}
    ran = run(data, {"s.f": [image("a.png"), image("b.zip", type="custom")]})
    messages = ran.script.asked[0].messages
    assert [urls(message) for message in messages] == [[], ["https://x.example/a.png"], []]
    assert messages[1].media[0].detail == "low"


def test_an_uploaded_image_is_sent_with_its_content() -> None:
    files, kept = kept_files({"a.png": b"\x89PNG"})
    given = kept["a.png"] | {"type": "image", "mime_type": "image/png"}
    ran = run({**prompt(("user", "see")), **seeing("s", "f")}, {"s.f": given}, files=files)
    assert ran.script.asked[0].messages[0].media[0].url == "data:image/png;base64,iVBORw=="


def test_without_a_message_of_the_user_images_make_one() -> None:
    messages = run({**prompt(("system", "s")), **seeing("s", "f")}, {"s.f": image("a.png")}).script.asked[0].messages
    assert messages[1] == Message("user", "", (Media("image", "https://x.example/a.png", "a.png", "png", "low"),))


def test_images_named_in_a_prompt_make_a_message_of_their_own() -> None:
    ran = run(prompt(("user", "see {{#s.f#}}")), {"s.f": image("a.png")})
    assert [(m.text, urls(m)) for m in ran.script.asked[0].messages] == [
        ("see ", []),
        ("", ["https://x.example/a.png"]),
    ]


@pytest.mark.parametrize("value", [None, []])
def test_no_files_to_see_is_no_error(value: Any) -> None:
    assert run(seeing("s", "f"), {"s.f": value}).prompt == [("user", "hello")]
    assert run(seeing("s", "missing")).prompt == [("user", "hello")]


def test_a_vision_selector_of_another_type_is_an_error() -> None:
    assert run(seeing("s", "f"), {"s.f": "text"}).failure.error_type == "InvalidVariableTypeError"


def test_an_uploaded_image_without_a_store_is_an_error_that_says_so() -> None:
    local = image("cat.png", transfer_method="local_file", remote_url=None)
    failure = run(seeing("s", "f"), {"s.f": [local]}).failure
    assert "cat.png" in failure.error
    assert "remote URL" in failure.error


# --- reasoning --------------------------------------------------------------------------------------------------------


def pieces(text: str, size: int = 3) -> list[Delta]:
    return [Delta(text[at : at + size]) for at in range(0, len(text), size)]


def test_tagged_reasoning_stays_in_the_text() -> None:
    ran = run({}, script=Script(*pieces("<think>a</think>b")))
    assert ran.outputs["text"] == ran.emitted.text() == "<think>a</think>b"
    assert ran.outputs["reasoning_content"] == ""


def test_separated_reasoning_is_streamed_and_stored_apart() -> None:
    ran = run({"reasoning_format": "separated"}, script=Script(*pieces("<think>a\n</think>\n\nb <c")))
    assert ran.outputs["text"] == ran.emitted.text() == "b <c"
    assert ran.outputs["reasoning_content"] == ran.emitted.text("reasoning_content") == "a"


OWN_FIELD = (Delta(reasoning="let me "), Delta(reasoning="see"), Delta("b"), Delta("c"))


def test_reasoning_in_a_field_of_its_own_is_tagged_or_separated_too() -> None:
    tagged = run({}, script=Script(*OWN_FIELD))
    assert tagged.outputs["text"] == tagged.emitted.text() == "<think>\nlet me see\n</think>\nbc"
    separated = run({"reasoning_format": "separated"}, script=Script(*OWN_FIELD))
    assert separated.outputs["text"] == "bc"
    assert separated.outputs["reasoning_content"] == separated.emitted.text("reasoning_content") == "let me see"


def test_reasoning_without_an_answer_is_closed() -> None:
    assert run({}, script=Script(Delta(reasoning="hm"))).outputs["text"] == "<think>\nhm\n</think>"


# --- structured output ------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "child": {"$ref": "#/definitions/child"}},
    "required": ["n"],
    "definitions": {"child": {"type": "string"}},
}


def structured(schema: Any = SCHEMA, switch: str = "structured_output_switch_on") -> dict[str, Any]:
    return {"structured_output": {"schema": schema}, switch: True}


@pytest.mark.parametrize("switch", ["structured_output_switch_on", "structured_output_enabled"])
@pytest.mark.parametrize("answer", ['{"n": 1, "child": "x"}', '<think>{</think>```json\n{"n": 1, "child": "x",}\n```'])
def test_a_structured_answer_is_parsed_and_kept_as_text_too(answer: str, switch: str) -> None:
    ran = run(structured(switch=switch), script=Script(Delta(answer)))
    assert ran.outputs["structured_output"] == {"n": 1, "child": "x"}
    assert ran.outputs["text"] == answer
    (request,) = ran.script.asked
    assert request.schema == SCHEMA
    assert '"required": ["n"]' in request.messages[0].text


def test_structured_output_without_the_switch_is_not_asked_for() -> None:
    ran = run({"structured_output": {"schema": SCHEMA}})
    assert ran.script.asked[0].schema is None
    assert "structured_output" not in ran.outputs


@pytest.mark.parametrize(
    ("schema", "answer", "words"),
    [
        ({"type": "nothing"}, "{}", "structured output, schema at $"),
        ("a text", "{}", "structured output, schema at $: expected a JSON schema"),
        (SCHEMA, "no idea", "structured output, result at $"),
        (SCHEMA, "[1]", "expected an object"),
        (SCHEMA, '{"n": "one"}', "structured output, result at $.n"),
        (SCHEMA, "{}", "'n' is a required property"),
        ({"type": "object", "properties": {"a": {"$ref": "http://x.example/s"}}}, '{"a": 1}', "http://x.example/s"),
    ],
)
def test_an_unusable_schema_or_answer_is_an_llm_node_error(schema: Any, answer: str, words: str) -> None:
    failure = run(structured(schema), script=Script(Delta(answer))).failure
    assert failure.error_type == "LLMNodeError"
    assert words in failure.error
