"""The fold of a conversation: what is kept, what a document's variables become, what is told."""

from typing import Any

from libs.events.commands import Caller
from libs.events.model import (
    ConversationVariableSet,
    RunAccepted,
    RunFailed,
    RunStarted,
    RunSucceeded,
    VariableForm,
    VariableUpdate,
)
from libs.workflow.conversation import (
    MOST_CHARACTERS,
    MOST_TURNS,
    Conversation,
    Turn,
    kept,
    opening,
    recall,
    told,
)
from libs.workflow.definition import compile_document
from tests.conversations import COUNTING, counting

TALK = "01a219fe-cc6f-7000-9d2c-5a87966bf196"


def accepted(query: str, **more: Any) -> RunAccepted:
    return RunAccepted(
        command_offset=0, task_id="t", app_id="a", workflow_id="w", version="1", digest="d", mode="advanced-chat",
        query=query, caller=Caller(id="c", user="u"), **more,
    )  # fmt: skip


def test_the_newest_part_of_a_history_is_kept() -> None:
    turns = [Turn(f"q{number}", "a") for number in range(MOST_TURNS + 5)]
    assert kept(turns) == turns[5:]
    assert kept(turns[:3]) == turns[:3]
    long = [Turn("old", "x" * 10), Turn("q", "y" * (MOST_CHARACTERS - 20)), Turn("new", "z" * 10)]
    assert kept(long) == long[1:]
    assert kept([Turn("q", "y" * (MOST_CHARACTERS + 1))]) == []


def test_the_fold_takes_ends_and_changes_in_their_order() -> None:
    wrote = (VariableUpdate(selector=("conversation", "count"), value=2, value_type="integer"),)
    form = {"count": VariableForm(id="c", value_type="number")}
    outside = ConversationVariableSet(command_offset=1, conversation_id=TALK, name="x", value="y", value_type="string")
    found = recall(
        [
            ("r0", RunStarted(max_steps=1, variables={"count": 1}, forms=form, history=[["zero", "0"]])),
            ("r1", accepted("one")),
            ("r1", RunSucceeded(outputs={"answer": "1"}, updates=wrote)),
            ("r2", accepted("two")),
            ("r2", RunFailed(error="no answer")),
            ("", outside),
        ]
    )
    assert found.history == [Turn("zero", "0"), Turn("one", "1")]
    assert found.variables == {"count": 2, "x": "y"}
    assert found.forms["count"].value_type == "number"


def test_only_the_first_event_may_tell_a_state() -> None:
    state = {"variables": {"count": 7}, "forms": {}, "history": []}
    later = [("r1", RunStarted(max_steps=1, variables={"count": 1})), ("r2", accepted("late", conversation=state))]
    assert recall(later).variables == {"count": 1}
    assert recall(later[1:]).variables == {"count": 7}


def test_a_state_that_is_told_is_the_same_state() -> None:
    whole = Conversation({"a": [1]}, {"a": VariableForm(id="1", value_type="array[number]")}, [Turn("q", "a")])
    assert recall((), told(whole, 3)) == whole
    assert told(whole, 3)["count"] == 3


def test_declared_variables_begin_with_the_conversations_value_if_it_fits() -> None:
    definition = compile_document(counting())
    past = Conversation({"count": "many", "topics": ["x"], "gone": 1})
    found = opening(definition, TALK, past)
    assert found["variables"] == {"count": 0, "topics": ["x"], "gone": 1}
    assert found["forms"]["count"] == VariableForm(
        id=COUNTING[0]["id"], value_type="number", description="messages so far"
    )


def test_a_variable_that_was_renamed_keeps_its_value_and_one_of_another_type_begins_anew() -> None:
    count, topics = COUNTING
    first = opening(compile_document(counting()), TALK, None)
    assert "renewed" not in first

    def after(found: dict[str, Any], *declared: dict[str, Any], **wrote: Any) -> dict[str, Any]:
        past = Conversation({**found["variables"], **wrote}, found["forms"])
        return opening(compile_document(counting(list(declared))), TALK, past)

    renamed = after(first, {**count, "name": "messages"}, topics, count=3)
    assert renamed["variables"] == {"messages": 3, "topics": []}
    assert (renamed["forms"]["count"].id, renamed["forms"]["messages"].id) == ("", count["id"])
    assert renamed["renewed"] == ("messages",)
    assert "renewed" not in after(renamed, {**count, "name": "messages"}, topics)
    back = after(renamed, count, topics, messages=4)
    assert (back["variables"], back["renewed"]) == ({"count": 4, "topics": []}, ("count",))
    assert (back["forms"]["count"].id, back["forms"]["messages"].id) == (count["id"], "")
    text = after(first, {**count, "value_type": "string", "value": "none"}, topics, count=3)
    assert (text["variables"]["count"], text["renewed"]) == ("none", ("count",))
    swapped = after(first, {**count, "name": "topics"}, {**topics, "name": "count"}, count=3, topics=["x"])
    assert swapped["variables"] == {"topics": 3, "count": ["x"]}
    assert {swapped["forms"]["topics"].id, swapped["forms"]["count"].id} == {count["id"], topics["id"]}
    other = {**count, "id": topics["id"].replace("2", "9")}
    for declared in ((other, {**count, "name": "messages"}), ({**count, "name": "messages"}, other)):
        freed = after(first, *declared, count=5)
        assert freed["variables"] == {"count": 0, "messages": 5, "topics": []}
        assert sorted(freed["renewed"]) == ["count", "messages"]
        later = after(after(first, {**count, "name": "messages"}, count=5), *declared)
        assert later["variables"] == {"count": 0, "messages": 5, "topics": []}
        assert later["renewed"] == ("count",), "a row of that name has the other's value"


def test_a_variable_without_an_id_has_one_of_its_name() -> None:
    definition = compile_document(counting([{**each, "id": None} for each in COUNTING]))
    first, again = (opening(definition, TALK, None)["forms"]["count"].id for _ in range(2))
    assert first == again != opening(definition, TALK, None)["forms"]["topics"].id
