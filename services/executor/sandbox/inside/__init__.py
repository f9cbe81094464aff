"""What runs inside the sandbox's own interpreter.

Started as the top-level package `inside` by a bare `python -I -S`, so nothing here imports the rest of the project,
and nothing outside this folder and the standard library is on the path. Also importable as part of the project, for
what both sides must agree on (frame format, template environment).
"""

__all__: list[str] = []
