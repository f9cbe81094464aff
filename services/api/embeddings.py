"""Vectors of texts: from providers behind the OpenAI-compatible form (`POST {base_url}/embeddings`), or a stand-in's.

Texts go in batches; servers bound these differently, so one that is refused is asked for in halves. The key goes into
one header and nowhere else: every text of an error is cleaned of it.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import httpx

from libs.providers import ProviderUnset, Reach, endpoint, key_header, reach, setting_name
from libs.settings import Provider
from services.api.matching import Vector, normal, unit

BATCH: Final = 32
TIMEOUT_S: Final = 30.0
_REFUSALS: Final = (400, 413, 422)
"""Statuses that speak of what was sent, be it a text or their number."""
_UNREADABLE: Final = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""What reading an answer of another form raises; the last two: a number of hundreds of digits, brackets in brackets."""
_MAX_ERROR_CHARS: Final = 300
_DIMENSIONS: Final = 512
_GRAM: Final = 3


class EmbeddingError(Exception):
    """There are no vectors. The text is for people and never holds a key."""


class TextRefused(EmbeddingError):
    """The provider is there and takes no such text, perhaps because of its length. `text`: which."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


class Embedder(Protocol):
    async def embed(self, model: str, texts: Sequence[str]) -> list["Vector[float]"]:
        """A vector of length 1 for each text, in their order. Raises EmbeddingError; TextRefused: one is the reason."""
        ...


class Embedders:
    """Finds the embedder of a provider's id. One per process and event loop; `aclose` at the end."""

    def __init__(self, providers: Mapping[str, Provider], *, offline: bool = False) -> None:
        self._providers = providers
        self._offline = Offline() if offline else None
        self._made: dict[str, Embedder] = {}
        self._client: httpx.AsyncClient | None = None

    def of(self, provider_id: str) -> Embedder:
        """Raises EmbeddingError when the settings have none; its text says what to set."""
        if self._offline is not None:
            return self._offline
        name = setting_name(provider_id)
        if name not in self._made:
            try:
                self._made[name] = OpenAICompatible(self._http(), reach(self._providers, provider_id))
            except ProviderUnset as error:
                raise EmbeddingError(str(error)) from error
        return self._made[name]

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=TIMEOUT_S)
        return self._client

    async def aclose(self) -> None:
        """Close all connections. May be called again."""
        client, self._client = self._client, None
        self._made.clear()
        if client is not None:
            await client.aclose()


class OpenAICompatible:
    """One provider."""

    def __init__(self, client: httpx.AsyncClient, to: Reach) -> None:
        self._client = client
        self._label = to.label
        self._models = to.setting.models
        self._url = endpoint(to.base_url, to.known.path, "/embeddings")
        self._key = (to.setting.api_key or "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise EmbeddingError(f"{self._label}: the API key has characters that no key has")
        self._headers = dict([key_header(self._key, to.auth)]) if self._key else {}

    async def embed(self, model: str, texts: Sequence[str]) -> list["Vector[float]"]:
        found: list[Vector[float]] = []
        for start in range(0, len(texts), BATCH):
            found += await self._batch(model, texts[start : start + BATCH])
        return found

    async def _batch(self, model: str, texts: Sequence[str]) -> list["Vector[float]"]:
        # Half a surrogate pair, which a message may hold, is no UTF-8.
        sent = [text.encode("utf-8", "replace").decode() for text in texts]
        payload = {"model": self._models.get(model, model), "input": sent}
        try:
            response = await self._client.post(self._url, json=payload, headers=self._headers)
        except httpx.TimeoutException as error:
            raise self._error(f"no answer in time ({type(error).__name__})") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise self._error(str(error) or type(error).__name__) from None
        if response.status_code in _REFUSALS:
            if len(texts) == 1:
                raise TextRefused(self._clean(f"status {response.status_code}: {_said(response)}"), texts[0])
            half = len(texts) // 2
            return await self._batch(model, texts[:half]) + await self._batch(model, texts[half:])
        if not response.is_success:
            raise self._error(f"status {response.status_code}: {_said(response)}")
        try:
            return _vectors(response.json(), len(texts))
        except _UNREADABLE:
            raise self._error(f"it sent no {len(texts)} vectors. Is {model} a model for embeddings?") from None

    def _error(self, message: str) -> EmbeddingError:
        return EmbeddingError(self._clean(message))

    def _clean(self, message: str) -> str:
        # Before it is cut: half a key is much of a key.
        clean = message.replace(self._key, "***") if self._key else message
        return f"{self._label}: {clean[:_MAX_ERROR_CHARS]}"


def _vectors(answer: Any, count: int) -> list["Vector[float]"]:
    """Raises one of _UNREADABLE: the answer is of another form."""
    data = answer["data"]
    ordered = sorted(data, key=lambda one: one.get("index", 0))  # stable: without numbers they stand in order
    if len(ordered) != count:
        raise ValueError("another number of vectors")
    return [unit(one["embedding"]) for one in ordered]


def _said(response: httpx.Response) -> str:
    try:
        said = response.json()
        error = said.get("error") if isinstance(said, dict) else None
        message = error.get("message") if isinstance(error, dict) else error
        return str(message or response.reason_phrase)
    except _UNREADABLE:
        return response.reason_phrase


class Offline:
    """Needs no network: a text is the letters it has three in a row, so texts with much in common are near.

    Knows nothing of meaning: for trying things out, and for tests.
    """

    async def embed(self, model: str, texts: Sequence[str]) -> list["Vector[float]"]:
        return [_of_letters(text) for text in texts]


def _of_letters(text: str) -> "Vector[float]":
    """The same at every process: Python's own hash differs from one to the next."""
    counts = [0.0] * _DIMENSIONS
    padded = f"  {normal(text)}  "
    for start in range(len(padded) - _GRAM + 1):
        counts[zlib.crc32(padded[start : start + _GRAM].encode("utf-8", "surrogatepass")) % _DIMENSIONS] += 1.0
    return unit(map(math.sqrt, counts))
