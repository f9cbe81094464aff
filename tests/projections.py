"""Histories for tests and benchmarks of the projector: runs of a few nodes, interleaved in one events partition."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import Engine

from libs.events.codec import Recorded, encode_event
from libs.events.commands import Caller, Origin
from libs.events.ids import RunId, message_id_of, new_conversation_id, new_run_id, task_id_of
from libs.events.log import Entry, Log, Topic
from libs.events.model import (
    ConversationPinned,
    ConversationRenamed,
    ConversationVariableSet,
    EndUserSeen,
    Event,
    MessageRated,
    NodeRestarted,
    NodeRetryScheduled,
    NodeSkipped,
    NodeStarted,
    NodeSucceeded,
    PartitionClaimed,
    RunAccepted,
    RunFailed,
    RunStarted,
    RunSucceeded,
    VariableForm,
    VariableUpdate,
)
from libs.tables import FILLED, positions
from tests.conversations import ANNOTATION

START_US = 1_767_000_000_000_000


@dataclass
class Owner:
    """Writes an events partition as its owner would: claim first, then numbered records."""

    partition: int = 0
    epoch: int = 0
    n: int = 0
    offset: int = 0
    at_us: int = START_US
    seqs: dict[str, int] = field(default_factory=dict)

    def claim(self) -> Recorded:
        self.epoch, self.n = self.epoch + 1, -1
        return self.record("", PartitionClaimed(owner="test", commands_topic_id="t"))

    def record(self, run_id: str, event: Event) -> Recorded:
        self.n += 1
        self.at_us += 1_000
        seq = 0
        if run_id:
            seq = self.seqs[run_id] = self.seqs.get(run_id, 0) + 1
        recorded = Recorded(
            event=event,
            run_id=run_id,
            seq=seq,
            epoch=self.epoch,
            n=self.n,
            at_us=self.at_us,
            cause="derived",
            partition=self.partition,
            offset=self.offset,
        )
        self.offset += 1
        return recorded


def run_id(number: int, partition: int = 0) -> RunId:
    return new_run_id(partition, START_US + number * 1_000, number)


def accepted(run: str, **changed: Any) -> RunAccepted:
    whole: dict[str, Any] = {
        "command_offset": 0,
        "task_id": task_id_of(run),
        "app_id": "11111111-1111-4111-8111-111111111111",
        "workflow_id": "22222222-2222-4222-8222-222222222222",
        "version": "2026-05-02 09:13:44.120331",
        "digest": "sha256:00",
        "inputs": {"city": "Lyon"},
        "caller": Caller(id="33333333-3333-4333-8333-333333333333", user="crm-42"),
    }
    return RunAccepted(**(whole | changed))


def node(node_id: str, index: int, **changed: Any) -> NodeStarted:
    whole: dict[str, Any] = {"node_id": node_id, "node_type": "code", "title": node_id.title(), "index": index}
    return NodeStarted(**(whole | changed))


def story(run: str, nodes: int = 3) -> list[Event]:
    """The events of one run: node `n0` is retried once, one node is skipped, the last one lost its owner once."""
    events: list[Event] = [accepted(run), RunStarted(max_steps=100)]
    for i in range(nodes):
        name, before = f"n{i}", f"n{i - 1}" if i else None
        events.append(node(name, i + 1, predecessor_id=before))
        attempt = 1
        if i == 0:
            events += [
                NodeRetryScheduled(node_id=name, error="503\0 from upstream", error_type="HTTPError", due_us=1),
                node(name, i + 1, attempt=2, predecessor_id=before),
            ]
            attempt = 2
        if i == nodes - 1:
            events.append(NodeRestarted(node_id=name))
        events.append(
            NodeSucceeded(
                node_id=name,
                attempt=attempt,
                inputs={"x": i},
                outputs={"text": f"tab\tline\n back\\slash \0 nul é {name}"},
                metadata={"total_tokens": i},
                elapsed_s=0.25,
            )
        )
    events.append(NodeSkipped(node_id="other", by="n0", handle="false"))
    events.append(RunSucceeded(outputs={"result": "ok"}, total_steps=nodes, total_tokens=3, elapsed_s=1.5))
    return events


def failing_story(run: str) -> list[Event]:
    return [accepted(run), RunStarted(max_steps=100), node("n0", 1), RunFailed(error="boom", node_id="n0")]


def interleaved(owner: Owner, stories: Mapping[RunId, Sequence[Event]]) -> Iterator[Recorded]:
    """Round robin over the runs' events, as concurrent runs of one partition are written."""
    yield owner.claim()
    waiting = {run: iter(events) for run, events in stories.items()}
    while waiting:
        for run in list(waiting):
            event = next(waiting[run], None)
            if event is None:
                del waiting[run]
            else:
                yield owner.record(run, event)


