"""Drafts: what editors work on, as documents; saved so that of two editors one wins, and compiled for runs.

A draft is a whole document. Its app's name and icon are put in when it leaves here, because they change elsewhere.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from libs.events.drafts import DraftBackedUp, DraftSaved, DraftStored, draft_key
from libs.events.ids import variable_id
from libs.events.registry import AppCreated, DocumentStored, Fact, RegistryTail, VersionPublished
from libs.workflow.definition import Definition, check_document
from libs.workflow.document import parse
from libs.workflow.problems import Findings
from services.api.errors import ApiError, unavailable
from services.api.frames import Json
from services.api.publishing import Publisher, document_invalid, graph_hash
from services.api.threads import Threads

DSL_VERSION = "0.6.0"
"""Of the documents that leave here."""

DRAFT = "draft"
"""Version name of the draft and of its runs."""

DEBUGGING = "debugging"
SINGLE_STEP = "single-step"
"""`triggered_from` of runs of the draft, and of a node of it alone: neither counts as a run of the app."""

TRIES = 5
"""How often a save is made again because another one came first."""

PARTS = ("graph", "features", "environment_variables", "conversation_variables")
_EMPTY: dict[str, Any] = {"graph": {}, "features": {}, "environment_variables": [], "conversation_variables": []}


@dataclass(slots=True, frozen=True)
class Draft:
    saved: DraftSaved
    document: Json

    @property
    def hash(self) -> str:
        return self.saved.hash

    @property
    def workflow(self) -> Json:
        return workflow_of(self.document)


def workflow_of(document: Mapping[str, Any]) -> Json:
    """The four parts of a document that editors work on, whatever the document lacks."""
    found = document.get("workflow")
    known = found if isinstance(found, Mapping) else {}
    return {name: known.get(name) or _EMPTY[name] for name in PARTS}


def named(variables: Iterable[Any]) -> list[Json]:
    """Variables of a document with the keys that editors read, whoever wrote it: an id follows from the name."""
    return [
        one
        | {
            "id": one.get("id") or variable_id(str(one.get("name"))),
            "description": one.get("description") or "",
        }
        for one in variables
        if isinstance(one, dict)
    ]


def draft_workflow_id(app_id: str) -> str:
    """The workflow id of an app's draft, in its runs and records."""
    return str(uuid.uuid5(uuid.UUID(int=0), f"draft of {app_id}"))


def composed(app: AppCreated, document: Mapping[str, Any]) -> Json:
    """The document with what the app is called now."""
    return {
        "version": str(document.get("version") or DSL_VERSION),
        "kind": "app",
        "app": {
            "name": app.name,
            "mode": app.mode,
            "icon_type": app.icon_type or None,
            "icon": app.icon,
            "icon_background": app.icon_background,
            "description": app.description,
            "use_icon_as_answer_icon": app.use_icon_as_answer_icon,
        },
        "dependencies": document.get("dependencies") or [],
        "workflow": {**(document.get("workflow") or {}), **workflow_of(document)},
    }


def not_in_sync() -> ApiError:
    return ApiError(409, "draft_workflow_not_sync", "somebody else has saved the draft. Load it again, then repeat")


