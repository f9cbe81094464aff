"""Checking a document never raises, whatever the text; and what compiles is consistent in itself."""

import json
import random
from copy import deepcopy
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.workflow.definition import Definition, check_document
from libs.workflow.node_configs import NODE_TYPES

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)

DOCUMENT: dict[str, Any] = yaml.safe_load(
    """
version: 0.6.0
kind: app
app: {name: x, mode: workflow}
workflow:
  environment_variables: [{name: k, value_type: number, value: 1, selector: [env, k]}]
  features: {file_upload: {enabled: true}}
  graph:
    nodes:
    - {id: s, data: {type: start, variables: [{variable: q, type: text-input}]}}
    - id: l
      data:
        type: llm
        model: {provider: p, name: m, mode: chat, completion_params: {}}
        prompt_template: [{role: user, text: "{{#s.q#}}"}]
        error_strategy: default-value
        default_value: [{key: text, type: string, value: d}]
        retry_config: {retry_enabled: true, max_retries: 2, retry_interval: 10}
    - id: i
      data:
        type: if-else
        cases:
        - case_id: t
          logical_operator: and
          conditions: [{variable_selector: [l, text], comparison_operator: contains, value: a}]
    - {id: it, data: {type: iteration, start_node_id: is, iterator_selector: [s, q], output_selector: [c, r]}}
    - {id: is, parentId: it, data: {type: iteration-start}}
    - id: c
      parentId: it
      data: {type: code, code: x, code_language: python3, outputs: {r: {type: string}}, variables: []}
    - {id: h, data: {type: http-request, url: "http://x", body: {type: json, data: []}}}
    - {id: e, data: {type: end, outputs: [{variable: o, value_selector: [it, output]}]}}
    edges:
    - {source: s, target: l}
    - {source: l, target: i}
    - {source: i, sourceHandle: t, target: it}
    - {source: i, sourceHandle: "false", target: h}
    - {source: is, target: c}
    - {source: it, target: e}
    - {source: h, target: e}
"""
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a document."""
    found: list[tuple[Any, Any]] = []
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += places(inner)
    return found


def assert_consistent(definition: Definition) -> None:
    nodes = definition.nodes
    assert definition.root in nodes
    assert [edge.index for edge in definition.edges] == list(range(len(definition.edges)))
    for edge in definition.edges:
        assert edge in nodes[edge.source].outgoing
        assert edge in nodes[edge.target].incoming
    assert sum(len(node.incoming) for node in nodes.values()) == len(definition.edges)
    for container, body in definition.bodies.items():
        assert nodes[container].config.start_node_id in body
        assert container not in body
        for node_id in body:
            inner = nodes[node_id].container
            assert inner == container or inner in body
    assert {node.container for node in nodes.values() if node.container} <= definition.bodies.keys()
    assert {node.id for node in nodes.values() if node.type in ("iteration", "loop")} == definition.bodies.keys()


def checked(text: str | bytes) -> None:
    definition, problems = check_document(text)
    assert (definition is None) == any(problem.severity == "error" for problem in problems)
    if definition is not None:
        assert_consistent(definition)
        json.dumps(definition.document, allow_nan=False)


def test_the_document_that_is_mutated_compiles() -> None:
    definition, _ = check_document(json.dumps(DOCUMENT))
    assert definition is not None
    assert_consistent(definition)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), replacement=values, twice=st.booleans())
def test_mutated_documents_never_raise(seed: int, replacement: Any, twice: bool) -> None:
    document = deepcopy(DOCUMENT)
    chance = random.Random(seed)
    for _ in range(2 if twice else 1):
        container, key = chance.choice(places(document))
        action = chance.randrange(4)
        if action == 0:
            container[key] = deepcopy(replacement)
        elif action == 1:
            del container[key]
        elif action == 2:
            other, name = chance.choice(places(document))
            container[key] = deepcopy(other[name])
        elif isinstance(container, list):
            container.append(deepcopy(container[key]))
        else:
            container[f"{key}s"] = container.pop(key)
    checked(json.dumps(document))
    checked(yaml.safe_dump(document))


@settings(max_examples=200, deadline=None)
@given(
    node_type=st.sampled_from(sorted(NODE_TYPES)),
    data=st.dictionaries(st.text(max_size=8), values, max_size=4),
    seed=st.integers(),
)
def test_any_configuration_of_any_type_never_raises(node_type: str, data: dict[str, Any], seed: int) -> None:
    fields = list(NODE_TYPES[node_type].config.model_fields)
    chance = random.Random(seed)
    named = {chance.choice(fields) if fields and chance.random() < 0.8 else key: value for key, value in data.items()}
    nodes = [{"id": "s", "data": {"type": "start"}}, {"id": "n", "data": {**named, "type": node_type}}]
    checked(json.dumps({"app": {"mode": "workflow"}, "workflow": {"graph": {"nodes": nodes, "edges": []}}}))


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("abe9:-{}[],&*!?|>'\"#%@~<= \n\t0.\x00\ufeffé"), max_size=60))
def test_any_text_never_raises(text: str) -> None:
    checked(text)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_never_raise(data: bytes) -> None:
    checked(data)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 12), seed=st.integers())
def test_random_graphs_with_containers_are_consistent(count: int, seed: int) -> None:
    chance = random.Random(seed)
    types = [chance.choice(["loop-end", "iteration", "loop", "iteration-start", "start"]) for _ in range(count)]
    ids = [f"n{number}" for number in range(count)]
    nodes = [{"id": "root", "data": {"type": "start"}}]
    for node_id, node_type in zip(ids, types, strict=True):
        data: dict[str, Any] = {
            "type": node_type,
            "iterator_selector": ["a", "b"],
            "output_selector": [],
            "loop_count": 2,
        }
        if chance.random() < 0.7:
            data["start_node_id"] = chance.choice(ids)
        nodes.append({"id": node_id, "parentId": chance.choice(["", *ids]), "data": data})
    ends = ["root", *ids]
    edges = [{"source": chance.choice(ends), "target": chance.choice(ends)} for _ in range(2 * count)]
    checked(json.dumps({"app": {"mode": "workflow"}, "workflow": {"graph": {"nodes": nodes, "edges": edges}}}))
