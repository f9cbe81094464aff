"""The registry: apps, documents, published versions and API keys, folded from the definitions topic.

Every fact is immutable and has a key of its own, so compaction loses nothing and nobody reads before writing. Lists
are derived; the latest version of an app is the one with the highest offset. API keys are stored as hashes only.

| fact | record key |
|---|---|
| `AppCreated` | `app/<app id>` |
| `DocumentStored` | `document/<digest>` |
| `VersionPublished` | `version/<workflow id>` |
| `KeyCreated` | `key/<key id>` |
| `KeyRevoked` | `revoked/<key id>` |
"""

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from libs.events.log import Entry, Log, LogError, Record, Topic

REFRESH_EVERY_S = 0.1
"""Who asks for what does not exist must not make us ask the log each time."""

logger = logging.getLogger(__name__)


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class AppCreated(_Fact):
    """An app: a name under which versions are published and keys are given out."""

    type: Literal["AppCreated"] = "AppCreated"
    app_id: str
    name: str
    mode: Literal["workflow", "advanced-chat"] = "workflow"
    description: str = ""
    icon: str = ""
    icon_background: str = ""
    created_at_us: int


class DocumentStored(_Fact):
    """The text of a workflow document under its digest."""

    type: Literal["DocumentStored"] = "DocumentStored"
    digest: str
    document: str


class VersionPublished(_Fact):
    """A document became a version of an app."""

    type: Literal["VersionPublished"] = "VersionPublished"
    app_id: str
    workflow_id: str
    version: str
    digest: str
    published_at_us: int


class KeyCreated(_Fact):
    """An API key was given out; only its hash is known."""

    type: Literal["KeyCreated"] = "KeyCreated"
    key_id: str
    app_id: str
    hash: str
    """SHA-256 of the whole key, hex; see `hash_key`."""
    prefix: str
    """The beginning of the key, for people to tell keys apart (`app-ab12`)."""
    created_at_us: int


class KeyRevoked(_Fact):
    """The key opens nothing any more."""

    type: Literal["KeyRevoked"] = "KeyRevoked"
    key_id: str
    app_id: str
    revoked_at_us: int


Fact = AppCreated | DocumentStored | VersionPublished | KeyCreated | KeyRevoked
FACT: TypeAdapter[Fact] = TypeAdapter(Annotated[Fact, Field(discriminator="type")])


def hash_key(key: str) -> str:
    """What `KeyCreated.hash` holds for the API key `key`."""
    return hashlib.sha256(key.encode()).hexdigest()


def encode_fact(fact: Fact) -> Entry:
    """The record of a fact, for partition 0 of the definitions topic."""
    headers = [
        ("ce_specversion", b"1.0"),
        ("content-type", b"application/json"),
        ("ce_type", f"flowledger.{fact.type}.1".encode()),
    ]
    return Entry(key=_key_of(fact).encode(), value=fact.model_dump_json().encode(), headers=headers)


def _key_of(fact: Fact) -> str:
    match fact:
        case AppCreated():
            return f"app/{fact.app_id}"
        case DocumentStored():
            return f"document/{fact.digest}"
        case VersionPublished():
            return f"version/{fact.workflow_id}"
        case KeyCreated():
            return f"key/{fact.key_id}"
        case KeyRevoked():
            return f"revoked/{fact.key_id}"


