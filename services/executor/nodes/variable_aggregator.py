"""`variable-aggregator`: passes on the first candidate that exists (a null counts), overall or per group."""

from collections.abc import Sequence

from pydantic import JsonValue

from libs.workflow.definition import Node
from libs.workflow.outcome import Outcome, Succeeded
from libs.workflow.pool import Pool, Segment, declared_types, for_display
from services.executor.nodes.port import Handler


class VariableAggregatorHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        settings = node.config.advanced_settings
        if settings is None or not settings.group_enabled:
            return _ungrouped(node.config.variables, pool)
        inputs: dict[str, JsonValue] = {}
        outputs: dict[str, JsonValue] = {}
        for group in settings.groups:
            found = _first(group.variables, pool)
            if found is not None:
                name, segment = found
                inputs[name] = for_display(segment)
                outputs[group.group_name] = {"output": segment.value}
        return Succeeded(outputs=outputs, inputs=inputs)


def _ungrouped(selectors: Sequence[Sequence[str]], pool: Pool) -> Outcome:
    found = _first(selectors, pool)
    if found is None:
        return Succeeded(outputs={}, inputs={})
    name, segment = found
    return Succeeded(
        outputs={"output": segment.value},
        inputs={name: for_display(segment)},
        output_types=declared_types({"output": segment}),
    )


def _first(selectors: Sequence[Sequence[str]], pool: Pool) -> tuple[str, Segment] | None:
    for selector in selectors:
        segment = pool.get(selector)
        if segment is not None:
            return ".".join(selector[1:]), segment
    return None
