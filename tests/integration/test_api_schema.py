"""Requests made from the OpenAPI document itself: none is answered with 5xx, and every answer is one the document has.

schemathesis makes the requests, with and against the document's types. A short, repeatable run here; a long one by
hand: `schemathesis run URL/openapi.json -H "Authorization: Bearer TOKEN"`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from flowledger.dev import start_embedded
from libs.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
CASES = 2
"""Per operation and kind of token; a long run makes some 10,000 in all."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    allow_header_conformance,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A server, and its tokens by the names that the document gives them."""
    folder = tmp_path_factory.mktemp("data")
    instance = start_embedded(folder, "127.0.0.1", 0, Settings(models="offline", data=folder))
    admin = {"Authorization": f"Bearer {instance.admin_token}"}
    document = (ROOT / "examples" / "hello.yml").read_bytes()
    made = httpx.post(f"{instance.url}/v1/apps/import", content=document, headers=admin).json()
    yield instance.url, {"admin": instance.admin_token, "app_key": made["api_key"]}
    instance.stop()


def asking(operation: Any, headers: dict[str, str]) -> Callable[[], None]:
    """Makes the requests of one operation when it is called."""

    @settings(
        max_examples=CASES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy())
    def ask(case: schemathesis.Case) -> None:
        response = case.call(headers=headers, timeout=30)
        case.validate_response(response, checks=CHECKS)

    return ask


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_operation_answers_as_the_document_says(server: tuple[str, dict[str, str]]) -> None:
    url, tokens = server
    problems: list[str] = []
    tried = 0
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = found.ok()
        schemes = [name for one in operation.definition.raw.get("security", ()) for name in one if name in tokens]
        for scheme in schemes or ["admin"]:
            try:
                asking(operation, {"Authorization": f"Bearer {tokens[scheme]}"})()
            except Exception as error:  # whatever it is, the other operations are tried, too
                problems.append(f"{operation.label} ({scheme}): {error}")
            tried += 1
    assert tried > 100
    assert problems == []
