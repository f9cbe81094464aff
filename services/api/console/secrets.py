"""Secret variables of documents: shown as a mask, and what comes back as the mask means the value that is kept."""

from collections.abc import Iterable, Sequence
from typing import Any

from services.api.frames import Json

MASK = "*" * 20

VARIABLES = ("environment_variables", "conversation_variables")
"""The parts of a workflow that may hold secrets."""


def masked(variables: Iterable[Any]) -> list[Json]:
    """Variables of a document, secret values hidden."""
    return [_masked(each) for each in variables if isinstance(each, dict)]


def restored(given: Sequence[Any], kept: Iterable[Any]) -> list[Any]:
    """`given` as an editor sends it, with the secrets of `kept` in place of masks."""
    by_id = {each.get("id"): each for each in kept if isinstance(each, dict) and each.get("id")}
    by_name = {each.get("name"): each for each in kept if isinstance(each, dict)}
    return [_restored(each, by_id.get(each.get("id")) or by_name.get(each.get("name"))) for each in given]


def without_secrets(variables: Iterable[Any]) -> list[Any]:
    """Variables with empty secrets, for documents that leave here."""
    return [each | {"value": ""} if _is_secret(each) else each for each in variables]


def _masked(variable: Json) -> Json:
    return variable | {"value": MASK} if _is_secret(variable) else variable


def _restored(given: Any, kept: Json | None) -> Any:
    if kept is not None and _is_secret(given) and given.get("value") == MASK:
        return given | {"value": kept.get("value")}
    return given


def _is_secret(variable: Any) -> bool:
    return isinstance(variable, dict) and variable.get("value_type") == "secret"
