"""Trigger nodes: what of an event becomes which output."""

from typing import Any

import pytest
from pydantic import JsonValue

from libs.workflow.definition import Definition, compile_document
from libs.workflow.inputs import validate_inputs
from libs.workflow.outcome import Outcome
from libs.workflow.pool import Pool
from services.executor.nodes.port import Handler
from services.executor.nodes.triggers import PluginTriggerHandler, ScheduleTriggerHandler, WebhookTriggerHandler
from tests.documents import document, edges, end, node
from tests.unit.nodes.compiled import failed, succeeded

HANDLERS: dict[str, Handler] = {
    "trigger-webhook": WebhookTriggerHandler(),
    "trigger-schedule": ScheduleTriggerHandler(),
    "trigger-plugin": PluginTriggerHandler(),
}


def begun_by(kind: str, **data: Any) -> Definition:
    return compile_document(document([node("t", kind, **data), end(out="t.x")], edges("t > end")))


def entered(kind: str, inputs: dict[str, Any], **data: Any) -> Outcome:
    definition = begun_by(kind, **data)
    pool = Pool()
    for name, value in validate_inputs(definition, inputs).items():
        pool.set(definition.root, name, value)
    pool.set("sys", "user_id", "someone")
    pool.set("sys", "files", [], "array[file]")
    outcome = HANDLERS[kind].evaluate(definition.nodes["t"], pool)
    assert outcome is not None
    return outcome


def field(name: str, kind: str = "string", *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "required": required}


EVENT: dict[str, JsonValue] = {
    "headers": {"x-request-id": "r-1", "Other": "o"},
    "query_params": {"page": "2", "all": "true", "q": "7"},
    "body": {"order": {"id": 5}, "tags": ["a"]},
    "files": {},
}


def test_declared_headers_parameters_and_body_fields_become_outputs() -> None:
    outcome = succeeded(
        entered(
            "trigger-webhook",
            {"webhook_data": EVENT},
            headers=[field("X-Request-ID")],
            params=[field("page", "number"), field("all", "boolean"), field("q"), field("absent")],
            body=[field("order", "object"), field("tags", "array[string]")],
        )
    )
    assert outcome.outputs == {
        "X_Request_ID": "r-1",
        "page": 2,
        "all": True,
        "q": "7",
        "absent": None,
        "order": {"id": 5},
        "tags": ["a"],
        "_webhook_raw": EVENT,
        "sys.user_id": "someone",
        "sys.files": [],
    }
    assert outcome.inputs == outcome.outputs
    assert outcome.output_types["sys.files"] == "array[file]"


def test_values_may_come_by_the_declared_names_alone() -> None:
    outcome = succeeded(entered("trigger-webhook", {"page": 2, "X_Id": "1"}, params=[field("page", "number")],
                                headers=[field("X-Id")]))  # fmt: skip
    assert (outcome.outputs["page"], outcome.outputs["X_Id"]) == (2, "1")
    assert outcome.outputs["_webhook_raw"] == {"page": 2, "X_Id": "1"}


def test_a_text_body_is_the_value_of_its_field() -> None:
    event = {"webhook_data": {"headers": {}, "query_params": {}, "body": {"raw": "hello"}, "files": {}}}
    data = {"content_type": "text/plain", "body": [field("message")]}
    assert succeeded(entered("trigger-webhook", event, **data)).outputs["message"] == "hello"


def test_a_file_field_is_a_file_value() -> None:
    file = {"transfer_method": "remote_url", "url": "https://x.example/a.pdf", "type": "document"}
    event = {"webhook_data": {"files": {"doc": file}}}
    value = succeeded(entered("trigger-webhook", event, body=[field("doc", "file")])).outputs["doc"]
    assert isinstance(value, dict)
    assert (value["dify_model_identity"], value["filename"]) == ("__dify__file__", "a.pdf")


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        ({}, "body field order: the webhook requires it, and the event has none; send it"),
        ({"webhook_data": {"body": []}}, "webhook_data.body: expected an object, got list"),
        ({"webhook_data": "x"}, "webhook_data: expected an object with headers, query_params, body and files"),
    ],
)
def test_an_event_that_is_not_what_the_node_declares_fails(inputs: dict[str, Any], error: str) -> None:
    outcome = failed(entered("trigger-webhook", inputs, body=[field("order", "object", required=True)]))
    assert (outcome.error, outcome.error_type) == (error, "WorkflowNodeError")


def test_a_schedule_has_only_system_values() -> None:
    outcome = succeeded(entered("trigger-schedule", {"anything": 1}, cron_expression="0 9 * * *", mode="cron"))
    assert outcome.outputs == {"sys.user_id": "someone", "sys.files": []}


def test_a_plugin_event_is_passed_on_field_by_field() -> None:
    outcome = succeeded(entered("trigger-plugin", {"issue": {"n": 1}, "x": None}, plugin_id="p/github", event_name="e"))
    assert (outcome.outputs["issue"], outcome.outputs["x"]) == ({"n": 1}, None)
    assert outcome.metadata == {"trigger_info": {"plugin_id": "p/github", "provider_id": "", "event_name": "e"}}
