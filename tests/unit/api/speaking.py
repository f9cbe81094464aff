"""Documents whose runs stream text."""

from typing import Any

from tests.documents import node


def llm(node_id: str = "llm") -> dict[str, Any]:
    model = {"provider": "langgenius/openai/openai", "name": "m", "mode": "chat", "completion_params": {}}
    prompt = [{"role": "user", "text": "{{#start.q#}}"}]
    off = {"enabled": False}
    return node(node_id, "llm", model=model, prompt_template=prompt, context=off, vision=off)
