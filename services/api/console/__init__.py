"""The console's API (`/console/api`): apps, drafts, versions and runs, as the reference's editor asks for them.

Every route needs the admin token, by header or by a session; keys of apps open none.
"""

from fastapi import APIRouter

from services.api.console.apps import console_app_routes
from services.api.console.block_configs import block_config_routes
from services.api.console.draft_runs import draft_run_routes
from services.api.console.drafts import draft_routes
from services.api.console.exports import export_routes
from services.api.console.files import console_file_routes
from services.api.console.forms import form_routes
from services.api.console.generators import generator_routes
from services.api.console.imports import import_routes
from services.api.console.runs import run_history_routes
from services.api.console.session import session_routes
from services.api.console.trigger_runs import trigger_run_routes
from services.api.console.triggers import trigger_routes
from services.api.console.variables import variable_routes
from services.api.parts import Parts

__all__ = ["console_routes"]


def console_routes(parts: Parts) -> list[APIRouter]:
    return [
        session_routes(parts),
        import_routes(parts),
        console_app_routes(parts),
        draft_run_routes(parts),
        trigger_run_routes(parts),
        variable_routes(parts),
        trigger_routes(parts),
        block_config_routes(),  # before the paths that have a version in this place
        draft_routes(parts),
        console_file_routes(parts),
        run_history_routes(parts),
        export_routes(parts),
        form_routes(parts),
        generator_routes(parts),
    ]
