"""Text out of documents. What parses a format that is not plain text runs in a process of its own (`process.py`).

Imports nothing here: the child process imports this package too, and shall be quick.
"""

__all__: list[str] = []
