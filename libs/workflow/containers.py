"""Iteration and loop: rounds as frames of the one run machine.

Nothing is copied per round: an iteration round has a thin layer over its parent's pool (its writes vanish with it), a
loop round shares its parent's pool. A finished round leaves its result and nothing else, so memory does not grow with
the number of rounds.

Pure, like the machine: `following` computes the next fact of a container from the state; the `on_*` functions fold.
"""

from typing import Any

from pydantic import JsonValue

from libs.events.model import NodeStarted, NodeSucceeded, RoundFinished, RoundStarted
from libs.workflow.conditions import ConditionError, VariableMissing, evaluate
from libs.workflow.definition import Node
from libs.workflow.outcome import Failed, Outcome, Succeeded, Values
from libs.workflow.pool import Pool, TypeMismatch, typed
from libs.workflow.segments import read_json
from libs.workflow.state import Container, Frame, Key, RunState, round_path, rounds_of

LOOP_BREAK, LOOP_COMPLETED = "loop_break", "loop_completed"


# --- opening ---------------------------------------------------------------------------------------------------------


def opening(node: Node, pool: Pool) -> Values | str:
    """What the rounds of a container will work on (`inputs` of its start), or why it cannot begin."""
    return _open_loop(node, pool) if node.type == "loop" else _open_iteration(node, pool)


def _open_iteration(node: Node, pool: Pool) -> Values | str:
    selector = list(node.config.iterator_selector)
    segment = pool.get(selector)
    if segment is None:
        return f"iterator variable {'.'.join(selector)} not found"
    if segment.value is not None and not isinstance(segment.value, list):
        return f"iterator variable {'.'.join(selector)} must be a list, it is a {segment.type}"
    return {"iterator_selector": segment.value or []}


def _open_loop(node: Node, pool: Pool) -> Values | str:
    values: Values = {"loop_count": node.config.loop_count}
    for variable in node.config.loop_variables or ():
        try:
            values[variable.label] = _initial(variable, pool)
        except (ValueError, TypeMismatch) as error:
            return f"loop variable {variable.label!r}: {error}"
    return values


def _initial(variable: Any, pool: Pool) -> JsonValue:
    if variable.value_type == "variable":
        selector = list(variable.value or ())
        segment = pool.get(selector)
        if segment is None:
            raise ValueError(f"variable {'.'.join(map(str, selector))} not found")
        return segment.value
    return _constant(variable)


def _constant(variable: Any) -> JsonValue:
    """A literal as its declared type. Raises ValueError or TypeMismatch when it cannot be one."""
    value, declared = variable.value, variable.var_type
    if variable.is_json_text:
        value = read_json(value) if isinstance(value, str) and value else []
    try:
        return typed(value, declared).value
    except TypeMismatch:
        if not isinstance(value, str):
            raise
    return typed(read_json(value), declared).value


# --- deciding --------------------------------------------------------------------------------------------------------


def following(state: RunState) -> tuple[Key, RoundStarted | RoundFinished | Outcome] | None:
    """The next fact or outcome of a container, or None.

    `touched` lists containers that may have something to say; one that has nothing leaves the list until something of
    its own happens. That is bookkeeping: the answer depends on the rest of the state alone.
    """
    while state.touched:
        key = next(iter(state.touched))
        container = state.containers.get(key)
        fact = None if container is None else _next(state, container)
        if fact is not None:
            return key, fact
        del state.touched[key]
    return None


def _next(state: RunState, container: Container) -> RoundStarted | RoundFinished | Outcome | None:
    if container.problem is not None:
        return Failed(container.problem, "WorkflowNodeError", inputs=container.inputs)
    for index in container.running:
        path = round_path(container.path, container.kind, container.node_id, index)
        if not state.frames[path].open:
            return _round_over(state, container, state.frames[path], index)
    node = state.definition.nodes[container.node_id]
    if container.kind == "loop":
        return _next_of_loop(state, container, node)
    return _next_of_iteration(container, node)


def _round_over(state: RunState, container: Container, frame: Frame, index: int) -> RoundFinished:
    node = state.definition.nodes[container.node_id]
    elapsed_s = max(state.at_us - frame.started_us, 0) / 1e6
    output: JsonValue = None
    variables: Values = {}
    if container.kind == "loop":
        for name in container.variables:
            segment = frame.pool.get((container.node_id, name))
            if segment is not None:
                variables[name] = segment.value
    elif frame.error is None:
        segment = frame.pool.get(list(node.config.output_selector or ()))
        output = None if segment is None else segment.value
    return RoundFinished(
        node_id=container.node_id,
        path=container.path,
        index=index,
        error=frame.error,
        output=output,
        variables=variables,
        elapsed_s=elapsed_s,
    )


def _next_of_iteration(container: Container, node: Node) -> RoundStarted | Outcome | None:
    mode = node.config.error_handle_mode
    terminated = bool(container.failures) and mode == "terminated"
    window = node.config.parallel_nums if node.config.is_parallel else 1
    if container.started < container.length and not terminated:
        if len(container.running) < window:
            return RoundStarted(node_id=container.node_id, path=container.path, index=container.started)
        return None
    if container.running:
        return None
    metadata = _metadata(container, "iteration_duration_map")
    left_out = container.failures if mode != "continue-on-error" else ()
    results = [container.results.get(index) for index in range(container.started) if index not in left_out]
    if node.config.flatten_output:
        results = _flattened(results)
    outputs: Values = {"output": results}
    if terminated:
        return Failed(_first_failure(container), "WorkflowNodeError", container.inputs, None, outputs, metadata)
    return Succeeded(outputs=outputs, inputs=container.inputs, metadata=metadata)


