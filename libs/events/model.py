"""Events: the facts of runs and partitions. Past tense; their meaning never changes.

A *run event* belongs to one run and has a sequence in it (1, 2, 3, ...). A *partition event* belongs to the owner of
a partition and has no run sequence. Where an event stands (run, sequence, epoch, n, time, cause) is not in the event
but in its envelope: see `Recorded` in `libs.events.codec`.

Fields may be added with a default; a changed meaning needs a new type, or a new version and an upcaster.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from libs.events.commands import Annotation, Caller, Origin

Values = dict[str, JsonValue]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


# --- partition events ------------------------------------------------------------------------------------------------


class PartitionClaimed(_Event):
    """An executor takes the partition. Its envelope has the new epoch and n = 0."""

    type: Literal["PartitionClaimed"] = "PartitionClaimed"
    owner: str
    commands_topic_id: str
    requires: tuple[str, ...] = ()
    """What an owner must know to go on behind this claim: an older release would fold wrongly what stands there."""


class PartitionReleased(_Event):
    """The owner hands the partition over; it writes nothing more in this epoch."""

    type: Literal["PartitionReleased"] = "PartitionReleased"
    owner: str


class OwnerConfirmed(_Event):
    """Says nothing; its confirmation tells an owner that it still owns the partition."""

    type: Literal["OwnerConfirmed"] = "OwnerConfirmed"


class CommandRejected(_Event):
    """A command was refused. The command's run (if it exists) is unchanged."""

    type: Literal["CommandRejected"] = "CommandRejected"
    command_offset: int
    command: str
    """Type of the command, or `unknown` when it could not be decoded."""
    run_id: str | None = None
    code: str
    """Stable: `duplicate`, `idempotency_key_reused`, `expired`, `not_running`, `run_exists`, `misrouted`,
    `unreadable`, `already_paused`, `not_paused`, `not_set_aside`, `form_closed`, `unknown_action`,
    `conversation_unknown` (tell its state), `conversation_not_found`, `too_many_requests`."""
    message: str
    duplicate_of: str | None = None
    """With `duplicate`: the run that the first start with this key made."""


class CheckpointWritten(_Event):
    """One part of a checkpoint of the partition's fold; complete when all `parts` of `checkpoint_id` are there."""

    type: Literal["CheckpointWritten"] = "CheckpointWritten"
    checkpoint_id: str
    part: int
    parts: int
    data: JsonValue = None


class RunSnapshotted(_Event):
    """A disposable cached fold of one run: its state after `seq`. `state` may be a blob reference."""

    type: Literal["RunSnapshotted"] = "RunSnapshotted"
    run_id: str
    seq: int
    state: JsonValue = None


class RunSetAside(_Event):
    """The owner cannot fold the run's history. Nothing of it is executed until `RunReleased`; it can be stopped."""

    type: Literal["RunSetAside"] = "RunSetAside"
    run_id: str
    error: str


class RunReleased(_Event):
    """Somebody asked to try again with a run that was set aside.

    What follows with the same cause says how it went: `RunSnapshotted`, the run goes on; or `RunSetAside`.
    """

    type: Literal["RunReleased"] = "RunReleased"
    command_offset: int
    run_id: str
    by: str = ""


class EndUserSeen(_Event):
    """Somebody has done something in an app of which no run tells. May be said several times of one user."""

    type: Literal["EndUserSeen"] = "EndUserSeen"
    command_offset: int
    app_id: str
    caller: Caller
    invoke_from: str = "service-api"


# --- events of conversations -----------------------------------------------------------------------------------------


class _ConversationEvent(_Event):
    command_offset: int
    conversation_id: str


class ConversationRenamed(_ConversationEvent):
    type: Literal["ConversationRenamed"] = "ConversationRenamed"
    name: str


class ConversationDeleted(_ConversationEvent):
    """Nobody sees the conversation any more and no message continues it; its runs stay what they were."""

    type: Literal["ConversationDeleted"] = "ConversationDeleted"


class ConversationPinned(_ConversationEvent):
    """The conversation is among the pinned ones of its user, or, not `pinned`, it is not any more."""

    type: Literal["ConversationPinned"] = "ConversationPinned"
    pinned: bool


class ConversationVariableSet(_ConversationEvent):
    """A conversation variable was given a value from outside; messages that are accepted later begin with it."""

    type: Literal["ConversationVariableSet"] = "ConversationVariableSet"
    name: str
    value: JsonValue = None
    value_type: str
    id: str | None = None
    """Absent: the one of the name, in older records."""


class MessageRated(_ConversationEvent):
    """What a user thinks of an answer; None takes it back."""

    type: Literal["MessageRated"] = "MessageRated"
    app_id: str
    message_id: str
    rating: Literal["like", "dislike"] | None = None
    content: str | None = None
    caller: Caller


