"""What a document becomes, and what is wrong with one that cannot."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from libs.events.ids import variable_id
from libs.workflow.definition import (
    Definition,
    DefinitionInvalid,
    NodeKind,
    Problem,
    Retry,
    check_document,
    compile_document,
    digest_of,
    examine,
)

START = {"id": "start", "data": {"type": "start", "title": "Start", "variables": []}}
END = {"id": "end", "data": {"type": "end", "title": "End", "outputs": []}}


def node(node_id: str, node_type: str = "loop-end", *, parent: str | None = None, **data: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"id": node_id, "type": "custom", "data": {"type": node_type, "title": node_id, **data}}
    return made if parent is None else made | {"parentId": parent}


def text_of(nodes: Sequence[Any], edges: Sequence[Any] = (), **workflow: Any) -> str:
    joined = [
        edge if isinstance(edge, dict) else dict(zip(("source", "target", "sourceHandle"), edge, strict=False))
        for edge in edges
    ]
    return json.dumps(
        {
            "version": "0.6.0",
            "kind": "app",
            "dependencies": [],
            "app": {"name": "demo", "mode": workflow.pop("mode", "workflow")},
            "workflow": {"graph": {"nodes": list(nodes), "edges": joined}, **workflow},
        }
    )


def compiled(nodes: Sequence[Any], edges: Sequence[Any] = (), **workflow: Any) -> Definition:
    return compile_document(text_of(nodes, edges, **workflow))


def errors(text: str | bytes) -> dict[str, Problem]:
    definition, problems = check_document(text)
    assert definition is None
    return {problem.at: problem for problem in problems if problem.severity == "error"}


def warnings(text: str) -> dict[str, Problem]:
    definition, problems = check_document(text)
    assert definition is not None, problems
    assert definition.warnings == problems
    return {problem.at: problem for problem in problems}


# --- the document ----------------------------------------------------------------------------------------------------


def test_a_minimal_document_compiles() -> None:
    text = text_of([START, END], [("start", "end")], environment_variables=None)
    definition = compile_document(text)
    assert definition.digest == digest_of(text)
    assert (definition.name, definition.mode, definition.dsl_version) == ("demo", "workflow", "0.6.0")
    assert definition.root == "start"
    assert [edge.handle for edge in definition.edges] == ["source"]
    assert definition.nodes["start"].outgoing == definition.nodes["end"].incoming == definition.edges
    assert definition.warnings == ()
    assert examine(text)[2] == {"mode": "workflow", "nodes": 2, "edges": 1}


@pytest.mark.parametrize(
    ("nodes", "edges", "told"),
    [
        ([START, END], [("start", "end"), ("start", "gone")], {"mode": "workflow", "nodes": 2, "edges": 1}),
        ([START, node("x", "no-such-type"), END], [("start", "x"), ("x", "end")], {"nodes": 3, "edges": 2}),
        ([], [], {"mode": "workflow", "nodes": 0, "edges": 0}),
    ],
)
def test_of_a_document_with_mistakes_is_told_what_can_be(nodes: Any, edges: Any, told: dict[str, Any]) -> None:
    text = text_of(nodes, edges)
    assert check_document(text)[0] is None
    assert examine(text)[2].items() >= told.items()


@pytest.mark.parametrize("text", ["", "[", "kind: app", "workflow: {graph: []}", "app: {mode: chat}\nworkflow: {}"])
def test_nothing_is_told_of_what_is_no_document(text: str) -> None:
    assert examine(text)[2] == {"mode": None, "nodes": 0, "edges": 0}


def test_equal_text_has_an_equal_digest_whether_bytes_or_str() -> None:
    text = text_of([START, END])
    assert compile_document(text).digest == compile_document(text.encode()).digest


def test_unknown_keys_are_kept_and_no_mistake() -> None:
    start = node("start", "start", variables=[], surprise={"a": 1})
    definition = compiled([start, END])
    assert definition.nodes["start"].data["surprise"] == {"a": 1}
    assert definition.nodes["start"].config.surprise == {"a": 1}
    assert definition.warnings[0].problem.startswith('node "end" is not reachable')


def test_all_mistakes_are_reported_at_once() -> None:
    nodes = [START, node("a", "if_else"), node("b", "code", code="x", code_language="ruby", outputs={}), {"id": "c"}]
    found = errors(text_of(nodes, [("start", "a"), ("start", "x")], environment_variables=[{"value": 1}]))
    assert set(found) == {
        "workflow.graph.nodes[1].data.type",
        "workflow.graph.nodes[2].data.code_language",
        "workflow.graph.nodes[3].data",
        "workflow.graph.edges[1].target",
        "workflow.environment_variables[0].name",
    }
    assert found["workflow.graph.nodes[1].data.type"].hint == 'Did you mean "if-else"?'


def test_a_node_with_a_mistake_exists_for_the_rest_of_the_document() -> None:
    loop = node("loop", "loop", start_node_id="first", loop_count=0, break_conditions=[], logical_operator="and")
    bad = node("bad", "code", code="x", code_language="ruby", outputs={})
    choice = node("choice", "if-else", cases=[{"case_id": "true", "logical_operator": "and", "conditions": []}])
    outputs = [{"variable": "n", "value_selector": ["loop", "n"]}, {"variable": "o", "value_selector": ["bad", "o"]}]
    nodes = [
        START, loop, node("first", "loop-start"), node("inner", "variable-aggregator", loop_id="loop"), bad, choice,
        node("end", "end", outputs=outputs),
    ]  # fmt: skip
    arrows = [("start", "loop"), ("first", "inner"), ("loop", "choice"), ("choice", "bad", "true"),
              ("choice", "end", "false"), ("bad", "end")]  # fmt: skip
    _, problems = check_document(text_of(nodes, arrows))
    assert [problem.at for problem in problems] == [
        "workflow.graph.nodes[1].data.loop_count",
        "workflow.graph.nodes[4].data.code_language",
    ]


def test_the_exception_lists_every_mistake() -> None:
    with pytest.raises(DefinitionInvalid) as caught:
        compile_document(text_of([START, node("a", "nope"), node("a", "nope")]))
    assert len(caught.value.problems) == 2
    assert "workflow.graph.nodes[1].data.type" in str(caught.value)
    assert 'a second node "a"' in str(caught.value)


@pytest.mark.parametrize("mode", ["chat", "agent-chat", "completion"])
def test_a_mode_without_a_graph_is_refused_with_the_modes_that_run(mode: str) -> None:
    found = errors(f"app: {{mode: {mode}, name: x}}\nkind: app\nmodel_config: {{}}")
    assert "workflow, advanced-chat" in found["app.mode"].hint


def test_an_unknown_mode_gets_a_suggestion() -> None:
    found = errors(text_of([START, END], mode="workflows"))
    assert found["app.mode"].hint == 'Did you mean "workflow"?'


def test_a_missing_head_is_tolerated() -> None:
    text = json.dumps({"workflow": {"graph": {"nodes": [START, node("a", "answer", answer="hi")], "edges": []}}})
    definition, problems = check_document(text)
    assert definition is not None
    assert definition.mode == "advanced-chat"
    assert {"app.mode", "version", "kind", "dependencies"} <= {problem.at for problem in problems}


def test_a_newer_version_is_a_warning() -> None:
    assert "newer" in warnings(text_of([START, END]).replace("0.6.0", "0.9.1"))["version"].problem


def test_a_document_wrapped_in_json_is_read() -> None:
    inner = text_of([START, END], [("start", "end")])
    found = warnings(json.dumps({"data": inner}))
    assert "wrapped" in found[""].problem


# --- broken text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("app:\n  mode: workflow: x\n", "line 2, column 17", 'Text that holds ": " needs quotes'),
        ("app:\n\tmode: x\n", "line 2, column 1", "spaces, never tabs"),
        ("a: *b", "line 1, column 4", "anchor"),
        ("a: &x [*x]", "line 1, column 8", "not lie inside"),
        ("a: !!python/name:os.system x", "line 1, column 4", "plain text"),
        ("? [a]\n: b", "line 1, column 3", "text as key"),
        ("a: 1\n---\nb: 2", "line 2, column 1", "Keep one"),
        ("a: \x00", "line 1, column 4", "Remove"),
        ("- " * 1000, "line 1, column 401", "No workflow"),
        ('{"a":' * 5000, "line 1, column 1001", "No workflow"),
    ],
)
def test_broken_yaml_names_line_and_column(text: str, place: str, words: str) -> None:
    assert words in errors(text)[place].hint


@pytest.mark.parametrize("text", ["", "hello", "42", "- a\n- b", "[1, 2]", '"text"'])
def test_something_else_than_a_document_is_refused(text: str) -> None:
    assert "expected a mapping" in errors(text)[""].problem


def test_bytes_that_are_not_utf8_are_refused() -> None:
    assert "UTF-8" in errors(b"\xff\xfea")[""].hint


def test_a_document_above_the_limit_is_refused() -> None:
    assert "the limit is" in errors(b" " * (10 * 1024 * 1024 + 1))[""].problem


def test_a_byte_order_mark_is_no_mistake() -> None:
    assert compile_document(b"\xef\xbb\xbf" + text_of([START, END]).encode()).root == "start"


def test_aliases_that_multiply_are_refused_quickly() -> None:
    lines = ["a0: &a0 [lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    (problem,) = errors("\n".join(lines)).values()
    assert "aliases expand" in problem.problem


def test_aliases_that_nest_deeper_and_deeper_are_refused() -> None:
    lines = [f"a{n}: &a{n} {'[' * 150}{f'*a{n - 1}' if n else 'x'}{']' * 150}" for n in range(3)]
    (problem,) = errors("\n".join(lines)).values()
    assert "nested deeper" in problem.problem


def test_anchors_and_merge_keys_are_read() -> None:
    text = """
