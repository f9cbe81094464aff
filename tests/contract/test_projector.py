"""The projector over SQLite and PostgreSQL: same rows, same positions, whatever dies in between (faults C.4, C.5)."""

import random
import string
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError

from libs.events.ids import execution_id
from libs.events.log import Entry, Topic
from libs.events.memory import MemoryLog, MemoryStore
from libs.events.model import RunStarted, RunSucceeded, VariableForm, VariableUpdate
from libs.tables import (
    TablesError,
    create_tables,
    dead_letters,
    metadata,
    open_engine,
    positions,
    sqlite_url,
    workflow_runs,
)
from services.api import talk_records
from services.projector.batch import FOREIGN
from services.projector.health import readiness
from services.projector.position import PositionTaken, RebuildNeeded
from services.projector.projector import Projector
from services.projector.rebuild import rebuild
from services.projector.verify import find_runs, verify
from tests.projections import (
    TALK,
    Owner,
    accepted,
    append,
    broken,
    conversation,
    dump,
    entry,
    failing_story,
    interleaved,
    node,
    run_id,
    said,
    story,
)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        made = open_engine(sqlite_url(tmp_path / "tables.db"))
    else:
        made = open_engine(request.getfixturevalue("postgres_url"))
    yield made
    made.dispose()


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    made = MemoryLog(MemoryStore(partitions=2))
    yield made
    made.close()


def fill(log: MemoryLog, owner: Owner, first: int, runs: int) -> None:
    ids = [run_id(i, owner.partition) for i in range(first, first + runs)]
    stories = {run: story(run) if i % 3 else failing_story(run) for i, run in enumerate(ids)}
    append(log, [entry(one) for one in interleaved(owner, stories)], owner.partition)


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not reached in time"
        time.sleep(0.005)


def caught_up(projector: Projector) -> bool:
    state = projector.state()
    assert state.failure is None, state.failure
    return state.running and not any(state.lag_records.values())


def project_all(log: MemoryLog, engine: Engine) -> None:
    projector = Projector(log, engine)
    projector.start()
    try:
        wait_until(lambda: caught_up(projector))
    finally:
        projector.stop()


def test_rows_show_what_the_log_holds(log: MemoryLog, engine: Engine) -> None:
    fill(log, Owner(0), 0, 4)
    fill(log, Owner(1), 100, 4)
    project_all(log, engine)
    rows = dump(engine)
    assert len(rows["workflow_runs"]) == 8
    with engine.begin() as connection:
        statuses = connection.execute(select(workflow_runs.c.status).order_by(workflow_runs.c.id)).scalars().all()
    assert statuses == ["failed", "succeeded", "succeeded", "failed"] * 2
    assert len(rows["workflow_node_executions"]) == 4 * 3 + 4


def test_rows_written_event_by_event_are_those_of_one_batch(log: MemoryLog, engine: Engine, tmp_path: Path) -> None:
    owner = Owner()
    records = list(interleaved(owner, {run_id(i): story(run_id(i)) for i in range(2)}))
    projector = Projector(log, engine)
    projector.start()
    try:
        for recorded in records:
            append(log, [entry(recorded)])
            wait_until(lambda: caught_up(projector))
    finally:
        projector.stop()
    other = open_engine(sqlite_url(tmp_path / "other.db"))
    project_all(log, other)
    assert dump(engine) == dump(other)
    other.dispose()


def test_a_restart_goes_on_behind_the_saved_position(log: MemoryLog, engine: Engine, tmp_path: Path) -> None:
    owner = Owner()
    records = [entry(one) for one in interleaved(owner, {run_id(i): story(run_id(i)) for i in range(3)})]
    half = len(records) // 2
    append(log, records[:half])
    project_all(log, engine)
    append(log, records[half:])
    project_all(log, engine)
    other = open_engine(sqlite_url(tmp_path / "other.db"))
    project_all(log, other)
    assert dump(engine) == dump(other)
    other.dispose()


def test_records_of_a_frozen_owner_leave_no_trace(log: MemoryLog, engine: Engine) -> None:
    old, new = Owner(), Owner()
    append(log, [entry(one) for one in interleaved(old, {run_id(1): story(run_id(1))})])
    new.epoch, new.seqs = old.epoch, dict(old.seqs)
    append(log, [entry(new.claim())])
    append(log, [entry(old.record(run_id(2), accepted(run_id(2))))])
    append(log, [entry(new.record(run_id(3), accepted(run_id(3))))])
    project_all(log, engine)
    with engine.begin() as connection:
        assert set(connection.execute(select(workflow_runs.c.id)).scalars()) == {run_id(1), run_id(3)}
        assert connection.execute(select(positions.c.ignored)).scalars().first() == 1


