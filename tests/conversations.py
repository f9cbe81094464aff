"""Chatflows for tests: one that counts its messages and remembers them, one that speaks, one whose model is given
sources."""

from typing import Any

from libs.events.commands import Annotation
from tests.documents import document, edges, node, start

ANNOTATION = Annotation(
    id="a1", question="How late is it?", answer="Noon.", score=0.97, account_id="admin-id", account_name="admin"
)

COUNTING = [
    {"id": "a3a1b2c4-0000-4000-8000-000000000001", "name": "count", "value_type": "number", "value": 0,
     "description": "messages so far"},
    {"id": "a3a1b2c4-0000-4000-8000-000000000002", "name": "topics", "value_type": "array[string]", "value": []},
]  # fmt: skip


def llm(**data: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "model": {"provider": "openai", "name": "m", "mode": "chat", "completion_params": {}},
        "prompt_template": [{"role": "system", "text": "Be brief."}],
        "context": {"enabled": False, "variable_selector": []},
        "vision": {"enabled": False},
        "memory": {"window": {"enabled": True, "size": 2}, "query_prompt_template": "{{#sys.query#}}"},
    }
    return node("llm", "llm", **(whole | data))


def counting(variables: list[dict[str, Any]] | None = None, *, inputs: tuple[str, ...] = (), **workflow: Any) -> str:
    """start > llm > assigner (count += 1, topics append the query) > answer."""
    items = [
        {"variable_selector": ["conversation", "count"], "operation": "+=", "input_type": "constant", "value": 1},
        {"variable_selector": ["conversation", "topics"], "operation": "append", "input_type": "variable",
         "value": ["sys", "query"]},
    ]  # fmt: skip
    return document(
        [
            start(*inputs),
            llm(),
            node("assign", "assigner", version="2", items=items),
            node("answer", "answer", answer="{{#llm.text#}} #{{#conversation.count#}}"),
        ],
        edges("start > llm > assign > answer"),
        mode="advanced-chat",
        conversation_variables=COUNTING if variables is None else variables,
        **workflow,
    )


def speaking(**workflow: Any) -> str:
    """start > llm > answer; what the model says is shown as it comes."""
    nodes = [start(), llm(), node("answer", "answer", answer="Well: {{#llm.text#}}")]
    return document(nodes, edges("start > llm > answer"), mode="advanced-chat", **workflow)


def citing(answer: str, results: list[Any], *, cites: bool = True, **data: Any) -> str:
    """start > llm > answer; the model has `results` as its context."""
    kept = {"id": "a3a1b2c4-0000-4000-8000-000000000001", "name": "found", "value_type": "array[object]"}
    asked = llm(context={"enabled": True, "variable_selector": ["conversation", "found"]}, **data)
    return document(
        [start(), asked, node("answer", "answer", answer=answer)],
        edges("start > llm > answer"),
        mode="advanced-chat",
        features={"retriever_resource": {"enabled": cites}},
        conversation_variables=[kept | {"value": results}],
    )


def model_named(name: str) -> dict[str, Any]:
    return {"provider": "x/y/openai", "name": name, "mode": "chat", "completion_params": {}}


def found(document_id: str, content: str) -> dict[str, Any]:
    """A result of a knowledge base."""
    metadata = {
        "_source": "knowledge", "position": 7, "dataset_id": "d", "dataset_name": "Docs", "document_id": document_id,
        "document_name": "handbook", "segment_id": f"s-{content}", "score": 0.5, "segment_word_count": 3,
    }  # fmt: skip
    return {"content": content, "title": "handbook", "metadata": metadata}
