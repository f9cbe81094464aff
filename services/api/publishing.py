"""Apps, versions and keys: facts for the definitions topic. A change is done when this replica's registry has it.

Nothing is read before it is written: every fact has a key of its own, and "latest" is the highest offset.
"""

import asyncio
import hashlib
import json
import string
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from libs.events.drafts import DraftSaved
from libs.events.log import Log, LogError, Topic
from libs.events.registry import (
    AppChanged,
    AppCreated,
    DocumentStored,
    Fact,
    KeyCreated,
    KeyRevoked,
    RegistryTail,
    VersionMarked,
    VersionPublished,
    encode_fact,
    hash_key,
    may_hold_secrets,
    taken_back,
)
from libs.events.sealing import SealError, Vault
from libs.workflow.definition import Definition, Problem, check_document
from services.api.errors import ApiError, bad_request, not_found, unavailable
from services.api.requests import is_app_key
from services.api.threads import Threads

KEY_LETTERS = string.ascii_letters + string.digits
KEY_LENGTH = 24
SITE_CODE_LENGTH = 16
PREFIX_LENGTH = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True, frozen=True)
class Imported:
    app: AppCreated
    version: VersionPublished
    api_key: str | None
    warnings: tuple[Problem, ...]


class Publisher:
    """`new_uuid()`: a random UUID. `random_bits(n)`: a random number of n bits, from a secure source."""

    def __init__(
        self,
        log: Log,
        vault: Vault,
        registry: RegistryTail,
        threads: Threads,
        *,
        now_us: Callable[[], int],
        new_uuid: Callable[[], str],
        random_bits: Callable[[int], int],
        keys_per_app: int,
    ) -> None:
        self._log = log
        self._vault = vault
        self._registry = registry
        self._threads = threads
        self._now_us = now_us
        self._new_uuid = new_uuid
        self._random_bits = random_bits
        self._keys_per_app = keys_per_app

    async def import_document(self, document: bytes, app: AppCreated | None, *, with_key: bool) -> Imported:
        """Publish the document: as a new app, or as the newest version of `app`. Raises ApiError."""
        try:
            text = document.decode("utf-8")
        except UnicodeDecodeError as error:
            raise bad_request(f"the document must be UTF-8 text: {error.reason} at byte {error.start}") from error
        definition, problems = await self._threads.run(check_document, text)
        errors = [problem for problem in problems if problem.severity == "error"]
        if definition is None or errors:
            raise document_invalid(problems)
        if app is not None and app.mode != definition.mode:
            raise bad_request(f'app "{app.name}" is a {app.mode} app, the document is for {definition.mode}')
        if app is not None and with_key:
            self._check_room(app)
        facts: list[Fact] = []
        if not self._registry.has_document(definition.digest):
            facts.append(DocumentStored(digest=definition.digest, document=text))
        if app is None:
            app = self._new_app(definition)
            facts += [app, self._more_of(app, definition)]
        version = self.new_version(app, definition)
        facts += [version, self._draft_of(app, definition)]
        warnings = [problem for problem in problems if problem.severity == "warning"]
        api_key: str | None = None
        if with_key:
            api_key = self.make_key()
            key = self._new_key(app, api_key)
            facts.append(key)
        await self.record(facts)
        if api_key is not None and self._registry.refused(key.key_id):
            # Somebody else's key came first. The version is published: an error would say that nothing was done.
            api_key = None
            warnings.append(Problem("", "no key was made: the app has the most it may have", "Revoke one", "warning"))
        return Imported(app, version, api_key, tuple(warnings))

    async def add_key(self, app: AppCreated, key: str | None) -> tuple[KeyCreated, str]:
        """A new key for the app, or an existing one (`key`) brought along. Raises ApiError."""
        self._check_room(app)
        if key is None:
            key = self.make_key()
        elif not is_app_key(key):
            raise bad_request('key: expected "app-" followed by 8 to 120 letters, digits, - or _')
        elif (owner := self._registry.app_of_key(key)) is not None:
            known = next(one for one in self._registry.keys(owner) if one.hash == hash_key(key))
            if owner != app.app_id:
                raise bad_request("key: it opens another app already")
            return known, key
        fact = self._new_key(app, key)
        await self.record([fact])
        if self._registry.refused(fact.key_id):  # at its place in the log: another replica has made one meanwhile
            self._check_room(app)
            raise bad_request("key: it opens an app already")
        return fact, key

    def _check_room(self, app: AppCreated) -> None:
        """Raises ApiError 400: the app has as many keys as it may have."""
        if len(self._registry.keys(app.app_id)) >= self._keys_per_app:
            raise bad_request(f'app "{app.name}" has {self._keys_per_app} keys, which is the most. Revoke one first')

    async def revoke_key(self, app: AppCreated, key_id: str) -> None:
        """Raises ApiError."""
        if all(key.key_id != key_id for key in self._registry.keys(app.app_id)):
            raise not_found(f'key "{key_id[:64]}" does not exist in app "{app.name}"')
        await self.record([KeyRevoked(key_id=key_id, app_id=app.app_id, revoked_at_us=self._now_us())])

    def make_key(self) -> str:
        """`app-` and 24 letters and digits, about 142 bits."""
        return "app-" + self._letters(KEY_LENGTH)

    def make_site_code(self) -> str:
        """The name of a public page: 16 letters and digits that nobody guesses."""
        return self._letters(SITE_CODE_LENGTH)

    def make_webhook_id(self) -> str:
        """24 letters and digits: whoever knows them may call."""
        return self._letters(KEY_LENGTH)

    def _letters(self, count: int) -> str:
        number = self._random_bits(192)  # far more than needed, so that the remainders are as good as even
        letters = []
        for _ in range(count):
            number, index = divmod(number, len(KEY_LETTERS))
            letters.append(KEY_LETTERS[index])
        return "".join(letters)

    async def publish(
        self, app: AppCreated, definition: Definition, text: str, name: str, comment: str
    ) -> VersionPublished:
        """Make the document, whose definition is given, the newest version of the app. Raises ApiError."""
        facts: list[Fact] = []
        if not self._registry.has_document(definition.digest):
            facts.append(DocumentStored(digest=definition.digest, document=text))
        version = self.new_version(app, definition)
        facts.append(version)
        if name or comment:
            facts.append(
                VersionMarked(
                    change_id=self._new_uuid(),
                    workflow_id=version.workflow_id,
                    marked_name=name,
                    marked_comment=comment,
                    marked_at_us=version.published_at_us,
                )
            )
        await self.record(facts)
        return version

    def _draft_of(self, app: AppCreated, definition: Definition) -> DraftSaved:
        """What editors open: the document that was imported."""
        workflow = definition.document.get("workflow")
        graph = workflow.get("graph") if isinstance(workflow, Mapping) else None
        return DraftSaved(
            app_id=app.app_id,
            draft_id=self._new_uuid(),
            overwrite=True,
            hash=graph_hash(graph),
            digest=definition.digest,
            saved_at_us=self._now_us(),
        )

    def _new_app(self, definition: Definition) -> AppCreated:
        described = definition.document.get("app")
        about: Mapping[str, Any] = described if isinstance(described, Mapping) else {}
        return AppCreated(
            app_id=self._new_uuid(),
            name=definition.name,
            mode=definition.mode,
            description=_text(about.get("description")),
            icon=_text(about.get("icon")),
            icon_background=_text(about.get("icon_background")),
            created_at_us=self._now_us(),
        )

    def _more_of(self, app: AppCreated, definition: Definition) -> AppChanged:
        described = definition.document.get("app")
        about: Mapping[str, Any] = described if isinstance(described, Mapping) else {}
        return AppChanged(
            change_id=self._new_uuid(),
            app_id=app.app_id,
            icon_type=_text(about.get("icon_type")),
            use_icon_as_answer_icon=about.get("use_icon_as_answer_icon") is True,
            site_code=self.make_site_code(),
            updated_at_us=app.created_at_us,
        )

    def new_version(self, app: AppCreated, definition: Definition) -> VersionPublished:
        now_us = self._now_us()
        return VersionPublished(
            app_id=app.app_id,
            workflow_id=self._new_uuid(),
            version=(_EPOCH + timedelta(microseconds=now_us)).strftime("%Y-%m-%d %H:%M:%S.%f"),
            digest=definition.digest,
            published_at_us=now_us,
        )

    def _new_key(self, app: AppCreated, key: str) -> KeyCreated:
        return KeyCreated(
            key_id=self._new_uuid(),
            app_id=app.app_id,
            hash=hash_key(key),
            prefix=key[:PREFIX_LENGTH],
            created_at_us=self._now_us(),
            most=self._keys_per_app,
        )

    async def take_back(self, *keys: str) -> None:
        """Let the records with these keys be forgotten; when that does not reach the log they only take up room."""
        for key in keys:
            with suppress(LogError):
                await asyncio.wrap_future(self._log.send(Topic.DEFINITIONS, 0, taken_back(key)))

    async def record(self, facts: Sequence[Fact]) -> None:
        """Write the facts, each when the one before is durable, and wait until the registry has them."""
        try:
            # With another key than the one that has sealed what is there, nothing is sealed: nobody else could open it.
            if any(map(may_hold_secrets, facts)):
                self._registry.check_sealed()
            offset = -1
            for fact in facts:
                offset = await asyncio.wrap_future(self._log.send(Topic.DEFINITIONS, 0, encode_fact(fact, self._vault)))
            seen = await self._threads.run(self._registry.wait_for, offset, 5.0)
        except SealError as error:
            raise unavailable(str(error)) from error
        except LogError as error:
            raise unavailable(f"the change was not confirmed by the log: {error}") from error
        if not seen:
            raise unavailable("the change is in the log, but this replica has not read it yet. Ask again")


def graph_hash(graph: object) -> str:
    """What tells two graphs apart; editors send it back with their next save. Layout counts, order of keys does not."""
    text = json.dumps(graph, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def document_invalid(problems: tuple[Problem, ...]) -> ApiError:
    errors = sum(problem.severity == "error" for problem in problems)
    message = f"the document cannot run: {errors} problem{'s' if errors != 1 else ''}"
    return ApiError(400, "definition_invalid", message, problems=[problem_json(problem) for problem in problems])


def problem_json(problem: Problem) -> dict[str, str]:
    return {"at": problem.at, "problem": problem.problem, "hint": problem.hint, "severity": problem.severity}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
