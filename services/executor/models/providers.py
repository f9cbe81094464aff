"""Which provider answers for a document's provider id, from the operator's settings."""

import re
from collections.abc import Mapping
from typing import Final

import httpx

from libs.settings import Provider
from services.executor.models.context import context_tokens
from services.executor.models.known import KNOWN, Known
from services.executor.models.offline import Offline
from services.executor.models.openai_compatible import OpenAICompatible
from services.executor.models.parts import IN_ANY_FORM
from services.executor.models.port import ModelError, ModelProvider

DEFAULT: Final = "DEFAULT"


def setting_name(provider_id: str) -> str:
    """`langgenius/openai/openai` -> `OPENAI`: the NAME inside `FLOWLEDGER_PROVIDER_<NAME>_API_KEY`."""
    last = provider_id.strip().rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Z0-9]", "_", last.upper())


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
            self._made[name] = self._make(name, provider_id)
        return self._made[name]

    def parts(self, provider_id: str) -> Mapping[str, str]:
        """Types of files that go into the provider's prompts, and the part of a message that each goes into."""
        if self._offline is not None:
            return IN_ANY_FORM
        chosen, known = self._chosen(setting_name(provider_id))
        return known.files if chosen is None or chosen.files is None else chosen.files

    def context_tokens(self, provider_id: str, model: str) -> int:
        """How much the context of a model holds; an estimate where the operator does not say."""
        chosen, _ = self._chosen(setting_name(provider_id))
        return context_tokens(model, chosen.context_tokens if chosen is not None else {})

    def _chosen(self, name: str) -> tuple[Provider | None, Known]:
        own = self._settings.get(name)
        # What is known of a provider is known of its own settings: the default may stand for anything.
        return (own, KNOWN.get(name, Known())) if own is not None else (self._settings.get(DEFAULT), Known())

    def _make(self, name: str, provider_id: str) -> ModelProvider:
        own = self._settings.get(name)
        chosen, known = self._chosen(name)
        # A key for every provider must not be sent to an address that a document's provider id picks.
        base_url = chosen.base_url if chosen else None
        if base_url is None and own is not None and own.api_key:
            base_url = known.base_url
        if chosen is None or base_url is None:
            raise ModelError("ModelNotExistError", _missing(name, provider_id, own))
        label = name.lower() if own is not None else f"{name.lower()} (by the default provider)"
        return OpenAICompatible(
            self._http(),
            label,
            base_url,
            chosen.api_key,
            auth=chosen.auth or known.auth,
            path=known.path,
            models=chosen.models,
            parts=self.parts(provider_id),
            silence_s=chosen.timeout_s,
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


def _missing(name: str, provider_id: str, own: Provider | None) -> str:
    prefix = f"FLOWLEDGER_PROVIDER_{name}"
    known = KNOWN.get(name, Known())
    if own is not None:
        first = f"set {prefix}_BASE_URL" + (f" or {prefix}_API_KEY" if known.base_url and not own.api_key else "")
    elif known.base_url:
        first = f"set {prefix}_API_KEY (and {prefix}_BASE_URL for a server of your own)"
    else:
        first = f"set {prefix}_BASE_URL and {prefix}_API_KEY"
    if known.hint:
        first += f" (its address: {known.hint})"
    return (
        f"No settings for the model provider {provider_id or '(none named)'}: {first}, or "
        "FLOWLEDGER_PROVIDER_DEFAULT_BASE_URL for all providers, or FLOWLEDGER_MODELS=offline for answers of a "
        "stand-in, or pin the node"
    )
