"""Runs of one node or one container: their graph, and the values they begin with."""

from typing import Any

import pytest

from libs.workflow.definition import Definition, compile_document
from libs.workflow.modes import PartInvalid, find_node, part_of, prepare, reads
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import Key
from tests.documents import code, document, edges, end, if_else, node, start, template
from tests.driver import Driver

RETRY = {"retry_enabled": True, "max_retries": 3, "retry_interval": 100}


def _iteration(**more: Any) -> list[dict[str, Any]]:
    return [
        node(
            "each",
            "iteration",
            start_node_id="begin",
            iterator_selector=["split", "items"],
            output_selector=["inner", "result"],
            **more,
        ),
        node("begin", "iteration-start", iteration_id="each"),
        code("inner", iteration_id="each", variables=[{"variable": "x", "value_selector": ["each", "item"]}]),
        template("outer", "{{ y }}", y="split.prefix"),
    ]


DOCUMENT = document(
    [
        start("q"),
        code("split", retry_config=RETRY),
        *_iteration(),
        if_else("choice", "split.kind", "is", "yes"),
        code("handled", error_strategy="fail-branch"),
        template("greeting", "{{ a }} {{ b }}", a="split.first", b="start.q"),
        end(out="greeting.output"),
    ],
    edges(
        "start > split > each > choice", "begin > inner > outer", "choice[true] > handled > greeting > end",
        "choice[false] > end",
    ),
    environment_variables=[{"name": "key", "value": "s3cret", "value_type": "secret"}],
)  # fmt: skip


def _definition() -> Definition:
    return compile_document(DOCUMENT)


def _run(node_id: str, given: dict[str, Any], answer: Any = None) -> Driver:
    prepared = prepare(_definition(), node_id, given)
    driver = Driver(DOCUMENT, accepted={"only": node_id, "variables": prepared.variables}, **prepared.inputs)  # type: ignore[arg-type]
    driver.run(**({"answer": answer} if answer else {}))
    return driver


def test_a_single_node_runs_alone_and_its_outputs_are_the_runs() -> None:
    driver = _run("greeting", {"#split.first#": "hello", "start.q": "you"})
    assert driver.names() == [
        "RunAccepted", "RunStarted", "NodeStarted(greeting)", "NodeSucceeded(greeting)", "RunSucceeded",
    ]  # fmt: skip
    assert driver.state.outputs == {"output": "hello you"}


def test_a_single_node_has_one_attempt() -> None:
    driver = _run("split", {}, lambda key, attempt: Failed("broke"))
    assert driver.names()[-2:] == ["NodeFailed(split)", "RunFailed(split)"]


def test_the_error_strategy_of_a_single_node_holds() -> None:
    driver = _run("handled", {}, lambda key, attempt: Failed("broke", "Boom"))
    assert driver.state.status == "partial-succeeded"
    assert driver.state.outputs == {"error_message": "broke", "error_type": "Boom"}


def test_a_single_branch_says_which_way_it_would_go() -> None:
    assert _run("choice", {"split.kind": "yes"}).events[3].handle == "true"  # type: ignore[union-attr]


def test_a_single_iteration_runs_its_body_and_nothing_behind_it() -> None:
    driver = _run("each", {"#split.items#": ["a", "b"], "split.prefix": "p"})
    assert driver.state.outputs == {"output": ["inner done", "inner done"]}
    started = [word for word in driver.names() if word.startswith("NodeStarted")]
    assert started == [f"NodeStarted({name})" for name in ("each", "inner", "outer", "inner", "outer")]


def test_a_single_loop_runs_its_rounds() -> None:
    loop = node(
        "again",
        "loop",
        start_node_id="begin",
        loop_count=2,
        break_conditions=[],
        logical_operator="and",
        loop_variables=[
            {"id": "v", "label": "word", "var_type": "string", "value_type": "variable", "value": ["start", "q"]}
        ],
    )
    text = document(
        [start("q"), loop, node("begin", "loop-start", loop_id="again"), code("inner", loop_id="again"), end()],
        edges("start > again > end", "begin > inner"),
    )
    prepared = prepare(compile_document(text), "again", {"word": "hi"})
    driver = Driver(text, accepted={"only": "again", "variables": prepared.variables})
    driver.run()
    assert driver.state.outputs == {"word": "hi", "loop_round": 2}


def test_a_node_inside_a_container_runs_alone() -> None:
    driver = _run("inner", {"#each.item#": "a"})
    assert driver.state.outputs == {"result": "inner done"}


def test_what_an_earlier_run_skipped_need_not_be_given() -> None:
    earlier = {"start": {"q": ["you"]}}
    with pytest.raises(PartInvalid, match=r"#split\.first#"):
        prepare(_definition(), "greeting", {}, earlier)
    prepared = prepare(_definition(), "greeting", {}, earlier, {"split"})
    driver = Driver(DOCUMENT, accepted={"only": "greeting", "variables": prepared.variables})
    driver.run()
    assert driver.state.outputs == {"output": "None you"}


def test_a_start_node_takes_inputs_of_its_own() -> None:
    prepared = prepare(_definition(), "start", {"q": "hello", "more": 1})
    assert (prepared.inputs, prepared.variables) == ({"q": "hello"}, {})


