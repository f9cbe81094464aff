"""Runs of one node or one container: an executor that dies at any append costs them nothing either."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.events.model import NodeSucceeded
from libs.workflow.definition import compile_document
from libs.workflow.machine import apply, new_state
from libs.workflow.modes import part_of, prepare
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.state import Key
from tests.documents import code, document, edges, end, node, start
from tests.driver import RUN_ID, Driver
from tests.graphs import graphs
from tests.simulation.world import World

ITERATION = document(
    [
        start("q"),
        code("list"),
        node(
            "each",
            "iteration",
            start_node_id="begin",
            iterator_selector=["list", "items"],
            output_selector=["inner", "result"],
            is_parallel=True,
            parallel_nums=2,
        ),
        node("begin", "iteration-start", iteration_id="each"),
        code("inner", iteration_id="each"),
        end(out="each.output"),
    ],
    edges("start > list > each > end", "begin > inner"),
)
GIVEN = {"inner": {"each.item": "a"}, "each": {"list.items": ["a", "b", "c"]}}
OUTPUTS = {"inner": {"result": "inner done"}, "each": {"output": ["inner done"] * 3}}


def _world(only: str) -> tuple[World, str]:
    world = World()
    digest = world.add("document", ITERATION)
    variables = prepare(compile_document(ITERATION), only, GIVEN[only]).variables  # type: ignore[arg-type]
    return world, world.request(digest, only=only, variables=variables)


@pytest.mark.parametrize("only", GIVEN)
def test_a_run_of_a_part_ends_alike_wherever_its_executor_dies(only: str) -> None:
    world, run_id = _world(only)
    world.start_executor()
    world.run()
    appends = world.landed
    assert world.fold(run_id).outputs == OUTPUTS[only]
    world.close()
    for crash_at in range(appends):
        world, run_id = _world(only)
        world.start_executor()
        world.run(landings=crash_at)
        world.crash()
        world.start_executor()
        world.run()
        state = world.fold(run_id)
        assert (state.status, state.outputs) == ("succeeded", OUTPUTS[only])
        assert set(state.definition.nodes) == set(part_of(compile_document(ITERATION), only).nodes)
        world.close()


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(0, 1000), st.data())
def test_every_node_of_a_graph_runs_alone_to_an_end(text: str, seed: int, data: st.DataObject) -> None:
    definition = compile_document(text)
    names = [name for name in definition.nodes if not name.endswith("start") or name == "start"]
    only = data.draw(st.sampled_from(names))
    variables = {"start": {"items": [["x", "y"]], "q": ["yes"]}}
    variables |= {name: {"result": ["earlier"]} for name in names if name != "start"}
    taken = prepare(definition, only, {}, variables)

    def answer(key: Key, attempt: int) -> Outcome:
        if random.Random(f"{seed} {key} {attempt}").random() < 0.2:
            return Failed(f"{key.node_id} broke", "SomeError")
        return Succeeded(outputs={"result": f"{key.node_id} at {key.path}"})

    driver = Driver(definition, accepted={"only": only, "variables": taken.variables}, **taken.inputs)  # type: ignore[arg-type]
    state = driver.run(answer)
    inside = {only, *definition.bodies.get(only, ())}
    assert {key.node_id for key in state.executions} <= inside
    last = driver.events[-2]
    if state.status == "succeeded" and isinstance(last, NodeSucceeded):
        assert state.outputs == (last.outputs or {})
    again = new_state(definition, RUN_ID)
    for event in driver.events:
        apply(again, event, 1, 1)
    assert (again.status, again.outputs) == (state.status, state.outputs)
