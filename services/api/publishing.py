"""Apps, versions and keys: facts for the definitions topic. A change is done when this replica's registry has it.

Nothing is read before it is written: every fact has a key of its own, and "latest" is the highest offset.
"""

import asyncio
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from libs.events.log import Log, LogError, Topic
from libs.events.registry import (
    AppCreated,
    DocumentStored,
    Fact,
    KeyCreated,
    KeyRevoked,
    RegistryTail,
    VersionPublished,
    encode_fact,
    hash_key,
)
from libs.workflow.definition import Definition, Problem, check_document
from services.api.errors import ApiError, bad_request, not_found, unavailable
from services.api.requests import is_app_key
from services.api.threads import Threads

KEY_LETTERS = string.ascii_letters + string.digits
KEY_LENGTH = 24
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
        registry: RegistryTail,
        threads: Threads,
        *,
        now_us: Callable[[], int],
        new_uuid: Callable[[], str],
        random_bits: Callable[[int], int],
        keys_per_app: int,
    ) -> None:
        self._log = log
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
        facts: list[Fact] = []
        if self._registry.document(definition.digest) is None:
            facts.append(DocumentStored(digest=definition.digest, document=text))
        if app is None:
            app = self._new_app(definition)
            facts.append(app)
        version = self._new_version(app, definition)
        facts.append(version)
        api_key: str | None = None
        if with_key:
            api_key = self.make_key()
            facts.append(self._new_key(app, api_key))
        await self._record(facts)
        return Imported(app, version, api_key, tuple(problem for problem in problems if problem.severity == "warning"))

    async def add_key(self, app: AppCreated, key: str | None) -> tuple[KeyCreated, str]:
        """A new key for the app, or an existing one (`key`) brought along. Raises ApiError."""
        if len(self._registry.keys(app.app_id)) >= self._keys_per_app:
            raise bad_request(f'app "{app.name}" has {self._keys_per_app} keys, which is the most. Revoke one first')
        if key is None:
            key = self.make_key()
        elif not is_app_key(key):
            raise bad_request('key: expected "app-" followed by letters and digits')
        elif (owner := self._registry.app_of_key(key)) is not None:
            known = next(one for one in self._registry.keys(owner) if one.hash == hash_key(key))
            if owner != app.app_id:
                raise bad_request("key: it opens another app already")
            return known, key
        fact = self._new_key(app, key)
        await self._record([fact])
        return fact, key

    async def revoke_key(self, app: AppCreated, key_id: str) -> None:
        """Raises ApiError."""
        if all(key.key_id != key_id for key in self._registry.keys(app.app_id)):
            raise not_found(f'key "{key_id[:64]}" does not exist in app "{app.name}"')
        await self._record([KeyRevoked(key_id=key_id, app_id=app.app_id, revoked_at_us=self._now_us())])

    def make_key(self) -> str:
        """`app-` and 24 letters and digits, about 142 bits."""
        number = self._random_bits(192)  # far more than needed, so that the remainders are as good as even
        letters = []
        for _ in range(KEY_LENGTH):
            number, index = divmod(number, len(KEY_LETTERS))
            letters.append(KEY_LETTERS[index])
        return "app-" + "".join(letters)

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

    def _new_version(self, app: AppCreated, definition: Definition) -> VersionPublished:
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
        )

    async def _record(self, facts: list[Fact]) -> None:
        """Write the facts, each when the one before is durable, and wait until the registry has them."""
        try:
            offset = -1
            for fact in facts:
                offset = await asyncio.wrap_future(self._log.send(Topic.DEFINITIONS, 0, encode_fact(fact)))
            seen = await self._threads.run(self._registry.wait_for, offset, 5.0)
        except LogError as error:
            raise unavailable(f"the change was not confirmed by the log: {error}") from error
        if not seen:
            raise unavailable("the change is in the log, but this replica has not read it yet. Ask again")


def document_invalid(problems: tuple[Problem, ...]) -> ApiError:
    errors = sum(problem.severity == "error" for problem in problems)
    message = f"the document cannot run: {errors} problem{'s' if errors != 1 else ''}"
    return ApiError(400, "definition_invalid", message, problems=[problem_json(problem) for problem in problems])


def problem_json(problem: Problem) -> dict[str, str]:
    return {"at": problem.at, "problem": problem.problem, "hint": problem.hint, "severity": problem.severity}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
