"""Configs of nodes that ask a model, an agent or a knowledge base."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Discriminator, Field, Tag, field_validator

from libs.workflow.configs.fields import (
    Binding,
    Config,
    Flag,
    Items,
    Mapping,
    Maybe,
    Selector,
    Text,
    default_when_empty,
)


class ModelSettings(Config):
    provider: Text = ""
    name: Text = ""
    mode: Annotated[Text, default_when_empty("chat")] = "chat"
    completion_params: Mapping[Any] = Field(default_factory=dict)


class PromptText(Config):
    text: Text = ""
    edition_type: Maybe[str] = None
    jinja2_text: Maybe[str] = None


class PromptMessage(PromptText):
    role: Annotated[Literal["system", "user", "assistant"], default_when_empty("user")] = "user"


Prompt = Annotated[
    Annotated[tuple[PromptMessage, ...], Tag("chat")] | Annotated[PromptText, Tag("completion")],
    Discriminator(lambda value: "chat" if isinstance(value, list | tuple) else "completion"),
]


class PromptConfig(Config):
    jinja2_variables: Items[Binding] = ()


class RolePrefix(Config):
    user: Text = ""
    assistant: Text = ""


class Window(Config):
    enabled: Flag = False
    size: Maybe[int] = None


class Memory(Config):
    role_prefix: Maybe[RolePrefix] = None
    window: Annotated[Window, BeforeValidator(lambda value: value or {})] = Window()
    query_prompt_template: Text = ""


class Context(Config):
    enabled: Flag = False
    variable_selector: Selector = ()


class VisionSettings(Config):
    variable_selector: Annotated[Selector, default_when_empty(("sys", "files"))] = ("sys", "files")
    detail: Annotated[Text, default_when_empty("high")] = "high"


class Vision(Config):
    enabled: Flag = False
    configs: Annotated[VisionSettings, BeforeValidator(lambda value: value or {})] = VisionSettings()


class LlmConfig(Config):
    model: ModelSettings
    prompt_template: Prompt
    prompt_config: Annotated[PromptConfig, BeforeValidator(lambda value: value or {})] = PromptConfig()
    memory: Maybe[Memory] = None
    context: Annotated[Context, BeforeValidator(lambda value: value or {})] = Context()
    vision: Annotated[Vision, BeforeValidator(lambda value: value or {})] = Vision()
    structured_output: Maybe[dict[str, Any]] = None
    structured_output_switch_on: Flag = Field(
        default=False, validation_alias=AliasChoices("structured_output_switch_on", "structured_output_enabled")
    )
    reasoning_format: Annotated[Literal["tagged", "separated"], default_when_empty("tagged")] = "tagged"

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the structured output; None when it is not switched on or not there."""
        schema = (self.structured_output or {}).get("schema") if self.structured_output_switch_on else None
        return schema if isinstance(schema, dict) else None


class QuestionClass(Config):
    id: Text = Field(min_length=1)
    name: Text = ""
    label: Text = ""


class QuestionClassifierConfig(Config):
    query_variable_selector: Selector = ()
    model: ModelSettings
    classes: Items[QuestionClass]
    instruction: Text = Field(default="", validation_alias=AliasChoices("instruction", "instructions"))
    memory: Maybe[Memory] = None
    vision: Annotated[Vision, BeforeValidator(lambda value: value or {})] = Vision()


ParameterType = Literal[
    "string", "number", "boolean", "array[string]", "array[number]", "array[object]", "array[boolean]"
]


class Parameter(Config):
    name: Text = Field(min_length=1)
    type: ParameterType
    """`bool` and `select` of older documents are read as `boolean` and `string`."""
    description: Text = ""
    required: Flag = False
    options: Items[Text] = ()

    @field_validator("type", mode="before")
    @classmethod
    def _older_spelling(cls, value: Any) -> Any:
        return {"bool": "boolean", "select": "string"}.get(value, value) if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value in ("__reason", "__is_success"):
            raise ValueError(f"{value} is reserved: the node sets it itself")
        return value


class ParameterExtractorConfig(Config):
    model: ModelSettings
    query: Selector = ()
    parameters: Items[Parameter] = ()
    instruction: Text = ""
    reasoning_mode: Annotated[Literal["function_call", "prompt"], default_when_empty("function_call")] = "function_call"
    memory: Maybe[Memory] = None
    vision: Annotated[Vision, BeforeValidator(lambda value: value or {})] = Vision()


class KnowledgeRetrievalConfig(Config):
    query_variable_selector: Selector = ()
    query_attachment_selector: Selector = ()
    dataset_ids: Items[Text] = ()
    retrieval_mode: Annotated[Literal["single", "multiple"], default_when_empty("multiple")] = "multiple"
    single_retrieval_config: Maybe[dict[str, Any]] = None
    multiple_retrieval_config: Maybe[dict[str, Any]] = None
    metadata_filtering_mode: Annotated[Literal["disabled", "automatic", "manual"], default_when_empty("disabled")] = (
        "disabled"
    )
    metadata_filtering_conditions: Maybe[dict[str, Any]] = None


class KnowledgeIndexConfig(Config):
    index_chunk_variable_selector: Selector = ()


class AgentConfig(Config):
    agent_strategy_provider_name: Text = ""
    agent_strategy_name: Text = ""
    agent_strategy_label: Text = ""
    agent_parameters: Mapping[Any] = Field(default_factory=dict)
    memory: Maybe[Memory] = None
