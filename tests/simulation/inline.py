"""Handlers of the nodes that answer at once, by node type."""

from services.executor.nodes.answer import AnswerHandler
from services.executor.nodes.assigner import AssignerHandler
from services.executor.nodes.end import EndHandler
from services.executor.nodes.human_input import HumanInputHandler
from services.executor.nodes.if_else import IfElseHandler
from services.executor.nodes.loop_end import LoopEndHandler
from services.executor.nodes.port import Handler
from services.executor.nodes.start import StartHandler
from services.executor.nodes.template_transform import TemplateTransformHandler
from services.executor.nodes.triggers import PluginTriggerHandler, ScheduleTriggerHandler, WebhookTriggerHandler
from services.executor.nodes.variable_aggregator import VariableAggregatorHandler
from services.executor.sandbox import Sandbox


def inline_handlers() -> dict[str, Handler]:
    return {
        "start": StartHandler(),
        "trigger-webhook": WebhookTriggerHandler(),
        "trigger-schedule": ScheduleTriggerHandler(),
        "trigger-plugin": PluginTriggerHandler(),
        "end": EndHandler(),
        "answer": AnswerHandler(),
        "if-else": IfElseHandler(),
        "human-input": HumanInputHandler(),
        "assigner": AssignerHandler(),
        "loop-end": LoopEndHandler(),
        "template-transform": TemplateTransformHandler(Sandbox()),
        "variable-aggregator": VariableAggregatorHandler(),
        "variable-assigner": VariableAggregatorHandler(),
    }