class Registry:
    """The fold. One thread applies; look-ups may come from any thread, and see every fact whole or not at all."""

    # What look-ups walk over is replaced, never changed in place: that is all the thread safety there is.

    def __init__(self) -> None:
        self.position = 0
        """Offset of the next record to apply."""
        self.ignored = 0
        """Records that could not be read: written by something newer, or not by us."""
        self._apps: dict[str, AppCreated] = {}
        self._documents: dict[str, str] = {}
        self._versions: dict[str, VersionPublished] = {}
        self._versions_of: dict[str, tuple[VersionPublished, ...]] = {}
        self._keys_of: dict[str, tuple[KeyCreated, ...]] = {}
        self._keys_by_hash: dict[str, KeyCreated] = {}
        self._revoked: set[str] = set()

    def apply(self, record: Record) -> None:
        """Apply the next record. Never raises for what stands in it."""
        if record.value is not None:
            try:
                self._evolve(FACT.validate_json(record.value))
            except ValidationError:
                self.ignored += 1
                place = {"topic": str(record.topic), "partition": record.partition, "offset": record.offset}
                logger.warning("definition_unreadable", extra=place)
        self.position = record.offset + 1

    def _evolve(self, fact: Fact) -> None:
        match fact:
            case AppCreated():
                self._apps[fact.app_id] = fact
            case DocumentStored():
                self._documents[fact.digest] = fact.document
            case VersionPublished():
                others = (v for v in self._versions_of.get(fact.app_id, ()) if v.workflow_id != fact.workflow_id)
                self._versions_of[fact.app_id] = (*others, fact)
                self._versions[fact.workflow_id] = fact
            case KeyCreated():
                others_ = (k for k in self._keys_of.get(fact.app_id, ()) if k.key_id != fact.key_id)
                self._keys_of[fact.app_id] = (*others_, fact)
                self._keys_by_hash[fact.hash] = fact
            case KeyRevoked():
                self._revoked.add(fact.key_id)

    def app(self, app_id: str) -> AppCreated | None:
        return self._apps.get(app_id)

    def apps(self) -> tuple[AppCreated, ...]:
        """In the order of their creation."""
        return tuple(self._apps.values())

    def versions(self, app_id: str) -> tuple[VersionPublished, ...]:
        """Oldest first."""
        return self._versions_of.get(app_id, ())

    def latest(self, app_id: str) -> VersionPublished | None:
        versions = self.versions(app_id)
        return versions[-1] if versions else None

    def version(self, workflow_id: str) -> VersionPublished | None:
        return self._versions.get(workflow_id)

    def document(self, digest: str) -> str | None:
        return self._documents.get(digest)

    def keys(self, app_id: str) -> tuple[KeyCreated, ...]:
        """Those that open the app, oldest first."""
        return tuple(key for key in self._keys_of.get(app_id, ()) if key.key_id not in self._revoked)

    def app_of_key(self, key: str) -> str | None:
        """The app that the API key `key` opens; None when it is unknown or revoked."""
        hashed = hash_key(key)
        found = self._keys_by_hash.get(hashed)
        if found is None or not hmac.compare_digest(found.hash, hashed) or found.key_id in self._revoked:
            return None
        return found.app_id


def read_registry(log: Log) -> Registry:
    """The registry as of now, for a process that looks once (command line). Blocking. Raises LogError."""
    registry = Registry()
    first, _ = log.bounds(Topic.DEFINITIONS, 0)
    for batch in log.read(Topic.DEFINITIONS, 0, first):
        for record in batch:
            registry.apply(record)
    return registry


class RegistryTail(Registry):
    """A registry that follows the log. `monotonic` and `pause` (wait so many seconds) are the clock of `refresh`."""

    def __init__(
        self,
        log: Log,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
        self._from = log
        self._monotonic = monotonic
        self._pause = pause
        self._changed = threading.Condition()
        self._refreshing = threading.Lock()
        self._refreshed_at: float | None = None
        self._refreshed_to = 0
        self._error: LogError | None = None
        self.position, _ = log.bounds(Topic.DEFINITIONS, 0)
        self._tail = log.tail(Topic.DEFINITIONS, {0: self.position}, self._follow, self._fail)

    def _follow(self, records: list[Record]) -> None:
        for record in records:
            self.apply(record)
        with self._changed:
            self._changed.notify_all()

    def _fail(self, error: LogError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def wait_for(self, offset: int, timeout_s: float) -> bool:
        """Whether the record at `offset` was applied within `timeout_s`. Blocking. Raises LogError: the tail ended."""
        with self._changed:
            self._changed.wait_for(lambda: self.position > offset or self._error is not None, timeout_s)
            if self.position <= offset and self._error is not None:
                raise self._error
            return self.position > offset

    def refresh(self, timeout_s: float = 2.0) -> None:
        """Read to the end as of this call; for a look-up that found nothing. Blocking.

        Raises LogError when that was not possible in time: then nobody can say that something is not there. However
        many ask, the log is asked at most once per `REFRESH_EVERY_S`: the others wait for the next look and share it.
        """
        asked_at = self._monotonic()
        with self._refreshing:  # held while looking: that is what makes the others share it
            if self._refreshed_at is None or self._refreshed_at <= asked_at:
                if self._refreshed_at is not None:
                    self._pause(max(0.0, self._refreshed_at + REFRESH_EVERY_S - self._monotonic()))
                self._refreshed_at = self._monotonic()
                _, self._refreshed_to = self._from.bounds(Topic.DEFINITIONS, 0)
            if not self.wait_for(self._refreshed_to - 1, timeout_s):
                raise LogError(
                    f"{Topic.DEFINITIONS}[0]: read up to {self.position} of {self._refreshed_to} in {timeout_s:g} s. "
                    "Try again"
                )

    def close(self) -> None:
        self._tail.close()
