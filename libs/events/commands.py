"""Commands: what somebody wishes to happen to a run. Imperative names; none of them is a fact.

A command is decided once, in the order of the commands topic, and answered by exactly one event that carries its
offset: `RunAccepted`, `StopRequested`, ... or `CommandRejected`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter


class _Command(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str


class Caller(BaseModel):
    """Who asked for the run; becomes `created_by` of records and frames."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Literal["end_user", "account"] = "end_user"
    id: str
    """Id of the end user or account."""
    user: str
    """The caller's own name for its user (`user` of the request); `sys.user_id` in the run."""


class Origin(BaseModel):
    """A place in another run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    seq: int
    tokens: int | None = None
    """Tokens that the shared events have counted: spent once, by that run."""


class Annotation(BaseModel):
    """An answer that a person has written to a question like that of the message, as it was when they were compared."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    question: str
    answer: str
    score: float
    """How much the message is like the question: 0 to 1."""
    account_id: str
    """Who has written it."""
    account_name: str


class StartRun(_Command):
    """Start a run of one definition version."""

    type: Literal["StartRun"] = "StartRun"
    app_id: str
    workflow_id: str
    version: str
    """Version name of the definition, shown in records (a time stamp, or `draft`)."""
    digest: str
    """Digest of the definition document; the key under which the registry holds it."""
    mode: Literal["workflow", "advanced-chat"] = "workflow"
    inputs: dict[str, JsonValue] = Field(default_factory=dict)
    """Validated start inputs by variable name."""
    files: tuple[JsonValue, ...] = ()
    query: str | None = None
    conversation_id: str | None = None
    caller: Caller
    invoke_from: str = "service-api"
    triggered_from: str = "app-run"
    idempotency_key: str | None = None
    body_digest: str = ""
    """Digest of what the client sent; a repeat with the same key must have the same one."""
    not_after_us: int
    """The command is rejected when it is decided later than this (microseconds since the epoch)."""
    pins: dict[str, JsonValue] | None = None
    """Pinned answers, as in a pins file: `{nodes: {...}, types: {...}}`."""
    only: str | None = None
    """Run this node alone; a container with its body."""
    root: str | None = None
    """Begin at this root of the document. None: at the first one, or with `only`."""
    variables: dict[str, JsonValue] | None = None
    """Values that are there from the beginning, by node and name: `[value]` or `[value, declared type]`."""
    max_app_runs: int | None = None
    """Refuse it when the app has as many runs under way in this partition. None: no limit."""
    full: bool | None = None
    """There are too many runs elsewhere: only the repeat of an earlier start is answered."""
    continues: bool | None = None
    """The conversation has messages already: refuse the start when the partition's fold does not know it."""
    conversation: dict[str, JsonValue] | None = None
    """The conversation's state as the tables hold it, for one that the partition's fold has forgotten."""
    conversation_as_of: int | None = None
    """Offset of the command that set a variable last, as far as `conversation` has it."""
    conversation_name: str | None = None
    """Of a conversation that begins with this message."""
    introduction: str | None = None
    """What the app says before the first message; of a conversation that begins with this message."""
    forked_from: Origin | None = None
    """The run whose beginning this run shares, and up to where."""
    prefix: JsonValue = None
    """That beginning: bodies of events, recorded again before anything else happens."""
    annotation: Annotation | None = None
    """Answers the message in place of the workflow."""


class StopRun(_Command):
    """Stop a run that has not ended."""

    type: Literal["StopRun"] = "StopRun"
    reason: str = "User requested stop"
    by: str = ""
    said: str | None = None
    """Chatflows: the answer as far as clients see it where the stop was asked for."""


class PauseRun(_Command):
    """Let nothing new begin in a run; what runs may end, then the run is paused."""

    type: Literal["PauseRun"] = "PauseRun"
    reason: str = "Paused on request"
    by: str = ""


class ResumeRun(_Command):
    """Take back a `PauseRun`."""

    type: Literal["ResumeRun"] = "ResumeRun"
    by: str = ""


class ReleaseRun(_Command):
    """Try once more to execute a run that was set aside, because its history could not be folded."""

    type: Literal["ReleaseRun"] = "ReleaseRun"
    by: str = ""


class SubmitForm(_Command):
    """Answer a form that a run waits for. Who sends it has checked the inputs against the form."""

    type: Literal["SubmitForm"] = "SubmitForm"
    form_id: str
    action: str
    """Id of one of the form's actions."""
    inputs: dict[str, JsonValue] = Field(default_factory=dict)
    by: str = ""


class _ConversationCommand(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    conversation_id: str

    @property
    def run_id(self) -> str:
        """The key of its record: a conversation's commands are placed like those of its runs."""
        return self.conversation_id


class RenameConversation(_ConversationCommand):
    type: Literal["RenameConversation"] = "RenameConversation"
    name: str


class DeleteConversation(_ConversationCommand):
    type: Literal["DeleteConversation"] = "DeleteConversation"


class PinConversation(_ConversationCommand):
    """Show a conversation among the pinned ones of its user, or not any more."""

    type: Literal["PinConversation"] = "PinConversation"
    pinned: bool


class SetConversationVariable(_ConversationCommand):
    """Somebody outside of a run gives a conversation variable another value."""

    type: Literal["SetConversationVariable"] = "SetConversationVariable"
    name: str
    value: JsonValue = None
    value_type: str
    id: str | None = None


class RateMessage(_ConversationCommand):
    """A user says what they think of an answer; `rating` None takes it back."""

    type: Literal["RateMessage"] = "RateMessage"
    app_id: str
    message_id: str
    rating: Literal["like", "dislike"] | None = None
    content: str | None = None
    caller: Caller


class NoteEndUser(BaseModel):
    """Somebody did something in an app of which no run tells: uploaded a file, answered another's form."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["NoteEndUser"] = "NoteEndUser"
    note_id: str
    """Made like a run id, in the partition that belongs to this user of this app."""
    app_id: str
    caller: Caller
    invoke_from: str = "service-api"

    @property
    def run_id(self) -> str:
        return self.note_id


ConversationCommand = RenameConversation | DeleteConversation | PinConversation | SetConversationVariable | RateMessage
AnyCommand = StartRun | StopRun | PauseRun | ResumeRun | ReleaseRun | SubmitForm | ConversationCommand | NoteEndUser
Command = Annotated[AnyCommand, Field(discriminator="type")]
COMMAND: TypeAdapter[AnyCommand] = TypeAdapter(Command)
