"""Every error of the API is asked for by a test, with code and status; what it never answers with has a reason."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RAISED = re.compile(r"ApiError\(\s*(\d{3}),\s*\"([a-z_]+)\"")
CONFLICT = re.compile(r"\b_conflict\(\s*\"([a-z_]+)\"")
NEVER = {
    "archive_storage_not_configured": "every run is in the log: nothing is archived elsewhere",
    "conversation_completed": "conversations do not end",
    "model_currently_not_support": "there are no plans that leave models out",
    "provider_quota_exceeded": "providers are the operator's own",
    "rate_limit_error": "there is no quota of runs that could be used up",
    "web_form_rate_limit_exceeded": "forms are not limited",
    "web_sso_auth_required": "pages have no accounts",
    "workflow_version_execution_not_allowed": "every plan runs every version",
}
"""Codes of the reference that nothing here is answered with."""


def read(folder: str) -> str:
    return "\n".join(file.read_text("utf-8") for file in sorted((ROOT / folder).rglob("*.py")))


API = read("services/api")
TESTS = read("tests")
ERRORS = {*RAISED.findall(API), *(("409", code) for code in CONFLICT.findall(API))}


def test_there_are_errors_to_look_for() -> None:
    assert len(ERRORS) > 40


@pytest.mark.parametrize(("status", "code"), sorted(ERRORS))
def test_an_error_is_asked_for_by_a_test(status: str, code: str) -> None:
    assert re.search(rf'\b{status}, "{code}"', TESTS), f"no test expects ({status}, {code!r})"


@pytest.mark.parametrize("code", NEVER)
def test_what_is_never_answered_is_nowhere(code: str) -> None:
    assert code not in API
