"""The one line of an error that says what happened."""

import re

_HEAD = "Traceback (most recent call last):"
_PYTHON = (_HEAD, '  File "', "  + Exception Group " + _HEAD)
_MARGIN = re.compile(r"^  (?:\+ Exception Group |\| )", re.MULTILINE)
"""What stands before the lines of an exception group's own; those of its members stand further in."""


def gist(error: str, most: int) -> str:
    """First line of `error`, in at most `most` characters; of a Python traceback the exception's line, not its head."""
    if not error.startswith(_PYTHON):
        return next((line.strip() for line in error.splitlines() if line.strip()), "")[:most]
    lines = [line for line in _MARGIN.sub("", error).splitlines() if line.strip()]
    # Of several chained ones the last is what was raised in the end; its frames are indented, it is not.
    heads = [number for number, line in enumerate(lines) if line.startswith(_HEAD)]
    raised = lines[heads[-1] + 1 :] if heads else lines
    return next((line for line in raised if not line[0].isspace()), lines[0]).strip()[:most]
