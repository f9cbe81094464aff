"""The pool against the plain model of it: a full copy per layer."""

import copy
import json

from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from libs.workflow.pool import Pool
from libs.workflow.segments import infer
from libs.workflow.templates import placeholders, render_text, segments

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values: st.SearchStrategy[JsonValue] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
)
names = st.sampled_from(["a", "b"])
writes = st.lists(
    st.tuples(st.sampled_from(["set", "remove", "clear", "down"]), names, names, st.integers(0, 5)), max_size=20
)


@given(value=values)
def test_every_value_is_read_back_as_itself_and_survives_a_dump(value: JsonValue) -> None:
    pool = Pool()
    pool.set("n", "v", value)
    loaded = Pool.load(json.loads(json.dumps(pool.dump())))
    assert loaded.get(("n", "v")) == pool.get(("n", "v")) == infer(value)
    assert loaded.dump() == pool.dump()


@given(steps=writes)
def test_layers_behave_like_copies(steps: list[tuple[str, str, str, int]]) -> None:
    pool = Pool()
    model: dict[tuple[str, str], int] = {}
    below: list[tuple[Pool, dict[tuple[str, str], int]]] = []
    for action, node_id, name, value in steps:
        match action:
            case "set":
                pool.set(node_id, name, value)
                model[node_id, name] = value
            case "remove":
                pool.remove(node_id, name)
                model.pop((node_id, name), None)
            case "clear":
                pool.remove(node_id)
                model = {key: kept for key, kept in model.items() if key[0] != node_id}
            case "down":
                below.append((pool, copy.copy(model)))
                pool = pool.child()
    for layer, expected in [*below, (pool, model)]:
        seen = {(n, name): segment.value for n in "ab" for name, segment in layer.names(n).items()}
        assert seen == expected
    parent = below[-1][0] if below else None
    again = Pool.load(json.loads(json.dumps(pool.dump())), parent)
    assert [again.names(n) for n in "ab"] == [pool.names(n) for n in "ab"]


@given(parts=st.lists(st.text("ab{#}. \n", max_size=6) | st.sampled_from(["{{#n.v#}}", "{{#n.w.x#}}"]), max_size=6))
def test_a_template_is_its_parts_and_renders_to_their_texts(parts: list[str]) -> None:
    text = "".join(parts)
    whole = "".join(part if isinstance(part, str) else "{{#" + ".".join(part) + "#}}" for part in segments(text))
    assert whole == text
    assert placeholders(text) == [part for part in segments(text) if not isinstance(part, str)]
    bare = "".join(part if isinstance(part, str) else ".".join(part) for part in segments(text))
    assert render_text(text, Pool()) == bare
