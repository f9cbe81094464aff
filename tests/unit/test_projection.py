"""What events mean for rows: folding, clearing, keeping; and that the cutting into batches does not matter."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from libs.events.codec import Recorded
from libs.events.commands import Origin
from libs.events.ids import execution_id
from libs.events.model import (
    FormOpened,
    FormSubmitted,
    NodeRestarted,
    NodeStarted,
    NodeSucceeded,
    RunPaused,
    RunResumed,
    RunStarted,
    RunSucceeded,
)
from services.projector.projection import Changes, RunContext, project, unknown_runs
from services.projector.rows import KEPT, REPLACED, Row
from tests.conversations import ANNOTATION
from tests.projections import TALK, Owner, accepted, conversation, failing_story, interleaved, node, run_id, story

RUN = run_id(1)


def history(*events: object) -> list[Recorded]:
    owner = Owner()
    return [owner.claim(), *(owner.record(RUN, event) for event in events)]  # type: ignore[arg-type]  # events only


def rows(events: Sequence[Recorded]) -> Changes:
    return project(events, {})


def test_an_accepted_run_is_pending_and_shows_its_inputs_with_system_values() -> None:
    row = rows(history(accepted(RUN))).runs[RUN]
    assert row["status"] == "pending"
    assert (row["outputs"], row["elapsed_time"], row["total_steps"], row["seq"]) == ("{}", 0.0, 0, 1)
    assert json.loads(row["inputs"]) == {
        "city": "Lyon",
        "sys.files": [],
        "sys.user_id": "crm-42",
        "sys.app_id": row["app_id"],
        "sys.workflow_id": row["workflow_id"],
        "sys.workflow_run_id": RUN,
    }


def test_a_chatflow_run_has_type_chat_and_its_query() -> None:
    event = accepted(RUN, mode="advanced-chat", query="hello", conversation_id="c1")
    row = rows(history(event)).runs[RUN]
    assert (row["type"], row["query"], row["conversation_id"]) == ("chat", "hello", "c1")
    assert json.loads(row["inputs"])["sys.query"] == "hello"


def test_a_message_that_waits_for_a_person_has_what_was_answered_so_far_until_it_ends() -> None:
    asked = (accepted(RUN, mode="advanced-chat", query="hello", conversation_id="c1"), RunStarted(max_steps=5))
    paused = RunPaused(forms=("f",), answer="Hi. ")
    (message,) = rows(history(*asked, paused)).talks.messages.values()
    assert (message["answer"], message["query"]) == ('"Hi. "', "hello")
    ended = RunSucceeded(outputs={"answer": "Hi. Bye."}, conversation_id="c1")
    (message,) = rows(history(*asked, paused, RunResumed(), ended)).talks.messages.values()
    assert message["answer"] == '"Hi. Bye."'
    assert rows(history(accepted(RUN), RunStarted(max_steps=5), RunPaused())).talks.messages == {}


def test_a_retry_that_succeeds_clears_the_error_and_keeps_the_first_start() -> None:
    owner = Owner()
    events = list(interleaved(owner, {RUN: story(RUN)}))
    row = rows(events).nodes[execution_id(RUN, "", "n0")]
    assert (row["status"], row["attempt"], row["error"], row["error_type"]) == ("succeeded", 2, None, None)
    first = next(one for one in events if isinstance(one.event, NodeStarted))
    assert (row["created_at"], row["first_seq"]) == (first.at_us, first.seq)


def test_a_scheduled_retry_shows_its_error_without_nul_and_no_end() -> None:
    events = list(interleaved(Owner(), {RUN: story(RUN)}))[:5]
    row = rows(events).nodes[execution_id(RUN, "", "n0")]
    assert (row["status"], row["error"], row["finished_at"]) == ("retry", "503 from upstream", None)


def test_a_restarted_container_keeps_the_inputs_of_its_start() -> None:
    started = node("box", 1, inputs={"items": [1, 2]})
    row = rows(history(accepted(RUN), started, NodeRestarted(node_id="box"))).nodes[execution_id(RUN, "", "box")]
    assert (row["status"], row["inputs"]) == ("running", '{"items":[1,2]}')


def test_nodes_of_rounds_have_rows_of_their_own_with_their_rounds_in_the_metadata() -> None:
    path = "iteration:outer%3A1:2/loop:inner:0"
    done = NodeSucceeded(node_id="a", path=path, metadata={"total_tokens": 1})
    changes = rows(history(accepted(RUN), node("a", 1), node("a", 2, path=path), done))
    assert len(changes.nodes) == 2
    row = changes.nodes[execution_id(RUN, path, "a")]
    assert json.loads(row["execution_metadata"]) == {
        "iteration_id": "outer:1",
        "iteration_index": 2,
        "loop_id": "inner",
        "loop_index": 0,
        "total_tokens": 1,
    }


def test_skips_move_the_sequence_on_and_make_no_row() -> None:
    events = list(interleaved(Owner(), {RUN: story(RUN)}))
    changes = rows(events)
    assert execution_id(RUN, "", "other") not in changes.nodes
    assert changes.runs[RUN]["seq"] == events[-1].seq


def test_a_failed_run_names_the_node_and_the_reason() -> None:
    row = rows(list(interleaved(Owner(), {RUN: failing_story(RUN)}))).runs[RUN]
    assert (row["status"], row["error"], row["error_node_id"]) == ("failed", "boom", "n0")


def test_partition_events_change_no_row() -> None:
    assert rows([Owner().claim()]) == Changes()


def test_runs_whose_acceptance_is_elsewhere_are_asked_for_when_a_node_starts() -> None:
    events = history(RunStarted(max_steps=1), node("a", 1))
    assert unknown_runs(events, {}) == {RUN}
    assert unknown_runs(events, {RUN: RunContext("app", "workflow", "end_user", "who")}) == set()
    assert unknown_runs(history(accepted(RUN), node("a", 1)), {}) == set()


def upsert(table: str, rows: dict[Any, Row], changes: dict[Any, Row]) -> None:
    """What the SQL of services/projector/writer.py does, by the same three rules."""
    for row_id, change in changes.items():
        row = rows.setdefault(row_id, {})
        for column, value in change.items():
            keep_old = column in KEPT and row.get(column) is not None
            if not keep_old and (value is not None or column in REPLACED.get(table, ()) or column not in row):
                row[column] = value


@given(cuts=st.lists(st.integers(0, 60), max_size=8), runs=st.integers(1, 4))
def test_rows_are_the_same_however_the_log_is_cut_into_batches(cuts: list[int], runs: int) -> None:
    stories = {run_id(i): story(run_id(i), 2) if i % 2 else failing_story(run_id(i)) for i in range(runs)}
    events = list(interleaved(Owner(), stories))
    whole = project(events, {})
    seen: dict[str, RunContext] = {}
    runs_table: dict[str, Row] = {}
    nodes_table: dict[str, Row] = {}
    edges = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    for start, stop in pairwise(edges):
        part = project(events[start:stop], seen)
        seen |= part.contexts
        upsert("workflow_runs", runs_table, part.runs)
        upsert("workflow_node_executions", nodes_table, part.nodes)
    assert set_columns(runs_table) == set_columns(whole.runs)
    assert set_columns(nodes_table) == set_columns(whole.nodes)


# --- conversations ----------------------------------------------------------------------------------------------------


def test_rows_of_a_conversation_show_what_was_said_named_written_and_rated() -> None:
    talks = rows(list(conversation(Owner()))).talks
    row = talks.conversations[TALK]
    assert (row["name"], row["introduction"], row["dialogue_count"], row["changed_by"]) == ("renamed", "hello", 3, 5)
    first, second, annotated, _ = talks.messages.values()
    assert (first["query"], json.loads(first["answer"]), first["status"]) == ("question 1", "yes \0 no", "normal")
    assert json.loads(first["answer_files"])[0]["filename"] == "a.png"
    assert (second["status"], second["error"], second["number"], second["answer"]) == ("error", "boom", 2, '""')
    count, none = (talks.variables[TALK, f"id-{name}", "number"] for name in ("count", "none"))
    assert (count["initial"], count["value"], count["name"]) == ("0", "40", "count")
    assert (none["initial"], none.get("value")) == ("null", None)
    (rated,) = talks.feedbacks.values()
    assert (rated["rating"], rated["content"], rated["from_source"]) == (None, None, "user")
    assert rated["created_at"] < rated["updated_at"]
    (hit,) = talks.hits.values()
    assert (hit["id"], hit["annotation_id"], hit["conversation_id"]) == (annotated["id"], ANNOTATION.id, TALK)
    assert (hit["question"], hit["annotation_content"], hit["score"]) == ("how late", ANNOTATION.answer, 0.97)
    assert json.loads(annotated["answer"]) == ANNOTATION.answer


@given(cuts=st.lists(st.integers(0, 20), max_size=8))
def test_rows_of_a_conversation_are_the_same_however_the_log_is_cut(cuts: list[int]) -> None:
    events = list(conversation(Owner()))
    whole = project(events, {}).talks
    tables: dict[str, dict[Any, Row]] = {
        name: {} for name in ("conversations", "messages", "feedbacks", "variables", "hits")
    }
    for start, stop in pairwise(sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})):
        part = project(events[start:stop], {}).talks
        for name, table in tables.items():
            upsert("message_feedbacks" if name == "feedbacks" else "conversations", table, getattr(part, name))
    for name, table in tables.items():
        assert set_columns(table) == set_columns(getattr(whole, name))


def set_columns(rows: dict[Any, Row]) -> dict[Any, Row]:
    """Without None: a column that is None and one that was never named are the same in a table."""
    return {key: {name: value for name, value in row.items() if value is not None} for key, row in rows.items()}


def test_work_on_a_run_begins_with_the_node_behind_its_root() -> None:
    def begun(*nodes: NodeStarted, **said: Any) -> Any:
        events = history(accepted(RUN, **said), RunStarted(max_steps=9), *nodes)
        at = next((each.at_us for each in events if each.event is nodes[-1]), None)
        return rows(events).runs[RUN].get("begun_at"), at

    assert begun(node("start", 1))[0] is None
    assert len({*begun(node("start", 1), node("a", 2))}) == 1
    assert len({*begun(node("a", 1), only="a")}) == 1
    first, retried = begun(node("start", 1), node("a", 2), node("a", 2, attempt=2))
    assert first < retried


def test_a_run_of_one_node_and_a_fork_say_so_in_their_rows() -> None:
    changes = rows(history(accepted(RUN, only="n0", forked_from=Origin(run_id=run_id(2), seq=7)), node("n0", 1)))
    row = changes.runs[RUN]
    assert (row["only"], row["forked_from"], row["forked_at"], row["forked_tokens"]) == ("n0", run_id(2), 7, 0)
    spent = history(accepted(RUN, forked_from=Origin(run_id=run_id(2), seq=7, tokens=12)))
    assert rows(spent).runs[RUN]["forked_tokens"] == 12
    assert rows(history(accepted(RUN))).runs[RUN]["forked_tokens"] == 0
    assert changes.nodes[execution_id(RUN, "", "n0")]["triggered_from"] == "single-step"
    context = {RUN: RunContext("a", "w", "end_user", "u", "n0")}
    later = project(history(accepted(RUN), node("n0", 1))[2:], context)
    assert later.nodes[execution_id(RUN, "", "n0")]["triggered_from"] == "single-step"


def test_a_run_that_waits_for_a_person_is_paused_and_so_is_its_node() -> None:
    opened = FormOpened(node_id="n0", form_id="f", token="t", actions=("ok",), form={}, due_us=1)
    start = NodeStarted(node_id="n0", node_type="human-input", index=1)
    events = history(accepted(RUN), RunStarted(max_steps=5), start, opened, RunPaused(forms=("f",)))
    found = rows(events)
    assert found.runs[RUN]["status"] == "paused"
    assert found.nodes[execution_id(RUN, "", "n0")]["status"] == "paused"
    submitted = FormSubmitted(node_id="n0", form_id="f", command_offset=2, action="ok")
    more = (submitted, RunResumed(), NodeSucceeded(node_id="n0", handle="ok"))
    found = rows(history(*(each.event for each in events[1:]), *more))
    assert found.runs[RUN]["status"] == "running"
    assert found.nodes[execution_id(RUN, "", "n0")]["status"] == "succeeded"