def test_a_record_that_cannot_be_decoded_becomes_a_dead_letter_and_nothing_sticks(
    log: MemoryLog, engine: Engine
) -> None:
    owner = Owner()
    run = run_id(1)
    events = [owner.claim(), owner.record(run, accepted(run)), owner.record(run, node("a", 1))]
    poison = owner.record(run, node("b", 2))
    append(log, [*map(entry, events), broken(poison), entry(owner.record(run, node("c", 3)))])
    project_all(log, engine)
    with engine.begin() as connection:
        found = connection.execute(select(dead_letters)).mappings().one()
    assert (found["partition"], found["offset"], found["run_id"]) == (0, poison.offset, run)
    assert found["type"] == "NodeStarted"
    assert len(dump(engine)["workflow_node_executions"]) == 2
    letters = [one for batch in log.read(Topic.DEAD_LETTERS, 0, 0) for one in batch]
    assert [letter.headers["source"] for letter in letters] == [b"events[0]@%d" % poison.offset]


def test_foreign_records_are_counted_and_keep_a_row_with_their_place(log: MemoryLog, engine: Engine) -> None:
    owner = Owner()
    run = run_id(1)
    events = [entry(one) for one in interleaved(owner, {run: story(run)})]
    foreign = [
        Entry(None, b"\x00garbage"),
        Entry(b"key", None, [("ce_type", b"somebody.else.1"), ("ce_subject", b"\xff\x00")]),
        Entry(None, b"{}", [("ce_epoch", b"one"), ("ce_n", b"1"), ("ce_type", b"flowledger.NodeStarted.1")]),
    ]
    append(log, events[:3])
    append(log, foreign)
    append(log, events[3:])
    project_all(log, engine)
    with engine.begin() as connection:
        found = connection.execute(select(dead_letters).order_by(dead_letters.c.offset)).mappings().all()
        assert connection.execute(select(positions.c.ignored)).scalars().first() == 3
    assert [(row["offset"], row["reason"], row["size_bytes"]) for row in found] == [
        (3, FOREIGN, 8),
        (4, FOREIGN, 0),
        (5, FOREIGN, 2),
    ]
    assert [row["type"] for row in found] == [None, "else", "NodeStarted"]
    with engine.begin() as connection:
        assert connection.execute(select(workflow_runs.c.status)).scalars().all() == ["succeeded"]
    assert [one for batch in log.read(Topic.DEAD_LETTERS, 0, 0) for one in batch] == []


@pytest.mark.postgres
def test_a_row_that_the_database_refuses_becomes_a_dead_letter_alone(log: MemoryLog, postgres_url: str) -> None:
    engine = open_engine(postgres_url)
    owner = Owner()
    run = run_id(1)
    # Too long for an index entry of PostgreSQL (2,704 bytes), and random enough not to be compressed below it.
    long_id = "".join(random.Random(1).choices(string.ascii_letters, k=20_000))
    events = [owner.claim(), owner.record(run, accepted(run))]
    events += [owner.record(run, node(f"n{i}", i + 1)) for i in range(5)]
    poison = owner.record(run, node(long_id, 6))
    events += [poison, *(owner.record(run, node(f"n{i}", i + 1)) for i in range(6, 10))]
    append(log, list(map(entry, events)))
    project_all(log, engine)
    with engine.begin() as connection:
        assert connection.execute(select(dead_letters.c.offset)).scalars().all() == [poison.offset]
    assert len(dump(engine)["workflow_node_executions"]) == 9
    engine.dispose()


def test_a_second_projector_on_the_tables_fails_its_transaction_and_says_so(log: MemoryLog, engine: Engine) -> None:
    owner = Owner()
    append(log, [entry(one) for one in interleaved(owner, {run_id(1): story(run_id(1))})])
    behind = Projector(log, engine)
    gate = threading.Event()
    reached = threading.Event()

    def hold(records: Sequence[object]) -> None:
        reached.set()
        assert gate.wait(20)

    held = _Held(log, hold)
    behind = Projector(held, engine)  # type: ignore[arg-type]  # delegates what it does not hold back
    failure: list[BaseException] = []

    def run() -> None:
        try:
            behind.run()
        except PositionTaken as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert reached.wait(20)
    project_all(log, engine)
    before = dump(engine)
    gate.set()
    thread.join(20)
    assert "Another projector writes these tables" in str(failure[0])
    assert dump(engine) == before


