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
| `AppChanged` | `app-change/<change id>` |
| `AppDeleted` | `app-deleted/<app id>` |
| `VersionMarked` | `version-mark/<change id>` |
| `VersionDeleted` | `version-deleted/<workflow id>` |
| `FactSealed` | that of the fact in it |

A document that may hold secrets is sealed as a whole (`libs.events.sealing`): its text and its digest come back as
they were. Drafts and pending imports: `libs.events.drafts`; webhooks and schedules: `libs.events.triggers`; answers to
questions: `libs.events.annotations`. A fact that nobody needs any more may be taken back by a record with its key and
no value.
"""

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from libs.events.annotations import (
    AnnotationBook,
    AnnotationDeleted,
    AnnotationFact,
    AnnotationJobBegun,
    AnnotationJobEnded,
    AnnotationWritten,
    key_of_annotation_fact,
)
from libs.events.drafts import DraftBook, DraftFact, draft_key, key_of_draft_fact
from libs.events.log import Entry, Log, LogDenied, LogError, Record, Topic
from libs.events.sealing import SealError, Vault
from libs.events.triggers import (
    ScheduleFired,
    TriggerAwaited,
    TriggerBook,
    TriggerFact,
    TriggerSwitched,
    WebhookCreated,
    key_of_trigger_fact,
)

REFRESH_EVERY_S = 0.1
"""Who asks for what does not exist must not make us ask the log each time."""

logger = logging.getLogger(__name__)


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


def _folded(default: Any) -> Any:
    """A field that no record of its type has: the registry fills it from later facts."""
    return Field(default, exclude=True)


class AppCreated(_Fact):
    """An app: a name under which versions are published and keys are given out. From the registry: as it is now."""

    type: Literal["AppCreated"] = "AppCreated"
    app_id: str
    name: str
    mode: Literal["workflow", "advanced-chat"] = "workflow"
    description: str = ""
    icon: str = ""
    icon_background: str = ""
    created_at_us: int
    icon_type: str = _folded("")
    use_icon_as_answer_icon: bool = _folded(False)
    max_active_requests: int | None = _folded(None)
    enable_api: bool = _folded(True)
    enable_site: bool = _folded(True)
    site_code: str = _folded("")
    """Names the app's public page; empty: it has none."""
    updated_at_us: int | None = _folded(None)
    """Of the last change; None: there was none."""


class AppChanged(_Fact):
    """Something about an app was changed; None: left as it was. The latest change of each field counts."""

    type: Literal["AppChanged"] = "AppChanged"
    change_id: str
    app_id: str
    name: str | None = None
    description: str | None = None
    icon_type: str | None = None
    icon: str | None = None
    icon_background: str | None = None
    use_icon_as_answer_icon: bool | None = None
    max_active_requests: int | None = None
    enable_api: bool | None = None
    enable_site: bool | None = None
    site_code: str | None = None
    updated_at_us: int


class AppDeleted(_Fact):
    """The app is gone: no key opens it and nothing of it can be started. Its runs stay in the log."""

    type: Literal["AppDeleted"] = "AppDeleted"
    app_id: str
    deleted_at_us: int


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
    marked_name: str = _folded("")
    marked_comment: str = _folded("")


class VersionMarked(_Fact):
    """A version got another name or comment; None: left as it was."""

    type: Literal["VersionMarked"] = "VersionMarked"
    change_id: str
    workflow_id: str
    marked_name: str | None = None
    marked_comment: str | None = None
    marked_at_us: int