# --- run events: the run ---------------------------------------------------------------------------------------------


class Mark(BaseModel):
    """Where an event of a conversation stands: who reads from `offset` on with the state `(epoch, n)` meets it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    offset: int
    epoch: int
    n: int
    kind: Literal["accepted", "started", "ended", "edited"]
    of: str
    """The run; for `edited` the cause of the record (`command:<offset>`)."""


class VariableForm(BaseModel):
    """What is said of a conversation variable besides its value."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    value_type: str
    description: str = ""
    name: str | None = None
    """Of one that stands under another key than its name, since a newer one has its name or its id."""


class RunAccepted(_Event):
    """The start was accepted; the run is pending. First event of every run (sequence 1)."""

    type: Literal["RunAccepted"] = "RunAccepted"
    command_offset: int
    task_id: str
    app_id: str
    workflow_id: str
    version: str
    digest: str
    mode: Literal["workflow", "advanced-chat"] = "workflow"
    inputs: Values = Field(default_factory=dict)
    files: tuple[JsonValue, ...] = ()
    query: str | None = None
    conversation_id: str | None = None
    caller: Caller
    invoke_from: str = "service-api"
    triggered_from: str = "app-run"
    idempotency_key: str | None = None
    body_digest: str = ""
    pins: dict[str, JsonValue] | None = None
    only: str | None = None
    """The node that runs alone; a container with its body. Absent: the whole graph."""
    root: str | None = None
    """The node at which the run begins, where the document has several roots: the others are skipped. Absent: the
    first one in the document."""
    variables: Values | None = None
    """Values that are there from the beginning, by node and name: `[value]` or `[value, declared type]`."""
    dialogue_count: int | None = None
    """Chatflows: which message of the conversation it answers, from 1."""
    earlier: tuple[Mark, ...] | None = None
    """Chatflows: the events whose fold is the conversation as this run finds it; absent for the first message."""
    conversation: Values | None = None
    """Chatflows: the conversation as the tables held it, when the partition's fold had forgotten it."""
    conversation_name: str | None = None
    """Chatflows, first message: how the conversation is called."""
    introduction: str | None = None
    """Chatflows, first message: what the app says before it."""
    not_after_us: int | None = None
    """Until when the start was wanted; the same command, read once more, makes no second run."""
    forked_from: Origin | None = None
    """The run whose beginning this run shares, and up to where."""
    prefix: JsonValue = None
    """That beginning: bodies of events, recorded again before anything else happens."""
    annotation: Annotation | None = None
    """Chatflows: the annotation that answers the message; no node runs."""


class RunStarted(_Event):
    """The run was admitted and runs. Carries the limits in force, so that a replay meets the same ones.

    Of a chatflow it carries the conversation as well, as it was when the run was accepted: what a run works with is
    in its own events.
    """

    type: Literal["RunStarted"] = "RunStarted"
    max_steps: int
    max_time_s: float = 0
    """0: none."""
    conversation_id: str | None = None
    variables: Values | None = None
    """Chatflows: conversation variables by name, as the run finds them; first those of the run's version. One whose
    name or id a newer one has stands under `<id>:<type>`."""
    forms: dict[str, VariableForm] | None = None
    """Chatflows: id, type and description of the conversation variables, under the keys of `variables`."""
    renewed: tuple[str, ...] | None = None
    """Older records, whose writes told no ids: names of the variables that had another value until now."""
    history: JsonValue = None
    """Chatflows: earlier messages with their answers, oldest first: `[[query, answer], ...]`."""


class StopRequested(_Event):
    """Somebody asked for the run to stop; running nodes are cancelled, then `RunStopped` follows."""

    type: Literal["StopRequested"] = "StopRequested"
    command_offset: int
    reason: str
    by: str = ""
    said: JsonValue = None
    """Chatflows: the text that clients saw where the stop was asked for. Where it goes on from what finished answer
    nodes have said, it becomes the run's `answer`."""


class PauseRequested(_Event):
    """Somebody asked for the run to pause: no node starts any more, and when those that run have ended, `RunPaused`
    follows."""

    type: Literal["PauseRequested"] = "PauseRequested"
    command_offset: int
    reason: str
    by: str = ""


class ResumeRequested(_Event):
    """Somebody took the pause back. `RunResumed` follows where the run was paused and something can go on."""

    type: Literal["ResumeRequested"] = "ResumeRequested"
    command_offset: int
    by: str = ""


class RunPaused(_Event):
    """The run waits: nothing of it runs, and nothing can start before a form is answered or the pause is taken back.

    Paused time counts for no limit and in no `elapsed_s` of the run.
    """

    type: Literal["RunPaused"] = "RunPaused"
    forms: tuple[str, ...] = ()
    """Ids of the forms it waits for, in the order in which they were opened."""
    reason: str | None = None
    """Of the pause that somebody asked for; absent: it waits for forms alone."""
    answer: JsonValue = None
    """Chatflows: the text of the answer nodes that have finished."""
    total_steps: int = 0
    total_tokens: int = 0
    elapsed_s: float = 0.0


