import threading
from collections.abc import Callable, Mapping

import pytest

from libs.events.local_tail import LocalTail
from libs.events.log import Entry, LogError, Record, Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.registry import (
    REFRESH_EVERY_S,
    AppCreated,
    DocumentStored,
    Fact,
    KeyCreated,
    KeyRevoked,
    Registry,
    RegistryTail,
    VersionPublished,
    encode_fact,
    hash_key,
    read_registry,
)


def app(app_id: str = "a", name: str = "App") -> AppCreated:
    return AppCreated(app_id=app_id, name=name, created_at_us=1)


def version(workflow_id: str, app_id: str = "a") -> VersionPublished:
    return VersionPublished(
        app_id=app_id, workflow_id=workflow_id, version="v", digest=f"d{workflow_id}", published_at_us=2
    )


def key(key_id: str, secret: str, app_id: str = "a") -> KeyCreated:
    return KeyCreated(key_id=key_id, app_id=app_id, hash=hash_key(secret), prefix=secret[:8], created_at_us=3)


def fold(*facts: Fact) -> Registry:
    registry = Registry()
    for offset, fact in enumerate(facts):
        registry.apply(record(encode_fact(fact), offset))
    return registry


def record(entry: Entry, offset: int = 0) -> Record:
    return Record(Topic.DEFINITIONS, 0, offset, 0, entry.key, entry.value, dict(entry.headers))


def test_every_fact_has_a_key_of_its_own() -> None:
    facts: list[Fact] = [
        app(),
        DocumentStored(digest="d1", document="x"),
        version("w1"),
        key("k1", "app-secret"),
        KeyRevoked(key_id="k1", app_id="a", revoked_at_us=4),
    ]
    assert [encode_fact(fact).key for fact in facts] == [
        b"app/a",
        b"document/d1",
        b"version/w1",
        b"key/k1",
        b"revoked/k1",
    ]


def test_apps_and_documents_are_found_by_their_ids() -> None:
    registry = fold(app("a"), app("b"), DocumentStored(digest="d1", document="text"))
    assert registry.app("b") == app("b")
    assert registry.app("c") is None
    assert [found.app_id for found in registry.apps()] == ["a", "b"]
    assert registry.document("d1") == "text"
    assert registry.document("d2") is None
    assert registry.position == 3


def test_a_later_record_of_the_same_app_replaces_it() -> None:
    assert [found.name for found in fold(app(name="old"), app(name="new")).apps()] == ["new"]


def test_the_latest_version_is_the_one_published_last() -> None:
    registry = fold(version("w2"), version("w1"), version("w3", "b"))
    assert [found.workflow_id for found in registry.versions("a")] == ["w2", "w1"]
    assert registry.latest("a") == version("w1")
    assert registry.version("w3") == version("w3", "b")
    assert registry.latest("c") is None
    assert registry.versions("c") == ()


def test_a_version_that_is_published_again_is_the_latest_and_listed_once() -> None:
    registry = fold(version("w1"), version("w2"), version("w1"))
    assert [found.workflow_id for found in registry.versions("a")] == ["w2", "w1"]


def test_a_key_opens_its_app_until_it_is_revoked() -> None:
    created = key("k1", "app-secret")
    assert fold(created).app_of_key("app-secret") == "a"
    assert fold(created).app_of_key("app-secre") is None
    assert fold(created).keys("a") == (created,)
    revoked = fold(created, KeyRevoked(key_id="k1", app_id="a", revoked_at_us=4))
    assert revoked.app_of_key("app-secret") is None
    assert revoked.keys("a") == ()


def test_a_key_too_many_opens_nothing_wherever_it_is_read() -> None:
    one, two, three = (key(f"k{number}", f"app-secret-{number}").model_copy(update={"most": 2}) for number in range(3))
    full = fold(one, two, three)
    assert full.keys("a") == (one, two)
    assert (full.app_of_key("app-secret-2"), full.refused("k2")) == (None, True)
    assert not full.refused("k1")
    assert fold(one, two, KeyRevoked(key_id="k0", app_id="a", revoked_at_us=4), three).keys("a") == (two, three)
    assert fold(one, two, two).keys("a") == (one, two)
    decided_before = three.model_copy(update={"most": None})
    assert fold(one, two, decided_before).keys("a") == (one, two, decided_before)