class _Held:
    """A log whose tail holds every batch back until the test lets it go."""

    def __init__(self, log: MemoryLog, hold: Callable[[Sequence[object]], None]) -> None:
        self._log, self._hold = log, hold

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def tail(self, topic, starts, deliver, on_error):  # type: ignore[no-untyped-def]  # as Log.tail
        def later(records: Sequence[object]) -> None:
            self._hold(records)
            deliver(records)

        return self._log.tail(topic, starts, later, on_error)


@pytest.mark.parametrize("at", ["begin", "commit", "answer to commit"])
def test_a_crash_around_the_commit_repeats_or_keeps_the_batch(
    log: MemoryLog, engine: Engine, tmp_path: Path, at: str
) -> None:
    fill(log, Owner(), 0, 3)
    projector = Projector(log, engine)
    create_tables(engine)
    failures = iter([True])

    hook = at.rpartition(" ")[2]

    def fail(connection: Connection) -> None:
        if threading.current_thread().name == "projector" and next(failures, False):
            if hook != at:
                connection.connection.cursor().execute("COMMIT")
            raise OperationalError("COMMIT", {}, Exception("connection lost"))

    event.listen(engine, hook, fail)
    projector.start()
    try:
        wait_until(lambda: caught_up(projector))
    finally:
        projector.stop()
        event.remove(engine, hook, fail)
    other = open_engine(sqlite_url(tmp_path / "other.db"))
    project_all(log, other)
    assert dump(engine) == dump(other)
    other.dispose()


def test_a_database_that_is_away_is_waited_for_and_readiness_says_since_when(log: MemoryLog, tmp_path: Path) -> None:
    engine = open_engine(sqlite_url(tmp_path / "tables.db"))
    fill(log, Owner(), 0, 2)
    away = threading.Event()
    away.set()

    def fail(connection: object) -> None:
        if away.is_set():
            raise OperationalError("BEGIN", {}, Exception("server is gone"))

    event.listen(engine, "begin", fail)
    projector = Projector(log, engine, clock=lambda: 1_767_000_000.0)
    projector.start()
    try:
        wait_until(lambda: projector.state().database_down_since_s == 1_767_000_000.0)
        assert sum(projector.state().lag_records.values()) > 0
        away.clear()
        wait_until(lambda: caught_up(projector))
        assert projector.state().database_down_since_s is None
    finally:
        projector.stop()
    assert len(dump(engine)["workflow_runs"]) == 2
    engine.dispose()


def test_a_database_that_stands_still_counts_as_down(log: MemoryLog, tmp_path: Path) -> None:
    engine = open_engine(sqlite_url(tmp_path / "tables.db"))
    fill(log, Owner(), 0, 2)
    still, now = threading.Event(), [1_767_000_000.0]
    release = threading.Event()
    project_all(log, engine)

    def stand_still(connection: object) -> None:
        if threading.current_thread().name == "projector":
            still.set()
            release.wait(30)

    event.listen(engine, "begin", stand_still)
    projector = Projector(log, engine, clock=lambda: now[0])
    projector.start()
    try:
        assert still.wait(10)
        assert projector.state().database_down_since_s is None
        now[0] += 11
        assert projector.state().database_down_since_s == 1_767_000_000.0
        assert "it does not answer" in str(readiness(projector))
        release.set()
        wait_until(lambda: projector.state().running)
        assert projector.state().database_down_since_s is None
    finally:
        release.set()
        projector.stop()
    engine.dispose()


