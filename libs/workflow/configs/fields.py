"""Field types of node configs: strict about meaning, tolerant of how real documents write it.

Editors and generators write null, an empty text or a number where the format asks for text, a list or a flag. That is
read as what it means; a value that means nothing here is refused.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

T = TypeVar("T")


class Config(BaseModel):
    """Base of all configs: frozen; unknown keys are kept, never an error."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


def _text(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _selector(value: Any) -> Any:
    if isinstance(value, list):
        return [str(part) if isinstance(part, int) and not isinstance(part, bool) else part for part in value]
    return () if value is None or value == "" else value


def _empty_list(value: Any) -> Any:
    return () if value is None or value == "" else value


def _empty_mapping(value: Any) -> Any:
    return {} if value is None or value == "" else value


def _nothing(value: Any) -> Any:
    return None if value == "" or value == {} else value


def _false(value: Any) -> Any:
    return False if value is None or value == "" else value


def _and(value: Any) -> Any:
    return value.lower() if isinstance(value, str) and value else "and"


Text = Annotated[str, BeforeValidator(_text)]
Selector = Annotated[tuple[str, ...], BeforeValidator(_selector)]
"""Path of a value in the variable pool; `()` where the document leaves it empty."""
Flag = Annotated[bool, BeforeValidator(_false)]
Items = Annotated[tuple[T, ...], BeforeValidator(_empty_list)]
Mapping = Annotated[dict[str, T], BeforeValidator(_empty_mapping)]
Maybe = Annotated[T | None, BeforeValidator(_nothing)]
"""Null, an empty text and an empty mapping all mean that it is not there."""
Logic = Annotated[Literal["and", "or"], BeforeValidator(_and)]


def default_when_empty(default: Any) -> BeforeValidator:
    """Null and empty text mean `default`."""
    return BeforeValidator(lambda value: default if value is None or value == "" else value)


class Binding(Config):
    """A name that a node's code, template or prompt uses, and where its value comes from."""

    variable: Text = ""
    value_selector: Selector = ()
