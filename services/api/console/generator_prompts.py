"""What the generators tell a model, and the shapes of what they want of it."""

from collections.abc import Mapping
from typing import Any, Final

_TEXT: Final = {"type": "string"}

_WRITE: Final = """\
You write instructions for language models. The user describes a task. Write the instruction that makes another model \
do that task well.

- Say who the model is, what it is given, what it has to do step by step, and what its answer looks like.
- State limits and what to do in doubt. Give one short example where it helps.
- Write in the language of the description.
"""

PROMPT: Final = f"""\
{_WRITE}- Answer with the instruction alone: no introduction, no comment, no Markdown fence around it."""

PROMPT_WITH_VARIABLES: Final = f"""\
{_WRITE}- Where a user of the finished app has to supply something, put a variable: {{{{name}}}}, in lower case.

Answer with the instruction, the names of its variables without braces, and one friendly sentence with which the app \
greets its user."""

RULE_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "prompt": _TEXT,
        "variables": {"type": "array", "items": _TEXT},
        "opening_statement": _TEXT,
    },
    "required": ["prompt", "variables", "opening_statement"],
}

CODE: Final[Mapping[str, str]] = {
    "python3": """\
You write Python 3 for one step of a workflow. The user describes what the step has to do.

- Define exactly one entry point, `main`, with an annotated parameter for each value that the step is given, and have \
it return a dict: its keys are the step's outputs.
- Use the standard library alone. There is no network, no file system, and nobody reads what is printed.
- Handle values that are empty or missing. Comment only what is not obvious.
- Answer with the code alone.""",
    "javascript": """\
You write JavaScript for one step of a workflow. The user describes what the step has to do.

- Define exactly one entry point, `function main({...})`, which takes the values that the step is given as one object \
and returns an object: its keys are the step's outputs.
- Use the language alone, without modules. There is no network, no file system, and nobody reads the console.
- Handle values that are empty or missing. Comment only what is not obvious.
- Answer with the code alone.""",
}

SCHEMA: Final = """\
You write JSON schemas (Draft 7). The user describes data that a language model has to deliver. Write the schema of an \
object that holds it.

- At the top: `type` is `object`, with `properties` and `required`. Nested objects and lists have their own schemas.
- Name properties in snake_case, in English, and give each one a `description`.
- Only what the user asks for. A JSON value that the user has given as an example decides names and types."""

SCHEMA_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": ["object"]},
        "properties": {"type": "object"},
        "required": {"type": "array", "items": _TEXT},
    },
    "required": ["type", "properties"],
}

_CHANGE: Final = """\
You improve {what}. The user gives JSON: `current` is {what} as it is; `instruction` is what should change; \
`last_run`, if there is one, is what came of it the last time; `ideal_output`, if there is one, is what should have \
come.

- Change what the instruction asks for and leave the rest as it is. {more}
- In `modified` give the whole of it, as it should be now. In `message` say in one or two sentences what was changed \
and why, in the language of the instruction."""

CHANGE_PROMPT: Final = _CHANGE.format(
    what="an instruction for a language model",
    more="Placeholders in double braces stay, unless the instruction is about them.",
)
CHANGE_CODE: Final = _CHANGE.format(
    what="the code of one step of a workflow",
    more="The entry point `main` keeps its parameters and the keys of what it returns, unless the instruction is "
    "about them.",
)
CHANGE_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"modified": _TEXT, "message": _TEXT},
    "required": ["modified", "message"],
}

TEMPLATES: Final[Mapping[str, str]] = {
    "prompt": """\
This is the prompt: {{#current#}}
This came of it the last time: {{#last_run#}}
Keep what is good about it. Make it clearer, and mend what was wrong with the last answer.""",
    "code": """\
This is the code: {{#current#}}
It failed with: {{#error_message#}}
Mend it, and leave parameters and outputs as they are.""",
}
"""What stands in the field for an instruction before anybody has written one."""
