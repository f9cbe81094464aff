"""`if-else`: the first case whose conditions hold selects the branch."""

from libs.workflow.conditions import Choice, ConditionError, Values, evaluate_cases, evaluate_legacy
from libs.workflow.definition import Node
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.pool import Pool
from services.executor.nodes.port import Handler


class IfElseHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        config = node.config
        try:
            if config.cases is not None:  # an explicit empty list does not fall back to the older form
                choice = evaluate_cases(config.cases, pool)
            else:
                choice = evaluate_legacy(config.conditions or (), config.logical_operator, pool)
        except ConditionError as error:
            inputs, process_data = _records(error.choice or Choice())
            return Failed(str(error), inputs=inputs, process_data=process_data)
        inputs, process_data = _records(choice)
        handle = "false" if choice.case_id is None else choice.case_id
        return Succeeded(
            outputs={"result": choice.case_id is not None, "selected_case_id": handle},
            inputs=inputs,
            process_data=process_data,
            handle=handle,
        )


def _records(choice: Choice) -> tuple[Values, Values]:
    return {"conditions": choice.conditions}, {"condition_results": choice.condition_results}
