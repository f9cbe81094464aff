"""The one line of an error that says what happened."""

_PYTHON = ("Traceback (most recent call last):", '  File "')


def gist(error: str, most: int) -> str:
    """First line of `error`, in at most `most` characters; of a Python traceback the exception's line, not its head."""
    lines = [line for line in error.splitlines() if line.strip()]
    if error.startswith(_PYTHON):
        # Of several chained ones the last is what was raised in the end; its frames are indented, it is not.
        heads = [number for number, line in enumerate(lines) if line.startswith(_PYTHON[0])]
        raised = lines[heads[-1] + 1 :] if heads else lines
        lines = [line for line in raised if not line[0].isspace()] or lines
    return lines[0].strip()[:most] if lines else ""
