"""Drafts of apps, what editors keep beside them, and imports that wait to be confirmed: facts and their fold.

Who saves a draft names the save it was made from. The fold takes a save only if that one is still the current draft,
so of two editors who save at once, at whatever replica, exactly one wins, and the log's order says which. The content
of a save has a record of its own, so that it can be forgotten when it is superseded; the saves themselves stay.

| fact | record key |
|---|---|
| `DraftStored` | `draft/<draft id>` |
| `DraftSaved` | `draft-saved/<draft id>` |
| `DraftBackedUp` | `draft-backup/<draft id>` |
| `DraftVariableChanged` | `draft-variable/<change id>` |
| `ImportPending` | `import/<import id>` |
"""

from collections import OrderedDict
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

DECISIONS_KEPT = 1_000
"""Whoever has saved asks at once what became of it; nobody asks for older ones."""

IMPORT_KEPT_US = 60 * 60 * 1_000_000
"""Longer than an import may wait, whatever the clocks of two replicas say."""


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class DraftStored(_Fact):
    """The text of a save or of a backup."""

    type: Literal["DraftStored"] = "DraftStored"
    draft_id: str
    document: str


class DraftSaved(_Fact):
    """Somebody saved the draft of an app; it counts only if `after` is the current draft then, or if it overwrites."""

    type: Literal["DraftSaved"] = "DraftSaved"
    app_id: str
    draft_id: str
    after: str | None = None
    """The save it was made from; None: there was none."""
    overwrite: bool = False
    """An import or a restore, which people ask for knowing that it replaces what is there."""
    hash: str
    """Digest of the graph, as editors send it back."""
    digest: str | None = None
    """Its text is the document with this digest; None: it is in `DraftStored`."""
    saved_at_us: int


class DraftBackedUp(_Fact):
    """A copy of a draft was put aside; its text is in `DraftStored` under the same id."""

    type: Literal["DraftBackedUp"] = "DraftBackedUp"
    app_id: str
    draft_id: str
    hash: str
    backed_up_at_us: int


class DraftVariableChanged(_Fact):
    """Somebody set, deleted or reset a value that runs of the draft had left for further runs."""

    type: Literal["DraftVariableChanged"] = "DraftVariableChanged"
    change_id: str
    app_id: str
    node_id: str = ""
    """Empty: of all nodes."""
    name: str = ""
    """Empty: all variables of the node."""
    change: Literal["set", "deleted", "reset"]
    value: JsonValue = None
    changed_at_us: int


class ImportPending(_Fact):
    """A document of a newer or much older format: somebody must say that it is to be imported all the same."""

    type: Literal["ImportPending"] = "ImportPending"
    import_id: str
    app_id: str | None = None
    document: str
    changes: dict[str, JsonValue] = {}
    """What the request said about the app, in place of what the document says."""
    pending_since_us: int


DraftFact = DraftStored | DraftSaved | DraftBackedUp | DraftVariableChanged | ImportPending


def draft_key(draft_id: str) -> str:
    """The key of the record that holds the text of a save."""
    return f"draft/{draft_id}"


def key_of_draft_fact(fact: DraftFact) -> str:
    match fact:
        case DraftStored():
            return draft_key(fact.draft_id)
        case DraftSaved():
            return f"draft-saved/{fact.draft_id}"
        case DraftBackedUp():
            return f"draft-backup/{fact.draft_id}"
        case DraftVariableChanged():
            return f"draft-variable/{fact.change_id}"
        case ImportPending():
            return f"import/{fact.import_id}"


class DraftBook:
    """The fold. Like the registry it belongs to: one thread applies, any thread looks up."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._current: dict[str, DraftSaved] = {}
        self._decided: OrderedDict[str, bool] = OrderedDict()
        self._backups: dict[str, tuple[DraftBackedUp, ...]] = {}
        self._changes: dict[str, dict[tuple[str, str], DraftVariableChanged]] = {}
        self._imports: dict[str, ImportPending] = {}

    def evolve(self, fact: DraftFact) -> None:
        match fact:
            case DraftStored():
                self._texts[fact.draft_id] = fact.document
            case DraftSaved():
                self._decide(fact)
            case DraftBackedUp():
                others = (one for one in self.backups(fact.app_id) if one.draft_id != fact.draft_id)
                self._backups[fact.app_id] = (*others, fact)
            case DraftVariableChanged():
                self._change(fact)
            case ImportPending():
                oldest_us = fact.pending_since_us - IMPORT_KEPT_US
                kept = {key: one for key, one in self._imports.items() if one.pending_since_us > oldest_us}
                self._imports = kept | {fact.import_id: fact}

    def _decide(self, fact: DraftSaved) -> None:
        if fact.draft_id in self._decided:
            return  # a record that came twice
        current = self._current.get(fact.app_id)
        wins = fact.overwrite or fact.after == (current.draft_id if current else None)
        self._decided[fact.draft_id] = wins
        if len(self._decided) > DECISIONS_KEPT:
            self._decided.popitem(last=False)
        if wins:
            self._current[fact.app_id] = fact
        loser = current if wins else fact
        if loser is not None:
            self._texts.pop(loser.draft_id, None)

    def _change(self, fact: DraftVariableChanged) -> None:
        known = self._changes.get(fact.app_id, {})
        # What is said of all replaces what was said of each: it is newer.
        kept = {
            place: one
            for place, one in known.items()
            if not (fact.node_id in ("", place[0]) and fact.name in ("", place[1]))
        }
        self._changes[fact.app_id] = kept | {(fact.node_id, fact.name): fact}

    def forget(self, key: str) -> None:
        """The record with this key was taken back."""
        kind, _, identity = key.partition("/")
        if kind == "import":
            self._imports = {one: fact for one, fact in self._imports.items() if one != identity}
        elif kind == "draft-backup":
            self._backups = {
                app_id: tuple(one for one in known if one.draft_id != identity)
                for app_id, known in self._backups.items()
            }
        elif kind == "draft":
            self._texts.pop(identity, None)

    def forget_app(self, app_id: str) -> None:
        for each in (self._current.pop(app_id, None), *self._backups.pop(app_id, ())):
            if each is not None:
                self._texts.pop(each.draft_id, None)
        self._changes.pop(app_id, None)

    def draft(self, app_id: str) -> DraftSaved | None:
        return self._current.get(app_id)

    def text(self, draft_id: str) -> str | None:
        """What was stored for a save that is current, or for a backup."""
        return self._texts.get(draft_id)

    def won(self, draft_id: str) -> bool | None:
        """Whether the save became the draft; None: it was not read, or long ago."""
        return self._decided.get(draft_id)

    def backups(self, app_id: str) -> tuple[DraftBackedUp, ...]:
        """Oldest first."""
        return self._backups.get(app_id, ())

    def variable_changes(self, app_id: str) -> tuple[DraftVariableChanged, ...]:
        """The newest of each place, in the order of the log."""
        return tuple(self._changes.get(app_id, {}).values())

    def pending_import(self, import_id: str) -> ImportPending | None:
        return self._imports.get(import_id)
