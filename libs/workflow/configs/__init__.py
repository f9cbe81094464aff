"""Config models of the node types, by what the nodes work with; the table of all is `libs.workflow.node_configs`."""

__all__: list[str] = []
