"""Drafts, backups, changed variables and pending imports, folded from their facts."""

import pytest

from libs.events.drafts import (
    DECISIONS_KEPT,
    IMPORT_KEPT_US,
    DraftBackedUp,
    DraftStored,
    DraftVariableChanged,
    ImportPending,
)
from libs.events.drafts import DraftSaved as Saved
from libs.events.log import Record, Topic
from libs.events.registry import (
    AppChanged,
    AppCreated,
    AppDeleted,
    Fact,
    KeyCreated,
    Registry,
    VersionDeleted,
    VersionMarked,
    VersionPublished,
    encode_fact,
    hash_key,
    taken_back,
)


def fold(*facts: Fact | str) -> Registry:
    """A text stands for the key of a fact that is taken back."""
    registry = Registry()
    for offset, fact in enumerate(facts):
        entry = taken_back(fact) if isinstance(fact, str) else encode_fact(fact)
        registry.apply(Record(Topic.DEFINITIONS, 0, offset, 0, entry.key, entry.value, dict(entry.headers)))
    assert registry.ignored == 0
    return registry


def stored(draft_id: str) -> DraftStored:
    return DraftStored(draft_id=draft_id, document=f"text of {draft_id}")


def saved(draft_id: str, after: str | None = None, *, overwrite: bool = False) -> Saved:
    return Saved(app_id="a", draft_id=draft_id, after=after, overwrite=overwrite, hash=f"h{draft_id}", saved_at_us=1)


def app(app_id: str = "a") -> AppCreated:
    return AppCreated(app_id=app_id, name="App", created_at_us=1)


SITE = AppChanged(change_id="s", app_id="a", site_code="code", updated_at_us=1)


def test_of_two_saves_made_from_the_same_draft_the_first_in_the_log_wins() -> None:
    book = fold(stored("1"), saved("1"), stored("2"), stored("3"), saved("2", "1"), saved("3", "1")).drafts
    assert book.draft("a") == saved("2", "1")
    assert (book.won("1"), book.won("2"), book.won("3"), book.won("4")) == (True, True, False, None)


def test_a_first_save_loses_against_another_first_save() -> None:
    book = fold(saved("1"), saved("2")).drafts
    assert book.draft("a") == saved("1")
    assert book.won("2") is False


def test_an_import_replaces_whatever_is_there() -> None:
    book = fold(saved("1"), saved("2", overwrite=True), saved("3", "1")).drafts
    assert book.draft("a") == saved("2", overwrite=True)


def test_a_record_that_came_twice_is_decided_once() -> None:
    book = fold(saved("1"), saved("2", "1"), saved("2", "1")).drafts
    assert book.won("2") is True


def test_only_the_text_of_the_current_draft_is_kept() -> None:
    book = fold(stored("1"), saved("1"), stored("2"), saved("2", "1"), stored("3"), saved("3", "1")).drafts
    assert [book.text(name) for name in "123"] == [None, "text of 2", None]


def test_saves_are_decided_alike_when_superseded_texts_were_compacted_away() -> None:
    book = fold(saved("1"), "draft/1", stored("2"), saved("2", "1"), "draft/3", saved("3", "1")).drafts
    assert book.draft("a") == saved("2", "1")
    assert book.text("2") == "text of 2"


def test_what_became_of_old_saves_is_forgotten() -> None:
    facts = [saved(str(number), overwrite=True) for number in range(DECISIONS_KEPT + 1)]
    book = fold(*facts).drafts
    assert (book.won("0"), book.won("1")) == (None, True)


def test_a_backup_keeps_its_text_until_it_is_taken_back() -> None:
    backup = DraftBackedUp(app_id="a", draft_id="b", hash="h", backed_up_at_us=1)
    facts: list[Fact | str] = [stored("b"), backup, stored("1"), saved("1"), saved("2", "1")]
    assert fold(*facts).drafts.text("b") == "text of b"
    assert fold(*facts).drafts.backups("a") == (backup,)
    gone = fold(*facts, "draft-backup/b", "draft/b").drafts
    assert (gone.backups("a"), gone.text("b")) == ((), None)


