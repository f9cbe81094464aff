"""Where runs begin: a workflow has one or several roots, a start node or triggers, and each run begins at one of them.

The root that a run's record names is the run's. A record that names none is of a run that began at the first root of
the document. All other roots are skipped, with what only they reach. Pure.
"""

from dataclasses import replace
from functools import lru_cache

from libs.workflow.definition import Definition, Node
from libs.workflow.problems import WorkflowError

__all__ = ["RootInvalid", "default_root", "named_root", "root_nodes", "rooted", "roots_of"]


class RootInvalid(WorkflowError):
    """Runs cannot begin at this node."""


def roots_of(definition: Definition) -> tuple[str, ...]:
    """All roots of the workflow, in document order; of the definition of a part, the node it begins with."""
    if not definition.inactive_roots:
        return (definition.root,)
    roots = {definition.root, *definition.inactive_roots}
    return tuple(node_id for node_id in definition.nodes if node_id in roots)


def root_nodes(definition: Definition) -> tuple[Node, ...]:
    """The nodes of `roots_of`."""
    return tuple(definition.nodes[root] for root in roots_of(definition))


def default_root(definition: Definition) -> str:
    """Where a run begins when nobody says where: at the start node; without one, at the first root of the document."""
    roots = roots_of(definition)
    return next((root for root in roots if definition.nodes[root].type == "start"), roots[0])


def named_root(definition: Definition) -> str | None:
    """What the record of a run that begins at the definition's root says of it: nothing, where there is no other."""
    return definition.root if definition.inactive_roots else None


@lru_cache(maxsize=64)  # as many runs share what follows from a definition, equal only to itself, as share its root
def rooted(definition: Definition, root: str) -> Definition:
    """The definition of runs that begin at `root`. Raises RootInvalid when that is none of its roots."""
    if root == definition.root:
        return definition
    roots = roots_of(definition)
    if root not in roots:
        raise RootInvalid(f'no run begins at node "{root[:100]}". Roots of this workflow: {", ".join(roots)}')
    return replace(definition, root=root, inactive_roots=tuple(each for each in roots if each != root))
