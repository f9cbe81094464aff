"""`trigger-webhook`, `trigger-schedule`, `trigger-plugin`: entry points of runs that something outside begins.

Receiving requests, keeping schedules and subscriptions is the business of whoever starts the run: the event comes as
the run's inputs. A webhook's come as `webhook_data` (`headers`, `query_params`, `body`, `files`), or simply by the
names that the node declares, which is how a person tries such a workflow out.

Outputs are the node's own values and `sys.*` under dotted names, as those of `start`.
"""

import math
from collections.abc import Mapping

from pydantic import JsonValue

from libs.workflow.configs.flow import PluginTriggerConfig, WebhookConfig, WebhookField
from libs.workflow.definition import Node
from libs.workflow.inputs import file_value
from libs.workflow.outcome import Failed, Outcome, Succeeded, Values
from libs.workflow.pool import Pool, Segment, declared_types, infer
from services.executor.nodes.port import Handler


class _Unfit(Exception):
    """The event is not what the node declares: text for people."""


class WebhookTriggerHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        given = {name: segment.value for name, segment in pool.names(node.id).items()}
        try:
            own = _declared(node.config, given)
        except _Unfit as unfit:
            return Failed(str(unfit), "WorkflowNodeError")
        return _entered(own, pool)


class ScheduleTriggerHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        return _entered({}, pool)


class PluginTriggerHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        config: PluginTriggerConfig = node.config
        about: JsonValue = {
            "plugin_id": config.plugin_id,
            "provider_id": config.provider_id,
            "event_name": config.event_name,
        }
        return _entered(pool.names(node.id), pool, {"trigger_info": about})


def _entered(own: Mapping[str, Segment], pool: Pool, metadata: Values | None = None) -> Succeeded:
    system = {f"sys.{name}": segment for name, segment in pool.names("sys").items()}
    segments = {**own, **system}
    outputs = {name: segment.value for name, segment in segments.items()}
    return Succeeded(outputs, inputs=outputs, metadata=metadata, output_types=declared_types(segments))


def _declared(config: WebhookConfig, given: Values) -> dict[str, Segment]:
    """One value per declared field, and the event itself. Raises _Unfit."""
    event = given.get("webhook_data")
    if event is None:
        event = {"headers": given, "query_params": given, "body": given, "files": given}
        raw: JsonValue = given
    else:
        raw = event
    headers = {name.lower(): value for name, value in _section(event, "headers").items()}
    params, body, files = (_section(event, part) for part in ("query_params", "body", "files"))
    own: dict[str, Segment] = {}
    for field in config.headers:
        name = field.name.replace("-", "_")
        value = headers.get(field.name.lower(), headers.get(name.lower()))
        own[name] = infer(_required(field, value, "header"))
    for field in config.params:
        own[field.name] = infer(_converted(field, _required(field, params.get(field.name), "query parameter")))
    for field in config.body:
        own[field.name] = infer(_of_body(config.content_type, field, body, files))
    return own | {"_webhook_raw": infer(raw)}


def _section(event: JsonValue, name: str) -> Mapping[str, JsonValue]:
    if not isinstance(event, dict):
        raise _Unfit("webhook_data: expected an object with headers, query_params, body and files")
    part = event.get(name)
    if part is None or part == "":
        return {}
    if isinstance(part, str) and name == "body":
        return {"raw": part}
    if not isinstance(part, dict):
        raise _Unfit(f"webhook_data.{name}: expected an object, got {type(part).__name__}")
    return part


def _required(field: WebhookField, value: JsonValue, what: str) -> JsonValue:
    if value is None and field.required:
        raise _Unfit(f"{what} {field.name}: the webhook requires it, and the event has none; send it")
    return value


def _of_body(
    content_type: str, field: WebhookField, body: Mapping[str, JsonValue], files: Mapping[str, JsonValue]
) -> JsonValue:
    if content_type in ("text/plain", "application/octet-stream"):
        value = body.get("raw", body.get(field.name))
        if content_type == "text/plain":
            return "" if value is None else value
        return _file(field, _required(field, value, "body"))
    if field.type == "file":
        return _file(field, _required(field, files.get(field.name, body.get(field.name)), "file"))
    return _converted(field, _required(field, body.get(field.name), "body field"))


def _file(field: WebhookField, value: JsonValue) -> JsonValue:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _Unfit(f"file {field.name}: expected a file, got {type(value).__name__}")
    try:
        return file_value(value)
    except ValueError as error:
        raise _Unfit(f"file {field.name}: it {error}") from None


def _converted(field: WebhookField, value: JsonValue) -> JsonValue:
    """What a text of a query or a form spells, where the field is no text; anything else as it is."""
    if not isinstance(value, str):
        return value
    if field.type == "boolean":
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower(), value)
    if field.type == "number":
        try:
            number = float(value)
        except ValueError:
            return value
        if not math.isfinite(number):
            return value
        return int(value) if value.strip().lstrip("+-").isdecimal() else number
    return value