def test_a_key_that_two_apps_bring_along_opens_the_first() -> None:
    brought = [key(f"k{app_id}", "app-same-secret", app_id).model_copy(update={"most": 10}) for app_id in "ab"]
    both = fold(*brought)
    assert (both.app_of_key("app-same-secret"), both.refused("kb")) == ("a", True)


def test_a_key_is_never_in_the_log() -> None:
    entry = encode_fact(key("k1", "app-0123456789secret"))
    assert b"secret" not in (entry.value or b"")


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"type":"FromTheFuture"}', b'{"type":"AppCreated"}', None])
def test_a_record_that_cannot_be_read_is_counted_and_changes_nothing(value: bytes | None) -> None:
    registry = fold(app())
    registry.apply(record(Entry(b"app/x", value), 1))
    assert (registry.position, registry.ignored, len(registry.apps())) == (2, 0 if value is None else 1, 1)


# --- following the log -----------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def send(log: MemoryLog, fact: Fact) -> int:
    return log.send(Topic.DEFINITIONS, 0, encode_fact(fact)).result(10)


def test_a_tail_knows_what_was_there_and_what_comes() -> None:
    log = MemoryLog()
    send(log, app("a"))
    tail = RegistryTail(log)
    assert tail.wait_for(0, 10)
    offset = send(log, app("b"))
    assert tail.wait_for(offset, 10)
    assert [found.app_id for found in tail.apps()] == ["a", "b"]
    assert not tail.wait_for(offset + 1, 0.001)
    tail.close()
    log.close()


def test_a_refresh_reads_to_the_end_as_of_the_call() -> None:
    log = MemoryLog()
    tail = RegistryTail(log)
    for n in range(50):
        send(log, app(f"a{n}"))
    tail.refresh(10)
    assert tail.app("a49") is not None
    tail.close()
    log.close()


def test_a_second_refresh_waits_before_it_asks_the_log_again() -> None:
    log = MemoryLog()
    clock = Clock()
    tail = RegistryTail(log, monotonic=lambda: clock.now, pause=clock.pause)
    tail.refresh()
    clock.now += 0.04
    tail.refresh()
    clock.now += 5
    tail.refresh()
    assert clock.pauses == [pytest.approx(REFRESH_EVERY_S - 0.04), 0.0]
    tail.close()
    log.close()


def test_many_that_ask_at_once_share_a_look_at_the_log() -> None:
    log = CountingLog()
    tail = RegistryTail(log)
    tail.refresh()
    before = log.asked
    threads = [threading.Thread(target=tail.refresh) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.asked - before <= 2
    tail.close()
    log.close()


class CountingLog(MemoryLog):
    asked = 0

    def bounds(self, topic: Topic, partition: int) -> tuple[int, int]:
        self.asked += 1
        return super().bounds(topic, partition)


def test_a_refresh_that_cannot_reach_the_end_says_so() -> None:
    storage = MemoryStore()
    log = MemoryLog(storage, threads=False)
    tail = RegistryTail(log)
    log.send(Topic.DEFINITIONS, 0, encode_fact(app()))
    log.land()
    with pytest.raises(LogError, match="0 of 1"):
        tail.refresh(0.001)
    log.deliver()
    tail.refresh(0.001)
    assert tail.app("a") == app()


def test_a_tail_that_lost_its_place_fails_those_who_wait() -> None:
    tail = RegistryTail(BrokenTailLog(threads=False))
    with pytest.raises(LogError, match="gone"):
        tail.wait_for(0, 10)


class BrokenTailLog(MemoryLog):
    def tail(
        self,
        topic: Topic,
        starts: Mapping[int, int],
        deliver: Callable[[list[Record]], None],
        on_error: Callable[[LogError], None],
    ) -> LocalTail:
        on_error(LogError("gone"))
        return super().tail(topic, {}, deliver, on_error)


def test_a_registry_read_once_is_the_same() -> None:
    log = MemoryLog()
    send(log, app())
    send(log, version("w1"))
    registry = read_registry(log)
    assert (registry.position, registry.latest("a")) == (2, version("w1"))
    log.close()
