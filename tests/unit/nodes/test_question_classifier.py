"""How a `question-classifier` asks, and which class it makes of an answer. The model is a script; no network."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from libs.workflow.outcome import Outcome
from services.executor.models import Delta, Message, ModelError, Models
from services.executor.nodes.port import Attempt
from services.executor.nodes.question_classifier import QuestionClassifierHandler
from tests.attempts import attempt_of
from tests.unit.nodes.compiled import failed, succeeded
from tests.unit.nodes.scripted_model import MODEL, ScriptedModel

CLASSES = [{"id": "1", "name": "Billing"}, {"id": "2", "name": "Technical", "label": "Tech"}]
BILLING = '{"category_id": "1", "category_name": "Billing"}'
TECHNICAL = '{"category_id": "2", "category_name": "Technical"}'


def classified(
    said: str | ModelError | Models, values: dict[str, Any] | None = None, *, chatflow: bool = False, **data: Any
) -> tuple[Outcome, ScriptedModel]:
    model = ScriptedModel(Delta(said) if isinstance(said, str) else said) if not isinstance(said, Models) else said
    complete = {"model": MODEL, "query_variable_selector": ["s", "q"], "classes": CLASSES, **data}
    mode = "advanced-chat" if chatflow else "workflow"
    attempt = attempt_of("question-classifier", complete, values, mode=mode, secrets={"key": "sk-1234567890"})
    handler = QuestionClassifierHandler(model, history=Conversation())
    return asyncio.run(handler.run(attempt)), model  # type: ignore[return-value]  # Models only where not looked at


class Conversation:
    async def recent(self, attempt: Attempt, limit: int | None) -> Sequence[Message]:
        return [Message("user", "my printer smokes"), Message("assistant", "oh")][: limit or 2]


def test_the_chosen_class_is_the_branch_and_the_outputs() -> None:
    outcome = succeeded(classified(TECHNICAL, {"s.q": "it is broken"})[0])
    assert outcome.handle == "2"
    usage = outcome.outputs.pop("usage")
    assert outcome.outputs == {"class_name": "Technical", "class_label": "Tech", "class_id": "2"}
    assert isinstance(usage, dict)
    assert usage["total_tokens"] == 4
    named = {"model_provider": "langgenius/openai/openai", "model_name": "m-1"}
    assert outcome.inputs == {"query": "it is broken", **named}
    assert outcome.metadata == {"total_tokens": 4, "total_price": "0", "currency": "USD"}
    assert set(outcome.process_data or {}) == {"model_mode", "prompts", "usage", "finish_reason", *named}


def test_a_class_without_a_label_is_called_by_its_number() -> None:
    assert succeeded(classified(BILLING)[0]).outputs["class_label"] == "CLASS 1"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"<think>is it {BILLING}?</think>{TECHNICAL}", "2"),
        (f"Sure!\n```json\n{TECHNICAL}\n```", "2"),
        (f"[{TECHNICAL}]", "2"),
        (f"By the rules [1, 2] it is {TECHNICAL}.", "2"),
        ('{"category_id": 2, "category_name": "Technical"}', "2"),
        ("{'category_id': '2', 'category_name': 'Technical',}", "2"),
        ('{"category_id": "2"}', "1"),
        ('{"category_id": "9", "category_name": "Other"}', "1"),
        (f"[{TECHNICAL}, {TECHNICAL}]", "1"),
    ],
)
def test_an_answer_is_read_as_meant_and_else_is_the_first_class(answer: str, expected: str) -> None:
    assert succeeded(classified(answer)[0]).handle == expected


@pytest.mark.parametrize(
    ("answer", "error_type"), [("Technical", "ValueError"), ("", "ValueError"), ("{'a' 'b'}", "OutputParserError")]
)
def test_an_answer_that_is_no_json_fails(answer: str, error_type: str) -> None:
    outcome = failed(classified(answer)[0])
    assert outcome.error_type == error_type
    assert outcome.error.startswith("the model's answer ")
    assert (outcome.process_data or {})["finish_reason"] == "stop"


def test_no_classes_fail_before_the_model_is_asked() -> None:
    outcome, model = classified(TECHNICAL, classes=[])
    assert failed(outcome).error_type == "WorkflowNodeError"
    assert model.asked == []


def test_an_error_of_the_model_is_a_failure_of_its_class() -> None:
    outcome = failed(classified(ModelError("InvokeRateLimitError", "openai: too fast"))[0])
    assert (outcome.error, outcome.error_type) == ("openai: too fast", "InvokeRateLimitError")


def test_class_names_and_the_instruction_are_templates_and_the_query_is_not() -> None:
    classes = [{"id": "1", "name": "About {{#s.topic#}}"}, {"id": "2", "name": "Other"}]
    outcome, model = classified(
        BILLING, {"s.q": "say {{#env.key#}}", "s.topic": "cats"}, classes=classes, instruction="Like {{#s.topic#}}"
    )
    assert succeeded(outcome).outputs["class_name"] == "About cats"
    (_, system), (role, user) = model.prompt
    assert '"category_name": "About cats"' in system
    assert "Like cats" in system
    assert (role, user) == ("user", "Text to sort:\nsay {{#env.key#}}")


def test_a_secret_reaches_the_model_and_no_record() -> None:
    outcome, model = classified(BILLING, instruction="with {{#env.key#}}")
    assert "sk-1234567890" in model.prompt[0][1]
    assert "sk-1234567890" not in repr(outcome)


def test_a_missing_query_is_empty_text() -> None:
    outcome, model = classified(BILLING)
    assert model.prompt[1] == ("user", "Text to sort:\n")
    assert (succeeded(outcome).inputs or {})["query"] == ""


def test_the_history_of_a_chatflow_is_text_of_the_prompt() -> None:
    memory = {"window": {"enabled": False, "size": None}}
    _, model = classified(BILLING, chatflow=True, memory=memory)
    assert "Human: my printer smokes\nAssistant: oh" in model.prompt[0][1]
    assert "printer" not in classified(BILLING, memory=memory)[1].prompt[0][1]


def test_a_completion_model_is_asked_in_one_text() -> None:
    _, model = classified(BILLING, {"s.q": "why?"}, model={**MODEL, "mode": "completion"})
    ((role, text),) = model.prompt
    assert role == "user"
    assert text.endswith("Text to sort:\nwhy?")
    assert model.asked[0].mode == "completion"


def test_offline_the_first_class_is_chosen() -> None:
    outcome, _ = classified(Models({}, offline=True, offline_delay_s=0))
    assert succeeded(outcome).outputs["class_name"] == "Billing"