class VersionDeleted(_Fact):
    """The version cannot be started any more. Never the latest one: it could not be told from one published since."""

    type: Literal["VersionDeleted"] = "VersionDeleted"
    app_id: str
    workflow_id: str
    deleted_at_us: int


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
    most: int | None = None
    """How many keys the app may have with this one. Its place in the log decides: a key that finds so many there, or
    itself at another app, opens nothing. None: it was decided before it was written."""

    @model_serializer(mode="wrap")
    def _as_it_was_without_most(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made: dict[str, Any] = serialize(self)
        if self.most is None:
            del made["most"]
        return made


class KeyRevoked(_Fact):
    """The key opens nothing any more."""

    type: Literal["KeyRevoked"] = "KeyRevoked"
    key_id: str
    app_id: str
    revoked_at_us: int


class FactSealed(_Fact):
    """A fact that nobody reads without the deployment's key."""

    type: Literal["FactSealed"] = "FactSealed"
    key: str
    """Record key of the fact in it."""
    sealed: str


Fact = (
    AppCreated
    | AppChanged
    | AppDeleted
    | DocumentStored
    | VersionPublished
    | VersionMarked
    | VersionDeleted
    | KeyCreated
    | KeyRevoked
    | FactSealed
    | DraftFact
    | TriggerFact
    | AnnotationFact
)
FACT: TypeAdapter[Fact] = TypeAdapter(Annotated[Fact, Field(discriminator="type")])


def hash_key(key: str) -> str:
    """What `KeyCreated.hash` holds for the API key `key`."""
    return hashlib.sha256(key.encode()).hexdigest()


_TELLING = ("secret", "api_key", "api-key")
"""A document without these words has no secret variable and no credential of its own."""


def may_hold_secrets(fact: Fact) -> bool:
    """Whether the fact carries a document that may have a secret in it. Sealing one too many costs nothing."""
    document = getattr(fact, "document", "")
    folded = document.casefold()
    # An escape in a quoted scalar could spell those words without showing them.
    return any(word in folded for word in _TELLING) or "\\x" in folded or "\\u" in folded


def encode_fact(fact: Fact, vault: Vault | None = None) -> Entry:
    """The record of a fact, for partition 0 of the definitions topic; sealed when it may hold secrets.

    Raises SealError.
    """
    if vault is not None and may_hold_secrets(fact):
        fact = FactSealed(key=_key_of(fact), sealed=vault.seal(fact.model_dump_json().encode()))
    headers = [
        ("ce_specversion", b"1.0"),
        ("content-type", b"application/json"),
        ("ce_type", f"flowledger.{fact.type}.1".encode()),
    ]
    return Entry(key=_key_of(fact).encode(), value=fact.model_dump_json().encode(), headers=headers)


def taken_back(key: str) -> Entry:
    """The record after which the fact with this key may be forgotten."""
    return Entry(key=key.encode(), value=None)


def _document_key(digest: str) -> str:
    return f"document/{digest}"


def _key_of(fact: Fact) -> str:
    match fact:
        case AppCreated():
            return f"app/{fact.app_id}"
        case DocumentStored():
            return _document_key(fact.digest)
        case VersionPublished():
            return f"version/{fact.workflow_id}"
        case KeyCreated():
            return f"key/{fact.key_id}"
        case KeyRevoked():
            return f"revoked/{fact.key_id}"
        case AppChanged():
            return f"app-change/{fact.change_id}"
        case AppDeleted():
            return f"app-deleted/{fact.app_id}"
        case VersionMarked():
            return f"version-mark/{fact.change_id}"
        case VersionDeleted():
            return f"version-deleted/{fact.workflow_id}"
        case FactSealed():
            return fact.key
        case WebhookCreated() | ScheduleFired() | TriggerSwitched() | TriggerAwaited():
            return key_of_trigger_fact(fact)
        case AnnotationWritten() | AnnotationDeleted() | AnnotationJobBegun() | AnnotationJobEnded():
            return key_of_annotation_fact(fact)
        case _:
            return key_of_draft_fact(fact)


class Registry:
    """The fold. One thread applies; look-ups may come from any thread, and see every fact whole or not at all."""

    # What look-ups walk over is replaced, never changed in place: that is all the thread safety there is.

    def __init__(self, vault: Vault | None = None) -> None:
        """`vault`: opens sealed documents; without one they are asked for in vain."""
        self._vault = vault or Vault(lambda: None)
        self._closed: dict[str, FactSealed] = {}
        """By record key: what could not be opened."""
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
        self._refused: set[str] = set()
        self._deleted: set[str] = set()
        self._sites: dict[str, str] = {}
        self.drafts = DraftBook()
        self.triggers = TriggerBook()
        self.annotations = AnnotationBook()

    def apply(self, record: Record) -> None:
        """Apply the next record. Never raises for what stands in it."""
        if record.value is not None:
            try:
                self._evolve(FACT.validate_json(record.value))
            except ValidationError:
                self.ignored += 1
                place = {"topic": str(record.topic), "partition": record.partition, "offset": record.offset}
                logger.warning("definition_unreadable", extra=place)
        elif record.key is not None:
            key = record.key.decode("utf-8", "replace")
            self._closed.pop(key, None)
            self.drafts.forget(key)
            self.triggers.forget(key)
            self.annotations.forget(key)
        self.position = record.offset + 1

    def _evolve(self, fact: Fact) -> None:
        match fact:
            case AppCreated():
                self._keep(fact)
            case AppChanged():
                app = self._apps.get(fact.app_id)
                if app is not None:
                    told = fact.model_dump(exclude_none=True, exclude={"type", "change_id", "app_id"})
                    self._keep(app.model_copy(update=told))
            case AppDeleted():
                self._deleted.add(fact.app_id)
                self._apps = {app_id: app for app_id, app in self._apps.items() if app_id != fact.app_id}
                self.drafts.forget_app(fact.app_id)
                self.annotations.forget_app(fact.app_id)
            case DocumentStored():
                self._documents[fact.digest] = fact.document
            case VersionPublished():
                others = (v for v in self._versions_of.get(fact.app_id, ()) if v.workflow_id != fact.workflow_id)
                self._versions_of[fact.app_id] = (*others, fact)
                self._versions[fact.workflow_id] = fact
            case VersionMarked():
                self._mark(fact)
            case VersionDeleted():
                gone = fact.workflow_id
                self._versions.pop(gone, None)
                kept = (v for v in self._versions_of.get(fact.app_id, ()) if v.workflow_id != gone)
                self._versions_of[fact.app_id] = tuple(kept)
            case KeyCreated():
                if self._may_open(fact):
                    others_ = (k for k in self._keys_of.get(fact.app_id, ()) if k.key_id != fact.key_id)
                    self._keys_of[fact.app_id] = (*others_, fact)
                    self._keys_by_hash[fact.hash] = fact
                else:
                    self._refused.add(fact.key_id)
            case KeyRevoked():
                self._revoked.add(fact.key_id)
            case FactSealed():
                self._unseal(fact)
            case WebhookCreated() | ScheduleFired() | TriggerSwitched() | TriggerAwaited():
                self.triggers.evolve(fact)
            case AnnotationWritten() | AnnotationDeleted() | AnnotationJobBegun() | AnnotationJobEnded():
                self.annotations.evolve(fact)
            case _:
                self.drafts.evolve(fact)

    def _may_open(self, fact: KeyCreated) -> bool:
        if fact.most is None:
            return True
        same = self._keys_by_hash.get(fact.hash)
        if same is not None and same.key_id != fact.key_id and same.key_id not in self._revoked:
            return False
        return sum(key.key_id != fact.key_id for key in self.keys(fact.app_id)) < fact.most

    def _unseal(self, fact: FactSealed) -> None:
        try:
            self._evolve(FACT.validate_json(self._vault.open(fact.sealed)))
        except SealError as error:
            if not self._closed:  # the others have the same reason
                logger.error("definition_sealed", extra={"key": fact.key, "problem": str(error)})
            self._closed[fact.key] = fact
        else:
            self._closed.pop(fact.key, None)

    def check_sealed(self) -> None:
        """Raises SealError when a document that is in use is sealed with a key that this process does not have."""
        closed = tuple(self._closed.values())
        used = self._keys_in_use() if closed else set()
        for fact in closed:
            if fact.key in used:
                self._vault.open(fact.sealed)

    def _keys_in_use(self) -> set[str]:
        """Of the records that hold the draft, or a version, of an app that is there."""
        used: set[str] = set()
        for app_id in self._apps:
            used.update(_document_key(version.digest) for version in self._versions_of.get(app_id, ()))
            saved = self.drafts.draft(app_id)
            if saved is not None:
                used.add(draft_key(saved.draft_id) if saved.digest is None else _document_key(saved.digest))
        return used

    def _keep(self, app: AppCreated) -> None:
        if app.app_id in self._deleted:
            return
        self._apps[app.app_id] = app
        if app.site_code:
            self._sites[app.site_code] = app.app_id

    def _mark(self, fact: VersionMarked) -> None:
        version = self._versions.get(fact.workflow_id)
        if version is None:
            return
        told = fact.model_dump(exclude_none=True, include={"marked_name", "marked_comment"})
        marked = self._versions[fact.workflow_id] = version.model_copy(update=told)
        known = self._versions_of[version.app_id]
        self._versions_of[version.app_id] = tuple(marked if one is version else one for one in known)

    def app(self, app_id: str) -> AppCreated | None:
        return self._apps.get(app_id)

    def deleted(self, app_id: str) -> bool:
        """Whether there was such an app and it is gone."""
        return app_id in self._deleted

    def app_of_site(self, code: str) -> AppCreated | None:
        """The app whose public page has this code, if it has one now."""
        app = self._apps.get(self._sites.get(code, ""))
        return app if app is not None and app.enable_site and app.site_code == code else None

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
        """Raises SealError when it is there and cannot be opened."""
        closed = self._closed.get(_document_key(digest))
        if closed is not None:
            self._vault.open(closed.sealed)  # says what is wrong; the key may have come since
            self._unseal(closed)
        return self._documents.get(digest)

    def has_document(self, digest: str) -> bool:
        """Whether it is there and open; sealed with a key that is lost, it has to be stored anew."""
        return digest in self._documents

    def keys(self, app_id: str) -> tuple[KeyCreated, ...]:
        """Those that open the app, oldest first."""
        return tuple(key for key in self._keys_of.get(app_id, ()) if key.key_id not in self._revoked)

    def refused(self, key_id: str) -> bool:
        """Whether the key came when its app had enough of them, or another key with its hash."""
        return key_id in self._refused

    def app_of_key(self, key: str) -> str | None:
        """The app that the API key `key` opens; None when it is unknown or revoked."""
        hashed = hash_key(key)
        found = self._keys_by_hash.get(hashed)
        if found is None or not hmac.compare_digest(found.hash, hashed) or found.key_id in self._revoked:
            return None
        return found.app_id


def read_registry(log: Log, vault: Vault | None = None) -> Registry:
    """The registry as of now, for a process that looks once (command line). Blocking. Raises LogError."""
    registry = Registry(vault)
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
        vault: Vault | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(vault)
        self._from = log
        self._monotonic = monotonic
        self._pause = pause
        self._changed = threading.Condition()
        self._refreshing = threading.Lock()
        self._refreshed_at: float | None = None
        self._refreshed_to = 0
        self._error: LogError | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()
        self.position, _ = log.bounds(Topic.DEFINITIONS, 0)
        self._tail = log.tail(Topic.DEFINITIONS, {0: self.position}, self._follow, self._fail)

    def _follow(self, records: list[Record]) -> None:
        for record in records:
            self.apply(record)
        with self._changed:
            self._changed.notify_all()
        for listener in self._listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` on the tail's thread whenever something was read; what is returned ends that."""
        self._listeners = (*self._listeners, listener)

        def end() -> None:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

        return end

    def _fail(self, error: LogError) -> None:
        if isinstance(error, LogDenied):  # it goes on by itself; until then who waits is told how far it was read
            logger.warning("registry_denied", extra={"problem": str(error)})
            return
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
            self._reach(self._refreshed_to, timeout_s)

    def catch_up(self, timeout_s: float = 2.0) -> None:
        """As `refresh`, but asks the log at once: for people who are known, and who wait. Blocking. Raises LogError."""
        _, end = self._from.bounds(Topic.DEFINITIONS, 0)
        self._reach(end, timeout_s)

    def _reach(self, end: int, timeout_s: float) -> None:
        if not self.wait_for(end - 1, timeout_s):
            raise LogError(f"{Topic.DEFINITIONS}[0]: read up to {self.position} of {end} in {timeout_s:g} s. Try again")

    def close(self) -> None:
        self._tail.close()
