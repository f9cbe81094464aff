"""Pins: answers given beforehand, so that a document runs without its outside world.

A pin belongs to a node id or to a node type; the node's wins. The outputs of a node's pin are all of its outputs;
those of a type's pin are put over the stand-in of the type. What does not fit what the node declares is an error that
names both, before the run (`check_pins`) and, for who did not ask, when the node is reached.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import JsonValue

from libs.workflow.configs.flow import HumanInputConfig, IfElseConfig
from libs.workflow.configs.models import ParameterExtractorConfig, QuestionClassifierConfig
from libs.workflow.configs.values import CodeConfig, CodeOutput
from libs.workflow.definition import NODE_TYPES, Definition, Node
from libs.workflow.document import parse
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.problems import Findings, Problem, WorkflowError, did_you_mean, kind_of
from libs.workflow.stubs import Values, stub_outputs

__all__ = ["Pin", "Pins", "PinsInvalid", "answer", "check_pins", "parse_pins"]

_KEYS: Final = ("outputs", "fail", "times", "delay_s", "branch")
_NAMES: Final = frozenset({"node_id", "title", "index", "inputs"})
MAX_DELAY_S: Final = 3600.0

# Comments of templates start with something that no output holds by chance; `{#` is common in texts.
_TEMPLATES: Final = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, comment_start_string="{#-flowledger", comment_end_string="flowledger-#}"
)


class PinsInvalid(WorkflowError):
    """The pins cannot be used. `problems` are all of their mistakes."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


@dataclass(frozen=True, slots=True)
class Pin:
    """The answer for one node, or for all nodes of one type."""

    at: str
    """Path in the pins, for messages."""
    outputs: Mapping[str, JsonValue] | None = None
    """Texts in it are templates. None: the stand-in of the node's type."""
    fail: str | None = None
    """Error of the attempt."""
    times: int | None = None
    """How many attempts fail; None: all."""
    delay_s: float = 0.0
    branch: str | None = None
    """`first`, or the handle to take."""
    whole: bool = True
    """Whether `outputs` are all outputs (a node's pin) or lie over the stand-in (a type's pin)."""

    def answers(self, attempt: int) -> bool:
        """Whether the attempt is pinned; False: the pin's failures are used up and the node itself runs."""
        used_up = self.fail is not None and self.times is not None and attempt > self.times
        return not used_up or self.outputs is not None or self.branch is not None


@dataclass(frozen=True, slots=True)
class Pins:
    nodes: Mapping[str, Pin] = field(default_factory=dict)
    types: Mapping[str, Pin] = field(default_factory=dict)

    def for_node(self, node: Node) -> Pin | None:
        """The pin that answers for the node; None: it runs."""
        return self.nodes.get(node.id) or self.types.get(node.type)


# --- reading ---------------------------------------------------------------------------------------------------------


def parse_pins(source: str | bytes | Mapping[str, Any] | None) -> Pins:
    """Pins from YAML or JSON text, or from a mapping; what stands under a key `pins` counts. Raises PinsInvalid."""
    findings = Findings()
    pins = _read(source, findings)
    if findings.failed:
        raise PinsInvalid(findings.errors())
    return pins


def _read(source: str | bytes | Mapping[str, Any] | None, findings: Findings) -> Pins:
    if isinstance(source, str | bytes):
        source = parse(source, findings) if source.strip() else {}
    if source is None:
        return Pins()
    if not isinstance(source, Mapping):
        findings.error("pins", f"expected a mapping with nodes and types, got {kind_of(source)}")
        return Pins()
    if "pins" in source and not {"nodes", "types"} & source.keys():
        inner = source["pins"]
        if inner is not None and not isinstance(inner, Mapping):
            findings.error("pins", f"expected a mapping with nodes and types, got {kind_of(inner)}")
            return Pins()
        source = inner or {}
    for key in source:
        if key not in ("nodes", "types"):
            findings.error(
                f"pins.{key}", "unknown key", did_you_mean(str(key), ("nodes", "types")) or "Use nodes, types"
            )
    nodes = _section(source.get("nodes"), "pins.nodes", findings, whole=True)
    types = _section(source.get("types"), "pins.types", findings, whole=False)
    for name in types:
        if name not in NODE_TYPES:
            findings.error(f"pins.types.{name}", "unknown node type", did_you_mean(name, NODE_TYPES))
    return Pins(nodes, types)


