"""Which provider answers for a document's provider id, from the operator's settings."""

from collections.abc import Mapping

import httpx

from libs.providers import ProviderUnset, chosen, reach, setting_name
from libs.settings import Provider
from services.executor.models.context import context_tokens
from services.executor.models.offline import Offline
from services.executor.models.openai_compatible import OpenAICompatible
from services.executor.models.parts import IN_ANY_FORM
from services.executor.models.port import ModelError, ModelProvider


class Models:
    """Finds the provider of a document's id. One per process and event loop; `aclose` at the end."""

    def __init__(
        self, providers: Mapping[str, Provider], *, offline: bool = False, offline_delay_s: float = 0.01
    ) -> None:
        self._settings = providers
        self._offline = Offline(offline_delay_s) if offline else None
        self._made: dict[str, ModelProvider] = {}
        self._client: httpx.AsyncClient | None = None

    def provider(self, provider_id: str) -> ModelProvider:
        """Raises ModelError when the settings have none; its text says what to set."""
        if self._offline is not None:
            return self._offline
        name = setting_name(provider_id)
        if name not in self._made:
            self._made[name] = self._make(provider_id)
        return self._made[name]

    def parts(self, provider_id: str) -> Mapping[str, str]:
        """Types of files that go into the provider's prompts, and the part of a message that each goes into."""
        if self._offline is not None:
            return IN_ANY_FORM
        setting, known = chosen(self._settings, setting_name(provider_id))
        return known.files if setting is None or setting.files is None else setting.files

    def context_tokens(self, provider_id: str, model: str) -> int:
        """How much the context of a model holds; an estimate where the operator does not say."""
        setting, _ = chosen(self._settings, setting_name(provider_id))
        return context_tokens(model, setting.context_tokens if setting is not None else {})

    def _make(self, provider_id: str) -> ModelProvider:
        try:
            found = reach(self._settings, provider_id)
        except ProviderUnset as error:
            raise ModelError("ModelNotExistError", f"{error}, or pin the node") from error
        return OpenAICompatible(
            self._http(),
            found.label,
            found.base_url,
            found.setting.api_key,
            auth=found.auth,
            path=found.known.path,
            models=found.setting.models,
            parts=self.parts(provider_id),
            silence_s=found.setting.timeout_s,
        )

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=5)
            self._client = httpx.AsyncClient(limits=limits, trust_env=False, follow_redirects=False)
        return self._client

    async def aclose(self) -> None:
        """Close all connections. May be called again."""
        client, self._client = self._client, None
        self._made.clear()
        if client is not None:
            await client.aclose()
