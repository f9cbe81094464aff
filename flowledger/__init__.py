"""What people type and import: the command line (`flowledger.cli`) and the embedded instance (`flowledger.dev`).

Importing this package loads nothing else, so that `flowledger --help` stays quick.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
