"""The secrets of a run, on their way into records: sealed where the run needs them back, masked everywhere else.

A node may write a secret into what it gives on (a template that makes a header, a code node that joins a URL). Its
successors need that value, so in the record it is sealed, beside what readers see of it. Error texts are masked: no
node works with more of them. Streamed text ends before a secret; the rest comes with the result.
"""

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, JsonValue

from libs.events.model import RunSnapshotted
from libs.events.sealed_values import SENT, seal_value
from libs.events.sealing import Vault
from libs.events.slots import Slot, is_sealed, slots, with_values
from libs.workflow.definition import Definition
from services.executor.nodes.masking import Masks

Emit = Callable[[str, str], None]


class Secrets:
    """Of one run. Falsy when it has none and can get none; then only look-alikes of sealed values are sealed."""

    def __init__(self, values: Iterable[str], vault: Vault, *, learns: bool = False) -> None:
        """`learns`: the run may write secrets that it does not know yet."""
        self._values = frozenset(values)
        self._learns = learns
        self._masks = Masks(self._values)
        self._vault = vault

    @classmethod
    def of(cls, definition: Definition, vault: Vault) -> "Secrets":
        declared = (*definition.environment, *definition.conversation)
        values = (str(each.value) for each in declared if each.type == "secret")
        return cls(values, vault, learns=any(each.type == "secret" for each in definition.conversation))

    def learn(self, values: Iterable[JsonValue]) -> None:
        """More of them, for all that is recorded from here on."""
        found = self._values.union(value for value in values if isinstance(value, str))
        if found != self._values:
            self._values, self._masks = found, Masks(found)

    def __bool__(self) -> bool:
        return self._learns or bool(self._masks)

    def without_errors(self, event: Any) -> Any:
        """The event with masked error texts: memory must hold what a fold of the log gives back."""
        error = getattr(event, "error", None)
        if not isinstance(error, str) or self._masks.text(error) == error:
            return event
        return event.model_copy(update={"error": self._masks.text(error)})

    def sealed(self, event: Any) -> Any:
        """The event as it is written. Raises SealError."""
        if isinstance(event, SENT):
            return event
        self.learn(each.value for each in getattr(event, "updates", None) or () if each.value_type == "secret")
        made: dict[Slot, JsonValue] = {}
        for slot, value in slots(event):
            if is_sealed(value) or self._masks.hide(value):
                shown = None if isinstance(event, RunSnapshotted) else self._masks.json(value)
                made[slot] = seal_value(value, shown, self._vault)
        made |= self._fields_with_secret_names(event)
        return with_values(event, made) if made else event

    def _fields_with_secret_names(self, event: BaseModel) -> dict[Slot, JsonValue]:
        """Fields in which a secret is a name: those are sealed as a whole."""
        found: dict[Slot, JsonValue] = {}
        for (name, at), _ in slots(event):
            if isinstance(at, str) and (name, None) not in found and self._masks.text(at) != at:
                value = getattr(event, name)
                found[name, None] = seal_value(value, self._masks.json(value), self._vault)
        return found

    def withheld(self, emit: Emit) -> Emit:
        """`emit` for streamed text that ends before a secret."""
        return Withholding(emit, self._masks.forms) if self._masks else emit


class Withholding:
    """Passes text on, later by the length of the longest secret, and nothing more of a field once one has begun."""

    def __init__(self, emit: Emit, forms: tuple[str, ...]) -> None:
        self._emit = emit
        self._forms = forms
        self._keep = max(map(len, forms)) - 1
        self._held: dict[str, str | None] = {}
        """By field: what may be the beginning of a secret; None: one has come."""

    def __call__(self, field: str, text: str) -> None:
        held = self._held.get(field, "")
        if held is None:
            return
        text = held + text
        found = [at for form in self._forms if (at := text.find(form)) >= 0]
        if found:
            self._held[field] = None
            self._emit(field, text[: min(found)])
            return
        safe = max(len(text) - self._keep, 0)
        self._held[field] = text[safe:]
        self._emit(field, text[:safe])