def _section(raw: object, at: str, findings: Findings, *, whole: bool) -> dict[str, Pin]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        findings.error(at, f"expected a mapping, got {kind_of(raw)}")
        return {}
    return {str(name): _pin(entry, f"{at}.{name}", findings, whole=whole) for name, entry in raw.items()}


def _pin(raw: object, at: str, findings: Findings, *, whole: bool) -> Pin:
    if raw is None:
        return Pin(at, whole=whole)
    if not isinstance(raw, Mapping):
        findings.error(at, f"expected a mapping, got {kind_of(raw)}", f"Known keys: {', '.join(_KEYS)}")
        return Pin(at, whole=whole)
    for key in raw:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS) or f"Known keys: {', '.join(_KEYS)}"
            findings.error(f"{at}.{key}", "unknown key", hint)
    outputs = raw.get("outputs")
    if outputs is not None and not isinstance(outputs, Mapping):
        findings.error(f"{at}.outputs", f"expected a mapping of output names to values, got {kind_of(outputs)}")
        outputs = None
    for name, value in (outputs or {}).items():
        _check_templates(value, f"{at}.outputs.{name}", findings)
    fail = raw.get("fail")
    if fail is not None and not isinstance(fail, str):
        findings.error(f"{at}.fail", f"expected the text of the error, got {kind_of(fail)}")
        fail = None
    return Pin(
        at=at,
        outputs=None if outputs is None else {str(name): value for name, value in outputs.items()},
        fail=fail,
        times=_times(raw, at, findings),
        delay_s=_delay_s(raw.get("delay_s", 0), at, findings),
        branch=_branch(raw.get("branch"), at, findings),
        whole=whole,
    )


def _times(raw: Mapping[str, Any], at: str, findings: Findings) -> int | None:
    times = raw.get("times")
    if times is None:
        return None
    if raw.get("fail") is None:
        findings.error(f"{at}.times", "needs fail", "Give the text of the error in fail")
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        findings.error(f"{at}.times", "expected a whole number of at least 1", "It says how many attempts fail")
        return None
    return times


def _delay_s(delay_s: object, at: str, findings: Findings) -> float:
    if isinstance(delay_s, bool) or not isinstance(delay_s, int | float) or not 0 <= delay_s <= MAX_DELAY_S:
        findings.error(f"{at}.delay_s", f"expected seconds from 0 to {MAX_DELAY_S:g}")
        return 0.0
    return float(delay_s)


def _branch(branch: object, at: str, findings: Findings) -> str | None:
    if isinstance(branch, bool):
        return "true" if branch else "false"  # unquoted in YAML
    if branch is not None and not isinstance(branch, str | int):
        findings.error(f"{at}.branch", f"expected first or a handle, got {kind_of(branch)}")
        return None
    return None if branch is None else str(branch)


def _is_template(text: str) -> bool:
    # Placeholders of documents (`{{#node.name#}}`) are data here.
    return ("{{" in text and "{{#" not in text) or "{%" in text


def _check_templates(value: Any, at: str, findings: Findings) -> None:
    if isinstance(value, str) and _is_template(value):
        try:
            names = meta.find_undeclared_variables(_TEMPLATES.parse(value))
        except TemplateSyntaxError as error:
            findings.error(at, f"broken template: {error.message}", "Braces that are meant need {{ '{{' }}")
            return
        for name in sorted(names - _NAMES):
            hint = did_you_mean(name, _NAMES) or f"Known names: {', '.join(sorted(_NAMES))}"
            findings.error(at, f'unknown name "{name}" in a template', hint)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            _check_templates(inner, f"{at}.{name}", findings)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_templates(inner, f"{at}[{number}]", findings)


# --- answering -------------------------------------------------------------------------------------------------------


class _Unfit(Exception):
    """The pin does not fit the node; the text says where and why."""


