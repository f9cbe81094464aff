"""One rich example of every event, command and registry fact; what the golden records were made from."""

from typing import Any

from libs.events.annotations import AnnotationDeleted, AnnotationJobBegun, AnnotationJobEnded, AnnotationWritten
from libs.events.commands import (
    Annotation,
    AnyCommand,
    Caller,
    DeleteConversation,
    NoteEndUser,
    Origin,
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
from libs.events.drafts import DraftBackedUp, DraftSaved, DraftStored, DraftVariableChanged, ImportPending
from libs.events.model import (
    CheckpointWritten,
    CommandRejected,
    ConversationDeleted,
    ConversationPinned,
    ConversationRenamed,
    ConversationVariableSet,
    EndUserSeen,
    Event,
    FormExpired,
    FormOpened,
    FormSubmitted,
    LimitExceeded,
    MessageRated,
    NodeExcepted,
    NodeFailed,
    NodeRestarted,
    NodeRetryScheduled,
    NodeSkipped,
    NodeStarted,
    NodeStopped,
    NodeSucceeded,
    OwnerConfirmed,
    PartitionClaimed,
    PartitionReleased,
    PauseRequested,
    ResumeRequested,
    RoundFinished,
    RoundStarted,
    RunAccepted,
    RunFailed,
    RunPartiallySucceeded,
    RunPaused,
    RunReleased,
    RunResumed,
    RunSetAside,
    RunSnapshotted,
    RunStarted,
    RunStopped,
    RunSucceeded,
    StopRequested,
    VariableForm,
    VariableUpdate,
)
from libs.events.registry import (
    AppChanged,
    AppCreated,
    AppDeleted,
    DocumentStored,
    Fact,
    FactSealed,
    KeyCreated,
    KeyRevoked,
    VersionDeleted,
    VersionMarked,
    VersionPublished,
)
from libs.events.triggers import ScheduleFired, TriggerAwaited, TriggerSwitched, WebhookCreated

RUN = "019a3d3e-4d80-7003-8000-00000000002a"
APP = "5f0c1f2e-7f0b-4a52-9d5e-0d8a3f1f8b11"
TALK = "019a3d3e-4d80-7003-8000-0000000000aa"
CALLER = Caller(role="end_user", id="8d0c2f57-6e5c-4f4e-9a35-8f3e6a0b7c21", user="ann")
PATH = "iteration:each:2"

EVENTS: tuple[Event, ...] = (
    PartitionClaimed(owner="executor-1", commands_topic_id="Jx3", requires=("timers",)),
    PartitionReleased(owner="executor-1"),
    OwnerConfirmed(),
    CommandRejected(command_offset=12, command="StartRun", run_id=RUN, code="duplicate", message="m", duplicate_of=RUN),
    CheckpointWritten(checkpoint_id="c1", part=1, parts=2, data={"runs": [None, {"seq": 3}]}),
    RunSnapshotted(run_id=RUN, seq=40, state={"pool": {"a": None}}),
    RunSetAside(run_id=RUN, error="its history cannot be folded: KeyError('größe')"),
    RunReleased(command_offset=14, run_id=RUN, by="ann"),
    EndUserSeen(command_offset=15, app_id=APP, caller=CALLER, invoke_from="web-app"),
    ConversationRenamed(command_offset=20, conversation_id=TALK, name="größe"),
    ConversationDeleted(command_offset=21, conversation_id=TALK),
    ConversationPinned(command_offset=24, conversation_id=TALK, pinned=False),
    ConversationVariableSet(
        command_offset=22, conversation_id=TALK, name="topic", value={"a": None}, value_type="object"
    ),
    MessageRated(
        command_offset=23,
        conversation_id=TALK,
        app_id=APP,
        message_id="50750d43-df46-4a42-9f6b-70d5c92e4899",
        rating="like",
        content="good",
        caller=CALLER,
    ),
    RunAccepted(
        command_offset=7,
        task_id="83027cfc-308a-4b7d-8094-e81b56f0a3f2",
        app_id=APP,
        workflow_id="w1",
        version="2026-05-02 09:13:44",
        digest="sha256:00",
        mode="advanced-chat",
        inputs={"topic": "größe", "none": None, "deep": {"none": None, "list": [None, 1, 2.5, True]}},
        files=(None, {"type": "image"}),
        query="hello",
        conversation_id="c-1",
        caller=CALLER,
        idempotency_key="order-1",
        body_digest="ab",
        pins={"nodes": {"llm": None}},
    ),
    RunStarted(max_steps=500, max_time_s=1200),
    StopRequested(command_offset=9, reason="User requested stop", by="ann"),
    LimitExceeded(limit="max_steps", message="more than 500 steps"),
    RunSucceeded(outputs={"text": "x", "none": None}, total_steps=4, total_tokens=120, elapsed_s=1.25),
    RunPartiallySucceeded(outputs={}, total_steps=4, exceptions_count=1, elapsed_s=0.5),
    RunFailed(error="boom", code="node_failed", node_id="llm", total_steps=2),
    RunStopped(outputs={"text": "so far"}, error="stopped", total_steps=2),
    NodeStarted(
        node_id="llm",
        path=PATH,
        node_type="llm",
        title="LLM",
        index=3,
        predecessor_id="start",
        inputs={"items": [1, None]},
    ),
    NodeRestarted(node_id="llm", path=PATH, attempt=2),
    NodeSucceeded(
        node_id="llm",
        path=PATH,
        attempt=2,
        inputs={"prompt": None},
        process_data={"model": "m"},
        outputs={"text": '\u0000\n\t"\\ 漢字 🙂', "none": None, "big": 2**70, "float": 1e300},
        metadata={"total_tokens": 12, "total_price": "0.001"},
        elapsed_s=0.125,
        handle="true",
        output_types={"files": "array[file]"},
        updates=(
            VariableUpdate(selector=("conversation", "memory"), value=None, value_type="object"),
            VariableUpdate(selector=("conversation", "count"), value=3, value_type="number"),
        ),
        pinned=True,
    ),
    NodeRetryScheduled(
        node_id="http", error="503", error_type="HTTPError", due_us=1_762_000_001_000_000, outputs={"a": 1}
    ),
    NodeFailed(node_id="http", attempt=3, error="503", error_type="HTTPError"),
    NodeExcepted(node_id="http", error="503", strategy="default-value", outputs={"body": None}, handle="fail-branch"),
    NodeSkipped(node_id="other", by="branch", handle="false"),
    NodeStopped(node_id="llm", reason="run stopped"),
    RoundStarted(node_id="each", index=2),
    RoundFinished(
        node_id="each", index=2, error="x", output=[None, {"a": None}], variables={"n": None}, elapsed_s=0.25
    ),
    PauseRequested(command_offset=10, reason="maintenance", by="ann"),
    ResumeRequested(command_offset=11, by="ann"),
    RunPaused(forms=("f-1", "f-2"), reason="maintenance", total_steps=3, total_tokens=12, elapsed_s=0.75),
    RunResumed(),
    FormOpened(
        node_id="approve",
        path=PATH,
        form_id="f-1",
        token="AZo9Pk2AcAOAAAAAAAAAKg",
        actions=("ok", "no"),
        form={
            "form_content": "Ship it?\n{{#$output.note#}}",
            "inputs": [{"type": "paragraph", "output_variable_name": "note", "default": None}],
            "user_actions": [{"id": "ok", "title": "OK", "button_style": "primary"}],
            "resolved_default_values": {"note": "größe"},
            "display_in_ui": True,
        },
        due_us=1_762_000_129_600_000,
    ),
    FormSubmitted(
        node_id="approve", path=PATH, form_id="f-1", command_offset=13, action="ok", inputs={"note": "fine"}, by="ann"
    ),
    FormExpired(node_id="approve", path=PATH, form_id="f-2"),
)

COMMANDS: tuple[AnyCommand, ...] = (
    StartRun(
        run_id=RUN,
        app_id=APP,
        workflow_id="w1",
        version="draft",
        digest="sha256:00",
        inputs={"none": None, "list": [None]},
        files=({"type": "image"},),
        query="hi",
        conversation_id="c-1",
        caller=CALLER,
        idempotency_key="order-1",
        body_digest="ab",
        not_after_us=1_762_000_060_000_000,
        pins={"types": {"llm": None}},
    ),
    StopRun(run_id=RUN, by="ann"),
    PauseRun(run_id=RUN, reason="maintenance", by="ann"),
    ResumeRun(run_id=RUN, by="ann"),
    ReleaseRun(run_id=RUN, by="ann"),
    SubmitForm(run_id=RUN, form_id="f-1", action="ok", inputs={"note": None}, by="ann"),
    NoteEndUser(note_id=RUN, app_id=APP, caller=CALLER, invoke_from="web-app"),
    RenameConversation(conversation_id=TALK, name="größe"),
    DeleteConversation(conversation_id=TALK),
    PinConversation(conversation_id=TALK, pinned=True),
    SetConversationVariable(conversation_id=TALK, name="topic", value=[None], value_type="array[string]"),
    RateMessage(conversation_id=TALK, app_id=APP, message_id="50750d43-df46-4a42-9f6b-70d5c92e4899", caller=CALLER),
)

FACTS: tuple[Fact, ...] = (
    AppCreated(app_id=APP, name="Größe", description="d", icon="🤖", icon_background="#fff", created_at_us=1),
    DocumentStored(digest="sha256:00", document="app:\n  name: x\n"),
    FactSealed(key="document/sha256:00", sealed="1.0a1b2c3d.c2VhbGVk"),
    VersionPublished(app_id=APP, workflow_id="w1", version="v1", digest="sha256:00", published_at_us=2),
    KeyCreated(key_id="k1", app_id=APP, hash="00" * 32, prefix="app-ab12", created_at_us=3),
    KeyRevoked(key_id="k1", app_id=APP, revoked_at_us=4),
    AppChanged(
        change_id="c1",
        app_id=APP,
        name="Größe",
        description="d",
        icon_type="emoji",
        icon="🤖",
        icon_background="#fff",
        use_icon_as_answer_icon=True,
        max_active_requests=3,
        enable_api=False,
        enable_site=True,
        site_code="Ab12",
        updated_at_us=5,
    ),
    AppDeleted(app_id=APP, deleted_at_us=6),
    VersionMarked(change_id="c2", workflow_id="w1", marked_name="first", marked_comment="good", marked_at_us=7),
    VersionDeleted(app_id=APP, workflow_id="w1", deleted_at_us=8),
    DraftStored(draft_id="d1", document='{"app": {"name": "Größe"}}'),
    DraftSaved(app_id=APP, draft_id="d2", after="d1", hash="00" * 32, digest="sha256:00", saved_at_us=9),
    DraftBackedUp(app_id=APP, draft_id="d3", hash="00" * 32, backed_up_at_us=10),
    DraftVariableChanged(
        change_id="c3", app_id=APP, node_id="n", name="v", change="set", value={"x": [1]}, changed_at_us=11
    ),
    WebhookCreated(webhook_id="h1", app_id=APP, node_id="hook", created_at_us=13),
    ScheduleFired(app_id=APP, node_id="tick", due_us=14, run_id=RUN, fired_at_us=15),
    TriggerSwitched(app_id=APP, node_id="tick", enabled=False, switched_at_us=16),
    TriggerAwaited(wait_id="w1", app_id=APP, node_id="hook", alone=True, since_us=17, until_us=18, run_id=RUN),
    AnnotationWritten(
        annotation_id="a1",
        change_id="c1",
        app_id=APP,
        question="How late is it?",
        answer="Noon.",
        created_at_us=17,
        written_at_us=18,
    ),
    AnnotationDeleted(annotation_id="a1", app_id=APP, deleted_at_us=19),
    AnnotationJobBegun(
        job_id="j1",
        app_id=APP,
        action="enable",
        score_threshold=0.9,
        embedding_provider_name="langgenius/openai/openai",
        embedding_model_name="text-embedding-3-small",
        begun_at_us=20,
        ends_by_us=21,
    ),
    AnnotationJobEnded(job_id="j1", app_id=APP, error="the provider is away", ended_at_us=22),
    ImportPending(import_id="i1", app_id=APP, document="kind: app", changes={"name": "x"}, pending_since_us=12),
)

_FORK: dict[str, Any] = {
    "app_id": APP,
    "workflow_id": "w1",
    "version": "v1",
    "digest": "sha256:00",
    "caller": CALLER,
    "only": "each",
    "variables": {"split": {"items": [["a", None]], "none": [None], "word": ["w", "secret"]}},
    "forked_from": Origin(run_id=RUN, seq=12),
    "prefix": [{"type": "NodeSkipped", "node_id": "other", "path": "", "by": "branch"}],
}

_ANNOTATED: dict[str, Any] = {
    "app_id": APP,
    "workflow_id": "w1",
    "version": "v1",
    "digest": "sha256:00",
    "mode": "advanced-chat",
    "caller": CALLER,
    "query": "how late is it",
    "conversation_id": "c1",
    "annotation": Annotation(
        id="a1", question="How late is it?", answer="Noon.", score=1.0, account_id="admin-id", account_name="admin"
    ),
}

_ROOT: dict[str, Any] = {
    "app_id": APP,
    "workflow_id": "w1",
    "version": "v1",
    "digest": "sha256:00",
    "caller": CALLER,
    "inputs": {"webhook_data": {"headers": {}, "query_params": {}, "body": {"who": "Ada"}, "files": {}}},
    "invoke_from": "trigger",
    "triggered_from": "webhook",
    "root": "second hook",
}

_VARIABLE: dict[str, Any] = {
    "conversation_id": TALK, "name": "topic", "value": "größe", "value_type": "string", "id": "größe-1",
}  # fmt: skip

MORE: dict[str, Event | AnyCommand | Fact] = {
    "ConversationVariableSet-id": ConversationVariableSet(command_offset=22, **_VARIABLE),
    "SetConversationVariable-id": SetConversationVariable(**_VARIABLE),
    "RunStarted-forms": RunStarted(
        max_steps=500,
        conversation_id=TALK,
        variables={"topic": "größe", "t1:number": None},
        forms={
            "topic": VariableForm(id="t1", value_type="string", description="of the talk"),
            "t1:number": VariableForm(id="t1", value_type="number", name="topic"),
        },
        history=[["größe", "none"]],
    ),
    "RunSucceeded-updates": RunSucceeded(
        outputs={"answer": "größe"},
        conversation_id=TALK,
        updates=(VariableUpdate(selector=("conversation", "topic"), value="größe", value_type="string", id="t1"),),
    ),
    "KeyCreated-limited": KeyCreated(
        key_id="k1", app_id=APP, hash="00" * 32, prefix="app-ab12", created_at_us=3, most=10
    ),
    "RunAccepted-root": RunAccepted(command_offset=9, task_id="t1", **_ROOT),
    "StartRun-root": StartRun(run_id=RUN, not_after_us=1_762_000_060_000_000, **_ROOT),
    "RunAccepted-fork": RunAccepted(command_offset=8, task_id="t1", **_FORK),
    "RunAccepted-fork-tokens": RunAccepted(
        command_offset=8, task_id="t1", **_FORK | {"forked_from": Origin(run_id=RUN, seq=12, tokens=40)}
    ),
    "RunAccepted-annotation": RunAccepted(command_offset=8, task_id="t1", **_ANNOTATED),
    "StartRun-annotation": StartRun(run_id=RUN, not_after_us=1_762_000_060_000_000, **_ANNOTATED),
    "StartRun-fork": StartRun(run_id=RUN, not_after_us=1_762_000_060_000_000, **_FORK),
    "StopRun-said": StopRun(run_id=RUN, by="ann", said="größe so far"),
    "StopRequested-said": StopRequested(command_offset=9, reason="User requested stop", by="ann", said="größe so far"),
    "RunPaused-answer": RunPaused(forms=("f-1",), answer="größe so far", total_steps=3, elapsed_s=0.75),
}
"""Fields that came later, by the name of their golden record."""
