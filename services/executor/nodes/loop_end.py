"""`loop-end`: a marker; that it was reached breaks its loop (`libs.workflow.containers.on_loop_end`)."""

from libs.workflow.definition import Node
from libs.workflow.outcome import Outcome, Succeeded
from libs.workflow.pool import Pool
from services.executor.nodes.port import Handler


class LoopEndHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        return Succeeded(outputs={})
