"""Nodes that need a system this server does not have: what their failure says."""

from typing import Any

import pytest

from libs.workflow.pool import Pool
from services.executor.nodes.outside import OutsideHandler
from tests.unit.nodes.compiled import compiled, failed


@pytest.mark.parametrize(
    ("kind", "data", "words", "error_type"),
    [
        ("tool", {"tool_name": "search", "provider_name": "google", "provider_type": "builtin"},
         ["the builtin tool 'search' of google", "{text: ...}", "http-request"], "ToolRuntimeResolutionError"),
        ("agent", {"agent_strategy_name": "ReAct"}, ["strategy 'ReAct'", "llm node"], "AgentNodeError"),
        ("knowledge-retrieval", {"dataset_ids": ["a", "b"]}, ["2 knowledge bases", "{result: ...}"],
         "KnowledgeRetrievalNodeError"),
        ("datasource", {"datasource_name": "notion"}, ["data source 'notion'", "start node"], "DatasourceNodeError"),
    ],
)  # fmt: skip
def test_the_failure_says_what_is_missing_how_to_pin_and_what_to_do_instead(
    kind: str, data: dict[str, Any], words: list[str], error_type: str
) -> None:
    outcome = failed(OutsideHandler().evaluate(compiled(kind, **data), Pool()))
    assert outcome.error_type == error_type
    assert outcome.error.startswith(f"{kind} node 'It' (it) needs ")
    assert 'nodes: {"it": {outputs: ' in outcome.error
    for each in words:
        assert each in outcome.error
