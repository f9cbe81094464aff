"""Text templates."""

import pytest

from libs.workflow.pool import Pool
from libs.workflow.templates import placeholders, render_log, render_markdown, render_text, segments


@pytest.fixture
def pool() -> Pool:
    pool = Pool()
    pool.set("sys", "query", "hello {{#n.word#}}")
    pool.set("n", "word", "w")
    pool.set("n", "list", ["a", "b"])
    pool.set("n", "object", {"x": {"y": 1.0}})
    pool.set("env", "key", "sk-1234567890", "secret")
    return pool


def test_placeholders_are_replaced_and_the_inserted_text_is_not_looked_at_again(pool: Pool) -> None:
    assert render_text("<{{#sys.query#}}>", pool) == "<hello {{#n.word#}}>"


def test_a_placeholder_without_a_value_renders_as_its_selector(pool: Pool) -> None:
    assert render_text("a {{#no.such#}} b", pool) == "a no.such b"


def test_a_literal_part_that_equals_a_selector_is_replaced(pool: Pool) -> None:
    assert render_text("n.word", pool) == "w"
    assert render_text("n.word{{#n.word#}}n.word", pool) == "www"
    assert render_text(" n.word", pool) == " n.word"


def test_nested_selectors_and_forms(pool: Pool) -> None:
    assert render_text("{{#n.object.x.y#}} {{#n.list#}}", pool) == '1.0 ["a", "b"]'
    assert render_markdown("{{#n.list#}}", pool) == "- a\n- b"
    assert render_log("key={{#env.key#}}", pool) == "key=sk-123************90"
    assert render_text("key={{#env.key#}}", pool) == "key=sk-1234567890"


@pytest.mark.parametrize(
    "selector",
    ["a.b", "1a.b_2", "A" * 50 + ".b", "a." + "b" * 30, "a" + ".b" * 10],
)
def test_these_are_placeholders(selector: str) -> None:
    assert placeholders("x{{#" + selector + "#}}y") == [tuple(selector.split("."))]


@pytest.mark.parametrize(
    "selector",
    ["a", "a-b.c", "a.1b", " a.b", "a.b ", "a.b\n", "a.", "A" * 51 + ".b", "a." + "b" * 31, "a" + ".b" * 11],
)
def test_these_are_literal_text(selector: str) -> None:
    text = "x{{#" + selector + "#}}y"
    assert segments(text) == [text]


def test_parts_come_in_order_without_empty_ones() -> None:
    assert segments("{{#a.b#}}{{#c.d#}} and ") == [("a", "b"), ("c", "d"), " and "]
    assert segments("") == []
