"""Shapes of the console's requests and answers, for the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.api.schemas import Mode, Result, Values


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow")


class LoginBody(_Shape):
    password: str = Field(description="The admin token, as it is or in base64")
    email: str | None = None
    remember_me: bool | None = None


class AppBody(_Shape):
    name: str = Field(min_length=1)
    mode: Mode
    description: str | None = Field(default=None, max_length=400)
    icon_type: str | None = None
    icon: str | None = None
    icon_background: str | None = None


class AppChangeBody(_Shape):
    name: str | None = None
    description: str | None = Field(default=None, max_length=400)
    icon_type: str | None = None
    icon: str | None = None
    icon_background: str | None = None
    use_icon_as_answer_icon: bool | None = None
    max_active_requests: int | None = Field(default=None, ge=0)


class SiteEnableBody(_Shape):
    enable_site: bool


class ApiEnableBody(_Shape):
    enable_api: bool


class ImportBody(_Shape):
    mode: Literal["yaml-content", "yaml-url"]
    yaml_content: str | None = None
    yaml_url: str | None = None
    app_id: str | None = Field(default=None, description="Overwrite the draft of this app")
    name: str | None = None
    description: str | None = None
    icon_type: str | None = None
    icon: str | None = None
    icon_background: str | None = None


class DraftBody(_Shape):
    graph: Values
    features: Values | None = None
    hash: str | None = Field(default=None, description="Of the draft it was made from; absent: there was none")
    environment_variables: list[Values] | None = None
    conversation_variables: list[Values] | None = None


class FeaturesBody(_Shape):
    features: Values


class EnvironmentBody(_Shape):
    environment_variables: list[Values]


class ConversationBody(_Shape):
    conversation_variables: list[Values]


class PublishBody(_Shape):
    marked_name: str | None = Field(default=None, max_length=20)
    marked_comment: str | None = Field(default=None, max_length=100)


class DraftRunBody(_Shape):
    inputs: Values
    files: list[Values] | None = None
    pins: Values | None = Field(default=None, description="Pinned answers of nodes, as in a pins file")


class FormPreviewBody(_Shape):
    inputs: Values | None = Field(default=None, description="Values of other nodes: node.name -> value")


class FormRunBody(FormPreviewBody):
    form_inputs: Values = Field(description="Values of the form's fields")
    action: str = Field(description="Id of one of the form's actions")


class DraftChatBody(_Shape):
    inputs: Values | None = None
    query: str | None = None
    conversation_id: str | None = None
    files: list[Values] | None = None
    pins: Values | None = None


class VariableBody(_Shape):
    name: str | None = None
    value: Any = None


# --- answers ---


class Person(_Shape):
    id: str
    name: str
    email: str


class PublishedWorkflow(_Shape):
    id: str
    created_by: str
    created_at: int
    updated_by: str
    updated_at: int


class AppPartial(_Shape):
    id: str
    name: str
    description: str
    mode: Mode
    icon_type: str | None
    icon: str
    icon_background: str
    workflow: PublishedWorkflow | None
    created_by: str
    created_at: int
    updated_at: int


class AppDetail(AppPartial):
    enable_site: bool
    enable_api: bool
    api_base_url: str
    site: Values
    max_active_requests: int | None


class AppPage(_Shape):
    page: int
    limit: int
    total: int
    has_more: bool
    data: list[AppPartial]


class Exported(_Shape):
    data: str


class ConsoleKey(_Shape):
    id: str
    type: str
    token: str = Field(description="Whole in the answer that makes it; later its beginning only")
    last_used_at: int | None
    created_at: int


class ConsoleKeys(_Shape):
    data: list[ConsoleKey]


class Imported(_Shape):
    id: str
    status: Literal["completed", "completed-with-warnings", "pending", "failed"]
    app_id: str | None
    app_mode: str | None
    current_dsl_version: str
    imported_dsl_version: str
    error: str


class Dependencies(_Shape):
    leaked_dependencies: list[Values]


class Workflow(_Shape):
    id: str
    graph: Values
    features: Values
    hash: str
    version: str
    marked_name: str
    marked_comment: str
    created_by: Person | None
    created_at: int
    updated_by: Person | None
    updated_at: int
    tool_published: bool
    environment_variables: list[Values]
    conversation_variables: list[Values]
    rag_pipeline_variables: list[Values]


class WorkflowPage(_Shape):
    items: list[Workflow]
    page: int
    limit: int
    has_more: bool


class Synced(Result):
    hash: str
    updated_at: int


class PublishedAt(Result):
    created_at: int


class Backup(_Shape):
    id: str
    hash: str
    created_at: int
    graph: Values
    features: Values


class RunItem(_Shape):
    id: str
    version: str
    status: str
    elapsed_time: float
    total_tokens: int
    total_steps: int
    created_by_account: Person | None
    created_at: int
    finished_at: int | None
    exceptions_count: int
    retry_index: int


class RunPage(_Shape):
    limit: int
    has_more: bool
    data: list[RunItem]


class RunCount(_Shape):
    total: int
    running: int
    succeeded: int
    failed: int
    stopped: int
    partial_succeeded: int


class RunDetail(_Shape):
    id: str
    version: str
    graph: Values | None
    inputs: Values
    status: str
    outputs: Values
    error: str | None
    elapsed_time: float
    total_tokens: int
    total_steps: int
    created_by_role: str
    created_by_account: Person | None
    created_by_end_user: Values | None
    created_at: int
    finished_at: int | None
    exceptions_count: int


class NodeExecution(_Shape):
    id: str
    index: int
    predecessor_node_id: str | None
    node_id: str
    node_type: str
    title: str
    inputs: Values | None
    process_data: Values | None
    outputs: Values | None
    status: str
    error: str | None
    elapsed_time: float
    execution_metadata: Values | None
    extras: Values
    created_at: int
    created_by_role: str
    created_by_account: Person | None
    created_by_end_user: Values | None
    finished_at: int | None
    inputs_truncated: bool
    outputs_truncated: bool
    process_data_truncated: bool


class PauseDetails(_Shape):
    paused_at: str | None
    paused_nodes: list[Values]


class FormPreview(_Shape):
    form_id: str
    node_id: str
    node_title: str
    form_content: str
    inputs: list[Values]
    actions: list[Values]
    display_in_ui: bool
    form_token: str | None
    resolved_default_values: Values
    expiration_time: int | None


class FormOutputs(_Shape):
    pass


class NodeExecutions(_Shape):
    data: list[NodeExecution]


class Days(_Shape):
    data: list[Values]


class Variable(_Shape):
    id: str
    type: Literal["node", "sys", "conversation"]
    name: str
    description: str
    selector: list[str]
    value_type: str
    edited: bool
    visible: bool
    is_truncated: bool


class Variables(_Shape):
    items: list[Variable]


class VariablePage(Variables):
    total: int


class EnvironmentVariables(_Shape):
    items: list[Values]


class TriggerRunBody(_Shape):
    node_id: str = Field(min_length=1)


class TriggerRunAllBody(_Shape):
    node_ids: list[str] = Field(min_length=1)


class Waiting(_Shape):
    status: Literal["waiting"]
    retry_in: int = Field(description="Milliseconds until it should be asked again")


class Webhook(_Shape):
    id: str
    webhook_id: str
    webhook_url: str
    webhook_debug_url: str
    node_id: str
    created_at: str


class Trigger(_Shape):
    id: str
    trigger_type: str
    title: str
    node_id: str
    status: Literal["enabled", "disabled"]
    last_due_at: str | None = Field(description="Of a schedule: its newest instant that is over")


class DeliveryTestBody(_Shape):
    delivery_method_id: str = Field(min_length=1)
    inputs: Values | None = None


class TriggerEnableBody(_Shape):
    trigger_id: str = Field(min_length=1)
    enable_trigger: bool


class Triggers(_Shape):
    data: list[Trigger]


class RunExport(_Shape):
    status: str
    presigned_url: str
    presigned_url_expires_at: str


class BlockConfig(_Shape):
    type: str
    config: dict[str, Any]


class GenerateBody(_Shape):
    instruction: str = Field(min_length=1)
    model_config_: Values = Field(
        alias="model_config", description="As model nodes have it: provider, name, mode, completion_params"
    )


class RuleGenerateBody(GenerateBody):
    no_variable: bool | None = Field(default=None, description="Only the prompt")


class CodeGenerateBody(GenerateBody):
    code_language: str | None = Field(default=None, description="python3, or javascript, which is the default")


class InstructionGenerateBody(GenerateBody):
    flow_id: str | None = Field(default=None, description="The app; required with node_id")
    node_id: str | None = Field(default=None, description="Of its draft; absent: `current` is a prompt")
    current: str | None = Field(default=None, description="What is to be changed; absent: it is written anew")
    language: str | None = None
    ideal_output: str | None = None


class InstructionTemplateBody(_Shape):
    type: Literal["prompt", "code"]


class GeneratedRule(_Shape):
    prompt: str
    variables: list[str]
    opening_statement: str
    error: str = Field(description="Why the model's answer is of no use; empty: it is")


class GeneratedCode(_Shape):
    code: str
    language: str
    error: str


class GeneratedSchema(_Shape):
    output: str = Field(description="A JSON schema, as text")
    error: str


class Changed(_Shape):
    modified: str
    message: str
    error: str


class InstructionTemplate(_Shape):
    data: str