def test_what_a_container_reads_from_outside_leaves_out_its_body_and_itself() -> None:
    assert reads(_definition(), "each") == {
        "#split.items#": ("split", "items"),
        "#split.prefix#": ("split", "prefix"),
    }


@pytest.mark.parametrize("key", ["#split.first#", "split.first", "a", "greeting.a", "greeting.#split.first#"])
def test_a_value_is_given_under_any_of_its_names(key: str) -> None:
    assert prepare(_definition(), "greeting", {key: "x", "b": "y"}).variables == {
        "split": {"first": ["x"]},
        "start": {"q": ["y"]},
    }


def test_the_items_of_an_iteration_have_the_editors_name() -> None:
    given = {"each.input_selector": [1], "split.prefix": "p"}
    assert prepare(_definition(), "each", given).variables["split"] == {"items": [[1]], "prefix": ["p"]}


def test_a_missing_value_is_given_by_the_key_that_names_it_whatever_dots_its_name_has() -> None:
    said = node("said", "variable-aggregator", variables=[["start", "sys.query"]])
    definition = compile_document(document([start(), said, end(out="said.output")], edges("start > said > end")))
    assert prepare(definition, "said", {"#start.sys.query#": "hi"}).variables == {"start": {"sys.query": ["hi"]}}


def test_all_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(PartInvalid) as raised:
        prepare(_definition(), "greeting", {"a": None})
    assert set(raised.value.problems) == {
        "Variable key #split.first# not found in user inputs.",
        "Variable key #start.q# not found in user inputs.",
    }


def test_unknown_keys_are_named_and_environment_variables_stay() -> None:
    prepared = prepare(_definition(), "greeting", {"a": 1, "b": 2, "c": 3, "#env.key#": "other"})
    assert prepared.unused == ("c",)
    assert "env" not in prepared.variables


def test_parts_of_one_object_are_put_together() -> None:
    reader = template("t", "{{ a }}{{ b }}", a="llm.structured_output.x.y", b="llm.structured_output.z")
    text = document([start(), code("llm"), reader], edges("start > llm > t"))
    given = {"#llm.structured_output.x.y#": 1, "#llm.structured_output.z#": 2}
    variables = prepare(compile_document(text), "t", given).variables
    assert variables == {"llm": {"structured_output": [{"x": {"y": 1}, "z": 2}]}}


def test_files_become_file_values() -> None:
    file = {"type": "image", "transfer_method": "remote_url", "url": "https://example.org/a.png"}
    variables = prepare(_definition(), "greeting", {"a": [file], "b": file}).variables
    assert variables["start"]["q"][0]["dify_model_identity"] == "__dify__file__"  # type: ignore[index,call-overload]
    assert variables["split"]["first"][0][0]["filename"] == "a.png"  # type: ignore[index,call-overload]


def test_an_earlier_run_lends_its_variables_but_no_secret_and_not_its_identity() -> None:
    def answer(key: Key, attempt: int) -> Outcome:
        outputs: dict[str, Any] = {"items": [], "first": "one", "kind": "yes"} if key.node_id == "split" else {"r": 1}
        return Succeeded(outputs=outputs)

    earlier = Driver(DOCUMENT, q="earlier")
    earlier.run(answer)
    variables = prepare(_definition(), "greeting", {"b": "given"}, earlier.state.pool.dump()).variables
    assert variables["split"] == {"items": [[]], "first": ["one"], "kind": ["yes"]}
    assert variables["start"]["q"] == ["given"]  # type: ignore[index,call-overload]
    assert variables["sys"] == {"files": [[]]}
    assert "env" not in variables
    assert "greeting" not in variables


def test_a_value_that_is_sealed_in_the_log_is_not_lent() -> None:
    sealed = {"$sealed": "1.k.t", "shown": "***"}
    earlier: dict[str, Any] = {"split": {"first": [sealed], "kind": ["yes"]}, "start": sealed}
    variables = prepare(_definition(), "choice", {}, earlier).variables
    assert variables == {"split": {"kind": ["yes"]}}
    with pytest.raises(PartInvalid, match=r"#split.first# not found in user inputs. The earlier run has a value"):
        prepare(_definition(), "greeting", {}, earlier)


def test_an_earlier_runs_inputs_are_a_start_nodes_own() -> None:
    earlier = Driver(DOCUMENT, q="earlier")
    assert prepare(_definition(), "start", {}, earlier.state.pool.dump()).inputs == {"q": "earlier"}


def test_a_node_is_found_by_id_or_title() -> None:
    definition = _definition()
    assert find_node(definition, "greeting") == find_node(definition, "Greeting") == "greeting"
    with pytest.raises(PartInvalid, match=r'no node "greting"\. Did you mean "greeting"'):
        find_node(definition, "greting")
    with pytest.raises(PartInvalid, match="Run its container: each"):
        prepare(definition, "begin", {})


def test_a_part_keeps_no_edge_to_what_does_not_run() -> None:
    part = part_of(_definition(), "each")
    assert set(part.nodes) == {"each", "begin", "inner", "outer"}
    ends = {end for edge in part.edges for end in (edge.source, edge.target)}
    assert ends <= set(part.nodes)
    assert part.root == "each"