def _flattened(results: list[JsonValue]) -> list[JsonValue]:
    """One level, if there is something and everything that is not null is a list; else as it is."""
    lists = [result for result in results if result is not None]
    if not lists or not all(isinstance(result, list) for result in lists):
        return results
    return [element for result in lists for element in result]  # type: ignore[union-attr]


def _next_of_loop(state: RunState, container: Container, node: Node) -> RoundStarted | Outcome | None:
    if container.running:
        return None
    done = container.started
    if container.failures:
        metadata = _metadata_of_loop(container) | {"completed_reason": "error"}
        return Failed(_first_failure(container), "WorkflowNodeError", inputs=container.inputs, metadata=metadata)
    reached = container.broken
    if not reached and node.config.break_conditions:
        pool = state.frames[container.path].pool
        try:
            reached = evaluate(node.config.break_conditions, node.config.logical_operator, pool).holds
        except ConditionError as error:
            if done or not isinstance(error, VariableMissing):
                metadata = _metadata_of_loop(container) | {"completed_reason": "error"}
                return Failed(str(error), "WorkflowNodeError", inputs=container.inputs, metadata=metadata)
    if not reached and done < container.length:
        return RoundStarted(node_id=container.node_id, path=container.path, index=done)
    metadata = _metadata_of_loop(container) | {"completed_reason": LOOP_BREAK if reached else LOOP_COMPLETED}
    outputs: Values = {}
    if done:
        last = container.variable_map.get(str(done - 1))
        outputs = {**(last if isinstance(last, dict) else {}), "loop_round": done}
    return Succeeded(outputs=outputs, inputs=container.inputs, metadata=metadata)


def _first_failure(container: Container) -> str:
    return next(iter(container.failures.values()))


def _metadata_of_loop(container: Container) -> Values:
    """All rounds are in it: made once, when the loop ends."""
    return _metadata(container, "loop_duration_map") | {"loop_variable_map": dict(container.variable_map)}


def _metadata(container: Container, durations: str) -> Values:
    return {
        "total_tokens": container.tokens,
        "total_price": "0",
        "currency": "USD",
        durations: dict(container.durations),
    }


# --- folding ---------------------------------------------------------------------------------------------------------


def on_opened(state: RunState, event: NodeStarted) -> None:
    """The container's own start was recorded: with its inputs, or without when it could not open."""
    key = Key(event.path, event.node_id)
    node = state.definition.nodes[event.node_id]
    inputs = event.inputs
    container = Container(event.node_id, event.path, node.type, inputs)
    state.containers[key] = container
    state.touched[key] = None
    if inputs is None:
        reason = opening(node, state.frames[event.path].pool)
        container.problem = reason if isinstance(reason, str) else "the container did not open"
        return
    if node.type == "loop":
        container.length = node.config.loop_count
        for variable in node.config.loop_variables or ():
            container.variables.append(variable.label)
            state.frames[event.path].pool.set(event.node_id, variable.label, inputs[variable.label])
        return
    items = inputs["iterator_selector"]
    assert isinstance(items, list)
    container.length = len(items)


def on_round_started(state: RunState, event: RoundStarted) -> Frame:
    """Make the round's frame; the machine then decides the edges of its start marker."""
    container = state.containers[Key(event.path, event.node_id)]
    parent = state.frames[event.path].pool
    path = round_path(event.path, container.kind, event.node_id, event.index)
    if container.kind == "loop":
        for node_id in state.definition.bodies[event.node_id]:
            if str(state.definition.nodes[node_id].data.get("loop_id")) == event.node_id:
                parent.remove(node_id)
        pool = parent
    else:
        pool = parent.child()
        items = (container.inputs or {})["iterator_selector"]
        assert isinstance(items, list)
        pool.set(event.node_id, "index", event.index)
        pool.set(event.node_id, "item", items[event.index])
    key = Key(event.path, event.node_id)
    frame = state.frames[path] = Frame(path, pool, container=key, started_us=state.at_us)
    # A body without any node is over as soon as it has begun.
    state.touched[key] = None
    container.running[event.index] = None
    container.started += 1
    return frame


def on_round_finished(state: RunState, event: RoundFinished) -> dict[str, JsonValue]:
    """Keep the round's result, forget the round. Returns outputs of response nodes that go to the frame around."""
    key = Key(event.path, event.node_id)
    container = state.containers[key]
    node = state.definition.nodes[event.node_id]
    path = round_path(event.path, container.kind, event.node_id, event.index)
    frame = state.frames.pop(path)
    for each in frame.executions:
        state.executions.pop(each, None)
    del container.running[event.index]
    container.durations[str(event.index)] = event.elapsed_s
    container.tokens += frame.tokens
    state.touched[key] = None
    if container.kind == "loop":
        container.variable_map[str(event.index)] = event.variables
        missing = [name for name in container.variables if name not in event.variables]
        if event.error is not None:
            container.failures[event.index] = event.error
        elif missing:
            container.failures[event.index] = f"loop variable {missing[0]!r} is gone"
        return {} if event.error is not None else frame.outputs
    if event.error is not None:
        container.failures[event.index] = event.error
        if node.config.error_handle_mode != "terminated":
            state.exceptions_count += 1
        return {}
    container.results[event.index] = event.output
    return frame.outputs if event.index == container.length - 1 else {}


def on_loop_end(state: RunState, event: NodeSucceeded) -> None:
    """A `loop-end` breaks the loop that its `loop_id` names, from any depth inside it."""
    loop_id = str(state.definition.nodes[event.node_id].data.get("loop_id"))
    around = rounds_of(event.path)
    for depth, step in enumerate(around):
        if step.kind == "loop" and step.node_id == loop_id:
            path = "/".join(event.path.split("/")[:depth])
            state.containers[Key(path, loop_id)].broken = True
