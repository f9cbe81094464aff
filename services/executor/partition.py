"""The fold of one partition: what its owner must know to decide commands, number events and write checkpoints.

Pure. Holds no run states, only a table of unfinished runs; a finished run leaves the table, so its size does not
depend on the age of the partition. Commands are decided here, from the table alone: deciding one never parses a
definition nor waits for a run to be hydrated.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, assert_never

from pydantic import JsonValue
from pydantic_core import to_json

from libs.events.commands import (
    AnyCommand,
    ConversationCommand,
    DeleteConversation,
    NoteEndUser,
    PauseRun,
    PinConversation,
    RateMessage,
    ReleaseRun,
    RenameConversation,
    ResumeRun,
    SetConversationVariable,
    StartRun,
    StopRun,
    SubmitForm,
)
from libs.events.ids import partition_of, task_id_of
from libs.events.model import (
    CHANGE_EVENT_TYPES,
    RUN_END_TYPES,
    CommandRejected,
    ConversationDeleted,
    ConversationEvent,
    ConversationPinned,
    ConversationRenamed,
    ConversationVariableSet,
    EndUserSeen,
    Event,
    FormExpired,
    FormOpened,
    FormSubmitted,
    MessageRated,
    PartitionClaimed,
    PauseRequested,
    ResumeRequested,
    RunAccepted,
    RunReleased,
    RunSetAside,
    RunSnapshotted,
    StopRequested,
)
from libs.events.positions import Position
from libs.events.validity import Validity
from services.executor.conversations import Conversations

KEY_LIFETIME_US = 24 * 3600 * 1_000_000
"""How long an idempotency key is kept, and what is known of a conversation that nothing happens in."""

CHECKPOINT_PART_BYTES = 400_000
"""JSON of the table in one checkpoint part: well under the largest record that the log takes."""

COMMAND_BYTES = 900_000
"""A larger command is refused: its acceptance repeats it, and must fit into a record too. Ours have their large values
in the blobs."""

SHOWN = 1_000
"""Characters of a refused command that its rejection repeats, at most."""


class FormEntry(NamedTuple):
    """One open form: what its submission is decided with, and when it expires."""

    path: str
    node_id: str
    due_us: int
    actions: tuple[str, ...]


@dataclass(slots=True)
class RunEntry:
    """One unfinished run."""

    seq: int
    app_id: str
    digest: str
    since: Position
    """Reading from here shows every event behind its snapshot (all of its events when it has none)."""
    stopping: bool = False
    started: bool = False
    snapshot_seq: int = 0
    snapshot_offset: int | None = None
    forms: dict[str, FormEntry] = field(default_factory=dict)
    """Open forms by id."""
    held: bool = False
    """Somebody asked for a pause."""
    parked: bool = False
    """Paused, and nothing has come since that lets it go on: it need not be in memory."""

    @property
    def next_due_us(self) -> int | None:
        """When its first form expires."""
        return min((form.due_us for form in self.forms.values()), default=None)

    conversation_id: str | None = None
    not_after_us: int = 0
    """Until when its start, read once more, would be in time."""
    set_aside: str | None = None
    """Why nothing of it is executed: its history could not be folded."""

    @property
    def active(self) -> bool:
        """Whether it counts for its app's limit."""
        return not self.parked and self.set_aside is None


class KeyEntry(NamedTuple):
    """What a first start with an idempotency key did."""

    run_id: str
    body_digest: str
    expires_us: int


class Decision(NamedTuple):
    """The fact a command causes; `run_id` is empty for one that is no event of a run's."""

    run_id: str
    event: (
        RunAccepted
        | StopRequested
        | PauseRequested
        | ResumeRequested
        | RunReleased
        | FormSubmitted
        | CommandRejected
        | EndUserSeen
        | ConversationEvent
    )