@pytest.mark.postgres
def test_a_deadlock_and_a_statement_that_takes_too_long_repeat_the_whole_batch(
    log: MemoryLog, postgres_url: str
) -> None:
    owner = Owner()
    run = run_id(1)
    append(log, [entry(owner.claim()), entry(owner.record(run, accepted(run)))])
    engine = open_engine(postgres_url)
    project_all(log, engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE \"{engine.url.database}\" SET statement_timeout = '2s'")
    impatient = open_engine(postgres_url)
    projector = Projector(log, impatient)
    projector.start()
    try:
        wait_until(lambda: caught_up(projector))
        with engine.connect() as other:
            other.execute(select(workflow_runs.c.id).with_for_update())  # what the projector will wait for
            append(log, [entry(one) for one in map(partial(owner.record, run), story(run)[1:])])
            wait_until(lambda: _waiters(engine) == 1)
            told = False
            try:
                other.execute(select(positions).with_for_update())
            except OperationalError:
                told = True  # on a busy machine it is this one that the database breaks off
            wait_until(lambda: told or projector.state().database_down_since_s is not None)
            other.rollback()
        wait_until(lambda: caught_up(projector))
        assert projector.state().database_down_since_s is None
    finally:
        projector.stop()
    assert verify(log, engine).differences == ()
    with engine.begin() as connection:
        assert connection.execute(select(workflow_runs.c.status)).scalars().all() == ["succeeded"]
    engine.dispose()
    impatient.dispose()


def _waiters(engine: Engine) -> int:
    """Connections to this database that wait for a lock."""
    with engine.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return int(connection.exec_driver_sql(query).scalar_one())


def test_a_database_that_lost_its_last_commits_is_filled_again(log: MemoryLog, tmp_path: Path) -> None:
    engine = open_engine(sqlite_url(tmp_path / "tables.db"))
    owner = Owner()
    records = [entry(one) for one in interleaved(owner, {run_id(i): story(run_id(i)) for i in range(2)})]
    append(log, records[:10])
    project_all(log, engine)
    with engine.begin() as connection:
        saved = connection.execute(select(positions)).mappings().all()
        runs = connection.execute(select(workflow_runs)).mappings().all()
    projector = Projector(log, engine)
    projector.start()
    try:
        append(log, records[10:20])
        wait_until(lambda: caught_up(projector))
        with engine.begin() as connection:  # as a stale replica that was promoted
            for table, rows in ((positions, saved), (workflow_runs, runs)):
                connection.execute(table.delete())
                connection.execute(table.insert(), [dict(row) for row in rows])
        append(log, records[20:])
        wait_until(lambda: caught_up(projector))
    finally:
        projector.stop()
    other = open_engine(sqlite_url(tmp_path / "other.db"))
    project_all(log, other)
    assert dump(engine) == dump(other)
    engine.dispose()
    other.dispose()


def test_tables_of_another_log_are_refused(log: MemoryLog, engine: Engine) -> None:
    fill(log, Owner(), 0, 1)
    project_all(log, engine)
    other = MemoryLog(MemoryStore(partitions=2))
    fill(other, Owner(), 5, 1)
    with pytest.raises(RebuildNeeded, match="flowledger rebuild"):
        Projector(other, engine).run()
    other.close()


def test_a_record_that_differs_at_the_saved_position_is_noticed(log: MemoryLog, engine: Engine) -> None:
    fill(log, Owner(), 0, 1)
    project_all(log, engine)
    other = MemoryLog(MemoryStore(partitions=2))
    fill(other, Owner(), 7, 3)  # the same offsets, other runs
    with engine.begin() as connection:
        connection.execute(positions.update().values(topic_id=other.topic_id(Topic.EVENTS)))
    with pytest.raises(RebuildNeeded, match="is not the one that was projected"):
        Projector(other, engine).run()
    other.close()


def test_a_rebuild_gives_the_same_rows(log: MemoryLog, engine: Engine) -> None:
    owner = Owner()
    fill(log, owner, 0, 6)
    append(log, [broken(owner.record(run_id(0), node("x", 9)))])
    project_all(log, engine)
    before = dump(engine)
    seen: list[tuple[int, int]] = []
    done = rebuild(log, engine, lambda at, total: seen.append((at, total)))
    assert dump(engine) == before
    assert (done.dead_letters, done.generation) == (1, 2)
    assert seen[-1][0] == seen[-1][1]
    project_all(log, engine)
    assert dump(engine) == before
    assert rebuild(log, engine).generation == 3


