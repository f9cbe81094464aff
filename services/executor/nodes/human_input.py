"""`human-input`: asks a person and lets the run wait; the answer chooses the branch (`libs.workflow.forms`)."""

from libs.workflow.definition import Node
from libs.workflow.forms import ask
from libs.workflow.outcome import Outcome
from libs.workflow.pool import Pool
from services.executor.nodes.port import Handler


class HumanInputHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        return ask(node.config, pool)
