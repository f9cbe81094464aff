"""`template-transform`: what is rendered at once, and what is left to the sandbox.

That both ways give the same text is tested with a real sandbox, in tests/integration/test_sandbox.py.
"""

import pytest
from pydantic import JsonValue

from libs.workflow.outcome import Outcome
from libs.workflow.pool import Pool
from services.executor.nodes.template_transform import TemplateTransformHandler
from services.executor.sandbox import Sandbox
from tests.unit.nodes.compiled import compiled, failed, succeeded


def evaluated(template: str, *, limit_chars: int = 400_000, **values: JsonValue) -> Outcome | None:
    pool = Pool()
    for name, value in values.items():
        pool.set("n", name, value)
    variables = [{"variable": name, "value_selector": ["n", name]} for name in (*values, "missing")]
    node = compiled("template-transform", template=template, variables=variables)
    return TemplateTransformHandler(Sandbox(), limit_chars=limit_chars).evaluate(node, pool)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("Hello {{ name }}!", "Hello Ada!"),
        ("{{ missing }}", "None"),
        ("{{ no_such }}", ""),
        ("{{ user.name }} {{ user['name'] }} {{ items[1] }}", "Bob Bob 2"),
        ("{% if n > 2 and name != 'x' %}a{% elif n %}b{% else %}c{% endif %}", "a"),
        ("{% for i in items %}{{ loop.index }}:{{ i }} {% endfor %}", "1:1 2:2 3:3 "),
        ("{{ name|upper|default('x') }} {{ items|length }}", "ADA 3"),
        ("{{ 'yes' if missing is none else 'no' }}", "yes"),
        ("{{ user }}", "{'name': 'Bob'}"),
        ("{{ name ~ '-' ~ n }}", "Ada-3"),
        ("line\n", "line"),
    ],
)
def test_simple_templates_are_rendered_at_once(template: str, text: str) -> None:
    outcome = evaluated(template, name="Ada", n=3, items=[1, 2, 3], user={"name": "Bob"})
    assert succeeded(outcome).outputs == {"output": text}


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 200000000 }}",
        "{{ 2 ** 100000 }}",
        "{{ n + 1 }}",
        "{{ range(10) }}",
        "{{ name.upper() }}",
        "{% for a in items %}{% for b in items %}x{% endfor %}{% endfor %}",
        "{% for a in range(9) %}x{% endfor %}",
        "{% for a in items recursive %}x{% endfor %}",
        "{% for a in items if a %}x{% endfor %}{% for b in items %}x{% endfor %}",
        "{{ name|center(100000000) }}",
        "{{ name|replace('a', name) }}",
        "{{ name|default(name) }}",
        "{{ name|indent }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set x = name %}{{ x }}",
        "{% include 'x' %}",
        "{% filter upper %}x{% endfilter %}",
        "{{ 'x' is filter }}",
        "{{ lipsum() }}",
        "{{ broken",
        "{% if %}",
        "x" * 20_001,
        "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
        "{{ name if " + "not " * 5_000 + "name }}",
    ],
)
def test_templates_that_may_be_expensive_are_left_to_the_sandbox(template: str) -> None:
    assert evaluated(template, name="Ada", n=3, items=[1, 2, 3]) is None


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ v }}", "x" * 100_001),
        ("{{ v }}{{ v }}", "x" * 60_000),
        ("{{ v }}", [1] * 5_000),
        ("{{ v }}", 10**4_000),
        ("{% for a in v %}{{ v }}{% endfor %}", ["x" * 500] * 100),
        ("{% for a in v %}{% if a %}{{ a }}{% endif %}{% endfor %}", [1] * 900),
    ],
)
def test_large_values_are_left_to_the_sandbox(template: str, value: JsonValue) -> None:
    assert evaluated(template, v=value) is None


def test_a_loop_that_shows_each_item_once_is_cheap() -> None:
    outcome = succeeded(evaluated("{% for a in v %}{{ a }}{% endfor %}", v=["x" * 500] * 100))
    assert outcome.outputs == {"output": "x" * 50_000}


def test_an_error_of_an_expression_is_the_nodes_failure() -> None:
    outcome = failed(evaluated("{{ n|length }}", n=3))
    assert outcome.error == "TypeError: object of type 'int' has no len()"
    assert outcome.error_type == ""
    assert outcome.inputs == {"n": 3, "missing": None}


def test_the_output_is_bounded() -> None:
    assert failed(evaluated("{{ v }}", v="abcdef", limit_chars=5)).error == "Output length exceeds 5 characters"
    assert succeeded(evaluated("{{ v }}", v="abcde", limit_chars=5)).outputs == {"output": "abcde"}


def test_values_cannot_be_changed_or_their_insides_reached() -> None:
    outcome = succeeded(evaluated("{{ v.__class__ }}{{ v.append }}", v=[1]))
    assert outcome.outputs["output"] == ""


def test_what_text_cannot_hold_is_replaced() -> None:
    assert succeeded(evaluated(r"{{ '\ud800' }}")).outputs == {"output": "?"}