def test_a_rebuild_gives_the_same_rows_of_conversations(log: MemoryLog, engine: Engine, tmp_path: Path) -> None:
    records = [entry(one) for one in conversation(Owner())]
    projector = Projector(log, engine)
    projector.start()
    try:
        for record in records:
            append(log, [record])
            wait_until(lambda: caught_up(projector))
    finally:
        projector.stop()
    before = dump(engine)
    sizes = {
        "conversations": 2, "messages": 4, "message_feedbacks": 1, "workflow_conversation_variables": 2,
        "annotation_hits": 1,
    }  # fmt: skip
    assert {name: len(before[name]) for name in sizes} == sizes
    rebuild(log, engine)
    assert dump(engine) == before
    at_once = open_engine(sqlite_url(tmp_path / "other.db"))
    project_all(log, at_once)
    assert dump(at_once) == before
    at_once.dispose()


def test_variables_of_records_that_tell_no_ids_are_found_by_their_names(log: MemoryLog, engine: Engine) -> None:
    owner = Owner()

    def message(number: int, values: dict[str, Any], wrote: VariableUpdate | None, **more: Any) -> None:
        run = run_id(number)
        forms = {
            "old": VariableForm(id="", value_type="number"),
            "count": VariableForm(id="id-count", value_type="number"),
        }
        started = RunStarted(max_steps=9, conversation_id=TALK, variables=values, forms=forms, history=[], **more)
        ended = RunSucceeded(conversation_id=TALK, updates=(wrote,) if wrote is not None else None)
        for one in (*said(run, number, "yes")[:1], started, ended):
            append(log, [entry(owner.record(run, one))])

    def found() -> list[tuple[str, str, str]]:
        project_all(log, engine)
        with engine.begin() as connection:
            rows = talk_records.listed(talk_records.variables(connection, TALK))
        return [(row["name"], row["id"], talk_records.value_of(row)) for row in rows]

    def wrote(value: int, **more: Any) -> VariableUpdate:
        return VariableUpdate(selector=("conversation", "count"), value=value, value_type="number", **more)

    append(log, [entry(owner.claim())])
    message(1, {"count": 0}, wrote(1))
    assert found() == [("count", "id-count", "1")]
    message(2, {"count": 7}, None, renewed=("count",))
    assert found() == [("count", "id-count", "7")]
    message(3, {"count": 7}, wrote(8))
    assert found() == [("count", "id-count", "8")]
    message(4, {"count": 8}, wrote(9, id="id-count"))
    assert found() == [("count", "id-count", "9")]


def test_a_rebuild_heals_tables_that_were_changed_by_hand(log: MemoryLog, engine: Engine) -> None:
    fill(log, Owner(), 0, 3)
    project_all(log, engine)
    before = dump(engine)
    with engine.begin() as connection:
        connection.execute(workflow_runs.update().values(status="running"))
    rebuild(log, engine)
    assert dump(engine) == before


@pytest.mark.parametrize("gone", ["workflow_runs", "messages", "projection_positions"])
def test_a_table_that_was_dropped_is_named_and_a_rebuild_brings_it_back(
    log: MemoryLog, engine: Engine, gone: str
) -> None:
    """Made anew and empty it would look as if its rows had never been."""
    fill(log, Owner(), 0, 3)
    project_all(log, engine)
    before = dump(engine)
    with engine.begin() as connection:
        metadata.tables[gone].drop(connection)
    for work in (partial(create_tables, engine), partial(verify, log, engine), partial(find_runs, engine, "01")):
        with pytest.raises(TablesError, match=rf"missing here: {gone}\. .*flowledger rebuild"):
            work()
    rebuild(log, engine)
    create_tables(engine)
    assert dump(engine) == before


def test_tables_of_another_version_are_named_and_a_rebuild_makes_them_anew(log: MemoryLog, engine: Engine) -> None:
    fill(log, Owner(), 0, 3)
    project_all(log, engine)
    before = dump(engine)
    with engine.begin() as connection:
        connection.execute(metadata.tables["projection_schema"].update().values(version=1))
    for work in (partial(create_tables, engine), partial(verify, log, engine), partial(find_runs, engine, "01")):
        with pytest.raises(TablesError, match=r"tables have schema version 1, .*flowledger rebuild"):
            work()
    rebuild(log, engine)
    assert verify(log, engine).differences == ()
    assert dump(engine) == before


