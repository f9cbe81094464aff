"""Conversations whose executor dies at every append: the second message finds what the first one left, exactly.

Also: messages at the same time, changes from outside, conversations that a checkpoint carries over or has forgotten.
"""

import asyncio
from collections import defaultdict
from typing import Any

import pytest

from libs.events.blobs import is_ref
from libs.events.commands import Caller, DeleteConversation, RenameConversation, SetConversationVariable, StopRun
from libs.events.ids import new_conversation_id
from libs.events.model import CommandRejected, RunAccepted, RunStarted
from libs.workflow.conversation import recall, told
from libs.workflow.outcome import Outcome, Succeeded
from services.executor.nodes.port import Attempt, Handler
from tests.conversations import ANNOTATION, counting
from tests.documents import document, edges, node, start
from tests.simulation.world import World

TALK = new_conversation_id(0, 1_800_000_000_000_000, 77)


class Remembering(Handler):
    """Answers with what it was asked and what it remembers."""

    def __init__(self) -> None:
        self.asked: dict[str, list[str]] = defaultdict(list)

    async def run(self, attempt: Attempt) -> Outcome:
        query = attempt.pool.get(("sys", "query"))
        assert query is not None
        text = f"{query.value}<{'; '.join(turn.query for turn in attempt.history)}>"
        self.asked[attempt.key].append(text)
        await asyncio.sleep(1)
        return Succeeded(outputs={"text": text})


def world_of(**fields: Any) -> World:
    world = World(handlers={"llm": Remembering()}, **fields)
    world.add("document", counting())
    world.start_executor()
    world.run()
    return world


def say(world: World, query: str, **fields: Any) -> str:
    given = {"continues": True} | fields
    return world.request("document", mode="advanced-chat", query=query, conversation_id=TALK, **given)


def answer_of(world: World, run_id: str) -> str:
    state = world.fold(run_id)
    assert state.status == "succeeded", state.error
    return str(state.outputs["answer"])


FIRST, SECOND = "one<> #1", "two<one> #2"


def talk(world: World, crash: tuple[int, int] | None) -> list[str]:
    """Two messages; `crash`: in which of them, and after how many landings."""
    runs = []
    for number, query in enumerate(("one", "two")):
        runs.append(say(world, query, continues=number > 0))
        if crash is not None and crash[0] == number:
            world.run(landings=crash[1])
            world.crash()
            world.start_executor()
        world.run()
    return runs


def test_a_message_finds_what_earlier_ones_have_left() -> None:
    world = world_of()
    first, second = talk(world, None)
    assert [answer_of(world, run) for run in (first, second)] == [FIRST, SECOND]
    pool = world.fold(second).pool
    assert pool.names("sys")["dialogue_count"].value == 2
    assert pool.names("conversation")["topics"].value == ["one", "two"]
    world.close()


def test_a_conversation_goes_on_alike_wherever_its_executor_dies() -> None:
    counts = []
    for number in (0, 1):
        world = world_of()
        before = world.landed
        for each in range(number + 1):
            before = world.landed
            say(world, "one" if each == 0 else "two", continues=each > 0)
            world.run()
        counts.append(world.landed - before)
        world.close()
    for message, appends in enumerate(counts):
        assert appends > 8
        for crash_at in range(appends + 1):
            world = world_of()
            first, second = talk(world, (message, crash_at))
            assert [answer_of(world, run) for run in (first, second)] == [FIRST, SECOND], (message, crash_at)
            handler = world.handlers["llm"]
            assert isinstance(handler, Remembering)
            assert all(len(set(asked)) == 1 for asked in handler.asked.values()), "an attempt remembered otherwise"
            world.close()


def test_a_value_of_another_type_is_the_runs_alone() -> None:
    world = world_of()
    text = node("set", "assigner", assigned_variable_selector=["conversation", "count"], write_mode="over-write",
                input_variable_selector=["sys", "query"])  # fmt: skip
    shown = node("answer", "answer", answer="{{#conversation.count#}}")
    nodes, whole = [start(), text, shown], edges("start > set > answer")
    number = {"id": "n", "name": "count", "value_type": "number", "value": 3}
    declared: dict[str, Any] = {"mode": "advanced-chat", "conversation_variables": [number]}
    world.add("writing", document(nodes, whole, **declared))
    world.add("document", document([start(), shown], edges("start > answer"), **declared))
    world.run()
    wrote = world.request("writing", mode="advanced-chat", query="many", conversation_id=TALK)
    world.run()
    read = say(world, "and now?")
    world.run()
    assert [answer_of(world, run) for run in (wrote, read)] == ["many", "3"]
    world.close()