@dataclass(slots=True)
class PartitionFold:
    partition: int
    validity: Validity = field(default_factory=Validity)
    owner: str = ""
    """Who made the last valid claim, and where it stands."""
    claim_offset: int = 0
    commands_topic_id: str = ""
    requires: tuple[str, ...] = ()
    """What the newest claim says that its successors must know."""
    next_command: int = 0
    last_at_us: int = 0
    runs: dict[str, RunEntry] = field(default_factory=dict)
    keys: dict[tuple[str, str], KeyEntry] = field(default_factory=dict)
    active: dict[str, int] = field(default_factory=dict, compare=False)
    """How many runs of each app are active; follows from `runs`. Counted as they change, so that a start costs the same
    however many runs its app has."""
    conversations: Conversations = field(default_factory=Conversations)
    ended: dict[str, int] = field(default_factory=dict)
    """Runs that have ended although their start, read once more, would be in time -> until when it is."""

    # --- deciding ---

    def decide(self, command: AnyCommand, offset: int, now_us: int) -> Decision:
        """The one fact that the command at `offset` of the commands partition causes. Changes nothing."""
        if _partition_or_none(command.run_id) != self.partition:
            return self._reject(command, offset, "misrouted", f"partition {self.partition} does not hold this run")
        if isinstance(command, ConversationCommand):
            return self._decide_change(command, offset)
        if isinstance(command, NoteEndUser):
            about = {name: getattr(command, name) for name in ("app_id", "caller", "invoke_from")}
            return Decision("", EndUserSeen(command_offset=offset, **about))
        if isinstance(command, StartRun):
            return self._decide_start(command, offset, now_us)
        entry = self.runs.get(command.run_id)
        if entry is None or entry.stopping:
            return self._reject(command, offset, "not_running", f"run {command.run_id} is not running")
        match command:
            case StopRun():
                stop = StopRequested(command_offset=offset, reason=command.reason, by=command.by, said=command.said)
                return Decision(command.run_id, stop)
            case PauseRun():
                if entry.held:
                    return self._reject(command, offset, "already_paused", f"run {command.run_id} is to pause already")
                pause = PauseRequested(command_offset=offset, reason=command.reason, by=command.by)
                return Decision(command.run_id, pause)
            case ResumeRun():
                if not entry.held:
                    return self._reject(command, offset, "not_paused", f"nobody has paused run {command.run_id}")
                return Decision(command.run_id, ResumeRequested(command_offset=offset, by=command.by))
            case ReleaseRun():
                if entry.set_aside is None:
                    return self._reject(command, offset, "not_set_aside", f"run {command.run_id} is not set aside")
                return Decision("", RunReleased(command_offset=offset, run_id=command.run_id, by=command.by))
            case SubmitForm():
                return self._decide_submission(command, entry, offset)
            case _:
                assert_never(command)

    def _decide_submission(self, command: SubmitForm, entry: RunEntry, offset: int) -> Decision:
        form = entry.forms.get(command.form_id)
        if form is None:
            return self._reject(command, offset, "form_closed", f"form {command.form_id} is not open")
        if command.action not in form.actions:
            return self._reject(command, offset, "unknown_action", f"form {command.form_id} has no such action")
        submitted = FormSubmitted(
            command_offset=offset,
            node_id=form.node_id,
            path=form.path,
            form_id=command.form_id,
            action=command.action,
            inputs=command.inputs,
            by=command.by,
        )
        return Decision(command.run_id, submitted)

    def _decide_start(self, command: StartRun, offset: int, now_us: int) -> Decision:
        if command.idempotency_key is not None:
            known = self.keys.get((command.app_id, command.idempotency_key))
            if known is not None and known.expires_us > now_us:
                if known.body_digest != command.body_digest:
                    message = f"idempotency key was used with another body, by run {known.run_id}"
                    return self._reject(command, offset, "idempotency_key_reused", message)
                message = f"run {known.run_id} was started with this idempotency key"
                return self._reject(command, offset, "duplicate", message, duplicate_of=known.run_id)
        if command.run_id in self.runs or command.run_id in self.ended:
            return self._reject(command, offset, "run_exists", f"run {command.run_id} exists already")
        if now_us > command.not_after_us:
            late_s = (now_us - command.not_after_us) / 1e6
            return self._reject(command, offset, "expired", f"the start came {late_s:.1f} s after its deadline")
        found = self.conversations.of_start(command)
        if isinstance(found, str):
            text = f"conversation {command.conversation_id} cannot be continued from what is known here"
            return self._reject(command, offset, found, text)
        if (excess := self._excess(command)) is not None:
            return self._reject(command, offset, "too_many_requests", excess)
        accepted = RunAccepted(
            command_offset=offset,
            task_id=task_id_of(command.run_id),
            **{name: getattr(command, name) for name in _COPIED},
            **found,
        )
        return Decision(command.run_id, accepted)

    def _decide_change(self, command: ConversationCommand, offset: int) -> Decision:
        """Who sends it has seen that the conversation is there; here it may have been deleted meanwhile."""
        place: dict[str, Any] = {"command_offset": offset, "conversation_id": command.conversation_id}
        event: ConversationEvent
        if self.conversations.deleted(command.conversation_id):
            text = f"conversation {command.conversation_id} was deleted"
            return self._reject(command, offset, "conversation_not_found", text)
        match command:
            case RenameConversation():
                event = ConversationRenamed(**place, name=command.name)
            case DeleteConversation():
                event = ConversationDeleted(**place)
            case PinConversation():
                event = ConversationPinned(**place, pinned=command.pinned)
            case SetConversationVariable():
                given = {name: getattr(command, name) for name in ("name", "value", "value_type", "id")}
                event = ConversationVariableSet(**place, **given)
            case RateMessage():
                names = ("app_id", "message_id", "rating", "content", "caller")
                event = MessageRated(**place, **{name: getattr(command, name) for name in names})
            case _:
                assert_never(command)
        return Decision("", event)

    def _excess(self, command: StartRun) -> str | None:
        """Which limit forbids one more run.

        Paused runs and those set aside do not count: they wait for people and hold nothing.
        """
        if command.full:
            return "as many runs are under way as this deployment may have at once. Try again later"
        if not command.max_app_runs:
            return None
        running = self.active.get(command.app_id, 0)
        if running < command.max_app_runs:
            return None
        return f"app {command.app_id} has {running} runs under way, at most {command.max_app_runs}. Try again later"

    def reject_unreadable(self, offset: int, message: str) -> Decision:
        """The answer to a command record that cannot be decoded."""
        rejected = CommandRejected(command_offset=offset, command="unknown", code="unreadable", message=message[:SHOWN])
        return Decision("", rejected)

    def _reject(
        self, command: AnyCommand, offset: int, code: str, message: str, duplicate_of: str | None = None
    ) -> Decision:
        rejected = CommandRejected(
            command_offset=offset,
            command=command.type,
            run_id=command.run_id[:SHOWN],
            code=code,
            message=message[:SHOWN],
            duplicate_of=duplicate_of,
        )
        return Decision("", rejected)

    # --- folding ---

    def apply(self, event: Event, run_id: str, at_us: int, before: Position) -> None:
        """Fold one valid event. `before`: a position from which a reader meets this event."""
        self.last_at_us = max(self.last_at_us, at_us)
        match event:
            case RunAccepted():
                self.next_command = max(self.next_command, event.command_offset + 1)
                added = RunEntry(1, event.app_id, event.digest, before, not_after_us=event.not_after_us or 0)
                self._add(run_id, added)
                if event.mode == "advanced-chat" and event.conversation_id is not None:
                    self.runs[run_id].conversation_id = event.conversation_id
                    self.conversations.accepted(run_id, event, at_us, before)
                if event.idempotency_key is not None:
                    key = (event.app_id, event.idempotency_key)
                    self.keys[key] = KeyEntry(run_id, event.body_digest, at_us + KEY_LIFETIME_US)
                return
            case CommandRejected() | EndUserSeen():
                self.next_command = max(self.next_command, event.command_offset + 1)
                return
            case PartitionClaimed():
                self.owner, self.claim_offset, self.requires = event.owner, before.offset, event.requires
                if event.commands_topic_id != self.commands_topic_id:
                    # A new commands topic counts from 0 again.
                    self.commands_topic_id, self.next_command = event.commands_topic_id, 0
                return
            case RunSnapshotted():
                return
            case RunSetAside():
                self._set_aside(event.run_id, event.error)
                return
            case RunReleased():
                self.next_command = max(self.next_command, event.command_offset + 1)
                self._set_aside(event.run_id, None)
                return
            case (
                ConversationRenamed()
                | ConversationDeleted()
                | ConversationPinned()
                | ConversationVariableSet()
                | MessageRated()
            ):
                self.next_command = max(self.next_command, event.command_offset + 1)
                self.conversations.changed(event, at_us, before)
                return
            case StopRequested() | PauseRequested() | ResumeRequested() | FormSubmitted():
                self.next_command = max(self.next_command, event.command_offset + 1)
        entry = self.runs.get(run_id)
        if entry is not None:
            _note(entry, event)
        if run_id:
            self.count(type(event).__name__, run_id, before)

    def count(self, event_type: str, run_id: str, before: Position) -> None:
        """Fold a run event of which only the headers were read (types that `NEEDS_BODY` does not name)."""
        if event_type in RUN_END_TYPES:
            ended = self._remove(run_id)
            if ended is not None and ended.not_after_us > self.last_at_us:
                self.ended[run_id] = ended.not_after_us
            if ended is not None and ended.conversation_id is not None:
                self.conversations.ended(ended.conversation_id, run_id, self.last_at_us, before)
        elif (entry := self.runs.get(run_id)) is not None:
            if entry.seq == entry.snapshot_seq:
                entry.since = before
            entry.seq += 1
            if event_type == "RunStarted":
                entry.started = True
                if entry.conversation_id is not None:
                    self.conversations.started(entry.conversation_id, run_id, before)
            if event_type != "PauseRequested":  # a paused run that is to pause stays as it is
                self._change(entry, parked=event_type == "RunPaused", set_aside=entry.set_aside)

    def _add(self, run_id: str, entry: RunEntry) -> None:
        self.runs[run_id] = entry
        if entry.active:
            self._count_active(entry.app_id, 1)

    def _remove(self, run_id: str) -> RunEntry | None:
        entry = self.runs.pop(run_id, None)
        if entry is not None and entry.active:
            self._count_active(entry.app_id, -1)
        return entry

    def _change(self, entry: RunEntry, *, parked: bool, set_aside: str | None) -> None:
        was_active = entry.active
        entry.parked, entry.set_aside = parked, set_aside
        if entry.active != was_active:
            self._count_active(entry.app_id, 1 if entry.active else -1)

    def _count_active(self, app_id: str, more: int) -> None:
        count = self.active.get(app_id, 0) + more
        if count:
            self.active[app_id] = count
        else:
            del self.active[app_id]

    def snapshotted(self, run_id: str, seq: int, offset: int, behind: Position) -> None:
        """The run's newest snapshot stands at `offset`; `behind` is the position right behind it."""
        if (entry := self.runs.get(run_id)) is not None and seq >= entry.snapshot_seq:
            entry.snapshot_seq, entry.snapshot_offset, entry.since = seq, offset, behind

    def _set_aside(self, run_id: str, reason: str | None) -> None:
        if (entry := self.runs.get(run_id)) is not None:
            self._change(entry, parked=entry.parked, set_aside=reason)

    def forget_old_keys(self, now_us: int) -> None:
        self.keys = {key: entry for key, entry in self.keys.items() if entry.expires_us > now_us}
        self.ended = {run_id: until_us for run_id, until_us in self.ended.items() if until_us > now_us}
        self.conversations.forget(now_us - KEY_LIFETIME_US)

    # --- checkpoints ---

    def dump(self) -> list[JsonValue]:
        """The fold in parts for `CheckpointWritten`; `load` takes them back together."""
        rows: list[JsonValue] = [
            [
                run_id,
                e.seq,
                e.app_id,
                e.digest,
                list(e.since),
                e.stopping,
                e.started,
                e.snapshot_seq,
                e.snapshot_offset,
                _form_rows(e),
                e.held,
                e.parked,
                e.conversation_id,
                e.not_after_us,
                e.set_aside,
            ]
            for run_id, e in self.runs.items()
        ]
        keys: list[JsonValue] = [[*key, *entry] for key, entry in self.keys.items()]
        head: dict[str, Any] = {
            "commands_topic_id": self.commands_topic_id,
            "requires": list(self.requires),
            "next_command": self.next_command,
            "last_at_us": self.last_at_us,
        }
        talks = self.conversations.dump()
        ended: list[JsonValue] = [[run_id, until_us] for run_id, until_us in self.ended.items()]
        tables = (("runs", rows), ("keys", keys), ("conversations", talks), ("ended", ended))
        return [head, *(part for name, lines in tables for part in _parts(name, lines))]

    def load(self, parts: list[Any]) -> None:
        """Take over what `dump` wrote; the validity state stays the reader's."""
        head, *rest = parts
        self.commands_topic_id, self.next_command = head["commands_topic_id"], head["next_command"]
        self.last_at_us = head["last_at_us"]
        self.requires = tuple(head.get("requires", ()))
        self.runs, self.active, self.keys, self.conversations, self.ended = {}, {}, {}, Conversations(), {}
        for part in rest:
            for run_id, seq, app_id, digest, since, *more in part.get("runs", ()):
                flags, paused, talk, aside = more[:4], more[4:7], more[7:9], more[9:]
                entry = RunEntry(seq, app_id, digest, Position(*since), *flags)
                if paused:  # absent in tables of releases that know no pause
                    forms, entry.held, entry.parked = paused
                    for form_id, path, node_id, due_us, actions in forms:
                        entry.forms[form_id] = FormEntry(path, node_id, due_us, tuple(actions))
                if talk:  # as above, of conversations and deadlines
                    entry.conversation_id, entry.not_after_us = talk
                if aside:  # as above, of runs that were set aside
                    (entry.set_aside,) = aside
                self._add(run_id, entry)
            for app_id, key, *entry in part.get("keys", ()):
                self.keys[app_id, key] = KeyEntry(*entry)
            self.conversations.load(part.get("conversations", ()))
            self.ended.update(part.get("ended", ()))

    def scan_from(self, now: Position) -> Position:
        """Where a recovery must begin to read, with a checkpoint that is written at `now`.

        Events of runs that were set aside are not needed before somebody releases them, and are read by themselves then
        (`recovery.read_run`): however long such a run lies there, it holds nothing back.
        """
        behind = (
            entry.since for entry in self.runs.values() if entry.seq > entry.snapshot_seq and entry.set_aside is None
        )
        return min(behind, default=now, key=lambda position: position.offset)


