"""The fold of a conversation: what is kept, what a document's variables become, what is told."""

from typing import Any

from libs.events.commands import Caller
from libs.events.ids import variable_id
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
    Held,
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


def holding(*variables: Held) -> Conversation:
    return Conversation({held.key: held for held in variables})


def held(name: str, value: Any, value_type: str = "number", id_: str = "") -> Held:
    return Held(name, VariableForm(id=id_ or f"id of {name}", value_type=value_type), value)


def values(found: Conversation) -> dict[str, Any]:
    return {each.name: each.value for each in found.variables.values()}


def test_the_newest_part_of_a_history_is_kept() -> None:
    turns = [Turn(f"q{number}", "a") for number in range(MOST_TURNS + 5)]
    assert kept(turns) == turns[5:]
    assert kept(turns[:3]) == turns[:3]
    long = [Turn("old", "x" * 10), Turn("q", "y" * (MOST_CHARACTERS - 20)), Turn("new", "z" * 10)]
    assert kept(long) == long[1:]
    assert kept([Turn("q", "y" * (MOST_CHARACTERS + 1))]) == []


def test_the_fold_takes_ends_and_changes_in_their_order() -> None:
    wrote = (VariableUpdate(selector=("conversation", "count"), value=2, value_type="integer", id="c"),)
    form = {"count": VariableForm(id="c", value_type="number")}
    outside = ConversationVariableSet(
        command_offset=1, conversation_id=TALK, name="x", value="y", value_type="string", id="x1"
    )
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
    assert found.variables == {
        ("c", "number"): held("count", 2, id_="c"),
        ("x1", "string"): held("x", "y", "string", "x1"),
    }


def test_records_that_tell_no_id_write_what_has_the_name() -> None:
    forms = {"b": VariableForm(id="1", value_type="number"), "a": VariableForm(id="", value_type="number")}
    wrote = [VariableUpdate(selector=("conversation", name), value=7, value_type="integer") for name in ("b", "new")]
    started = RunStarted(max_steps=1, variables={"b": 1}, forms=forms)
    found = recall([("r0", started), ("r0", RunSucceeded(updates=tuple(wrote)))])
    assert list(found.variables) == [("1", "number"), (variable_id("new"), "number")]
    assert values(found) == {"b": 7, "new": 7}


def test_only_the_first_event_may_tell_a_state() -> None:
    state = {"variables": {"count": 7}, "forms": {}, "history": []}
    later = [("r1", RunStarted(max_steps=1, variables={"count": 1})), ("r2", accepted("late", conversation=state))]
    assert values(recall(later)) == {"count": 1}
    assert values(recall(later[1:])) == {"count": 7}


def test_a_state_that_is_told_is_the_same_state() -> None:
    whole = holding(held("a", [1], "array[number]"), held("b", 1), held("a", 2), held("c", "x", "string", "id of b"))
    whole.history.append(Turn("q", "a"))
    assert recall((), told(whole, 3)) == whole
    assert told(whole, 3)["count"] == 3
    assert told(whole, 3)["variables"] == {"a": [1], "b": 1, "id of a:number": 2, "id of b:string": "x"}


def test_declared_variables_begin_with_the_conversations_value_if_it_fits() -> None:
    definition = compile_document(counting())
    topics = held("topics", ["x"], "array[string]")
    found = opening(definition, TALK, holding(held("count", "many", "string"), topics, held("gone", 1)))
    kept = {"id of count:string": "many", "id of topics:array[string]": ["x"], "gone": 1}
    assert found["variables"] == {"count": 0, "topics": ["x"]} | kept
    assert found["forms"]["count"] == VariableForm(
        id=COUNTING[0]["id"], value_type="number", description="messages so far"
    )
    assert found["forms"]["id of count:string"].name == "count"


def version(*declared: dict[str, Any]) -> Any:
    return compile_document(counting(list(declared)))


def began(declared: Any, past: Conversation | None) -> tuple[dict[str, Any], Conversation]:
    """The values of what it declares, by name, and the conversation from there on."""
    found = opening(declared, TALK, past)
    said = {one.name: found["variables"][one.name] for one in declared.conversation}
    return said, recall([("r", RunStarted(max_steps=1, **found))])


def wrote(declared: Any, **values: Any) -> RunSucceeded:
    """The end of a run of that version."""
    of = {one.name: one for one in declared.conversation}
    updates = (
        VariableUpdate(selector=of[name].selector, value=value, value_type=of[name].type, id=of[name].id)
        for name, value in values.items()
    )
    return RunSucceeded(updates=tuple(updates))


def after(past: Conversation, event: RunSucceeded) -> Conversation:
    return recall([("r", event)], told(past, 1))


def test_a_variable_that_was_renamed_keeps_its_value_and_one_of_another_type_begins_anew() -> None:
    count, topics = COUNTING
    first = version(count, topics)
    past = after(began(first, None)[1], wrote(first, count=3, topics=["x"]))
    renamed = version({**count, "name": "messages"}, topics)
    said, newer = began(renamed, past)
    assert said == {"messages": 3, "topics": ["x"]}
    assert began(first, after(newer, wrote(renamed, messages=4)))[0] == {"count": 4, "topics": ["x"]}
    said, text = began(version({**count, "value_type": "string", "value": "none"}, topics), past)
    assert said == {"count": "none", "topics": ["x"]}
    assert began(first, text)[0] == {"count": 3, "topics": ["x"]}, "as it left it"
    whole = version({**count, "value_type": "integer"}, topics)
    said, integer = began(whole, past)
    assert said["count"] == 3
    assert began(first, after(integer, wrote(whole, count=7)))[0]["count"] == 7, "numbers are numbers"
    swapped = version({**count, "name": "topics"}, {**topics, "name": "count"})
    assert began(swapped, past)[0] == {"topics": 3, "count": ["x"]}
    other = {**count, "id": topics["id"].replace("2", "9")}
    for declared in ((other, {**count, "name": "messages"}), ({**count, "name": "messages"}, other)):
        assert began(version(*declared), past)[0] == {"count": 0, "messages": 3}
        assert began(version(*declared), newer)[0] == {"count": 0, "messages": 3}
    assert began(version(other, topics), past)[0] == {"count": 3, "topics": ["x"]}, "its id is nobody's"


def test_a_run_of_an_older_version_writes_what_its_version_declares() -> None:
    count, topics = COUNTING
    first = version(count, topics)
    past = began(first, None)[1]
    late = wrote(first, count=5, topics=["late"])
    renamed = version({**count, "name": "messages"}, {**topics, "name": "count"})
    assert values(after(began(renamed, past)[1], late)) == {"messages": 5, "count": ["late"]}
    retyped = version({**count, "value_type": "string", "value": "none"}, topics)
    found = after(began(retyped, past)[1], late)
    assert began(retyped, found)[0] == {"count": "none", "topics": ["late"]}
    assert began(first, found)[0] == {"count": 5, "topics": ["late"]}
    new = {**count, "id": "n", "name": "new"}
    assert began(version(count, new), after(past, wrote(version(new), new=8)))[0] == {"count": 0, "new": 8}


def test_a_variable_without_an_id_has_one_of_its_name() -> None:
    definition = compile_document(counting([{**each, "id": None} for each in COUNTING]))
    first, again = (opening(definition, TALK, None)["forms"]["count"].id for _ in range(2))
    assert first == again != opening(definition, TALK, None)["forms"]["topics"].id
