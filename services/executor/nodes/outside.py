"""Types whose work is done by systems that this server has no way to: plugins, agents, knowledge bases.

Their nodes run when they are pinned; reached without a pin they fail, and the failure says what to do.
"""

from libs.workflow.definition import Node
from libs.workflow.outcome import Failed, Outcome
from libs.workflow.pool import Pool
from services.executor.nodes.port import Handler


class OutsideHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        needs, output, instead, error_type = _NEEDS[node.type]
        name = f"{node.title!r} ({node.id})" if node.title else repr(node.id)
        pin = f'pin it (in the pins: nodes: {{"{node.id}": {{outputs: {{{output}: ...}}}}}})'
        return Failed(f"{node.type} node {name} needs {needs(node)}. To go on, {pin}, or {instead}", error_type)


def _tool(node: Node) -> str:
    config = node.config
    provider = config.provider_name or config.provider_id or "a provider that the document does not name"
    kind = f"{config.provider_type} " if config.provider_type else ""
    return f"the {kind}tool {config.tool_name!r} of {provider}, and this server runs no tools"


def _agent(node: Node) -> str:
    strategy = node.config.agent_strategy_name or "one that the document does not name"
    return f"the agent strategy {strategy!r}, and this server runs no agent strategies"


def _knowledge(node: Node) -> str:
    count = len(node.config.dataset_ids)
    bases = f"{count} knowledge base{'' if count == 1 else 's'}" if count else "a knowledge base"
    return f"{bases}, and this server keeps none"


def _index(node: Node) -> str:
    return "a knowledge base to write to, and this server keeps none"


def _datasource(node: Node) -> str:
    config = node.config
    source = config.datasource_name or config.provider_name or "one that the document does not name"
    return f"the data source {source!r}, and this server connects to no data sources"


_NEEDS = {
    "tool": (
        _tool,
        "text",
        "call the service behind the tool with an http-request node, or do the work in a code node",
        "ToolRuntimeResolutionError",
    ),
    "agent": (_agent, "text", "use an llm node (in a loop, with http-request nodes as its tools)", "AgentNodeError"),
    "knowledge-retrieval": (
        _knowledge,
        "result",
        "ask a search service with an http-request node and give its results to the model as context",
        "KnowledgeRetrievalNodeError",
    ),
    "knowledge-index": (
        _index,
        "result",
        "send the chunks to a search service with an http-request node",
        "WorkflowNodeError",
    ),
    "datasource": (
        _datasource,
        "file",
        "begin the workflow with a start node that takes a file or an address",
        "DatasourceNodeError",
    ),
}