NEEDS_BODY = frozenset(
    {
        "RunAccepted", "CommandRejected", "StopRequested", "PauseRequested", "ResumeRequested", "FormOpened",
        "FormSubmitted", "FormExpired", "PartitionClaimed", "CheckpointWritten", "RunSnapshotted", "RunSetAside",
        "RunReleased",
    }
    | CHANGE_EVENT_TYPES
)  # fmt: skip
"""Event types whose body the fold reads; of the others it needs only type and run."""

_COPIED = (
    "app_id", "workflow_id", "version", "digest", "mode", "inputs", "files", "query", "conversation_id", "caller",
    "invoke_from", "triggered_from", "idempotency_key", "body_digest", "pins", "only", "root", "variables",
    "forked_from", "prefix", "conversation_name", "introduction", "not_after_us", "annotation",
)  # fmt: skip


def _note(entry: RunEntry, event: Event) -> None:
    """What an event says about a run of the table, beside that it is there."""
    match event:
        case StopRequested():
            entry.stopping = True
        case PauseRequested():
            entry.held = True
        case ResumeRequested():
            entry.held = False
        case FormOpened():
            entry.forms[event.form_id] = FormEntry(event.path, event.node_id, event.due_us, event.actions)
        case FormSubmitted() | FormExpired():
            entry.forms.pop(event.form_id, None)


def _form_rows(entry: RunEntry) -> list[JsonValue]:
    return [[form_id, *form[:3], list(form.actions)] for form_id, form in entry.forms.items()]


def _parts(name: str, rows: list[JsonValue]) -> Iterator[JsonValue]:
    """`{name: rows}` cut into pieces of bounded size: keys and ids are as long as their senders made them."""
    piece: list[JsonValue] = []
    size = 0
    for row in rows:
        size += len(to_json(row)) + 1
        if size > CHECKPOINT_PART_BYTES and piece:
            yield {name: piece}
            piece, size = [], len(to_json(row)) + 1
        piece.append(row)
    if piece:
        yield {name: piece}


def _partition_or_none(run_id: str) -> int | None:
    try:
        return partition_of(run_id)
    except ValueError:
        return None