def answer(pin: Pin, node: Node, index: int | None, inputs: Mapping[str, JsonValue], attempt: int) -> Outcome | None:
    """The outcome that the pin gives to an attempt; None: its failures are used up and the node itself runs.

    `index`: round of the innermost container around the node. `inputs`: of the run, for templates.
    """
    if not pin.answers(attempt):
        return None
    if pin.fail is not None and (pin.times is None or attempt <= pin.times):
        return Failed(pin.fail, "PinnedError")
    names = {"node_id": node.id, "title": node.title, "index": "" if index is None else index, "inputs": dict(inputs)}
    try:
        handle = _handle(pin, node)
        outputs = _outputs(pin, node, handle, names)
        _check_outputs(outputs, node, pin)
    except _Unfit as error:
        return Failed(str(error), "PinInvalid")
    usage = outputs.get("usage")
    metadata: Values = (
        {name: usage[name] for name in ("total_tokens", "total_price", "currency") if name in usage}
        if isinstance(usage, dict)
        else {}
    )
    return Succeeded(
        outputs=outputs,
        handle=handle,
        metadata=metadata or None,
        output_types={"files": "array[file]"} if outputs.get("files") == [] else {},
    )


def check_pins(pins: Pins, definition: Definition) -> tuple[Problem, ...]:
    """What does not fit the definition: unknown nodes (errors), types that it has not (warnings), wrong values."""
    findings = Findings()
    for node_id, pin in pins.nodes.items():
        if node_id not in definition.nodes:
            findings.error(pin.at, f'unknown node "{node_id[:100]}"', findings.suggest(node_id, definition.nodes))
    types = {node.type for node in definition.nodes.values()}
    for name, pin in pins.types.items():
        if name not in types:
            findings.warn(pin.at, f"the document has no node of type {name}")
    for node in definition.nodes.values():
        found = pins.for_node(node)
        if found is None or (found.fail is not None and found.outputs is None and found.branch is None):
            continue
        outcome = answer(found, node, 0, _any_inputs(definition), (found.times or 0) + 1 if found.fail else 1)
        if isinstance(outcome, Failed) and outcome.error_type == "PinInvalid":
            at, _, problem = outcome.error.partition(": ")
            findings.error(at, problem)
    return tuple(dict.fromkeys(findings.problems))


def _any_inputs(definition: Definition) -> Values:
    return {variable.variable: "" for variable in definition.start_variables}


def _handle(pin: Pin, node: Node) -> str | None:
    branches = _branches(node)
    if branches is None:
        if pin.branch is None:
            return None
        if node.strategy == "fail-branch" and pin.branch in ("source", "fail-branch"):
            return pin.branch
        raise _Unfit(f'{pin.at}.branch: the {node.type} "{node.id}" has no branches. Remove branch')
    named = pin.branch
    if named is None and pin.outputs is not None:
        given = pin.outputs.get("class_id", pin.outputs.get("selected_case_id", pin.outputs.get("__action_id")))
        named = given if isinstance(given, str) else None
    if named is None or named == "first":
        if not branches:
            raise _Unfit(f'{pin.at}: the {node.type} "{node.id}" declares no branch')
        return branches[0]
    if named not in branches:
        hint = did_you_mean(named, branches) or f"Its branches: {', '.join(branches)}"
        raise _Unfit(f'{pin.at}.branch: the {node.type} "{node.id}" has no branch "{named[:100]}". {hint}')
    return named


def _branches(node: Node) -> list[str] | None:
    """The handles in document order; None when the node is no branch of its own."""
    match node.config:
        case QuestionClassifierConfig(classes=classes):
            return [each.id for each in classes]
        case HumanInputConfig(user_actions=actions):
            return [*(action.id for action in actions), "__timeout"]
        case IfElseConfig(cases=cases):
            return ["true", "false"] if cases is None else [*(case.case_id for case in cases), "false"]
        case _:
            return None


def _outputs(pin: Pin, node: Node, handle: str | None, names: Mapping[str, Any]) -> Values:
    given = None if pin.outputs is None else _rendered(pin.outputs, pin.at + ".outputs", names)
    assert given is None or isinstance(given, dict)  # a mapping renders to a mapping
    if given is not None and pin.whole:
        return given
    stub = stub_outputs(node, handle)
    if stub is None:
        if given is None:
            raise _Unfit(f'{pin.at}: a pin of type {node.type} needs outputs (node "{node.id}")')
        return given
    return stub | (given or {})