class Drafting:
    def __init__(
        self,
        publisher: Publisher,
        registry: RegistryTail,
        threads: Threads,
        *,
        now_us: Callable[[], int],
        new_uuid: Callable[[], str],
    ) -> None:
        self._publisher = publisher
        self._registry = registry
        self._threads = threads
        self._now_us = now_us
        self._new_uuid = new_uuid

    async def find(self, app: AppCreated) -> Draft | None:
        """The draft as this replica knows it; None: the app has none. Raises ApiError 503."""
        book = self._registry.drafts
        for _ in range(TRIES):
            saved = book.draft(app.app_id)
            if saved is None:
                return None
            text = self._registry.document(saved.digest) if saved.digest else book.text(saved.draft_id)
            if text is not None:
                return Draft(saved, await self.parsed(text))
        raise unavailable("the draft changes all the time. Try again")

    async def require(self, app: AppCreated) -> Draft:
        """Raises ApiError 404: the app has no draft."""
        draft = await self.find(app)
        if draft is None:
            raise ApiError(404, "draft_workflow_not_exist", "the app has no draft yet")
        return draft

    async def save(self, app: AppCreated, made: Callable[[Draft | None], Json]) -> Draft:
        """Save what `made` makes of the current draft; it is asked again when another save came first.

        `made` raises ApiError when the draft is not the one it was meant for.
        """
        for _ in range(TRIES):
            current = await self.find(app)
            document = made(current)
            saved = self._saved(app, document, current)
            stored = DraftStored(draft_id=saved.draft_id, document=json.dumps(document))
            await self._publisher.record([stored, saved])
            won = self._registry.drafts.won(saved.draft_id)
            # Texts of drafts that are over only take up room.
            if won:
                await self._forget(current.saved if current is not None else None)
                return Draft(saved, document)
            await self._forget(saved)
        raise unavailable("others save this draft all the time. Try again")

    def overwriting(self, app: AppCreated, document: Json) -> list[Fact]:
        """The facts of a save that replaces whatever draft there is."""
        saved = self._saved(app, document, None, overwrite=True)
        return [DraftStored(draft_id=saved.draft_id, document=json.dumps(document)), saved]

    async def replace(self, app: AppCreated, document: Json, *before: Fact) -> None:
        """Record the facts in `before`, and make `document` the draft whatever it was."""
        superseded = self._registry.drafts.draft(app.app_id)
        await self._publisher.record([*before, *self.overwriting(app, document)])
        await self._forget(superseded)

    async def delete(self, app: AppCreated, deleted: Fact) -> None:
        """Record that the app is gone, and let its drafts be forgotten."""
        saved, backups = self._registry.drafts.draft(app.app_id), self._registry.drafts.backups(app.app_id)
        await self._publisher.record([deleted])
        await self._forget(saved)
        for one in backups:
            await self._publisher.take_back(f"draft-backup/{one.draft_id}", draft_key(one.draft_id))

    async def _forget(self, saved: DraftSaved | None) -> None:
        # A document with a digest belongs to more than a draft.
        if saved is not None and saved.digest is None:
            await self._publisher.take_back(draft_key(saved.draft_id))

    async def back_up(self, app: AppCreated, draft: Draft) -> DraftBackedUp:
        """Put a copy of the draft aside, in place of the one before."""
        older = self._registry.drafts.backups(app.app_id)
        made = DraftBackedUp(
            app_id=app.app_id, draft_id=self._new_uuid(), hash=draft.hash, backed_up_at_us=self._now_us()
        )
        await self._publisher.record([DraftStored(draft_id=made.draft_id, document=json.dumps(draft.document)), made])
        for one in older:
            await self._publisher.take_back(f"draft-backup/{one.draft_id}", draft_key(one.draft_id))
        return made

    async def backup(self, app: AppCreated) -> tuple[DraftBackedUp, Json]:
        """The copy put aside last. Raises ApiError 404."""
        for made in reversed(self._registry.drafts.backups(app.app_id)):
            text = self._registry.drafts.text(made.draft_id)
            if text is not None:
                return made, await self.parsed(text)
        raise ApiError(404, "not_found", "the app's draft was not backed up")

    async def document_of(self, version: VersionPublished) -> Json:
        """The document of a published version. Raises ApiError 503."""
        text = self._registry.document(version.digest)
        if text is None:
            raise unavailable("the version's document cannot be looked up now. Try again")
        return await self.parsed(text)

    async def compiled(self, app: AppCreated, draft: Draft) -> tuple[Definition, str]:
        """(definition, text) of the draft as a document that can be run. Raises ApiError 400 with all its mistakes."""
        text = json.dumps(composed(app, draft.document), ensure_ascii=False)
        definition, problems = await self._threads.run(check_document, text)
        if definition is None or any(problem.severity == "error" for problem in problems):
            raise document_invalid(problems)
        return definition, text

    async def runnable(self, app: AppCreated, draft: Draft) -> VersionPublished:
        """A version for runs of the draft; its document is in the log, as what was run must be readable for ever."""
        definition, text = await self.compiled(app, draft)
        if not self._registry.has_document(definition.digest):
            await self._publisher.record([DocumentStored(digest=definition.digest, document=text)])
        return VersionPublished(
            app_id=app.app_id,
            workflow_id=draft_workflow_id(app.app_id),
            version=DRAFT,
            digest=definition.digest,
            published_at_us=draft.saved.saved_at_us,
        )

    def _saved(self, app: AppCreated, document: Json, current: Draft | None, *, overwrite: bool = False) -> DraftSaved:
        return DraftSaved(
            app_id=app.app_id,
            draft_id=self._new_uuid(),
            after=current.saved.draft_id if current is not None else None,
            overwrite=overwrite,
            hash=graph_hash(workflow_of(document)["graph"]),
            saved_at_us=self._now_us(),
        )

    async def parsed(self, text: str) -> Json:
        """A document's text as values."""
        document = await self._threads.run(parse, text, Findings())
        return document or {}
