"""Shapes of requests and answers, for the OpenAPI document. Bodies are read and answers written by the routes."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Values = dict[str, Any]
RunStatus = Literal["pending", "running", "paused", "succeeded", "partial-succeeded", "failed", "stopped"]
EndStatus = Literal["succeeded", "partial-succeeded", "failed", "stopped"]
Mode = Literal["workflow", "advanced-chat"]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow")


class Error(_Shape):
    code: str = Field(description="Stable name of the error")
    message: str
    status: int
    params: str | None = Field(default=None, description="The field that is wrong")
    problems: list[dict[str, str]] | None = Field(default=None, description="Of a document that cannot run")


class Result(_Shape):
    result: Literal["success"]


# --- requests ---


class UserBody(_Shape):
    user: str = Field(description="The caller's own name for its user", min_length=1)


class RunBody(UserBody):
    inputs: Values = Field(description="Values of the start node's variables; may be empty")
    response_mode: Literal["blocking", "streaming"] | None = Field(default=None, description="Default: blocking")
    files: list[Values] | None = None
    trace_id: str | None = None
    trace_session_id: str | None = None


class WebRunBody(_Shape):
    inputs: Values = Field(description="Values of the start node's variables; may be empty")
    files: list[Values] | None = None


class ChatBody(UserBody):
    query: str = Field(description="The text of the message", min_length=1)
    inputs: Values = Field(description="Values of the start node's variables, with every message; may be empty")
    response_mode: Literal["blocking", "streaming"] | None = Field(default=None, description="Default: blocking")
    conversation_id: str | None = Field(default=None, description="Absent or empty: a new conversation")
    files: list[Values] | None = None
    auto_generate_name: bool | None = Field(default=None, description="Name a new conversation after it; default true")
    workflow_id: str | None = Field(default=None, description="Run this version")
    trace_id: str | None = None
    trace_session_id: str | None = None


class AnybodyBody(_Shape):
    user: str | None = Field(default=None, description="The caller's own name for its user")


class WebNameBody(_Shape):
    name: str | None = Field(default=None, description="Required unless auto_generate is true")
    auto_generate: bool | None = Field(default=None, description="Name it after its first message")


class NameBody(AnybodyBody, WebNameBody):
    pass


class ValueBody(AnybodyBody):
    value: Any = Field(description="A value of the variable's type")


class WebFeedbackBody(_Shape):
    rating: Literal["like", "dislike"] | None = Field(default=None, description="null takes it back")
    content: str | None = None


class FeedbackBody(UserBody, WebFeedbackBody):
    pass


class WebChatBody(WebRunBody):
    query: str = Field(min_length=1)
    conversation_id: str | None = Field(default=None, description="Absent: a new conversation")


class StartBody(_Shape):
    app_id: str | None = Field(default=None, description="Required with the admin token")
    inputs: Values = Field(default_factory=dict)
    query: str | None = Field(default=None, description="The user's message, for chatflows")
    conversation_id: str | None = Field(default=None, description="Of a chatflow; absent: a new conversation")
    user: str | None = None
    files: list[Values] | None = None
    pins: Values | None = Field(default=None, description="Pinned answers of nodes; needs the admin token")
    root: str | None = Field(
        default=None,
        description="Begin at this root (id or title); absent: at the start node, else at the first trigger",
    )
    only: str | None = Field(
        default=None,
        description="Run this node alone (a container with its body); inputs: #node.name# -> value; admin only",
    )
    from_run: str | None = Field(default=None, description="With only: the run whose variables it begins with")
    response_mode: Literal["blocking", "streaming"] | None = None


class SpeechBody(_Shape):
    text: str | None = None
    message_id: str | None = None
    voice: str | None = None
    streaming: bool | None = None
    user: str | None = None


class ForkBody(_Shape):
    at: int = Field(description="Share the run's events up to this one", ge=1)
    set: Values = Field(default_factory=dict, description="Other values: node.output -> value, of the same type")


class BulkBody(_Shape):
    action: Literal["stop", "retry"]
    filter: dict[Literal["status", "app", "since", "id_prefix"], str] | None = Field(
        None, description="Which runs, as in the list of runs; without one all that the action is for"
    )
    expect: int | None = Field(None, ge=0, description="How many were counted; without it nothing is done")
    reason: str | None = Field(None, description="Why they are stopped")


class WebSubmissionBody(_Shape):
    inputs: Values = Field(description="Values of the form's fields, by their output_variable_name")
    action: str = Field(description="Id of one of the form's user_actions")


class SubmissionBody(UserBody, WebSubmissionBody):
    pass


class PauseBody(_Shape):
    reason: str | None = None
    user: str | None = None


class ReleaseBody(_Shape):
    user: str | None = None


class ResumeBody(_Shape):
    form: str | None = Field(default=None, description="Which form: its id, its token, or its node; default: the one")
    action: str | None = Field(default=None, description="Answers a form by this action; absent: takes a pause back")
    inputs: Values = Field(default_factory=dict)
    user: str | None = None


class KeyBody(_Shape):
    key: str | None = Field(default=None, description="An existing app-... key to bring along; absent: a new one")


class AnnotationBody(_Shape):
    question: str = Field(description="What a message must be like", min_length=1, max_length=2_000)
    answer: str = Field(min_length=1, max_length=10_000)


class AnnotationReplyBody(_Shape):
    score_threshold: float | None = Field(
        default=None, ge=0, le=1, description="To enable: how much a message must be like a question"
    )
    embedding_provider_name: str | None = Field(default=None, description="To enable: as documents name providers")
    embedding_model_name: str | None = Field(default=None, description="To enable: a model for embeddings")


# --- answers: the reference's ---


class BlockingData(_Shape):
    id: str
    workflow_id: str
    status: EndStatus | Literal["paused"]
    outputs: Values
    error: str | None
    elapsed_time: float
    total_tokens: int
    total_steps: int
    created_at: int
    finished_at: int | None
    paused_nodes: list[str] | None = Field(default=None, description="Of a paused run: the nodes that wait")
    reasons: list[Values] | None = Field(default=None, description="Of a paused run: what it waits for")


class BlockingAnswer(_Shape):
    task_id: str
    workflow_run_id: str
    data: BlockingData


class RunDetail(_Shape):
    id: str
    workflow_id: str
    status: RunStatus
    inputs: str = Field(description="JSON text, with sys.* values")
    outputs: Values
    error: str | None
    total_steps: int
    total_tokens: int
    created_at: int
    finished_at: int | None
    elapsed_time: float


class Info(_Shape):
    name: str
    description: str
    tags: list[str]
    mode: Mode
    author_name: str | None


class Parameters(_Shape):
    opening_statement: str | None
    suggested_questions: list[str]
    suggested_questions_after_answer: Values
    speech_to_text: Values
    text_to_speech: Values
    retriever_resource: Values
    annotation_reply: Values
    more_like_this: Values
    user_input_form: list[dict[str, Values]] = Field(description="Variables of the start node, each under its type")
    sensitive_word_avoidance: Values
    file_upload: Values
    system_parameters: dict[str, int]


class Passport(_Shape):
    access_token: str


class LoginStatus(_Shape):
    logged_in: bool
    app_logged_in: bool = Field(description="Whether the browser has a passport of this page")


class Meta(_Shape):
    tool_icons: Values


class Site(_Shape):
    title: str
    chat_color_theme: str | None
    chat_color_theme_inverted: bool
    icon_type: str
    icon: str | None
    icon_background: str | None
    icon_url: str | None
    description: str | None
    copyright: str | None
    privacy_policy: str | None
    custom_disclaimer: str
    default_language: str
    show_workflow_steps: bool
    use_icon_as_answer_icon: bool
    input_placeholder: str | None


class UploadedFile(_Shape):
    id: str = Field(description="What inputs name as `upload_file_id`")
    reference: str | None
    name: str
    size: int
    extension: str
    mime_type: str
    created_by: str = Field(description="Id of the end user")
    created_at: int
    preview_url: str | None
    source_url: str = Field(description="A signed link that expires")


class LogEntry(_Shape):
    id: str
    workflow_run: Values
    details: Values | None
    created_from: str
    created_by_role: str
    created_by_account: Values | None
    created_by_end_user: Values | None
    created_at: int


class LogPage(_Shape):
    page: int
    limit: int
    total: int
    has_more: bool
    data: list[LogEntry]


class EndUser(_Shape):
    id: str
    tenant_id: str
    app_id: str
    type: str
    external_user_id: str | None
    name: str | None
    is_anonymous: bool
    session_id: str
    created_at: str
    updated_at: str


class FormDefinition(_Shape):
    form_content: str = Field(description="Markdown; {{#$output.NAME#}} marks where a field stands")
    inputs: list[Values]
    resolved_default_values: Values
    user_actions: list[Values]
    expiration_time: int


class Nothing(_Shape):
    pass


class MessageAnswer(_Shape):
    event: str
    task_id: str
    id: str
    message_id: str
    conversation_id: str
    mode: Mode
    answer: str
    metadata: Values
    created_at: int


class Conversation(_Shape):
    id: str
    name: str
    inputs: Values
    status: str
    introduction: str
    created_at: int
    updated_at: int


class ConversationList(_Shape):
    limit: int
    has_more: bool
    data: list[Conversation]


class ConversationVariable(_Shape):
    id: str
    name: str
    value_type: str
    value: str = Field(description="A text as it is, everything else as JSON")
    description: str
    created_at: int
    updated_at: int


class VariableList(_Shape):
    limit: int
    has_more: bool
    data: list[ConversationVariable]


class Message(_Shape):
    id: str
    conversation_id: str
    parent_message_id: str | None
    inputs: Values
    query: str
    answer: str
    feedback: Values | None
    retriever_resources: list[Values]
    created_at: int
    agent_thoughts: list[Values]
    message_files: list[Values]
    status: Literal["normal", "paused", "error"]
    error: str | None
    extra_contents: list[Values]


class MessageList(_Shape):
    limit: int
    has_more: bool
    data: list[Message]


class SuggestedQuestions(_Shape):
    data: list[str]


class Suggested(Result):
    data: list[str]


class Feedback(_Shape):
    id: str
    app_id: str
    conversation_id: str
    message_id: str
    rating: Literal["like", "dislike"]
    content: str | None
    from_source: Literal["user", "admin"]
    from_end_user_id: str | None
    from_account_id: str | None
    created_at: str
    updated_at: str


class FeedbackList(_Shape):
    data: list[Feedback]


class Annotation(_Shape):
    id: str
    question: str
    answer: str
    hit_count: int = Field(description="Messages that it has answered")
    created_at: int


class AnnotationPage(_Shape):
    data: list[Annotation]
    has_more: bool
    limit: int
    total: int
    page: int


class AnnotationJob(_Shape):
    job_id: str
    job_status: Literal["waiting", "processing", "completed", "error"]


class AnnotationJobStatus(AnnotationJob):
    error_msg: str = Field(description="Empty unless the job has failed")


# --- answers: ours ---


class Problem(_Shape):
    at: str
    problem: str
    hint: str
    severity: Literal["error", "warning"]


class Imported(_Shape):
    app_id: str
    name: str
    mode: Mode
    workflow_id: str
    version: str
    api_key: str | None
    warnings: list[Problem]
    digest: str


class Version(_Shape):
    workflow_id: str
    version: str
    published_at: str


class App(_Shape):
    app_id: str
    name: str
    mode: Mode
    workflow_id: str | None
    versions: list[Version]
    description: str
    icon: str
    icon_background: str
    created_at: str
    digest: str | None


class AppDetail(App):
    inputs: list[Values]


class AppList(_Shape):
    data: list[App]


class Key(_Shape):
    id: str
    prefix: str
    created_at: str


class KeyList(_Shape):
    data: list[Key]


class NewKey(Key):
    key: str


class RunItem(_Shape):
    id: str
    app_id: str
    workflow_id: str
    version: str
    status: RunStatus
    error: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    queue_time: float | None = Field(
        description="Seconds until work began behind its root; null: it still waits, `why` says for what"
    )
    elapsed_time: float
    total_steps: int
    total_tokens: int
    seq: int
    triggered_from: str
    only: str | None = Field(description="The node that ran alone; null: the whole graph")
    forked_from: str | None = Field(description="The run whose beginning it shares")
    forked_at: int | None


class RunList(_Shape):
    data: list[RunItem]
    next_cursor: str | None
    has_more: bool


class Execution(_Shape):
    id: str
    path: str
    attempt: int
    status: str
    error: str | None
    inputs: Values | None
    outputs: Values | None
    elapsed_time: float


class NodeView(_Shape):
    status: str
    executions: list[Execution]


class RunState(RunItem):
    root: str | None = Field(description="The node at which it begins; null: the document cannot be read")
    inputs: Values
    outputs: Values
    nodes: dict[str, NodeView]
    variables: dict[str, Values]
    waiting_for: list[Values]


class HistoryLine(_Shape):
    seq: int
    type: str
    at: str
    run_id: str
    node_id: str | None = None
    node_execution_id: str | None = None
    path: str | None = None
    attempt: int | None = None
    data: Values
    partition: int
    offset: int
    epoch: int
    cause: str


class Stopped(Result):
    id: str
    task_id: str
    stop_requested: bool
    status: RunStatus


class Change(_Shape):
    to: Any = None


class StatusChange(_Shape):
    to: RunStatus


class Difference(_Shape):
    id: str
    to: int
    status: StatusChange
    nodes: dict[str, Change] = Field(description="Node -> its state before (from) and after (to)")
    variables: dict[str, Change] = Field(description="node.name -> its value before and after; absent: none")
    outputs: dict[str, Change]


class Why(_Shape):
    id: str
    status: RunStatus
    node_id: str | None
    why: str = Field(description="One sentence")


class BulkChanged(_Shape):
    id: str
    retried_as: str | None = Field(None, description="With retry: the new run")


class BulkFailed(_Shape):
    id: str
    code: str
    message: str


class BulkDone(_Shape):
    action: Literal["stop", "retry"]
    count: int = Field(description="Runs that match")
    done: bool
    changed: list[BulkChanged]
    already: list[BulkChanged] = Field(description="Runs that an earlier bulk retry tried again, with what it made")
    failed: list[BulkFailed]


class Forked(_Shape):
    id: str
    task_id: str
    forked_from: str
    forked_at: int
    again: list[str] = Field(description="Ran in the first run and will run again, unless a branch is taken otherwise")
    first: list[str] = Field(description="Nodes that begin at once")


class Paused(Result):
    id: str
    task_id: str
    pause_requested: bool
    status: RunStatus


class Released(Result):
    id: str
    task_id: str
    released: Literal[True]
    status: RunStatus


class Resumed(Result):
    id: str
    task_id: str
    resumed: Literal["pause", "form"]
    status: RunStatus


class Health(_Shape):
    status: str
    service: str
    instance_id: str
    version: str
    models: str


class Readiness(_Shape):
    status: str
    service: str
    problem: str | None = None
    lag_records: int | None = None


# --- how routes name them ---

Doc = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]

_ERRORS = {
    400: "A value is wrong",
    401: "No key, or an unknown one",
    403: "The key may not do this",
    404: "There is no such thing, or not for this key",
    408: "The body has not arrived in time",
    409: "Not possible as things are",
    412: "The form was answered already, or has expired",
    413: "The body is too large",
    415: "The body is of another media type than is taken here",
    422: "The Idempotency-Key was used with another body",
    429: "Too many at once; see Retry-After",
    503: "Unknown or not possible now; see Retry-After",
}


def answers(model: Any, *error_statuses: int, status: int = 200) -> Responses:
    """`model`: one, or a union of some."""
    found: Responses = {status: {"model": model}}
    return found | errors(*error_statuses)


def nothing(*error_statuses: int) -> Responses:
    """204: done, and nothing to say about it."""
    done: Responses = {204: {"description": "Done"}}
    return done | errors(*error_statuses)


# By name and not as a model: FastAPI would make a validator of its own for each of hundreds of them, at every start.
_ERROR_BODY: Doc = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}


def errors(*statuses: int) -> Responses:
    """The document that holds them needs `describe_errors`."""
    return {status: {"description": _ERRORS[status], "content": _ERROR_BODY} for status in statuses}


def describe_errors(document: Doc) -> None:
    """Add the schema to which the answers of `errors` refer."""
    document["components"]["schemas"]["Error"] = Error.model_json_schema()


_FRAMES: Doc = {"schema": {"description": "Server-sent events; see docs/api.md"}}


def streamed(model: type[BaseModel] | None) -> Responses:
    """200 as an event stream, and as JSON when there is a blocking form."""
    headers = {
        name: {"schema": {"type": "string"}, "description": text}
        for name, text in (("X-Workflow-Run-Id", "Id of the run"), ("X-Task-Id", "What to stop it by"))
    }
    answer: Doc = {"description": "The run", "content": {"text/event-stream": _FRAMES}, "headers": headers}
    return {200: answer if model is None else answer | {"model": model}}


def lines(model: type[BaseModel]) -> Responses:
    schema = model.model_json_schema()
    content = {"application/x-ndjson": {"schema": schema}, "text/event-stream": _FRAMES}
    return {200: {"description": "One object a line", "content": content}}


def json_body(model: type[BaseModel], *, required: bool = True) -> Doc:
    schema = model.model_json_schema()
    assert "$defs" not in schema  # it would be out of place inside a path
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


BINARY: Doc = {"type": "string", "format": "binary"}


def file_body(*fields: str) -> Doc:
    """A form with a part `file` and plain fields that may be left out."""
    texts: Doc = {name: {"type": "string"} for name in fields}
    form: Doc = {"type": "object", "required": ["file"], "properties": {"file": BINARY, **texts}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def document_body() -> Doc:
    text: Doc = {"schema": {"type": "string"}}
    return {"requestBody": {"required": True, "content": {"application/yaml": text, "application/json": text}}}


def parameters(*names: str, required: tuple[str, ...] = ()) -> Doc:
    """Query parameters that the route reads by itself."""
    text = {"type": "string"}
    return {
        "parameters": [{"name": name, "in": "query", "required": name in required, "schema": text} for name in names]
    }


def secured(*schemes: str) -> Doc:
    return {"security": [{scheme: []} for scheme in schemes]}


SECURITY_SCHEMES: Doc = {
    "app_key": {"type": "http", "scheme": "bearer", "description": "A key of one app: app-..."},
    "admin": {"type": "http", "scheme": "bearer", "description": "The admin token"},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "access_token",
        "description": "A login at the console; the header X-CSRF-Token repeats the cookie csrf_token",
    },
    "passport": {"type": "apiKey", "in": "header", "name": "X-App-Passport", "description": "Of GET /api/passport"},
}


def for_every_key(document: Doc) -> None:
    """Add what every path may answer that an app key opens: its app is closed, or it asks too often."""
    for path in document["paths"].values():
        for operation in path.values():
            if {"app_key": []} in operation.get("security", ()):
                for status in (403, 429):
                    operation["responses"].setdefault(str(status), errors(status)[status])