def _rendered(value: Any, at: str, names: Mapping[str, Any]) -> JsonValue:
    if isinstance(value, str) and _is_template(value):
        try:
            return _TEMPLATES.from_string(value).render(names)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise _Unfit(f"{at}: the template failed: {error}") from error
    if isinstance(value, Mapping):
        return {str(name): _rendered(inner, f"{at}.{name}", names) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rendered(inner, f"{at}[{number}]", names) for number, inner in enumerate(value)]
    return value  # type: ignore[no-any-return]  # JSON: numbers, booleans, null


# --- what a node declares --------------------------------------------------------------------------------------------

_SHAPES: Final[Mapping[str, tuple[type | tuple[type, ...], str]]] = {
    "string": (str, "text"),
    "number": ((int, float), "a number"),
    "boolean": (bool, "true or false"),
    "object": (dict, "a mapping"),
    "array": (list, "a list"),
    "text or array": ((str, list), "text or a list of texts"),
}
_TYPE_OUTPUTS: Final[Mapping[str, Mapping[str, str]]] = {
    "llm": {"text": "string", "structured_output": "object", "usage": "object", "files": "array"},
    "agent": {"text": "string", "json": "array", "files": "array", "usage": "object"},
    "tool": {"text": "string", "json": "array", "files": "array"},
    "http-request": {"status_code": "number", "body": "string", "headers": "object", "files": "array"},
    "knowledge-retrieval": {"result": "array"},
    "document-extractor": {"text": "text or array"},
    "template-transform": {"output": "string"},
    "question-classifier": {"class_id": "string", "class_name": "string"},
}


def _check_outputs(outputs: Values, node: Node, pin: Pin) -> None:
    at = f"{pin.at}.outputs"
    match node.config:
        case CodeConfig(outputs=declared):
            _check_code(outputs, declared, at, node)
        case ParameterExtractorConfig(parameters=parameters):
            for parameter in parameters:
                if parameter.required and parameter.name not in outputs:
                    raise _Unfit(_missing(at, parameter.name, node))
                if parameter.name in outputs:
                    _check_value(outputs[parameter.name], parameter.type, f"{at}.{parameter.name}", node)
        case _:
            for name, shape in _TYPE_OUTPUTS.get(node.type, {}).items():
                if outputs.get(name) is not None:
                    _check_value(outputs[name], shape, f"{at}.{name}", node)


def _check_code(outputs: Values, declared: Mapping[str, CodeOutput], at: str, node: Node) -> None:
    for name in outputs:
        if name not in declared:
            hint = did_you_mean(name, declared) or f"It declares {', '.join(declared) or 'no outputs'}"
            raise _Unfit(f'{at}.{name}: the {node.type} "{node.id}" declares no such output. {hint}')
    for name, output in declared.items():
        if name not in outputs:
            raise _Unfit(_missing(at, name, node))
        value = outputs[name]
        _check_value(value, output.type, f"{at}.{name}", node)
        if output.children is not None and value is not None:
            members = value if isinstance(value, list) else [value]
            for member in members:
                if isinstance(member, dict):
                    _check_code(member, output.children, f"{at}.{name}", node)


def _check_value(value: JsonValue, declared: str, at: str, node: Node) -> None:
    """Null fits everything, as it does in the output of the node itself."""
    if value is None:
        return
    if declared.startswith("array["):
        if not isinstance(value, list):
            raise _Unfit(f'{at}: the {node.type} "{node.id}" declares {declared}, the pin gives {kind_of(value)}')
        for number, element in enumerate(value):
            _check_value(element, declared[6:-1], f"{at}[{number}]", node)
        return
    python, words = _SHAPES.get(declared, (object, ""))
    if not isinstance(value, python) or (declared == "string" and isinstance(value, bool)):
        raise _Unfit(f'{at}: the {node.type} "{node.id}" declares {words}, the pin gives {kind_of(value)}')


def _missing(at: str, name: str, node: Node) -> str:
    return f'{at}: the output "{name}" that the {node.type} "{node.id}" declares is missing. Add it to the pin'
