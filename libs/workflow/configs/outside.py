"""Configs of nodes that call other systems: HTTP requests and tools."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from libs.workflow.configs.fields import Config, Maybe, Selector, Text, default_when_empty


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) and value else "get" if not value else value


def _items(value: Any) -> Any:
    """A plain text is the older form of one text item."""
    if isinstance(value, str):
        return [{"type": "text", "value": value}] if value else ()
    return () if not value else value


class AuthorizationSettings(Config):
    type: Annotated[Literal["basic", "bearer", "custom"], default_when_empty("custom")] = "custom"
    api_key: Text = Field(default="", repr=False)
    header: Text = ""


class Authorization(Config):
    type: Annotated[Literal["no-auth", "api-key"], default_when_empty("no-auth")] = "no-auth"
    config: Maybe[AuthorizationSettings] = None

    @model_validator(mode="before")
    @classmethod
    def _settings_of_no_auth_do_not_count(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type") in (None, "", "no-auth"):
            return {**value, "config": None}
        return value


class BodyItem(Config):
    key: Text = ""
    type: Annotated[Literal["text", "file"], default_when_empty("text")] = "text"
    value: Text = ""
    file: Selector = ()


class Body(Config):
    type: Annotated[
        Literal["none", "form-data", "x-www-form-urlencoded", "raw-text", "json", "binary"],
        default_when_empty("none"),
    ] = "none"
    data: Annotated[tuple[BodyItem, ...], BeforeValidator(_items)] = ()


class Timeout(Config):
    """Seconds; None or 0: the limit."""

    connect: Maybe[float] = None
    read: Maybe[float] = None
    write: Maybe[float] = None


class HttpRequestConfig(Config):
    method: Annotated[Literal["get", "post", "put", "patch", "delete", "head", "options"], BeforeValidator(_lower)] = (
        "get"
    )
    url: Text
    authorization: Annotated[Authorization, BeforeValidator(lambda value: value or {})] = Authorization()
    headers: Text = ""
    params: Text = ""
    body: Annotated[Body, BeforeValidator(lambda value: value or {})] = Body()
    timeout: Annotated[Timeout, BeforeValidator(lambda value: value or {})] = Timeout()
    ssl_verify: Maybe[bool] = None


class ToolInput(Config):
    type: Literal["mixed", "variable", "constant"]
    value: Any = None

    @model_validator(mode="after")
    def _value_fits(self) -> "ToolInput":
        if self.type == "variable" and not isinstance(self.value, list | tuple):
            raise ValueError("an input of type `variable` needs a selector, a list of texts")
        if self.type == "mixed" and not isinstance(self.value, str | int | float):
            raise ValueError("an input of type `mixed` needs text")
        return self


def _tool_inputs(value: Any) -> Any:
    """Null entries and entries without a value do not count; a bare value is a constant."""
    if not isinstance(value, dict):
        return {} if not value else value
    made = {}
    for name, entry in value.items():
        if not isinstance(entry, dict):
            entry = {"type": "constant", "value": entry}
        given = entry.get("value")
        if given is not None and not (given == "" and entry.get("type") == "variable"):
            made[name] = entry
    return made


class ToolConfig(Config):
    provider_id: Text = ""
    provider_name: Text = ""
    provider_type: Text = ""
    tool_name: Text
    tool_label: Text = ""
    tool_configurations: Annotated[dict[str, Any], BeforeValidator(lambda value: value or {})] = Field(
        default_factory=dict
    )
    tool_parameters: Annotated[dict[str, ToolInput], BeforeValidator(_tool_inputs)] = Field(default_factory=dict)
    tool_node_version: Maybe[str] = None