def entry(recorded: Recorded) -> Entry:
    return encode_event(
        recorded.event,
        partition=recorded.partition,
        run_id=recorded.run_id,
        seq=recorded.seq,
        epoch=recorded.epoch,
        n=recorded.n,
        at_us=recorded.at_us,
        cause=recorded.cause,
    )


def broken(recorded: Recorded) -> Entry:
    """A valid record whose body cannot be read."""
    return replace(entry(recorded), value=b'{"type": ')


def append(log: Log, entries: Sequence[Entry], partition: int = 0) -> None:
    """Append to the events topic and wait until all of it is durable."""
    for future in [log.send(Topic.EVENTS, partition, one, timeout_s=30.0) for one in entries]:
        future.result(30.0)


def dump(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the projected tables, in a fixed order."""
    with engine.begin() as connection:
        return {
            table.name: sorted(
                (tuple(row) for row in connection.execute(select(table))), key=lambda row: tuple(map(str, row[:2]))
            )
            for table in FILLED
            if table is not positions
        }


TALK, FORKED = new_conversation_id(0, START_US, 9), new_conversation_id(0, START_US, 10)
FILE: Any = {"dify_model_identity": "__dify__file__", "type": "image", "filename": "a.png"}


def said(run: str, number: int, answer: str) -> list[Event]:
    """The events of a run that answers a message and counts it in a conversation variable."""
    opened = {"conversation_name": "first words", "introduction": "hello"} if number == 1 else {}
    selector = ("conversation", "count")
    count = VariableUpdate(selector=selector, value=number, value_type="number", id="id-count")
    return [
        accepted(
            run, mode="advanced-chat", query=f"question {number}", conversation_id=TALK, dialogue_count=number, **opened
        ),
        RunStarted(
            max_steps=100,
            conversation_id=TALK,
            variables={"count": number - 1, "none": None},
            forms={name: VariableForm(id=f"id-{name}", value_type="number") for name in ("count", "none")},
            history=[],
        ),
        node("n0", 1),
        NodeSucceeded(node_id="n0", outputs={"text": answer}, updates=(count,)),
        RunSucceeded(
            outputs={"answer": answer, "files": [FILE]}, total_tokens=7, conversation_id=TALK, updates=(count,)
        ),
    ]


def conversation(owner: Owner) -> Iterator[Recorded]:
    """Two messages; the second fails. Between them somebody renames, sets a variable, and rates twice. An annotation
    answers a third one, which is then forked.
    """
    first, second, third, fork = (run_id(500 + number) for number in range(4))
    rated: dict[str, Any] = {"app_id": "app", "message_id": message_id_of(first), "caller": Caller(id="u", user="ann")}
    yield owner.claim()
    for event in said(first, 1, "yes \0 no"):
        yield owner.record(first, event)
    yield owner.record("", MessageRated(command_offset=3, conversation_id=TALK, rating="like", content="ok", **rated))
    yield owner.record("", ConversationRenamed(command_offset=4, conversation_id=TALK, name="renamed"))
    yield owner.record(
        "",
        ConversationVariableSet(
            command_offset=5, conversation_id=TALK, name="count", value=40, value_type="number", id="id-count"
        ),
    )
    for offset, pinned in ((9, True), (10, False)):
        yield owner.record("", ConversationPinned(command_offset=offset, conversation_id=TALK, pinned=pinned))
    for event in said(second, 2, "never")[:3]:
        yield owner.record(second, event)
    yield owner.record("", MessageRated(command_offset=6, conversation_id=TALK, rating=None, **rated))
    other = Caller(id="v", user="bob\0by")
    for offset in (7, 8):
        yield owner.record("", EndUserSeen(command_offset=offset, app_id="app", caller=other, invoke_from="web-app"))
    yield owner.record(second, RunFailed(error="boom", node_id="n0", conversation_id=TALK))
    more: dict[str, Any] = {"mode": "advanced-chat", "query": "how late", "annotation": ANNOTATION}
    yield owner.record(third, accepted(third, conversation_id=TALK, dialogue_count=3, **more))
    yield owner.record(third, RunStarted(max_steps=100, conversation_id=TALK))
    yield owner.record(third, RunSucceeded(outputs={"answer": ANNOTATION.answer}, conversation_id=TALK))
    origin = Origin(run_id=third, seq=2)
    yield owner.record(fork, accepted(fork, conversation_id=FORKED, dialogue_count=1, forked_from=origin, **more))
