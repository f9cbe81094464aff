"""Where code and templates of workflow authors run: contained processes, forked from a warm interpreter."""

from services.executor.sandbox.sandbox import (
    OutputTooLong,
    Sandbox,
    SandboxError,
    SandboxResult,
    SandboxUnavailable,
)

__all__ = ["OutputTooLong", "Sandbox", "SandboxError", "SandboxResult", "SandboxUnavailable"]
