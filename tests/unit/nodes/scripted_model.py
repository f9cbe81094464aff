"""A model that says what a test tells it to, and keeps what it was asked."""

from collections.abc import AsyncGenerator

from services.executor.models import Delta, ModelError, ModelProvider, ModelRequest, Models, Usage

MODEL = {"provider": "langgenius/openai/openai", "name": "m-1", "mode": "chat", "completion_params": {}}


class ScriptedModel(Models):
    def __init__(self, *deltas: Delta | ModelError) -> None:
        super().__init__({})
        self.deltas = deltas
        self.asked: list[ModelRequest] = []

    @property
    def prompt(self) -> list[tuple[str, str]]:
        return [(message.role, message.text) for message in self.asked[0].messages]

    def provider(self, provider_id: str) -> ModelProvider:
        return self

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta, None]:
        self.asked.append(request)
        for delta in self.deltas:
            if isinstance(delta, ModelError):
                raise delta
            yield delta
        yield Delta(finish_reason="stop", usage=Usage(3, 1, 4))
