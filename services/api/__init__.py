"""HTTP in, commands out; live runs as server-sent events; reads of runs. Never imports another service."""

from services.api.app import ApiDependencies, Beside, Limits, create_app

__all__ = ["ApiDependencies", "Beside", "Limits", "create_app"]
