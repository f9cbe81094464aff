"""`answer`: text as markdown, files as they are referred to."""

import pytest
from pydantic import JsonValue

from libs.workflow.pool import Pool
from services.executor.nodes.answer import AnswerHandler
from tests.unit.nodes.compiled import compiled, succeeded
from tests.unit.test_segments import IMAGE


def answered(template: str, **values: JsonValue) -> str:
    pool = Pool()
    for name, value in values.items():
        pool.set("n", name, value)
    text = succeeded(AnswerHandler().evaluate(compiled("answer", answer=template), pool)).outputs["answer"]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.0"), (["a", "b"], "- a\n- b"), ({"a": None}, '{\n  "a": null\n}'), (True, "True"), ([1, 2], "- 1\n- 2")],
)
def test_values_are_written_as_markdown(value: JsonValue, text: str) -> None:
    assert answered("<{{#n.v#}}>", v=value) == f"<{text}>"


def test_a_missing_value_is_its_selector() -> None:
    assert answered("a {{#no.such#}} b") == "a no.such b"


def test_a_text_that_is_a_selector_is_its_value() -> None:
    assert answered("n.v", v="value") == "value"


def test_files_are_collected_in_order_of_their_placeholders() -> None:
    pool = Pool()
    other = {**IMAGE, "filename": "dog.png"}
    pool.set("n", "one", IMAGE)
    pool.set("n", "many", [other, IMAGE])
    pool.set("n", "text", "x")
    node = compiled("answer", answer="{{#n.many#}}{{#n.text#}}{{#n.one#}}{{#n.one.name#}}")
    outcome = succeeded(AnswerHandler().evaluate(node, pool))
    assert outcome.outputs["files"] == [other, IMAGE, IMAGE]
    assert outcome.output_types == {"files": "array[file]"}
