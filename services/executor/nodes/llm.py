"""`llm`: one call of a language model, its answer streamed while it comes.

The streamed text is provisional; the outputs are what holds. An attempt that lost its owner asks the model again.
Secrets reach the model where the author put them and no record: inputs and prompts are masked.
"""

import time
from contextlib import aclosing
from typing import Final

from pydantic import JsonValue

from libs.workflow.configs.models import LlmConfig
from libs.workflow.outcome import Failed, Outcome, Succeeded, Values
from services.executor.files import FileStore
from services.executor.models import Delta, Message, ModelError, ModelRequest, Models, ReasoningSplitter, Usage
from services.executor.nodes.masking import Masking
from services.executor.nodes.port import Attempt, Handler
from services.executor.nodes.prompts import History, Plan, PromptError, Render, assemble, plan
from services.executor.nodes.structured import StructuredOutputError, check_schema, parse_structured, with_instruction
from services.executor.sandbox import SandboxError, SandboxUnavailable

CURRENCY: Final = "USD"


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
    ) -> None:
        """`render`: renders Jinja prompts in the sandbox."""
        self._models = models
        self._render = render
        self._history = history
        self._files = files

    async def run(self, attempt: Attempt) -> Outcome:
        config: LlmConfig = attempt.node.config
        masked = Masking(attempt.pool)
        named: Values = {"model_provider": config.model.provider, "model_name": config.model.name}
        inputs: Values = named
        record: Values = {"model_mode": config.model.mode, **named}
        answer = _Answer(separated=config.reasoning_format == "separated")
        try:
            made = plan(config, attempt.pool, chatflow=attempt.definition.mode == "advanced-chat")
            inputs = {**{name: masked.json(value) for name, value in made.inputs.items()}, **named}
            request = await self._request(attempt, config, made)
            record["prompts"] = masked.json(_serialised(request.messages))
            await self._ask(attempt, config, request, answer)
            outputs = answer.outputs()
            record |= {"usage": outputs["usage"], "finish_reason": answer.finish_reason}
            if request.schema is not None:
                outputs["structured_output"] = parse_structured(answer.text, request.schema)
        except (PromptError, ModelError) as error:
            return Failed(masked.text(str(error)), error.error_type, inputs, record, metadata=answer.metadata())
        except (StructuredOutputError, SandboxError, SandboxUnavailable) as error:
            return Failed(masked.text(str(error)), "LLMNodeError", inputs, record, metadata=answer.metadata())
        return Succeeded(outputs, inputs, record, answer.metadata(), output_types={"files": "array[file]"})

    async def _request(self, attempt: Attempt, config: LlmConfig, made: Plan) -> ModelRequest:
        if not config.model.name:
            raise PromptError("ModelNotExistError", "the node names no model; choose one in `model.name`")
        schema = config.output_schema
        if schema is not None:
            check_schema(schema)
        messages = await assemble(made, attempt, self._render, self._history, self._files)
        return ModelRequest(
            model=config.model.name,
            messages=with_instruction(messages, schema) if schema is not None else messages,
            mode="completion" if config.model.mode == "completion" else "chat",
            parameters=made.parameters,
            schema=schema,
            key=attempt.key,
        )

    async def _ask(self, attempt: Attempt, config: LlmConfig, request: ModelRequest, answer: "_Answer") -> None:
        provider = self._models.provider(config.model.provider)
        async with aclosing(provider.stream(request)) as deltas:
            async for delta in deltas:
                for name, piece in answer.take(delta):
                    attempt.emit(name, piece)
        for name, piece in answer.end():
            attempt.emit(name, piece)


class _Answer:
    """Collects an answer: text and reasoning apart (`separated`), or reasoning as a `<think>` block of the text."""

    def __init__(self, *, separated: bool) -> None:
        self._splitter = ReasoningSplitter() if separated else None
        self._parts: dict[str, list[str]] = {"text": [], "reasoning_content": []}
        self._thinking = False
        """Tagged: a block was opened for reasoning that the provider keeps apart."""
        self._usage = Usage()
        self._started = time.monotonic()
        self._first: float | None = None
        self._ended: float | None = None
        self.finish_reason: str | None = None

    @property
    def text(self) -> str:
        return "".join(self._parts["text"])

    def take(self, delta: Delta) -> list[tuple[str, str]]:
        """What to stream for a delta: (output, text) pairs, none empty."""
        if self._first is None and (delta.text or delta.reasoning):
            self._first = time.monotonic()
        self._usage = delta.usage or self._usage
        self.finish_reason = delta.finish_reason or self.finish_reason
        if self._splitter is None:
            return self._kept([("text", self._tagged(delta))])
        split = self._splitter.feed(delta.text)
        return self._kept([("reasoning_content", delta.reasoning + split.reasoning), ("text", split.text)])

    def end(self) -> list[tuple[str, str]]:
        """What was held back."""
        self._ended = time.monotonic()
        if self._splitter is None:
            return self._kept([("text", "\n</think>" if self._thinking else "")])
        split = self._splitter.finish()
        return self._kept([("reasoning_content", split.reasoning), ("text", split.text)])

    def outputs(self) -> Values:
        reasoning = "".join(self._parts["reasoning_content"])
        return {
            "text": self.text,
            "reasoning_content": reasoning,
            "usage": self._usage_record(),
            "finish_reason": self.finish_reason,
            "files": [],
        }

    def metadata(self) -> Values:
        return {"total_tokens": self._usage.total_tokens, "total_price": "0", "currency": CURRENCY}

    def _tagged(self, delta: Delta) -> str:
        text = ""
        if delta.reasoning:
            text = delta.reasoning if self._thinking else f"<think>\n{delta.reasoning}"
            self._thinking = True
        if delta.text and self._thinking:
            text += "\n</think>\n"
            self._thinking = False
        return text + delta.text

    def _kept(self, pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
        found = [(name, piece) for name, piece in pieces if piece]
        for name, piece in found:
            self._parts[name].append(piece)
        return found

    def _usage_record(self) -> Values:
        """Prices are unknown here and so 0; decimals are texts, as clients of the format expect."""
        usage, ended = self._usage, self._ended or time.monotonic()
        first = self._first
        record: Values = {}
        for side, tokens in (("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)):
            record |= {
                f"{side}_tokens": tokens,
                f"{side}_unit_price": "0",
                f"{side}_price_unit": "0",
                f"{side}_price": "0",
            }
        return record | {
            "total_tokens": usage.total_tokens,
            "total_price": "0",
            "currency": CURRENCY,
            "latency": round(ended - self._started, 3),
            "time_to_first_token": round(first - self._started, 3) if first is not None else None,
            "time_to_generate": round(ended - first, 3) if first is not None else None,
        }


def _serialised(messages: tuple[Message, ...]) -> JsonValue:
    """Messages as records show them; the content of an uploaded image is left out."""
    return [
        {
            "role": message.role,
            "text": message.text,
            "files": [url if not url.startswith("data:") else url.partition(",")[0] for url in message.images],
        }
        for message in messages
    ]