class RunResumed(_Event):
    """The run goes on: a form was answered or has expired, or the pause was taken back."""

    type: Literal["RunResumed"] = "RunResumed"


class LimitExceeded(_Event):
    """The run went past one of its limits; running nodes are cancelled, then `RunFailed` follows."""

    type: Literal["LimitExceeded"] = "LimitExceeded"
    limit: Literal["max_steps", "max_time_s"]
    message: str


class VariableUpdate(BaseModel):
    """A value that was written under another selector than the writer's own (assigner)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    selector: tuple[str, ...]
    value: JsonValue = None
    value_type: str
    """As written; in the end of a run, as the run's version declares it."""
    id: str | None = None
    """In the end of a run: which conversation variable it is. Absent: the one of the name, in older records."""


class _RunEnded(_Event):
    outputs: Values = Field(default_factory=dict)
    error: str | None = None
    total_steps: int = 0
    total_tokens: int = 0
    exceptions_count: int = 0
    elapsed_s: float = 0.0
    conversation_id: str | None = None
    updates: tuple[VariableUpdate, ...] | None = None
    """Chatflows: conversation variables that the run has written; the conversation holds their values from here on."""


class RunSucceeded(_RunEnded):
    type: Literal["RunSucceeded"] = "RunSucceeded"


class RunPartiallySucceeded(_RunEnded):
    """All done, but at least one node ended with an exception that its error strategy handled."""

    type: Literal["RunPartiallySucceeded"] = "RunPartiallySucceeded"


class RunFailed(_RunEnded):
    """`code`: `node_failed`, `limit_exceeded`, `definition_invalid`, `engine_error`."""

    type: Literal["RunFailed"] = "RunFailed"
    code: str = "node_failed"
    node_id: str | None = None


class RunStopped(_RunEnded):
    type: Literal["RunStopped"] = "RunStopped"


# --- run events: nodes -----------------------------------------------------------------------------------------------


class _NodeEvent(_Event):
    node_id: str
    path: str = ""
    """Where in the run: `""` for the main graph, else the rounds around it, outermost first, as
    `iteration:<node id>:<index>` or `loop:<node id>:<index>` joined by `/` (ids percent-encoded)."""


class _AttemptEvent(_NodeEvent):
    attempt: int = 1
    """From 1; a retry is a new attempt."""


class NodeStarted(_AttemptEvent):
    """An attempt began. Attempt 1 begins the node execution; later ones follow a `NodeRetryScheduled`."""

    type: Literal["NodeStarted"] = "NodeStarted"
    node_type: str
    title: str = ""
    index: int
    """Order of first starts in the run, 1-based; the same for all attempts of an execution."""
    predecessor_id: str | None = None
    """The node whose completion made this one ready."""
    inputs: Values | None = None
    """Only for containers: what their rounds work on; None when they could not open."""
    pinned: bool = False
    """The answer is pinned: no handler runs, a container opens no rounds."""

    def begins_work(self, *, alone: bool) -> bool:
        """Whether the run's own work begins here: with the first node behind its root, or the one that runs alone."""
        return self.attempt == 1 and self.index == (1 if alone else 2)


class NodeRestarted(_AttemptEvent):
    """The attempt lost its owner and begins again: same attempt, same execution, same idempotency key."""

    type: Literal["NodeRestarted"] = "NodeRestarted"


class _NodeResult(_AttemptEvent):
    inputs: Values | None = None
    process_data: Values | None = None
    outputs: Values | None = None
    metadata: Values | None = None
    """Execution metadata: `total_tokens`, `total_price`, `currency`, `tool_info`, `error_strategy`, ..."""
    elapsed_s: float = 0.0
    """Of this attempt."""


class NodeSucceeded(_NodeResult):
    type: Literal["NodeSucceeded"] = "NodeSucceeded"
    handle: str | None = None
    """The selected branch handle of a branch node; None for ordinary nodes."""
    output_types: dict[str, str] = Field(default_factory=dict)
    """Declared types of outputs whose type cannot be inferred from the value (`array[file]`, `secret`, ...)."""
    updates: tuple[VariableUpdate, ...] = ()
    pinned: bool = False
    """The answer was pinned; no handler ran."""


class NodeRetryScheduled(_NodeResult):
    """The attempt failed and will be repeated as attempt + 1, not before `due_us`."""

    type: Literal["NodeRetryScheduled"] = "NodeRetryScheduled"
    error: str
    error_type: str = ""
    due_us: int


