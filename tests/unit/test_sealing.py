"""Sealing: what comes back, who can open it, and what is said when that is not possible."""

import os
from pathlib import Path

import pytest

from libs.events.drafts import DraftSaved, DraftStored
from libs.events.log import Record, Topic
from libs.events.registry import (
    AppCreated,
    AppDeleted,
    DocumentStored,
    Fact,
    Registry,
    VersionPublished,
    encode_fact,
)
from libs.events.sealing import SealError, Vault, stored_key

VAULT = Vault(lambda: "right")
WRONG = Vault(lambda: "wrong")
NONE = Vault(lambda: None)


def test_what_was_sealed_comes_back_and_never_looks_the_same() -> None:
    data = "sk-live-ü".encode()
    first, second = VAULT.seal(data), VAULT.seal(data)
    assert first != second
    assert VAULT.open(first) == VAULT.open(second) == data


def test_another_key_is_named_without_showing_it() -> None:
    token = VAULT.seal(b"x")
    with pytest.raises(SealError, match="FLOWLEDGER_SECRET_KEY") as error:
        WRONG.open(token)
    assert token.split(".")[1] in str(error.value)
    assert "right" not in str(error.value)
    with pytest.raises(SealError, match="is missing"):
        NONE.open(token)
    with pytest.raises(SealError, match="is missing"):
        NONE.seal(b"x")


@pytest.mark.parametrize("change", [lambda t: t[:-6] + "AAAAA=", lambda t: t[:20]])
def test_a_changed_token_is_told(change: object) -> None:
    with pytest.raises(SealError, match="changed in the log"):
        VAULT.open(change(VAULT.seal(b"some data that is long enough")))  # type: ignore[operator]  # a function of text


def test_a_newer_form_is_told() -> None:
    with pytest.raises(SealError, match="Upgrade"):
        VAULT.open("2.key.data")


def test_a_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert stored_key(None, folder, make=False)() is None
    made = stored_key(None, folder, make=True)()
    assert made
    assert stored_key(None, folder, make=True)() == stored_key(None, folder, make=False)() == made
    assert stored_key("given", folder, make=True)() == "given"
    assert [file.name for file in folder.iterdir()] == ["secret-key"]
    assert os.stat(folder / "secret-key").st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_keep_a_key_is_named_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SealError, match="Set FLOWLEDGER_SECRET_KEY"):
        stored_key(None, tmp_path / "file", make=True)()


# --- documents ---

WITH_SECRET = DocumentStored(
    digest="d1", document='{"environment_variables": [{"value_type": "secret", "value": "k3y"}]}'
)
WITHOUT = DocumentStored(digest="d2", document="app: {}")


APP = AppCreated(app_id="a", name="A", created_at_us=1)
VERSION = VersionPublished(app_id="a", workflow_id="w", version="1", digest="d1", published_at_us=2)


def applied(registry: Registry, *facts: Fact) -> Registry:
    for offset, fact in enumerate(facts):
        entry = encode_fact(fact, VAULT)
        registry.apply(Record(Topic.DEFINITIONS, 0, offset, 0, entry.key, entry.value, dict(entry.headers)))
    return registry


def test_a_document_with_a_secret_is_sealed_and_any_other_is_not() -> None:
    sealed, plain = encode_fact(WITH_SECRET, VAULT), encode_fact(WITHOUT, VAULT)
    assert sealed.key == encode_fact(WITH_SECRET).key
    assert b"k3y" not in (sealed.value or b"")
    assert plain == encode_fact(WITHOUT)


@pytest.mark.parametrize("text", ["value_type: SECRET", 'value_type: "\\x73ecret"', "config: {api_key: x}"])
def test_a_secret_is_not_missed_by_how_it_is_written(text: str) -> None:
    assert text.encode() not in (encode_fact(DocumentStored(digest="d", document=text), VAULT).value or b"")


def test_a_sealed_document_is_there_with_the_key_and_asked_for_in_vain_without() -> None:
    registry = applied(Registry(VAULT), APP, WITH_SECRET, VERSION, WITHOUT)
    assert (registry.document("d1"), registry.document("d2")) == (WITH_SECRET.document, WITHOUT.document)
    registry.check_sealed()
    for vault in (WRONG, NONE):
        closed = applied(Registry(vault), APP, WITH_SECRET, VERSION, WITHOUT)
        assert closed.document("d2") == WITHOUT.document
        with pytest.raises(SealError, match="FLOWLEDGER_SECRET_KEY"):
            closed.document("d1")
        with pytest.raises(SealError, match="FLOWLEDGER_SECRET_KEY"):
            closed.check_sealed()


def test_a_sealed_document_that_no_app_has_keeps_nobody_from_work() -> None:
    draft = DraftStored(draft_id="s", document=WITH_SECRET.document)
    saved = DraftSaved(draft_id="s", app_id="a", after=None, hash="h", saved_at_us=3)
    for used in ((APP, WITH_SECRET, VERSION), (APP, draft, saved)):
        with pytest.raises(SealError):
            applied(Registry(WRONG), *used).check_sealed()
        applied(Registry(WRONG), *used, AppDeleted(app_id="a", deleted_at_us=4)).check_sealed()
    applied(Registry(WRONG), APP, WITH_SECRET).check_sealed()


def test_a_key_that_comes_later_opens_what_was_read_before() -> None:
    keys: list[str] = []
    registry = applied(Registry(Vault(lambda: keys[0] if keys else None)), WITH_SECRET)
    keys.append("right")
    assert registry.document("d1") == WITH_SECRET.document
    registry.check_sealed()
