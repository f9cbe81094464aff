"""The node types: one line each, with config model, kind, and whether retries are honoured.

A new node type is a line here, a handler, its test and its page. A type without a handler loads and validates; its
nodes run when they are pinned and fail otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from libs.workflow.configs import flow, models, outside, values
from libs.workflow.configs.fields import Config
from libs.workflow.problems import Findings, kind_of


class NodeKind(Enum):
    ROOT = "root"
    RESPONSE = "response"
    EXECUTABLE = "executable"
    BRANCH = "branch"
    CONTAINER = "container"
    MARKER = "marker"
    """`iteration-start` and `loop-start`: entry of a container's body, never executed."""


@dataclass(frozen=True, slots=True)
class NodeType:
    config: type[Config]
    kind: NodeKind
    honours_retry: bool = False
    older: Mapping[str, type[Config]] = field(default_factory=dict)
    """Config models of older versions, by version."""


_ROOT, _RESPONSE, _EXECUTABLE = NodeKind.ROOT, NodeKind.RESPONSE, NodeKind.EXECUTABLE
_BRANCH, _CONTAINER, _MARKER = NodeKind.BRANCH, NodeKind.CONTAINER, NodeKind.MARKER

NODE_TYPES: Final[Mapping[str, NodeType]] = {
    "start": NodeType(flow.StartConfig, _ROOT),
    "trigger-webhook": NodeType(flow.WebhookConfig, _ROOT),
    "trigger-schedule": NodeType(flow.ScheduleConfig, _ROOT),
    "trigger-plugin": NodeType(flow.PluginTriggerConfig, _ROOT),
    "datasource": NodeType(flow.DatasourceConfig, _ROOT),
    "end": NodeType(flow.EndConfig, _RESPONSE),
    "answer": NodeType(flow.AnswerConfig, _RESPONSE),
    "if-else": NodeType(flow.IfElseConfig, _BRANCH),
    "question-classifier": NodeType(models.QuestionClassifierConfig, _BRANCH),
    "human-input": NodeType(flow.HumanInputConfig, _BRANCH),
    "iteration": NodeType(flow.IterationConfig, _CONTAINER),
    "loop": NodeType(flow.LoopConfig, _CONTAINER),
    "iteration-start": NodeType(flow.MarkerConfig, _MARKER),
    "loop-start": NodeType(flow.MarkerConfig, _MARKER),
    "loop-end": NodeType(flow.MarkerConfig, _EXECUTABLE),
    "llm": NodeType(models.LlmConfig, _EXECUTABLE, honours_retry=True),
    "parameter-extractor": NodeType(models.ParameterExtractorConfig, _EXECUTABLE),
    "knowledge-retrieval": NodeType(models.KnowledgeRetrievalConfig, _EXECUTABLE),
    "knowledge-index": NodeType(models.KnowledgeIndexConfig, _EXECUTABLE),
    "agent": NodeType(models.AgentConfig, _EXECUTABLE),
    "code": NodeType(values.CodeConfig, _EXECUTABLE, honours_retry=True),
    "template-transform": NodeType(values.TemplateTransformConfig, _EXECUTABLE),
    "variable-aggregator": NodeType(values.VariableAggregatorConfig, _EXECUTABLE),
    "variable-assigner": NodeType(values.VariableAggregatorConfig, _EXECUTABLE),  # older name of the aggregator
    "assigner": NodeType(values.AssignManyConfig, _EXECUTABLE, older={"1": values.AssignOneConfig}),
    "list-operator": NodeType(values.ListOperatorConfig, _EXECUTABLE),
    "document-extractor": NodeType(values.DocumentExtractorConfig, _EXECUTABLE),
    "http-request": NodeType(outside.HttpRequestConfig, _EXECUTABLE, honours_retry=True),
    "tool": NodeType(outside.ToolConfig, _EXECUTABLE, honours_retry=True),
}

WITHOUT_HANDLER: Final = frozenset({"tool", "agent", "knowledge-retrieval", "knowledge-index", "datasource"})
"""Types that only run when pinned."""

ROOT_TYPES: Final = frozenset(name for name, entry in NODE_TYPES.items() if entry.kind is _ROOT)


def read_config(entry: NodeType, version: str, data: Mapping[str, Any], at: str, findings: Findings) -> Config | None:
    """The config of a node, or None with every mistake of it in `findings`; `at`: path of `data`."""
    try:
        return entry.older.get(version, entry.config).model_validate(data)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_context=True):
            _report(detail, data, at, findings)
        return None


def _report(detail: ErrorDetails, data: Mapping[str, Any], at: str, findings: Findings) -> None:
    place = at + path_of(detail["loc"], data, missing=detail["type"] == "missing")
    given = detail["input"]
    match detail["type"]:
        case "missing":
            findings.error(place, "is missing", "Add it, or set it in the editor and export again")
        case "literal_error":
            expected = detail["ctx"]["expected"]
            known = expected.replace("'", "").replace(" or ", ", ").split(", ")
            word = given if isinstance(given, str) else ""
            shown = f'"{word[:60]}"' if word else kind_of(given)
            hint = findings.suggest(word, known) if word else ""
            findings.error(place, f"expected one of {', '.join(known)}; got {shown}", hint)
        case "value_error":
            findings.error(place, str(detail["ctx"]["error"]))
        case "greater_than_equal":
            findings.error(place, f"expected at least {detail['ctx']['ge']}, got {given!r:.40}")
        case "string_too_short":
            findings.error(place, "must not be empty", "Give it a name")
        case _:
            findings.error(place, f"{_expected(detail)}, got {kind_of(given)}")


_EXPECTATIONS: Final = {
    "string_type": "expected text",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
}


def _expected(detail: ErrorDetails) -> str:
    return _EXPECTATIONS.get(detail["type"], detail["msg"][:1].lower() + detail["msg"][1:])


def path_of(loc: tuple[int | str, ...], data: Any, *, missing: bool = False) -> str:
    """The path of a validation error below `data`, without the names of union members that are not in the document."""
    path, here = "", data
    for number, part in enumerate(loc):
        if isinstance(part, int):
            if isinstance(here, list | tuple) and part < len(here):
                path, here = f"{path}[{part}]", here[part]
        elif isinstance(here, dict) and part in here:
            path, here = f"{path}.{part}", here[part]
        elif missing and number == len(loc) - 1:
            path = f"{path}.{part}"
    return path
