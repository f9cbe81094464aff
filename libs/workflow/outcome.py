"""What a node handler answers: a value, never an exception across the log."""

from dataclasses import dataclass, field

from pydantic import JsonValue

from libs.events.model import VariableUpdate

Values = dict[str, JsonValue]


@dataclass(slots=True, frozen=True)
class Succeeded:
    outputs: Values = field(default_factory=dict)
    inputs: Values | None = None
    process_data: Values | None = None
    metadata: Values | None = None
    """Execution metadata, e.g. `{"total_tokens": 12, "total_price": "0", "currency": "USD"}`."""
    handle: str | None = None
    """Branch nodes: the selected handle."""
    output_types: dict[str, str] = field(default_factory=dict)
    """Declared types of outputs whose type cannot be inferred from the value (`array[file]`, `number`, ...)."""
    updates: tuple[VariableUpdate, ...] = ()
    """Assigner: values written under other selectors."""


@dataclass(slots=True, frozen=True)
class Failed:
    """The attempt failed. `error` is for people and clients; `error_type` is the class name of the contract."""

    error: str
    error_type: str = ""
    inputs: Values | None = None
    process_data: Values | None = None
    outputs: Values | None = None
    metadata: Values | None = None


@dataclass(slots=True, frozen=True)
class Asked:
    """The node waits for a person. The attempt ends with the form's answer or expiry, without its handler."""

    form: Values
    """As in `FormOpened`."""
    actions: tuple[str, ...]
    timeout_s: float
    token: str = ""
    """Given by who records it: a handler has no randomness."""


Outcome = Succeeded | Failed | Asked
