"""`start`: the run's inputs become variables. Also checks inputs that have a JSON schema.

Outputs are the node's own variables and `sys.*` under their dotted names. Environment variables are left out on
purpose: as outputs, secret ones would be in every record of the run.
"""

import importlib
import json
from typing import Any

from pydantic import JsonValue

from libs.workflow.definition import Node
from libs.workflow.outcome import Failed, Outcome, Succeeded
from libs.workflow.pool import Pool, declared_types
from services.executor.nodes.port import Handler


class StartHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        own = pool.names(node.id)
        for variable in node.config.variables:
            problem = _problem(variable, own[variable.variable].value if variable.variable in own else None)
            if problem is not None:
                return Failed(problem, "WorkflowNodeError")
        system = {f"sys.{name}": segment for name, segment in pool.names("sys").items()}
        outputs = {name: segment.value for name, segment in (own | system).items()}
        return Succeeded(outputs=outputs, inputs=outputs, output_types=declared_types(own | system))


def _problem(variable: Any, value: JsonValue) -> str | None:
    """Why the input is not what its `json_object` variable asks for."""
    if variable.type != "json_object":
        return None
    if value is None:
        return f"{variable.variable}: expected a JSON object, got nothing" if variable.required else None
    if not isinstance(value, dict):
        return f"{variable.variable}: expected a JSON object, got {type(value).__name__}"
    schema = variable.json_schema
    if isinstance(schema, str):
        schema = json.loads(schema) if schema.strip() else None
    return _violation(variable.variable, value, schema) if schema and value else None


def _violation(name: str, value: JsonValue, schema: dict[str, Any]) -> str | None:
    # Imported here: only documents with such a schema pay for it (some 50 ms).
    jsonschema, referencing = importlib.import_module("jsonschema"), importlib.import_module("referencing")
    # An empty registry of our own: the default one would fetch remote references over HTTP.
    validator = jsonschema.Draft7Validator(schema, registry=referencing.Registry())
    try:
        error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    except referencing.exceptions.Unresolvable as unresolvable:
        return f"{name}: its JSON schema refers to {unresolvable.ref}, which is not in it. Put the definition into it"
    if error is None:
        return None
    place = ".".join([name, *map(str, error.absolute_path)])
    return f"{place}: does not fit the JSON schema of this input ({error.validator}). Send a value that fits it"