class NodeFailed(_NodeResult):
    """The last attempt failed and no strategy handles it: the run (or the round) fails."""

    type: Literal["NodeFailed"] = "NodeFailed"
    error: str
    error_type: str = ""


class NodeExcepted(_NodeResult):
    """The last attempt failed and the node's error strategy handled it; `outputs` are what successors see."""

    type: Literal["NodeExcepted"] = "NodeExcepted"
    error: str
    error_type: str = ""
    strategy: Literal["fail-branch", "default-value"]
    handle: str | None = None


class NodeSkipped(_NodeEvent):
    """Every way to the node was ruled out. `by` and `handle`: the decision that ruled out the last one."""

    type: Literal["NodeSkipped"] = "NodeSkipped"
    by: str | None = None
    handle: str | None = None


class NodeStopped(_AttemptEvent):
    """The attempt was cancelled because the run stops or has failed elsewhere."""

    type: Literal["NodeStopped"] = "NodeStopped"
    reason: str = ""


# --- run events: forms ---------------------------------------------------------------------------------------------


class _FormEvent(_NodeEvent):
    form_id: str
    """Id of the node execution that asks."""


class FormOpened(_FormEvent):
    """The node waits for a person: for a submission of its form, or until the form expires."""

    type: Literal["FormOpened"] = "FormOpened"
    attempt: int = 1
    token: str
    """What a person needs to see and answer the form; names the run, and cannot be guessed."""
    actions: tuple[str, ...]
    """Ids of the actions of which a submission chooses one."""
    form: Values
    """`form_content` (variables are rendered, fields are not), `inputs`, `user_actions`, `resolved_default_values`,
    `display_in_ui`."""
    due_us: int


class FormSubmitted(_FormEvent):
    """A person answered the form; the node's success follows."""

    type: Literal["FormSubmitted"] = "FormSubmitted"
    command_offset: int
    action: str
    """The chosen action: the branch that the node takes."""
    inputs: Values = Field(default_factory=dict)
    by: str = ""


class FormExpired(_FormEvent):
    """Nobody answered in time; the node's success with the branch `__timeout` follows."""

    type: Literal["FormExpired"] = "FormExpired"


# --- run events: rounds of containers --------------------------------------------------------------------------------


class RoundStarted(_NodeEvent):
    """One round of the container `node_id` began; its nodes have `path` + this round."""

    type: Literal["RoundStarted"] = "RoundStarted"
    index: int


class RoundFinished(_NodeEvent):
    """One round of the container ended."""

    type: Literal["RoundFinished"] = "RoundFinished"
    index: int
    error: str | None = None
    output: JsonValue = None
    """Iteration: the item's result."""
    variables: Values = Field(default_factory=dict)
    """Loop: the loop variables after the round."""
    elapsed_s: float = 0.0


RunEnd = RunSucceeded | RunPartiallySucceeded | RunFailed | RunStopped
RUN_END_TYPES = frozenset({"RunSucceeded", "RunPartiallySucceeded", "RunFailed", "RunStopped"})

RunEvent = (
    RunAccepted
    | RunStarted
    | PauseRequested
    | ResumeRequested
    | RunPaused
    | RunResumed
    | StopRequested
    | LimitExceeded
    | RunSucceeded
    | RunPartiallySucceeded
    | RunFailed
    | RunStopped
    | NodeStarted
    | NodeRestarted
    | NodeSucceeded
    | NodeRetryScheduled
    | NodeFailed
    | NodeExcepted
    | NodeSkipped
    | NodeStopped
    | FormOpened
    | FormSubmitted
    | FormExpired
    | RoundStarted
    | RoundFinished
)
ConversationEvent = (
    ConversationRenamed | ConversationDeleted | ConversationPinned | ConversationVariableSet | MessageRated
)
PartitionEvent = (
    PartitionClaimed
    | PartitionReleased
    | OwnerConfirmed
    | CommandRejected
    | CheckpointWritten
    | RunSnapshotted
    | RunSetAside
    | RunReleased
    | EndUserSeen
    | ConversationEvent
)
Event = RunEvent | PartitionEvent

EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


CONVERSATION_EVENT_TYPES = frozenset(
    {"ConversationRenamed", "ConversationDeleted", "ConversationPinned", "ConversationVariableSet", "MessageRated"}
)
CHANGE_EVENT_TYPES = CONVERSATION_EVENT_TYPES | {"EndUserSeen"}
"""What answers a command that is about no run."""


def _types(union: Any) -> dict[str, type[Any]]:
    return {member.__name__: member for member in union.__args__}


RUN_EVENT_TYPES: dict[str, type[Any]] = _types(RunEvent)
PARTITION_EVENT_TYPES: dict[str, type[Any]] = _types(PartitionEvent)
EVENT_TYPES: dict[str, type[Any]] = RUN_EVENT_TYPES | PARTITION_EVENT_TYPES
