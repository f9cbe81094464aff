"""Reading and writing the variable pool."""

import pytest
from pydantic import JsonValue

from libs.workflow.pool import Pool, Segment
from tests.unit.test_segments import IMAGE


@pytest.fixture
def pool() -> Pool:
    pool = Pool()
    pool.set("n", "object", {"text": "", "zero": 0, "no": False, "null": None, "deep": {"x": [1]}, "file": IMAGE})
    pool.set("n", "file", IMAGE)
    pool.set("n", "list", [{"x": 1}])
    pool.set("n", "word", "w")
    return pool


@pytest.mark.parametrize("selector", [(), ("n",), ("n", "none"), ("m", "word"), ("n", "word", "x"), ("n", "list", "0")])
def test_selectors_that_lead_nowhere_find_nothing(pool: Pool, selector: tuple[str, ...]) -> None:
    assert pool.get(selector) is None


@pytest.mark.parametrize(
    ("key", "segment"),
    [
        ("text", Segment("string", "")),
        ("zero", Segment("integer", 0)),
        ("no", Segment("boolean", False)),
        ("null", Segment("none", None)),
    ],
)
def test_falsy_values_in_objects_are_found(pool: Pool, key: str, segment: Segment) -> None:
    assert pool.get(("n", "object", key)) == segment


def test_keys_walk_through_objects_but_not_through_lists(pool: Pool) -> None:
    assert pool.get(("n", "object", "deep", "x")) == Segment("array[number]", [1])
    assert pool.get(("n", "object", "deep", "x", "0")) is None
    assert pool.get(("n", "object", "missing")) is None
    assert pool.get(("n", "list", "x")) is None


def test_a_file_is_read_by_attribute_and_further_keys_are_ignored(pool: Pool) -> None:
    assert pool.get(("n", "file", "name")) == Segment("string", "cat.png")
    assert pool.get(("n", "file", "size", "more")) == Segment("integer", 7)
    assert pool.get(("n", "file", "filename")) is None
    assert pool.get(("n", "object", "file", "extension")) == Segment("string", ".png")


def test_a_declared_number_is_what_its_value_shows() -> None:
    pool = Pool()
    pool.set("n", "a", 1, "number")
    pool.set("n", "b", None, "string")
    pool.set("n", "c", [], "array[file]")
    assert [segment.type for segment in pool.names("n").values()] == ["integer", "none", "array[file]"]


def test_a_layer_reads_through_and_keeps_its_writes_to_itself() -> None:
    root = Pool()
    root.set("n", "a", 1)
    layer = root.child()
    layer.set("n", "a", 2)
    layer.set("n", "b", 3)
    assert {name: segment.value for name, segment in layer.names("n").items()} == {"a": 2, "b": 3}
    assert {name: segment.value for name, segment in root.names("n").items()} == {"a": 1}


def test_an_update_goes_to_the_layer_that_holds_the_variable() -> None:
    root = Pool()
    root.set("conversation", "topic", "old")
    layer = root.child().child()
    layer.update(("conversation", "topic"), "new", "string")
    layer.update(("conversation", "other"), "here", "string")
    assert root.get(("conversation", "topic")) == Segment("string", "new")
    assert root.get(("conversation", "other")) is None
    assert layer.get(("conversation", "other")) == Segment("string", "here")


def test_removed_variables_are_unknown_in_the_layer_and_still_there_below() -> None:
    root = Pool()
    root.set("n", "a", 1)
    layer = root.child()
    layer.set("n", "b", 2)
    layer.remove("n")
    assert layer.names("n") == {}
    assert layer.get(("n", "a")) is None
    assert root.get(("n", "a")) == Segment("integer", 1)
    layer.set("n", "a", 3)
    assert layer.get(("n", "a")) == Segment("integer", 3)


def test_removing_one_name_leaves_the_others() -> None:
    pool = Pool()
    pool.set("n", "a", 1)
    pool.set("n", "b", 2)
    pool.remove("n", "a")
    pool.remove("n", "a")
    assert list(pool.names("n")) == ["b"]


def test_a_dump_does_not_tell_what_was_read() -> None:
    pool = Pool()
    pool.set("n", "a", [1, 2])
    before = pool.dump()
    pool.get(("n", "a"))
    assert pool.dump() == before == {"n": {"a": [[1, 2]]}}


@pytest.mark.parametrize("data", [{"n": []}, {"n": {"a": 1}}, {"n": {"a": [1, 2]}}, {"n": {"a": [1, "string", 3]}}])
def test_what_is_no_dump_is_refused_with_its_place(data: dict[str, JsonValue]) -> None:
    with pytest.raises(ValueError, match="pool dump: n"):
        Pool.load(data)


def test_secrets_of_all_layers_are_listed_for_masking() -> None:
    root = Pool()
    root.set("env", "key", "sk-1", "secret")
    root.set("env", "empty", "", "secret")
    layer = root.child()
    layer.set("env", "other", "sk-2", "secret")
    layer.set("n", "word", "sk-3")
    assert sorted(layer.secrets()) == ["sk-1", "sk-2"]


def test_the_older_name_of_the_run_id_reads_the_same_and_is_not_listed() -> None:
    pool = Pool()
    pool.set("sys", "workflow_run_id", "r-1")
    assert pool.child().get(("sys", "workflow_execution_id")) == Segment("string", "r-1")
    assert list(pool.names("sys")) == ["workflow_run_id"]
    assert Pool().get(("sys", "workflow_execution_id")) is None
