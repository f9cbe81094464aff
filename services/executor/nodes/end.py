"""`end`: names the values that are the run's outputs. Cannot fail: a missing value is null."""

from libs.workflow.definition import Node
from libs.workflow.outcome import Outcome, Succeeded
from libs.workflow.pool import Pool, declared_types
from libs.workflow.segments import NONE
from services.executor.nodes.port import Handler


class EndHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        found = {output.variable: pool.get(output.value_selector or ()) or NONE for output in node.config.outputs}
        outputs = {name: segment.value for name, segment in found.items()}
        return Succeeded(outputs=outputs, inputs=outputs, output_types=declared_types(found))
