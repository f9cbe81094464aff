"""Configs of nodes that make values out of values: code, templates, aggregators, assigners, lists, documents."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from libs.workflow.conditions import OPERATORS
from libs.workflow.configs.fields import (
    Binding,
    Config,
    Flag,
    Items,
    Mapping,
    Maybe,
    Selector,
    Text,
    default_when_empty,
)
from libs.workflow.configs.flow import Expected, operator


class CodeOutput(Config):
    type: Literal[
        "string", "number", "object", "boolean", "array[string]", "array[number]", "array[object]", "array[boolean]"
    ]
    children: Maybe[dict[str, "CodeOutput"]] = None
    """Declared members; only for `object` and `array[object]`."""


class CodeConfig(Config):
    variables: Items[Binding] = ()
    code_language: Literal["python3", "javascript"]
    code: Text
    outputs: Mapping[CodeOutput] = Field(default_factory=dict)


class TemplateTransformConfig(Config):
    variables: Items[Binding] = ()
    template: Text


class Group(Config):
    group_name: Text = Field(min_length=1)
    output_type: Text = "any"
    variables: Items[Selector] = ()


class AdvancedSettings(Config):
    group_enabled: Flag = False
    groups: Items[Group] = ()


class VariableAggregatorConfig(Config):
    output_type: Text = "any"
    variables: Items[Selector] = ()
    advanced_settings: Maybe[AdvancedSettings] = None


class AssignOneConfig(Config):
    """Version 1 of `assigner`: one variable."""

    assigned_variable_selector: Selector
    write_mode: Literal["over-write", "append", "clear"]
    input_variable_selector: Selector = ()


class AssignItem(Config):
    variable_selector: Selector
    input_type: Annotated[Literal["variable", "constant"], default_when_empty("variable")] = "variable"
    operation: Literal[
        "over-write", "set", "clear", "+=", "-=", "*=", "/=", "append", "extend", "remove-first", "remove-last"
    ]
    value: Any = None


class AssignManyConfig(Config):
    """Version 2 of `assigner`: a list of operations, all or none."""

    items: Items[AssignItem] = ()


FilterOperator = Annotated[
    Text, operator(OPERATORS | {"not start with", "not end with"}), default_when_empty("contains")
]


class FilterCondition(Config):
    key: Text = ""
    comparison_operator: FilterOperator = "contains"
    value: Expected = ""


class FilterBy(Config):
    enabled: Flag = False
    conditions: Items[FilterCondition] = ()


class ExtractBy(Config):
    enabled: Flag = False
    serial: Text = "1"


class OrderBy(Config):
    enabled: Flag = False
    key: Text = ""
    value: Annotated[Literal["asc", "desc"], default_when_empty("asc")] = "asc"


class Limit(Config):
    enabled: Flag = False
    size: Annotated[int, default_when_empty(-1)] = -1


class ListOperatorConfig(Config):
    variable: Selector = ()
    filter_by: Annotated[FilterBy, BeforeValidator(lambda value: value or {})] = FilterBy()
    extract_by: Annotated[ExtractBy, BeforeValidator(lambda value: value or {})] = ExtractBy()
    order_by: Annotated[OrderBy, BeforeValidator(lambda value: value or {})] = OrderBy()
    limit: Annotated[Limit, BeforeValidator(lambda value: value or {})] = Limit()


class DocumentExtractorConfig(Config):
    variable_selector: Selector
    is_array_file: Flag = False
