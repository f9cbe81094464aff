"""`template-transform`: a Jinja template over declared variables.

Templates are the author's programs: `{{ 'a' * 10**9 }}` is one. So a template is rendered at once only when its
syntax tree and the sizes of its values prove that it is cheap; all others run in the sandbox. Both ways use the same
environment and give the same text.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from jinja2 import Template, TemplateError, nodes
from pydantic import JsonValue

from libs.workflow.definition import Node
from libs.workflow.outcome import Failed, Outcome, Succeeded, Values
from libs.workflow.pool import Pool
from services.executor.nodes.code import bound_values
from services.executor.nodes.port import Attempt, Handler
from services.executor.sandbox import Sandbox, SandboxError, SandboxUnavailable
from services.executor.sandbox.inside.templates import ENVIRONMENT, OutputTooLong, describe, render_bounded

MAX_OUTPUT_CHARS: Final = 400_000
TIMEOUT_S: Final = 60.0

# What may be done inline: some tens of microseconds of work, a fraction of a millisecond at most.
_MAX_TEMPLATE_CHARS: Final = 20_000
_MAX_WORK: Final = 1_000
"""Expressions evaluated, rounds of the loop included."""
_MAX_CHARS: Final = 100_000
"""Characters that may come out, by a bound from the sizes of the values."""
_MAX_ITEMS: Final = 2_000
"""Values looked at to find the sizes."""

_CHEAP_FILTERS: Final = frozenset(
    {"capitalize", "count", "d", "default", "e", "escape", "first", "int", "float", "last", "length", "lower", "string",
     "title", "trim", "upper"}
)  # fmt: skip
_CHEAP_TESTS: Final = frozenset(
    {"boolean", "defined", "false", "float", "integer", "mapping", "none", "number", "sequence", "string", "true",
     "undefined"}
)  # fmt: skip
_PLAIN: Final = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Const, nodes.If,
    nodes.CondExpr, nodes.Concat, nodes.Not, nodes.And, nodes.Or, nodes.Compare, nodes.Operand,
)  # fmt: skip


class TemplateTransformHandler(Handler):
    effect = False
    slot = "process"

    def __init__(self, sandbox: Sandbox, *, limit_chars: int = MAX_OUTPUT_CHARS, timeout_s: float = TIMEOUT_S) -> None:
        self._sandbox = sandbox
        self._limit_chars = limit_chars
        self._timeout_s = timeout_s

    def evaluate(self, node: Node, pool: Pool) -> Outcome | None:
        text = node.config.template
        prepared = _prepare(text) if len(text) <= _MAX_TEMPLATE_CHARS else None
        if prepared is None:
            return None
        values, shown = bound_values(node.config.variables, pool)
        if not prepared.is_cheap_for(values):
            return None
        try:
            output = render_bounded(prepared.template, values, self._limit_chars)
        except OutputTooLong as error:
            return Failed(str(error), inputs=shown)
        except Exception as error:  # whatever the author's expressions raise is the node's failure
            return Failed(describe(error), inputs=shown)
        return Succeeded(outputs={"output": output}, inputs=shown)

    async def run(self, attempt: Attempt) -> Outcome:
        config = attempt.node.config
        values, shown = bound_values(config.variables, attempt.pool)
        try:
            text = await self._sandbox.render(
                config.template, values, limit_chars=self._limit_chars, timeout_s=self._timeout_s
            )
        except (SandboxError, SandboxUnavailable) as error:
            return Failed(str(error), inputs=shown)
        return Succeeded(outputs={"output": text}, inputs=shown)


@dataclass(slots=True, frozen=True)
class _Prepared:
    """A compiled template that is cheap as long as its values are small."""

    template: Template
    text_chars: int
    expressions: int
    reads: tuple[str, ...]
    """Names, as often as they are read."""
    loop: tuple[str, str] | None
    """The one loop: its own name, and the variable that it goes through."""

    def is_cheap_for(self, values: Values) -> bool:
        sizes = {name: _size(values.get(name)) for name in {*self.reads, *(self.loop or ())}}
        rounds, own, whole = 1, "", 0
        if self.loop is not None:
            own, name = self.loop
            items = values.get(name)
            rounds = max(1, len(items)) if isinstance(items, list | dict | str) else 1
            whole = sizes[name]
        # All rounds together see each item once; `loop` knows the items before and after, too.
        per_loop = {own: whole + sizes[own], "loop": 2 * whole + sizes.get("loop", 0)} if own else {}
        chars = self.text_chars * rounds
        chars += sum(per_loop[name] if name in per_loop else sizes[name] * rounds for name in self.reads)
        return self.expressions * rounds <= _MAX_WORK and chars <= _MAX_CHARS


@lru_cache(maxsize=512)
def _prepare(text: str) -> _Prepared | None:
    """The compiled template, or None when it may be expensive whatever its values are.

    Judged before it is compiled: compiling already computes constant expressions.
    """
    try:
        tree = ENVIRONMENT.parse(text)
        loop = _judge(tree)
        expressions = sum(1 for _ in tree.find_all(nodes.Expr))
        reads = [name.name for name in tree.find_all(nodes.Name) if name.ctx == "load"]
        if loop is not None:
            reads.remove(loop[1])  # going through it prints nothing
        return _Prepared(ENVIRONMENT.from_string(text), len(text), expressions, tuple(reads), loop)
    except (_Expensive, TemplateError, RecursionError):
        return None  # what is wrong with it is said by the sandbox


class _Expensive(Exception):
    """The template does something whose cost its syntax does not bound."""


def _judge(tree: nodes.Template) -> tuple[str, str] | None:
    """The only loop, if there is one: its own name, and the variable that it goes through. Raises _Expensive."""
    loop: tuple[str, str] | None = None
    stack: list[nodes.Node] = [tree]
    while stack:
        node = stack.pop()
        match node:
            case nodes.For(target=nodes.Name(name=own), iter=nodes.Name(name=name), recursive=False) if loop is None:
                loop = (own, name)
            case nodes.Filter(name=name) if name in _CHEAP_FILTERS and node.node is not None:
                _require_small_constants(node)
            case nodes.Test(name=name) if name in _CHEAP_TESTS and not node.args and not node.kwargs:
                pass
            case _ if isinstance(node, _PLAIN):
                pass
            case _:
                raise _Expensive(type(node).__name__)
        stack.extend(_children(node))
    return loop


def _children(node: nodes.Node) -> list[nodes.Node]:
    """The filter's constants have been looked at; everything else is judged in its turn."""
    if isinstance(node, nodes.Filter) and node.node is not None:
        return [node.node]
    return list(node.iter_child_nodes())


def _require_small_constants(node: nodes.Filter) -> None:
    arguments = [*node.args, *(pair.value for pair in node.kwargs)]
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        raise _Expensive("arguments from a variable")
    for argument in arguments:
        if not isinstance(argument, nodes.Const) or len(str(argument.value)) > 100:
            raise _Expensive("an argument that is no small constant")


def _size(whole: JsonValue) -> int:
    """Characters that printing the value could give; more than may come out when that cannot be counted quickly."""
    size = items = 0
    stack = [whole]
    while stack:
        items += 1
        value = stack.pop()
        match value:
            case str():
                size += len(value) + 2
            case list():
                size += 2 * len(value) + 2
                stack.extend(value)
            case dict():
                size += sum(len(key) + 6 for key in value) + 2
                stack.extend(value.values())
            case int() if not -(1 << 64) < value < 1 << 64:
                size += _MAX_CHARS  # printing it takes quadratic time
            case _:
                size += 25
        if items > _MAX_ITEMS or size > _MAX_CHARS:
            return _MAX_CHARS + 1
    return size
