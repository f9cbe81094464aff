"""The table of handlers: which node type is run by what. A type without a line here, or `outside`, must be pinned."""

from dataclasses import dataclass

from libs.net import GuardedHttp
from libs.settings import Settings
from services.executor.files import FileStore
from services.executor.models import Models
from services.executor.nodes.answer import AnswerHandler
from services.executor.nodes.assigner import AssignerHandler
from services.executor.nodes.code import CodeHandler
from services.executor.nodes.document_extractor import DocumentExtractorHandler
from services.executor.nodes.end import EndHandler
from services.executor.nodes.http_request import HttpRequestHandler
from services.executor.nodes.human_input import HumanInputHandler
from services.executor.nodes.if_else import IfElseHandler
from services.executor.nodes.list_operator import ListOperatorHandler
from services.executor.nodes.llm import LlmHandler
from services.executor.nodes.loop_end import LoopEndHandler
from services.executor.nodes.memory import ConversationMemory
from services.executor.nodes.outside import OutsideHandler
from services.executor.nodes.parameter_extractor import ParameterExtractorHandler
from services.executor.nodes.port import Handler
from services.executor.nodes.question_classifier import QuestionClassifierHandler
from services.executor.nodes.start import StartHandler
from services.executor.nodes.template_transform import TemplateTransformHandler
from services.executor.nodes.triggers import PluginTriggerHandler, ScheduleTriggerHandler, WebhookTriggerHandler
from services.executor.nodes.variable_aggregator import VariableAggregatorHandler
from services.executor.sandbox import Sandbox

__all__ = ["NodeHandlers"]


@dataclass(slots=True, frozen=True)
class NodeHandlers:
    """All handlers of a process, and what they share."""

    by_type: dict[str, Handler]
    sandbox: Sandbox
    http: GuardedHttp
    models: Models

    @classmethod
    def build(
        cls, settings: Settings, files: FileStore | None = None, *, models: Models | None = None
    ) -> "NodeHandlers":
        """`models`: in place of those that the settings name."""
        sandbox = Sandbox(settings.sandbox, settings.sandbox_packages)
        http = GuardedHttp(settings.http_allow)
        models = models or Models(settings.providers, offline=settings.models == "offline")
        outside = OutsideHandler()
        memory = ConversationMemory()
        aggregator = VariableAggregatorHandler()
        by_type: dict[str, Handler] = {
            "start": StartHandler(),
            "trigger-webhook": WebhookTriggerHandler(),
            "trigger-schedule": ScheduleTriggerHandler(),
            "trigger-plugin": PluginTriggerHandler(),
            "end": EndHandler(),
            "answer": AnswerHandler(),
            "if-else": IfElseHandler(),
            "human-input": HumanInputHandler(),
            "template-transform": TemplateTransformHandler(sandbox),
            "code": CodeHandler(sandbox),
            "http-request": HttpRequestHandler(http, files),
            "llm": LlmHandler(models, sandbox.render, history=memory, files=files, http=http),
            "question-classifier": QuestionClassifierHandler(models, history=memory, files=files, http=http),
            "parameter-extractor": ParameterExtractorHandler(models, history=memory, files=files, http=http),
            "variable-aggregator": aggregator,
            "variable-assigner": aggregator,
            "assigner": AssignerHandler(),
            "list-operator": ListOperatorHandler(),
            "document-extractor": DocumentExtractorHandler(http, files),
            "loop-end": LoopEndHandler(),
            "tool": outside,
            "agent": outside,
            "knowledge-retrieval": outside,
            "knowledge-index": outside,
            "datasource": outside,
        }
        return cls(by_type, sandbox, http, models)

    async def close(self) -> None:
        self.sandbox.close()
        await self.http.aclose()
        await self.models.aclose()