@pytest.mark.parametrize("snapshot_events", [1, 1000])
def test_checkpoints_carry_conversations(snapshot_events: int) -> None:
    world = world_of(checkpoint_bytes=2_000, snapshot_events=snapshot_events)
    say(world, "zero", continues=False)
    for query in ("one", "two"):
        world.run()
        world.crash()
        world.start_executor()
        world.run()
        last = say(world, query)
    world.run()
    assert answer_of(world, last) == "two<zero; one> #3"
    world.close()


def test_messages_at_the_same_time_do_not_see_each_other_and_later_ones_see_both() -> None:
    world = world_of()
    first = say(world, "one", continues=False)
    second = say(world, "two")
    world.run()
    assert [answer_of(world, run) for run in (first, second)] == ["one<> #1", "two<> #1"]
    third = say(world, "three")
    world.run()
    assert answer_of(world, third) == "three<one; two> #2"  # each of the two counted from 0
    assert world.fold(third).pool.names("sys")["dialogue_count"].value == 3
    world.close()


def test_a_message_that_overtakes_an_earlier_one_leaves_nothing_out() -> None:
    world = world_of()
    say(world, "one", continues=False)
    world.run()
    slow = say(world, "slow")  # accepted before, but its beginning may be recorded behind that of the next one
    fast = say(world, "fast")
    world.run()
    assert {answer_of(world, slow), answer_of(world, fast)} == {"slow<one> #2", "fast<one> #2"}
    last = say(world, "last")
    world.run()
    assert sorted(answer_of(world, last).removeprefix("last<").partition(">")[0].split("; ")) == ["fast", "one", "slow"]
    world.close()


def test_a_variable_set_from_outside_is_what_the_next_message_finds() -> None:
    world = world_of()
    say(world, "one", continues=False)
    world.run()
    for value in (7, 41):
        world.command(SetConversationVariable(conversation_id=TALK, name="count", value=value, value_type="number"))
    world.run()
    world.crash()
    world.start_executor()
    world.run()
    second = say(world, "two")
    world.run()
    assert answer_of(world, second) == "two<one> #42"
    marks = next(e.event for e in world.events(second) if isinstance(e.event, RunAccepted)).earlier
    assert marks is not None
    assert [mark.kind for mark in marks] == ["started", "accepted", "ended", "edited"]
    world.close()


def test_a_stopped_message_leaves_what_it_has_written() -> None:
    world = world_of()
    first = say(world, "one", continues=False)
    world.run(until=lambda: len(world.events(first)) > 4 and not world.log.waiting())
    world.stop(first)
    world.run()
    assert world.fold(first).status == "stopped"
    second = say(world, "two")
    world.run()
    assert answer_of(world, second) == "two<> #1"  # no answer, so nothing to remember
    world.close()


@pytest.mark.parametrize("snapshot_events", [1, 1000])
def test_what_was_shown_of_a_stopped_message_is_its_answer_wherever_its_executor_dies(snapshot_events: int) -> None:
    def stopped(crash_at: int | None) -> tuple[World, str, int]:
        """The world, the message, and what landed for its stop."""
        world = world_of(checkpoint_bytes=2_000, snapshot_events=snapshot_events)
        handler = world.handlers["llm"]
        assert isinstance(handler, Remembering)
        run_id = say(world, "one", continues=False)
        world.run(until=lambda: bool(handler.asked) and not world.log.waiting())
        before = world.landed
        world.command(StopRun(run_id=run_id, said="one so"))
        if crash_at is not None:
            world.run(landings=crash_at)
            world.crash()
            world.start_executor()
        world.run()
        return world, run_id, world.landed - before

    world, _, appends = stopped(None)
    world.close()
    assert appends >= 3
    for crash_at in range(appends + 1):
        world, first, _ = stopped(crash_at)
        state = world.fold(first)
        assert (state.status, state.outputs) == ("stopped", {"answer": "one so"}), crash_at
        kinds = [each.event.type for each in world.events(first)]
        assert (kinds.count("StopRequested"), kinds.count("RunStopped")) == (1, 1)
        second = say(world, "two")
        world.run()
        assert answer_of(world, second) == "two<one> #1"
        started = next(each.event for each in world.events(second) if isinstance(each.event, RunStarted))
        assert started.history == [["one", "one so"]]
        world.close()


def rejections(world: World) -> list[str]:
    return [e.event.code for e in world.events() if isinstance(e.event, CommandRejected)]


