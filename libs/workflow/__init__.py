"""The core: definitions and their validation, the run machine, the variable pool, templates and conditions. No I/O.

What people import from here; everything else is imported from its module.
"""

from libs.workflow.definition import Definition, Node, NodeKind, check_document, compile_document, examine
from libs.workflow.inputs import InputInvalid, validate_inputs
from libs.workflow.pins import Pins, PinsInvalid, parse_pins
from libs.workflow.problems import DefinitionInvalid, Problem, WorkflowError

__all__ = [
    "Definition",
    "DefinitionInvalid",
    "InputInvalid",
    "Node",
    "NodeKind",
    "Pins",
    "PinsInvalid",
    "Problem",
    "WorkflowError",
    "check_document",
    "compile_document",
    "examine",
    "parse_pins",
    "validate_inputs",
]