version: 0.6.0
kind: app
dependencies: []
app: {mode: workflow, name: x}
base: &base {type: end, title: shared}
workflow:
  graph:
    nodes:
    - {id: start, data: {type: start}}
    - {id: end, data: {<<: *base, title: own}}
    edges: [{source: start, target: end}]
"""
    definition = compile_document(text)
    assert (definition.nodes["end"].type, definition.nodes["end"].title) == ("end", "own")


def test_a_repeated_key_is_a_warning_with_its_path() -> None:
    text = "app: {mode: workflow}\nworkflow:\n  graph:\n    nodes:\n    - {id: a, id: s, data: {type: start}}\n"
    assert "last one counts" in warnings(text)["workflow.graph.nodes[0].id"].problem


def test_dates_versions_and_leading_zeros_stay_text() -> None:
    text = (
        "version: 0.6.0\nkind: app\napp: {mode: workflow}\n"
        "when: [2024-01-02, 0123, 12:30, 1_000, .inf]\nis: [yes, 12, 1.5, ~]\n1: one\n"
        "workflow: {graph: {nodes: [{id: s, data: {type: start}}], edges: []}}"
    )
    document = compile_document(text).document
    assert document["when"] == ["2024-01-02", "0123", "12:30", "1_000", ".inf"]
    assert document["is"] == [True, 12, 1.5, None]
    assert document["1"] == "one"


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_canvas_notes_are_dropped_with_their_edges() -> None:
    note = {"id": "note", "type": "custom-note", "data": {"type": "", "text": "hello"}}
    definition = compiled([START, note, END], [("start", "note"), ("start", "end")])
    assert list(definition.nodes) == ["start", "end"]
    assert [edge.target for edge in definition.edges] == ["end"]
    assert definition.edges[0].index == 0


def test_numeric_ids_without_quotes_are_text() -> None:
    definition = compile_document(
        "app: {mode: workflow}\nworkflow: {graph: {nodes: [{id: 17, data: {type: start}}, {id: 18, data: {type: end, "
        "outputs: [{variable: a, value_selector: [17, q]}]}}], edges: [{source: 17, target: 18}]}}"
    )
    assert list(definition.nodes) == ["17", "18"]
    assert definition.nodes["18"].config.outputs[0].value_selector == ("17", "q")


def test_a_mistake_deep_inside_a_config_has_its_path() -> None:
    broken = node("if", "if-else", cases=[{"case_id": "true", "conditions": {"a": 1}}])
    found = errors(text_of([START, broken]))
    assert found["workflow.graph.nodes[1].data.cases[0].conditions"].problem == "expected a list, got a mapping"


def test_a_mistake_in_a_union_has_the_path_of_the_document() -> None:
    broken = node("llm", "llm", model={}, prompt_template=[{"role": "robot", "text": "x"}])
    problem = errors(text_of([START, broken]))["workflow.graph.nodes[1].data.prompt_template[0].role"]
    assert problem.problem == 'expected one of system, user, assistant; got "robot"'


@pytest.mark.parametrize("schema", ['{"type": "object"}', {"type": "object"}, " ", None])
def test_the_schema_of_an_input_may_be_text(schema: Any) -> None:
    variable = {"variable": "v", "type": "json_object", "json_schema": schema}
    definition = compiled([node("start", "start", variables=[variable]), END])
    assert definition.start_variables[0].json_schema == ({"type": "object"} if schema and schema != " " else None)


@pytest.mark.parametrize("schema", ["[1]", "{", '{"minimum": NaN}', 5, {"type": "nothing"}, {"required": "name"}])
def test_a_schema_of_an_input_that_is_none_is_an_error(schema: Any) -> None:
    variable = {"variable": "v", "type": "json_object", "json_schema": schema}
    assert "workflow.graph.nodes[0].data.variables[0].json_schema" in errors(
        text_of([node("start", "start", variables=[variable])])
    )


def test_a_missing_field_is_named() -> None:
    assert "is missing" in errors(text_of([START, node("a", "answer")]))["workflow.graph.nodes[1].data.answer"].problem


def test_an_unknown_operator_is_an_error() -> None:
    broken = node("if", "if-else", cases=[{"case_id": "true", "conditions": [{"comparison_operator": "resembles"}]}])
    (problem,) = errors(text_of([START, broken])).values()
    assert "resembles" in problem.problem


def test_messages_never_quote_values() -> None:
    broken = node("http", "http-request", url={"secret": "hunter2"}, authorization={"type": "api-key", "config": 5})
    _, problems = check_document(text_of([START, broken]))
    assert "hunter2" not in str(problems)


def test_retry_counts_only_where_it_is_honoured() -> None:
    settings = {"retry_enabled": True, "max_retries": 3, "retry_interval": 1000}
    http = node("http", "http-request", url="http://x", retry_config=settings)
    answer = node("answer", "answer", answer="x", retry_config=settings)
    off = node("off", "http-request", url="http://x", retry_config=settings | {"retry_enabled": False})
    quoted = node("quoted", "http-request", url="http://x", retry_config=settings | {"retry_enabled": "true"})
    definition = compiled([START, http, answer, off, quoted])
    assert definition.nodes["http"].retry == definition.nodes["quoted"].retry == Retry(3, 1000)
    assert definition.nodes["answer"].retry is None
    assert definition.nodes["off"].retry is None


def test_a_fail_branch_makes_a_branch_of_an_ordinary_node_only() -> None:
    llm = node("llm", "llm", model={}, prompt_template=[], error_strategy="fail-branch")
    box = node("box", "loop", loop_count=1, start_node_id="in", error_strategy="fail-branch")
    definition = compiled([START, llm, box, node("in", "loop-start")])
    assert definition.nodes["llm"].kind is NodeKind.BRANCH
    assert definition.nodes["box"].kind is NodeKind.CONTAINER
    assert definition.nodes["llm"].branches
    assert definition.nodes["box"].branches
    assert not definition.nodes["start"].branches


def test_default_values_are_converted_to_their_types() -> None:
    defaults = [
        {"key": "t", "type": "string", "value": "5"},
        {"key": "n", "type": "number", "value": "5"},
        {"key": "o", "type": "object", "value": '{"a": 1}'},
        {"key": "l", "type": "array[string]", "value": '["a"]'},
        {"key": "f", "type": "array[file]", "value": "[1]"},
    ]
    llm = node("llm", "llm", model={}, prompt_template=[], error_strategy="default-value", default_value=defaults)
    assert compiled([START, llm]).nodes["llm"].defaults == {
        "t": "5",
        "n": 5.0,
        "o": {"a": 1},
        "l": ["a"],
        "f": [1],
    }


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("number", "five"),
        ("object", "[1]"),
        ("array[string]", "[1]"),
        ("array[number]", "{}"),
        ("object", "{"),
        ("number", "1e999"),
        ("number", "nan"),
        ("object", '{"a": NaN}'),
        ("array[number]", "[1e999]"),
    ],
)
def test_a_default_value_of_another_type_is_an_error(declared: str, value: str) -> None:
    default = [{"key": "k", "type": declared, "value": value}]
    llm = node("llm", "llm", model={}, prompt_template=[], error_strategy="default-value", default_value=default)
    assert "workflow.graph.nodes[1].data.default_value[0].value" in errors(text_of([START, llm]))


def test_an_unknown_strategy_is_an_error() -> None:
    assert errors(text_of([START, node("a", error_strategy="fail-brunch")]))[
        "workflow.graph.nodes[1].data.error_strategy"
    ].hint == ('Did you mean "fail-branch"?')


def test_the_version_of_an_assigner_selects_its_form() -> None:
    one = node("one", "assigner", assigned_variable_selector=["c", "a"], write_mode="clear")
    two = node("two", "assigner", version="2", items=[{"variable_selector": ["c", "a"], "operation": "clear"}])
    bare = node("bare", "assigner", items=[{"variable_selector": ["c", "a"], "operation": "clear"}])
    definition = compiled([START, one, two, bare])
    assert definition.nodes["one"].config.write_mode == "clear"
    assert [definition.nodes[each].version for each in ("one", "two", "bare")] == ["1", "2", "2"]
    assert definition.nodes["bare"].config.items[0].operation == "clear"


def test_tolerated_forms_of_real_documents_compile() -> None:
    nodes = [
        START,
        node("if", "if-else", conditions=[{"comparison_operator": "not empty", "variable_selector": ["sys", "q"]}]),
        node("http", "http-request", url="http://x", method="GET", body={"type": "json", "data": "{}"}, timeout=None),
        node("tool", "tool", tool_name="t", tool_parameters={"a": None, "b": "bare"}, output_schema=None),
        node("llm", "llm", model={"name": None}, prompt_template=[{"role": "user", "text": None}], memory={}),
        node("agg", "variable-assigner", variables=[["start", "q"]], advanced_settings=None),
        node("code", "code", code="x", code_language="python3", variables=None, outputs=None),
    ]
    definition = compiled(nodes, [("start", each["id"]) for each in nodes[1:]])
    assert definition.nodes["if"].config.cases is None
    assert definition.nodes["http"].config.body.data[0].value == "{}"
    assert definition.nodes["tool"].config.tool_parameters["b"].type == "constant"
    assert {warning.at.rpartition(".")[2] for warning in definition.warnings} >= {"conditions", "data", "output_schema"}


# --- edges, branches, references -------------------------------------------------------------------------------------


def test_an_edge_to_an_unknown_node_suggests_a_known_one() -> None:
    problem = errors(text_of([START, node("summarize")], [("start", "sumarize")]))["workflow.graph.edges[0].target"]
    assert problem.problem == 'unknown node "sumarize"'
    assert problem.hint == 'Did you mean "summarize"?'


def test_an_unquoted_true_handle_is_the_case_true() -> None:
    branch = node("if", "if-else", cases=[{"case_id": "true", "conditions": []}])
    edge = {"source": "if", "target": "end", "sourceHandle": True}
    definition = compiled([START, branch, END], [("start", "if"), edge])
    assert definition.nodes["if"].outgoing[0].handle == "true"
    assert definition.warnings == ()


def test_a_handle_that_no_branch_has_is_a_warning() -> None:
    branch = node("if", "if-else", cases=[{"case_id": "yes", "conditions": []}])
    found = warnings(text_of([START, branch, END], [("start", "if"), ("if", "end", "yess")]))
    assert found["workflow.graph.edges[1].sourceHandle"].hint == 'Did you mean "yes"?'
    assert "leads nowhere" in found["workflow.graph.nodes[1].data.cases[0]"].problem


def test_selectors_and_placeholders_of_missing_nodes_are_warnings() -> None:
    answer = node("answer", "answer", answer="{{#satrt.q#}} {{#env.kee#}} {{#sys.query#}}")
    end = node("end", "end", outputs=[{"variable": "a", "value_selector": ["gone", "x"]}])
    env = [{"name": "key", "value_type": "string", "value": "v"}]
    _, problems = check_document(text_of([START, answer, end], environment_variables=env))
    found = [(problem.at, problem.hint) for problem in problems if "refers" in problem.problem]
    assert found == [
        ("workflow.graph.nodes[1].data.answer", 'Did you mean "start"?'),
        ("workflow.graph.nodes[1].data.answer", 'Did you mean "key"?'),
        ("workflow.graph.nodes[2].data.outputs[0].value_selector", "It reads as missing when the node runs"),
    ]


def test_nodes_on_a_cycle_and_behind_it_never_run() -> None:
    nodes = [START, node("a"), node("b"), node("c"), node("d")]
    found = warnings(text_of(nodes, [("start", "a"), ("a", "b"), ("b", "a"), ("b", "c"), ("start", "d")]))
    assert "on a cycle" in found["workflow.graph.nodes[1]"].problem
    assert "on a cycle" in found["workflow.graph.nodes[2]"].problem
    assert "waits for a node" in found["workflow.graph.nodes[3]"].problem
    assert "workflow.graph.nodes[4]" not in found


def test_types_without_an_outside_system_are_warnings() -> None:
    found = warnings(text_of([START, node("a", "agent"), node("b", "agent")], [("start", "a"), ("start", "b")]))
    assert found["workflow.graph.nodes[1]"].problem.startswith("2 nodes of type agent")


# --- roots and containers --------------------------------------------------------------------------------------------


def test_a_list_given_as_a_constant_of_a_loop_is_a_warning() -> None:
    variables = [
        {"label": name, "var_type": kind, "value_type": "constant", "value": value}
        for name, kind, value in (
            ("lost", "array[number]", [1]), ("text", "array[number]", "[1]"), ("kept", "array[boolean]", [True]),
        )
    ]  # fmt: skip
    loop = node("loop", "loop", start_node_id="in", loop_count=1, loop_variables=variables)
    nodes = [START, loop, node("in", "loop-start"), END]
    found = warnings(text_of(nodes, [("start", "loop"), ("loop", "end")]))
    assert set(found) == {"workflow.graph.nodes[1].data.loop_variables[0].value"}
    assert "JSON text" in found["workflow.graph.nodes[1].data.loop_variables[0].value"].hint


def test_the_first_root_is_active() -> None:
    definition = compiled([node("t", "trigger-schedule"), START, END], [("t", "end"), ("start", "end")])
    assert (definition.root, definition.inactive_roots) == ("t", ("start",))
    assert definition.start_variables == ()


def test_a_document_without_a_root_is_refused() -> None:
    assert "no start node" in errors(text_of([END]))["workflow.graph.nodes"].problem


def test_a_document_without_nodes_is_refused() -> None:
    assert "no node" in errors(text_of([]))["workflow.graph.nodes"].problem


def iteration(node_id: str, start: str | None, **data: Any) -> dict[str, Any]:
    settings = {"iterator_selector": ["start", "l"], "output_selector": ["x", "y"], **data}
    return node(node_id, "iteration", **settings, **({} if start is None else {"start_node_id": start}))


def test_bodies_are_what_the_start_reaches_on_all_levels() -> None:
    nodes = [
        START,
        iteration("out", "out-in"),
        node("out-in", "iteration-start"),
        iteration("in", "in-in"),
        node("in-in", "iteration-start"),
        node("x"),
        END,
    ]
    edges = [("start", "out"), ("out-in", "in"), ("in-in", "x"), ("out", "end")]
    definition = compiled(nodes, edges)
    assert definition.bodies == {"out": ("out-in", "in", "in-in", "x"), "in": ("in-in", "x")}
    assert definition.nodes["x"].container == "in"
    assert definition.nodes["in"].container == "out"
    assert definition.nodes["end"].container is None
    assert examine(text_of(nodes, edges))[2] == {"mode": "workflow", "nodes": 5, "edges": 2}


@pytest.mark.parametrize("body", [{"parent": "it"}, {"iteration_id": "it"}])
def test_children_without_a_start_marker_get_one(body: dict[str, Any]) -> None:
    nodes = [START, iteration("it", None), node("x", **body), node("y", **body), node("z", **body)]
    definition = compiled(nodes, [("start", "it"), ("x", "y")])
    marker = definition.nodes["it"].config.start_node_id
    assert definition.nodes[marker].kind is NodeKind.MARKER
    assert [edge.target for edge in definition.nodes[marker].outgoing] == ["x", "z"]
    assert set(definition.bodies["it"]) == {"x", "y", "z", marker}
    assert examine(text_of(nodes, [("start", "it"), ("x", "y")]))[2] == {"mode": "workflow", "nodes": 5, "edges": 2}
    assert "begins with" in str(definition.warnings)


def test_a_body_that_begins_with_an_ordinary_node_gets_a_marker() -> None:
    definition = compiled([START, iteration("it", "x"), node("x")], [("start", "it")])
    assert definition.nodes["it"].config.start_node_id == "itstart"
    assert [edge.target for edge in definition.nodes["itstart"].outgoing] == ["x"]
    assert definition.nodes["x"].container == "it"


def test_a_container_whose_start_is_missing_is_an_error() -> None:
    found = errors(text_of([START, iteration("a", None), iteration("b", "bstrat"), node("bstart", parent="b")]))
    assert "no start node" in found["workflow.graph.nodes[1].data.start_node_id"].problem
    assert found["workflow.graph.nodes[2].data.start_node_id"].hint == 'Did you mean "bstart"?'


def test_a_container_inside_itself_is_an_error() -> None:
    nodes = [START, iteration("it", "in"), node("in", "iteration-start")]
    found = errors(text_of(nodes, [("start", "it"), ("in", "it")]))
    assert "contains the iteration itself" in found["workflow.graph.nodes[1].data.start_node_id"].problem


def test_two_containers_with_one_start_are_an_error() -> None:
    nodes = [START, iteration("a", "in"), iteration("b", "in"), node("in", "iteration-start")]
    found = errors(text_of(nodes, [("start", "a"), ("start", "b")]))
    assert found["workflow.graph.nodes[2].data.start_node_id"].problem == 'the start "in" of "b" is in the body of "a"'


def test_a_root_inside_a_body_is_an_error() -> None:
    found = errors(text_of([START, iteration("a", "in"), node("in", "iteration-start")], [("in", "start")]))
    assert "is in the body" in found["workflow.graph.nodes[0]"].problem


def test_flags_that_claim_a_container_are_only_warnings() -> None:
    stale = node("x", isInIteration=True, iteration_id="it")
    definition = compiled([START, stale], [("start", "x")])
    assert definition.nodes["x"].container is None
    assert [warning.at for warning in definition.warnings[:2]] == [
        "workflow.graph.nodes[1].data.iteration_id",
        "workflow.graph.nodes[1].data",
    ]


# --- variables -------------------------------------------------------------------------------------------------------


def test_conversation_variables_have_ids_of_their_own() -> None:
    given = [("a", "1"), ("b", "1"), ("c", None), ("d", "x" * 256), ("e", ""), ("f", "x\0"), ("a", "1")]
    talk = [{"name": name, "id": id_, "value_type": "number", "value": 1} for name, id_ in given]
    found = compiled([START, END], conversation_variables=talk, mode="advanced-chat").conversation
    assert {each.name: each.id for each in found} == {"a": "1"} | {name: variable_id(name) for name in "bcdef"}
    told = warnings(text_of([START, END], conversation_variables=talk, mode="advanced-chat"))
    at = "workflow.conversation_variables"
    assert told[f"{at}[1].id"].problem == '"b" has the id of another variable; it goes by its name'
    assert told[f"{at}[6].name"].problem == 'a second variable "a"; the last one counts'
    assert f"{at}[6].id" not in told


def test_environment_and_conversation_variables_have_type_and_value() -> None:
    env = [
        {"name": "key", "value_type": "secret", "value": "s"},
        {"name": "n", "value_type": "number", "value": "1.5"},
        {"name": "gone", "value_type": "secret", "value": None},
    ]
    talk = [{"name": "l", "value_type": "array[object]", "value": []}]
    definition = compiled([START, END], environment_variables=env, conversation_variables=talk, mode="advanced-chat")
    assert [(each.name, each.type, each.value) for each in definition.environment] == [
        ("key", "secret", "s"),
        ("n", "number", 1.5),
        ("gone", "secret", ""),
    ]
    assert definition.conversation[0].selector == ("conversation", "l")
    assert compiled([START, END], conversation_variables=talk).conversation == ()


@pytest.mark.parametrize(
    "variable",
    [
        {"name": "a", "value_type": "number", "value": "five"},
        {"name": "a", "value_type": "number", "value": "1.0e999"},
        {"name": "a", "value_type": "object", "value": []},
        {"name": "a", "value_type": "array[string]", "value": [1]},
        {"name": "a", "value_type": "text", "value": "x"},
        {"name": "", "value_type": "string", "value": "x"},
        {"name": "a", "value_type": "string", "value": "x" * 210_000},
        "a",
    ],
)
def test_a_wrong_variable_is_an_error(variable: Any) -> None:
    (at,) = errors(text_of([START, END], environment_variables=[variable]))
    assert at.startswith("workflow.environment_variables[0]")


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["chain", "fan-out", "cycle"])
def test_large_graphs_compile_in_linear_time(shape: str) -> None:
    """Counted in lines of Python, the same on every machine: ten times the nodes, about ten times the lines."""

    def lines(count: int) -> int:
        names = [f"n{number}" for number in range(count)]
        edges = [("start", name) for name in names]
        if shape != "fan-out":
            edges = list(zip(["start", *names], names, strict=False))
        if shape == "cycle":
            edges.append((names[-1], names[0]))
        text, counted = text_of([START, *(node(name) for name in names)], edges), 0

        def trace(_frame: object, event: str, _arg: object) -> Any:
            nonlocal counted
            counted += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            check_document(text)
        finally:
            sys.settrace(before)
        return counted

    assert lines(300) < 12 * lines(30)