def test_a_deleted_conversation_is_not_continued() -> None:
    world = world_of()
    say(world, "one", continues=False)
    world.run()
    world.command(RenameConversation(conversation_id=TALK, name="mine"))
    world.command(DeleteConversation(conversation_id=TALK))
    world.command(RenameConversation(conversation_id=TALK, name="late"))
    world.run()
    say(world, "two")
    world.run(until=lambda: len(rejections(world)) == 2)
    assert rejections(world) == ["conversation_not_found", "conversation_not_found"]
    world.close()


def test_a_conversation_of_another_user_is_not_continued() -> None:
    world = world_of()
    say(world, "one", continues=False)
    world.run()
    say(world, "two", caller=Caller(id="another", user="another"))
    world.run(until=lambda: bool(rejections(world)))
    assert rejections(world) == ["conversation_not_found"]
    world.close()


def test_a_forgotten_conversation_is_told() -> None:
    world = world_of()
    say(world, "two")
    world.run(until=lambda: bool(rejections(world)))
    assert rejections(world) == ["conversation_unknown"]
    world.finished += 1
    state: dict[str, Any] = {"count": 4, "variables": {"count": 4, "topics": []}, "history": [["one", "yes"]]}
    state = told(recall((), state), 4)
    run_id = say(world, "two", conversation=state)
    world.run()
    assert answer_of(world, run_id) == "two<one> #5"
    assert world.fold(run_id).pool.names("sys")["dialogue_count"].value == 5
    third = say(world, "three")
    world.run()
    assert answer_of(world, third) == "three<one; two> #6"
    world.close()


def test_a_change_behind_what_is_told_is_asked_for_again() -> None:
    world = world_of()
    world.command(SetConversationVariable(conversation_id=TALK, name="count", value=9, value_type="number"))
    world.run()
    forms = {"count": {"id": "c", "value_type": "number"}}
    older = {"count": 1, "variables": {"count": 1}, "forms": forms, "history": []}
    say(world, "two", conversation=older)
    world.run(until=lambda: bool(rejections(world)))
    assert rejections(world) == ["conversation_unknown"]
    world.finished += 1
    newer: dict[str, Any] = older | {"variables": {"count": 9}}
    run_id = say(world, "two", conversation=newer, conversation_as_of=0)
    world.run()
    assert answer_of(world, run_id) == "two<> #10"
    world.close()


def test_a_history_too_large_for_an_event_is_remembered_all_the_same() -> None:
    world = world_of()
    for number, query in enumerate(["x" * 30_000, "y" * 30_000, "z" * 30_000]):
        say(world, query, continues=number > 0)
        world.run()
        world.crash()
        world.start_executor()
        world.run()
    assert world.blobs.kept
    last = say(world, "last")
    world.run()
    state = world.events(last)
    started = next(e.event for e in state if isinstance(e.event, RunStarted))
    assert is_ref(started.history)
    handler = world.handlers["llm"]
    assert isinstance(handler, Remembering)
    (asked,) = handler.asked[f"{last}/llm//1"]
    assert asked.count("z" * 30_000) == 1
    world.close()


def test_the_run_carries_what_it_found() -> None:
    world = world_of()
    _, second = talk(world, None)
    started = next(e.event for e in world.events(second) if isinstance(e.event, RunStarted))
    assert started.conversation_id == TALK
    assert started.variables == {"count": 1, "topics": ["one"]}
    assert started.history == [["one", "one<> #1"]]
    assert started.forms is not None
    assert started.forms["count"].description == "messages so far"
    world.close()


def test_an_annotations_answer_survives_its_executor_at_every_append_and_is_remembered() -> None:
    def annotated(crash_at: int | None) -> tuple[World, list[str], int]:
        """The world, two messages of which the first is annotated, and what landed for that one."""
        world = world_of()
        before = world.landed
        first = say(world, "How late?", continues=False, annotation=ANNOTATION)
        if crash_at is not None:
            world.run(landings=crash_at)
            world.crash()
            world.start_executor()
        world.run()
        appends = world.landed - before
        second = say(world, "two")
        world.run()
        return world, [first, second], appends

    world, _, appends = annotated(None)
    world.close()
    assert appends >= 3
    for crash_at in range(appends + 1):
        world, (first, second), _ = annotated(crash_at)
        assert [each.event.type for each in world.events(first)] == ["RunAccepted", "RunStarted", "RunSucceeded"]
        assert answer_of(world, first) == ANNOTATION.answer, crash_at
        assert answer_of(world, second) == "two<How late?> #1", crash_at
        started = next(each.event for each in world.events(second) if isinstance(each.event, RunStarted))
        assert started.history == [["How late?", ANNOTATION.answer]]
        world.close()
