"""Stand-in values that have the declared shape: what an unconfigured pin answers."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import JsonValue

from libs.workflow.configs.flow import HumanInputConfig, IfElseConfig
from libs.workflow.configs.models import LlmConfig, Parameter, ParameterExtractorConfig, QuestionClassifierConfig
from libs.workflow.configs.values import CodeConfig, CodeOutput, DocumentExtractorConfig
from libs.workflow.definition import Node

Values = dict[str, JsonValue]

_BY_TYPE: Final[Mapping[str, JsonValue]] = {"string": "stub", "number": 1, "integer": 1, "boolean": True, "null": None}
_DEEPEST: Final = 32


def usage() -> Values:
    """Usage of a model that was not asked."""
    part: Values = {}
    for side in ("prompt", "completion"):
        part |= {f"{side}_tokens": 0, f"{side}_unit_price": "0", f"{side}_price_unit": "0", f"{side}_price": "0"}
    return part | {"total_tokens": 0, "total_price": "0", "currency": "USD", "latency": 0.0}


def stub_outputs(node: Node, branch: str | None = None) -> Values | None:
    """Outputs of the node's declared shape; None for a type that has no stand-in. `branch`: of a branch node."""
    match node.config:
        case LlmConfig() as config:
            outputs: Values = {
                "text": f"stub {node.title}".rstrip(),
                "reasoning_content": "",
                "usage": usage(),
                "finish_reason": "stop",
            }
            if config.output_schema is not None:
                outputs["structured_output"] = from_schema(config.output_schema)
            return outputs
        case ParameterExtractorConfig(parameters=parameters):
            values: Values = {each.name: _parameter(each) for each in parameters}
            return values | {"__is_success": 1, "__reason": None}
        case CodeConfig(outputs=declared):
            return {name: _code(output) for name, output in declared.items()}
        case QuestionClassifierConfig() | IfElseConfig() | HumanInputConfig():
            return branch_outputs(node, branch) if branch is not None else None
        case DocumentExtractorConfig(is_array_file=many):
            return {"text": ["stub"] if many else "stub"}
        case _:
            return _by_type(node)


def _by_type(node: Node) -> Values | None:
    match node.type:
        case "tool":
            declared = from_schema(node.data.get("output_schema") or {})
            named: Values = declared if isinstance(declared, dict) else {}
            return named | {"text": "stub", "files": [], "json": [{}]}
        case "agent":
            return {"text": "stub", "files": [], "json": [{}], "usage": usage()}
        case "http-request":
            return {"status_code": 200, "body": "{}", "headers": {}, "files": []}
        case "knowledge-retrieval":
            return {"result": [_retrieved()]}
        case "template-transform":
            return {"output": "stub"}
        case "answer":
            return {"answer": "stub", "files": []}
        case _:
            return None


def branch_outputs(node: Node, branch: str) -> Values:
    """What a branch node says about the branch it took."""
    match node.config:
        case QuestionClassifierConfig(classes=classes):
            for number, each in enumerate(classes, 1):
                if each.id == branch:
                    label = each.label or f"CLASS {number}"
                    return {"class_name": each.name, "class_id": each.id, "class_label": label, "usage": usage()}
            return {"class_id": branch, "usage": usage()}
        case HumanInputConfig(user_actions=actions):
            title = next((action.title for action in actions if action.id == branch), "")
            return {"__action_id": branch, "__action_value": title, "__rendered_content": ""}
        case _:
            return {"result": branch != "false", "selected_case_id": branch}


def _retrieved() -> Values:
    metadata: Values = {
        "_source": "knowledge",
        "position": 1,
        "dataset_id": "stub",
        "dataset_name": "stub",
        "document_id": "stub",
        "document_name": "stub",
        "segment_id": "stub",
        "score": 1.0,
    }
    return {"content": "stub", "title": "stub", "url": "", "icon": "", "metadata": metadata, "files": []}


def _parameter(parameter: Parameter) -> JsonValue:
    if parameter.options:
        return parameter.options[0]
    return _typed(parameter.type)


def _code(output: CodeOutput) -> JsonValue:
    if output.children is not None and output.type in ("object", "array[object]"):
        members: Values = {name: _code(child) for name, child in output.children.items()}
        return members if output.type == "object" else [members]
    return _typed(output.type)


def _typed(declared: str) -> JsonValue:
    if declared.startswith("array["):
        return [_typed(declared[6:-1])]
    return {} if declared == "object" else _BY_TYPE.get(declared, "stub")


def from_schema(schema: object, depth: int = 0) -> JsonValue:
    """A value that a JSON schema describes: first enum value, "stub", 1, true, one item, all properties."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return "stub"
    if "const" in schema:
        return schema["const"]  # type: ignore[no-any-return]  # JSON: it comes from the parsed document
    options = schema.get("enum")
    if isinstance(options, list) and options:
        return options[0]  # type: ignore[no-any-return]  # as above
    for key in ("anyOf", "oneOf", "allOf"):
        members = schema.get(key)
        if isinstance(members, list) and members and "type" not in schema:
            return from_schema(members[0], depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((each for each in kind if each != "null"), "null")
    properties: Any = schema.get("properties")
    if kind == "object" or (kind is None and isinstance(properties, dict)):
        members = properties if isinstance(properties, dict) else {}
        return {str(name): from_schema(inner, depth + 1) for name, inner in members.items()}
    if kind == "array":
        return [from_schema(schema.get("items") or {"type": "string"}, depth + 1)]
    if kind is None:
        return {} if depth == 0 else "stub"
    return _BY_TYPE.get(str(kind), "stub")