@pytest.mark.parametrize(
    ("node_id", "name", "left"),
    [("n", "x", {("n", "x"), ("n", "y"), ("m", "x")}), ("n", "", {("n", ""), ("m", "x")}), ("", "", {("", "")})],
)
def test_a_change_of_many_variables_replaces_older_changes_of_each(
    node_id: str, name: str, left: set[tuple[str, str]]
) -> None:
    places = [("n", "x"), ("n", "y"), ("m", "x"), (node_id, name)]
    facts = [
        DraftVariableChanged(change_id=str(at), app_id="a", node_id=node, name=of, change="deleted", changed_at_us=at)
        for at, (node, of) in enumerate(places)
    ]
    assert {(one.node_id, one.name) for one in fold(*facts).drafts.variable_changes("a")} == left


def test_a_pending_import_is_there_until_it_is_taken_back_or_old() -> None:
    first = ImportPending(import_id="i", document="d", pending_since_us=1)
    assert fold(first).drafts.pending_import("i") == first
    assert fold(first, "import/i").drafts.pending_import("i") is None
    later = ImportPending(import_id="j", document="d", pending_since_us=2 + IMPORT_KEPT_US)
    assert fold(first, later).drafts.pending_import("i") is None


def test_the_latest_change_of_each_field_of_an_app_counts() -> None:
    registry = fold(
        app(),
        AppChanged(change_id="1", app_id="a", name="New", enable_api=False, updated_at_us=2),
        AppChanged(change_id="2", app_id="a", description="d", enable_api=True, updated_at_us=3),
        AppChanged(change_id="3", app_id="unknown", name="x", updated_at_us=4),
    )
    changed = registry.app("a")
    assert changed is not None
    assert (changed.name, changed.description, changed.enable_api, changed.updated_at_us) == ("New", "d", True, 3)
    assert registry.apps() == (changed,)


def test_a_deleted_app_is_nowhere_whatever_comes_after() -> None:
    created = KeyCreated(key_id="k", app_id="a", hash=hash_key("app-x"), prefix="app-", created_at_us=1)
    registry = fold(app(), SITE, created, saved("1"), AppDeleted(app_id="a", deleted_at_us=2), app(), saved("2", "1"))
    assert (registry.app("a"), registry.apps(), registry.app_of_site("code")) == (None, (), None)
    assert registry.deleted("a")
    assert not registry.deleted("b")


def test_a_site_is_found_by_its_code_while_it_is_on() -> None:
    off = AppChanged(change_id="1", app_id="a", enable_site=False, updated_at_us=2)
    other = AppChanged(change_id="2", app_id="a", site_code="other", updated_at_us=3)
    found = fold(app(), SITE).app_of_site("code")
    assert found is not None
    assert fold(app(), SITE, off).app_of_site("code") is None
    moved = fold(app(), SITE, other)
    assert moved.app_of_site("code") is None
    assert moved.app_of_site("other") is not None
    assert moved.app_of_site("") is None


def test_versions_are_renamed_and_deleted() -> None:
    def version(workflow_id: str) -> VersionPublished:
        return VersionPublished(app_id="a", workflow_id=workflow_id, version="v", digest="d", published_at_us=2)

    registry = fold(
        version("1"),
        version("2"),
        VersionMarked(change_id="c", workflow_id="2", marked_name="second", marked_at_us=3),
        VersionMarked(change_id="d", workflow_id="9", marked_name="unknown", marked_at_us=3),
        VersionDeleted(app_id="a", workflow_id="1", deleted_at_us=4),
    )
    assert [(one.workflow_id, one.marked_name) for one in registry.versions("a")] == [("2", "second")]
    assert registry.version("1") is None
    assert registry.version("2") == registry.latest("a")
