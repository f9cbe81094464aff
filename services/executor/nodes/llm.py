"""`llm`: one call of a language model, its answer streamed while it comes.

The streamed text is provisional; the outputs are what holds. An attempt that lost its owner asks the model again.
Secrets reach the model where the author put them and no record: inputs and prompts are masked.
"""

from contextlib import aclosing

from libs.net import GuardedHttp
from libs.workflow.configs.models import LlmConfig
from libs.workflow.definition import Definition
from libs.workflow.outcome import Failed, Outcome, Succeeded, Values
from services.executor.files import FileStore
from services.executor.models import ModelError, ModelRequest, Models
from services.executor.nodes.answer_files import AnswerFiles, NotKept
from services.executor.nodes.masking import Masking
from services.executor.nodes.model_answer import ModelAnswer, recorded
from services.executor.nodes.port import Attempt, Handler
from services.executor.nodes.prompt_context import PromptError
from services.executor.nodes.prompt_files import PromptFiles, prompt_files
from services.executor.nodes.prompts import History, Plan, Render, assemble, plan
from services.executor.nodes.structured import StructuredOutputError, parse_structured, wanted_schema, with_instruction
from services.executor.sandbox import SandboxError, SandboxUnavailable


class LlmHandler(Handler):
    effect = True
    slot = "wait"

    def __init__(
        self,
        models: Models,
        render: Render,
        *,
        history: History | None = None,
        files: FileStore | None = None,
        http: GuardedHttp | None = None,
    ) -> None:
        """`render`: renders Jinja prompts in the sandbox. `http`: fetches files that are not taken by their address."""
        self._models = models
        self._render = render
        self._history = history
        self._files = files
        self._http = http

    async def run(self, attempt: Attempt) -> Outcome:
        config: LlmConfig = attempt.node.config
        masked = Masking(attempt.pool)
        named: Values = {"model_provider": config.model.provider, "model_name": config.model.name}
        inputs: Values = named
        record: Values = {"model_mode": config.model.mode, **named}
        answer = ModelAnswer(separated=config.reasoning_format == "separated")
        try:
            context = self._models.context_tokens(config.model.provider, config.model.name)
            chatflow = attempt.definition.mode == "advanced-chat"
            made = plan(config, attempt.pool, chatflow=chatflow, context_tokens=context)
            inputs = {**{name: masked.json(value) for name, value in made.inputs.items()}, **named}
            if made.sources and _shows_sources(attempt.definition):
                record["retriever_resources"] = masked.json(list(made.sources))
            files = prompt_files(attempt, config.model, self._models, self._files, self._http)
            request = await self._request(attempt, config, made, files)
            record |= recorded(request.messages, files, masked)
            await self._ask(attempt, config, request, answer)
            outputs = answer.outputs()
            record |= {"usage": outputs["usage"], "finish_reason": answer.finish_reason}
            if request.schema is not None:
                outputs["structured_output"] = parse_structured(answer.text, request.schema, answer.finish_reason)
        except (PromptError, ModelError) as error:
            return Failed(masked.text(str(error)), error.error_type, inputs, record, metadata=answer.metadata())
        except (StructuredOutputError, SandboxError, SandboxUnavailable, NotKept) as error:
            return Failed(masked.text(str(error)), "LLMNodeError", inputs, record, metadata=answer.metadata())
        return Succeeded(outputs, inputs, record, answer.metadata(), output_types={"files": "array[file]"})

    async def _request(self, attempt: Attempt, config: LlmConfig, made: Plan, files: PromptFiles) -> ModelRequest:
        if not config.model.name:
            raise PromptError("ModelNotExistError", "the node names no model; choose one in `model.name`")
        schema = wanted_schema(config)
        messages = await assemble(made, attempt, self._render, self._history, files)
        return ModelRequest(
            model=config.model.name,
            messages=with_instruction(messages, schema) if schema is not None else messages,
            mode="completion" if config.model.mode == "completion" else "chat",
            parameters=made.parameters,
            schema=schema,
            key=attempt.key,
        )

    async def _ask(self, attempt: Attempt, config: LlmConfig, request: ModelRequest, answer: ModelAnswer) -> None:
        provider = self._models.provider(config.model.provider)
        files = AnswerFiles(attempt, self._files, self._http)
        async with aclosing(provider.stream(request)) as deltas:
            async for delta in deltas:
                for name, piece in answer.take(delta):
                    attempt.emit(name, piece)
                for media in delta.files:
                    for name, piece in answer.add(await files.keep(media)):
                        attempt.emit(name, piece)
        for name, piece in answer.end():
            attempt.emit(name, piece)


def _shows_sources(definition: Definition) -> bool:
    """A chatflow says whether its messages cite; a workflow has no messages, and what it has is its author's."""
    feature = definition.features.get("retriever_resource")
    return definition.mode != "advanced-chat" or (isinstance(feature, dict) and feature.get("enabled") is True)
