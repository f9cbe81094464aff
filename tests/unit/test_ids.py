import re
import uuid

import pytest

from libs.events.ids import (
    MAX_PARTITIONS,
    created_at_us,
    execution_id,
    form_token,
    new_run_id,
    partition_for_key,
    partition_of,
    run_id_of_form,
    run_id_of_task,
    task_id_of,
)

AT_US = 1_762_000_000_123_456


@pytest.mark.parametrize("partition", [0, 1, 15, 4095])
@pytest.mark.parametrize("random_62", [0, 1, (1 << 62) - 1, 1 << 70 | 12345])
def test_a_run_id_is_a_uuid_7_that_carries_partition_and_time(partition: int, random_62: int) -> None:
    run_id = new_run_id(partition, AT_US, random_62)
    parsed = uuid.UUID(run_id)
    assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, run_id)
    assert partition_of(run_id) == partition
    assert created_at_us(run_id) == AT_US // 1000 * 1000


def test_later_run_ids_sort_behind_earlier_ones() -> None:
    ids = [new_run_id(4095 - n, AT_US + n * 1000, 0) for n in range(20)]
    assert ids == sorted(ids)


@pytest.mark.parametrize("partition", [-1, MAX_PARTITIONS])
def test_a_partition_that_does_not_fit_is_refused(partition: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        new_run_id(partition, AT_US, 0)


@pytest.mark.parametrize("text", ["", "run", str(uuid.UUID(int=0, version=4)), "0190A3C5-9F3E-7000-8123-456789ABCDEF"])
def test_what_is_not_our_run_id_has_no_partition(text: str) -> None:
    with pytest.raises(ValueError, match=r"run id|badly formed"):
        partition_of(text)


def test_a_task_id_leads_back_to_its_run_and_is_a_uuid_4() -> None:
    run_id = new_run_id(7, AT_US, 99)
    task_id = task_id_of(run_id)
    assert run_id_of_task(task_id) == run_id
    assert str(task_id) != str(run_id)
    assert uuid.UUID(task_id).version == 4


def test_a_foreign_task_id_is_refused() -> None:
    with pytest.raises(ValueError, match="run id"):
        run_id_of_task(str(uuid.UUID(int=0, version=1)))


def test_an_execution_id_depends_on_run_path_and_node_only() -> None:
    run_id = new_run_id(7, AT_US, 99)
    first = execution_id(run_id, "iteration:a:0", "llm")
    assert first == execution_id(run_id, "iteration:a:0", "llm")
    others = {
        execution_id(run_id, "iteration:a:1", "llm"),
        execution_id(run_id, "", "llm"),
        execution_id(run_id, "iteration:a:0", "llm2"),
        execution_id(new_run_id(7, AT_US, 98), "iteration:a:0", "llm"),
    }
    assert len(others) == 4
    assert first not in others
    assert uuid.UUID(first).version == 4


def test_equal_idempotency_keys_of_an_app_meet_and_keys_spread() -> None:
    assert partition_for_key("app", "key", 16) == partition_for_key("app", "key", 16)
    assert {partition_for_key("app", f"key{n}", 16) for n in range(400)} == set(range(16))


def test_the_partition_of_a_key_does_not_change_between_releases() -> None:
    assert [partition_for_key("app-1", f"order-{n}", 16) for n in range(5)] == PLACES
    assert execution_id("0190a3c5-9f3e-7000-8123-456789abcdef", "", "llm") == EXECUTION
    assert task_id_of("0190a3c5-9f3e-7000-8123-456789abcdef") == TASK


# Recorded values: live runs and stored task ids depend on them.
PLACES = [13, 15, 13, 15, 2]
EXECUTION = "af5ec13e-ca9d-4a13-a435-7f73039c6746"
TASK = "9bafc207-e23b-4b7e-adb7-ad7cdf5b6e37"


def test_a_form_token_leads_to_its_run_and_cannot_be_guessed() -> None:
    run_id = new_run_id(7, 1_800_000_000_000_000, 5)
    token, other = form_token(run_id, 1), form_token(run_id, 2)
    assert token != other
    assert run_id_of_form(token) == run_id_of_form(other) == run_id
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)


@pytest.mark.parametrize("token", ["", "x", "größe", "a" * 43, "a" * 44, "../../etc/passwd", "\0"])
def test_what_is_no_form_token_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match=r"token|run id|UUID"):
        run_id_of_form(token)
