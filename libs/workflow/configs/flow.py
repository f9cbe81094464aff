"""Configs of nodes that direct a run: roots, ends, branches, containers."""

import importlib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, field_validator

from libs.workflow.conditions import OPERATORS
from libs.workflow.configs.fields import (
    Config,
    Flag,
    Items,
    Logic,
    Mapping,
    Maybe,
    Selector,
    Text,
    default_when_empty,
)
from libs.workflow.segments import read_json

# How people write operators by hand -> how the format spells them.
_SPELLINGS = {">=": "≥", "<=": "≤", "!=": "≠", "==": "=", "is empty": "empty", "is not empty": "not empty"}


def operator(known: frozenset[str]) -> AfterValidator:
    """Accepts the operators of `known`, also as people spell them."""

    def check(value: str) -> str:
        value = _SPELLINGS.get(value, value)
        if value not in known:
            raise ValueError(f"unknown operator {value[:40]!r}; known are {', '.join(sorted(known))}")
        return value

    return AfterValidator(check)


def _expected(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


Operator = Annotated[Text, operator(OPERATORS)]
Expected = Annotated[str | bool | list[str | bool] | None, BeforeValidator(_expected)]

InputType = Literal[
    "text-input",
    "paragraph",
    "select",
    "number",
    "checkbox",
    "file",
    "file-list",
    "json_object",
    "external_data_tool",
]


class StartVariable(Config):
    """One field of the input form."""

    variable: str = Field(min_length=1)
    label: Text = ""
    description: Text = ""
    type: InputType
    required: Flag = False
    hide: Flag = False
    default: Any = None
    max_length: Maybe[int] = None
    options: Items[Text] = ()
    allowed_file_types: Items[str] = ()
    allowed_file_extensions: Items[str] = ()
    allowed_file_upload_methods: Items[str] = ()
    json_schema: dict[str, Any] | None = None
    """Of a `json_object`; documents may write it as text."""

    @field_validator("type", mode="before")
    @classmethod
    def _newer_spelling(cls, value: Any) -> Any:
        spellings = {"json": "json_object", "json-object": "json_object", "text": "text-input"}
        return spellings.get(value, value) if isinstance(value, str) else value

    @field_validator("json_schema", mode="before")
    @classmethod
    def _schema_may_be_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = read_json(value) if value.strip() else None
        if value is not None and not isinstance(value, dict):
            raise ValueError("expected a JSON schema, as a mapping or as JSON text of an object")
        if value:
            jsonschema = importlib.import_module("jsonschema")  # here: few documents have a schema to pay for (50 ms)
            try:
                jsonschema.Draft7Validator.check_schema(value)
            except jsonschema.exceptions.SchemaError as error:
                raise ValueError(f"expected a JSON schema (draft 7), it is none at {error.json_path}") from None
        return value or None


class StartConfig(Config):
    variables: Items[StartVariable] = ()


class EndOutput(Config):
    variable: Text = ""
    value_selector: Selector = ()
    value_type: Annotated[Text, AfterValidator(str.lower)] = "any"


class EndConfig(Config):
    outputs: Items[EndOutput] = ()


class AnswerConfig(Config):
    answer: Text


class SubCondition(Config):
    key: Text = ""
    comparison_operator: Operator
    value: Expected = None


class SubConditions(Config):
    logical_operator: Logic = "and"
    conditions: Items[SubCondition] = ()


class Condition(Config):
    variable_selector: Selector = ()
    comparison_operator: Operator
    value: Expected = None
    sub_variable_condition: Maybe[SubConditions] = None


class Case(Config):
    case_id: Text = Field(validation_alias=AliasChoices("case_id", "id"))
    logical_operator: Logic = "and"
    conditions: Items[Condition] = ()


class IfElseConfig(Config):
    cases: tuple[Case, ...] | None = None
    """None: the older form below counts. An explicit empty list does not fall back to it."""
    conditions: Items[Condition] = ()
    logical_operator: Logic = "and"


ErrorMode = Literal["terminated", "continue-on-error", "remove-abnormal-output"]


class IterationConfig(Config):
    start_node_id: Text = ""
    iterator_selector: Selector
    output_selector: Selector
    is_parallel: Flag = False
    parallel_nums: Annotated[int, default_when_empty(10), Field(ge=1)] = 10
    error_handle_mode: Annotated[ErrorMode, default_when_empty("terminated")] = "terminated"
    flatten_output: Annotated[bool, default_when_empty(True)] = True


class LoopVariable(Config):
    label: Text = Field(min_length=1)
    var_type: Literal[
        "string", "number", "object", "boolean", "array[string]", "array[number]", "array[object]", "array[boolean]"
    ]
    value_type: Annotated[Literal["constant", "variable"], default_when_empty("constant")] = "constant"
    value: Any = None

    @property
    def is_json_text(self) -> bool:
        """A constant of these types is JSON text; whatever else stands there is an empty list."""
        return self.value_type == "constant" and self.var_type in ("array[string]", "array[number]", "array[object]")


class LoopConfig(Config):
    start_node_id: Text = ""
    loop_count: int = Field(ge=1)
    break_conditions: Items[Condition] = ()
    logical_operator: Logic = "and"
    loop_variables: Items[LoopVariable] = ()


class MarkerConfig(Config):
    """Start markers and `loop-end`: nothing to configure."""


class UserAction(Config):
    id: Text = Field(min_length=1)
    title: Text = ""
    button_style: Annotated[Text, default_when_empty("default")] = "default"


class HumanInputConfig(Config):
    form_content: Text = ""
    inputs: Items[dict[str, Any]] = ()
    user_actions: Items[UserAction] = ()
    timeout: Annotated[float, default_when_empty(36), Field(ge=0, le=100_000)] = 36
    timeout_unit: Annotated[Literal["hour", "day"], default_when_empty("hour")] = "hour"
    delivery_methods: Any = None


class WebhookField(Config):
    name: Text = ""
    type: Annotated[Text, default_when_empty("string")] = "string"
    required: Flag = False


class WebhookConfig(Config):
    method: Annotated[Text, AfterValidator(str.lower), default_when_empty("get")] = "get"
    content_type: Annotated[Text, default_when_empty("application/json")] = "application/json"
    headers: Items[WebhookField] = ()
    params: Items[WebhookField] = ()
    body: Items[WebhookField] = ()
    status_code: Annotated[int, default_when_empty(200)] = 200
    response_body: Text = ""


class ScheduleConfig(Config):
    mode: Text = "visual"
    frequency: Text = ""
    cron_expression: Text = ""
    timezone: Annotated[Text, default_when_empty("UTC")] = "UTC"


class PluginTriggerConfig(Config):
    plugin_id: Text = ""
    provider_id: Text = ""
    event_name: Text = ""
    event_parameters: Mapping[Any] = Field(default_factory=dict)


class DatasourceConfig(Config):
    plugin_id: Text = ""
    provider_name: Text = ""
    provider_type: Text = ""
    datasource_name: Text = ""
    datasource_parameters: Mapping[Any] = Field(default_factory=dict)