def test_a_rebuild_that_did_not_end_leaves_a_database_in_which_tables_are_made(log: MemoryLog, engine: Engine) -> None:
    fill(log, Owner(), 0, 1)

    def die(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rebuild(log, engine, die)
    project_all(log, engine)
    assert verify(log, engine).differences == ()


def test_a_rebuild_beside_a_running_projector_loses_nothing(log: MemoryLog, engine: Engine, tmp_path: Path) -> None:
    owner = Owner()
    fill(log, owner, 0, 10)
    projector = Projector(log, engine)
    projector.start()
    try:
        wait_until(lambda: caught_up(projector))
        for i in range(1, 4):
            fill(log, owner, i * 100, 5)
            rebuild(log, engine)
            fill(log, owner, i * 100 + 50, 5)
        wait_until(lambda: caught_up(projector))
    finally:
        projector.stop()
    other = open_engine(sqlite_url(tmp_path / "other.db"))
    project_all(log, other)
    assert dump(engine) == dump(other)
    other.dispose()


def test_node_rows_know_their_run_also_when_it_was_accepted_long_ago(log: MemoryLog, engine: Engine) -> None:
    owner, run = Owner(), run_id(1)
    append(log, [entry(owner.claim()), entry(owner.record(run, accepted(run)))])
    project_all(log, engine)
    append(log, [entry(owner.record(run, node("a", 1)))])
    project_all(log, engine)
    rows = dump(engine)["workflow_node_executions"]
    assert rows[0][0] == execution_id(run, "", "a")
    assert rows[0][2:4] == ("11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222")


def test_what_was_read_twice_changes_nothing(log: MemoryLog, engine: Engine) -> None:
    fill(log, Owner(), 0, 3)
    project_all(log, engine)
    before = dump(engine)
    with engine.begin() as connection:
        saved = connection.execute(select(positions)).mappings().all()
        connection.execute(positions.delete())  # the whole log is projected over the rows that are there
    project_all(log, engine)
    assert dump(engine) == before
    with engine.begin() as connection:
        assert connection.execute(select(positions)).mappings().all() == saved


# --- verify ---


def test_verify_finds_tables_of_the_log_equal(log: MemoryLog, engine: Engine) -> None:
    for partition in (0, 1):
        owner = Owner(partition)
        append(log, [entry(owner.claim())], partition)
        fill(log, owner, 10 * partition, 5)
    project_all(log, engine)
    found = verify(log, engine)
    assert found.differences == ()
    assert (found.rows > 20, found.behind) == (True, 0)


def test_verify_names_what_was_changed_by_hand(log: MemoryLog, engine: Engine) -> None:
    owner = Owner(0)
    append(log, [entry(owner.claim())], 0)
    fill(log, owner, 0, 5)
    project_all(log, engine)
    changed, gone = run_id(0), run_id(1)
    with engine.begin() as connection:
        connection.execute(workflow_runs.update().where(workflow_runs.c.id == changed).values(status="running"))
        connection.execute(workflow_runs.delete().where(workflow_runs.c.id == gone))
        connection.execute(workflow_runs.insert().values(id="made-up", app_id="a"))
    found = {(each.key, each.problem, each.columns) for each in verify(log, engine).differences}
    assert found == {
        (changed, "differs", ("status",)),
        (gone, "missing in the tables", ()),
        ("made-up", "no event has made it", ()),
    }
    assert verify(log, engine, run_id(2)).differences == ()
    assert [each.key for each in verify(log, engine, changed).differences] == [changed]
    assert find_runs(engine, changed) == [changed]
    before = dump(engine)
    verify(log, engine)
    assert dump(engine) == before


def test_verify_says_what_the_tables_do_not_have_yet(log: MemoryLog, engine: Engine) -> None:
    owner = Owner(0)
    append(log, [entry(owner.claim())], 0)
    fill(log, owner, 0, 2)
    project_all(log, engine)
    end = log.bounds(Topic.EVENTS, 0)[1]
    fill(log, owner, 2, 2)
    found = verify(log, engine)
    assert (found.differences, found.behind) == ((), log.bounds(Topic.EVENTS, 0)[1] - end)


def test_verify_refuses_tables_of_another_log(log: MemoryLog, engine: Engine) -> None:
    with pytest.raises(TablesError, match="no tables"):
        verify(log, engine)
    append(log, [entry(Owner(0).claim())], 0)
    project_all(log, engine)
    other = MemoryLog(MemoryStore(partitions=2))
    with pytest.raises(RebuildNeeded, match="events topic"):
        verify(other, engine)
    other.close()
