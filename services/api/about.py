"""What an app says of itself: name, input form, features, icons, page. Read from its newest document; nothing is kept.

These paths take no `user`; clients that send one are tolerated.
"""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from libs.events.registry import AppCreated
from libs.workflow.definition import Definition
from libs.workflow.roots import default_root
from services.api import schemas
from services.api.annotating import reply_of
from services.api.errors import ApiError
from services.api.frames import Json
from services.api.parts import Parts
from services.api.schemas import answers, secured
from services.api.uploads import LIMITS_MB, OTHER_MB

MAX_FILES_OF_A_RUN: Final = 10

_SWITCHES: Final = (
    "suggested_questions_after_answer",
    "speech_to_text",
    "text_to_speech",
    "retriever_resource",
    "more_like_this",
)
_NO_UPLOAD: Final[Json] = {
    "image": {
        "enabled": False,
        "number_limits": 3,
        "detail": "high",
        "transfer_methods": ["remote_url", "local_file"],
    }
}


def about_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["App (Dify-compatible)"])
    key = secured("app_key")

    @router.get("/info", summary="Name and description", responses=answers(schemas.Info, 401), openapi_extra=key)
    async def info(request: Request) -> Response:
        app = await parts.access.app_key(request)
        return JSONResponse(
            {"name": app.name, "description": app.description, "tags": [], "mode": app.mode, "author_name": None}
        )

    @router.get(
        "/parameters",
        summary="Input form and features",
        responses=answers(schemas.Parameters, 400, 401, 503),
        openapi_extra=key,
    )
    async def parameters(request: Request) -> Response:
        app = await parts.access.app_key(request)
        reply = reply_of(parts.registry.annotations, app.app_id)
        return JSONResponse(parameters_of(await published(parts, app), reply))

    @router.get("/meta", summary="Icons of tools", responses=answers(schemas.Meta, 401), openapi_extra=key)
    async def meta(request: Request) -> Response:
        await parts.access.app_key(request)
        # Icons belong to tool plugins, and there are none here.
        return JSONResponse({"tool_icons": {}})

    @router.get("/site", summary="The app's page", responses=answers(schemas.Site, 401), openapi_extra=key)
    async def site(request: Request) -> Response:
        app = await parts.access.app_key(request)
        latest = parts.registry.latest(app.app_id)
        definition = None if latest is None else await parts.starter.definition(latest)
        return JSONResponse(site_of(app, definition))

    return router


async def published(parts: Parts, app: AppCreated) -> Definition:
    """The app's newest version, compiled. Raises ApiError: 400 `app_unavailable` when there is none."""
    latest = parts.registry.latest(app.app_id)
    if latest is None:
        raise ApiError(400, "app_unavailable", "the app has no published version. Publish one")
    return await parts.starter.definition(latest)


def parameters_of(definition: Definition, annotation_reply: Json) -> Json:
    """Input form and features, as clients ask for them. Whether annotations answer is not the document's to say."""
    features = definition.features
    return {
        "opening_statement": features.get("opening_statement") or None,
        "suggested_questions": features.get("suggested_questions") or [],
        **{name: _switch(features, name) for name in _SWITCHES},
        "annotation_reply": annotation_reply,
        "user_input_form": _form(definition),
        "sensitive_word_avoidance": _object(features, "sensitive_word_avoidance")
        or {"enabled": False, "type": "", "configs": []},
        "file_upload": _object(features, "file_upload") or _NO_UPLOAD,
        "system_parameters": {
            "image_file_size_limit": LIMITS_MB["image"],
            "video_file_size_limit": LIMITS_MB["video"],
            "audio_file_size_limit": LIMITS_MB["audio"],
            "file_size_limit": OTHER_MB,
            "workflow_file_upload_limit": MAX_FILES_OF_A_RUN,
        },
    }


def enabled(definition: Definition, feature: str) -> bool:
    """Whether the document switches the feature on."""
    return _switch(definition.features, feature)["enabled"] is True


def _switch(features: Mapping[str, Any], name: str) -> Json:
    return {"enabled": False} | _object(features, name)


def _object(features: Mapping[str, Any], name: str) -> Json:
    found = features.get(name)
    return dict(found) if isinstance(found, dict) else {}


def _form(definition: Definition) -> list[Json]:
    """The start node's variables as the document has them, each under its type."""
    root = definition.nodes[default_root(definition)]
    declared = root.data.get("variables") if root.type == "start" else None
    return [{str(one.get("type", "text-input")): dict(one)} for one in declared or () if isinstance(one, dict)]


def site_of(app: AppCreated, definition: Definition | None) -> Json:
    """How the app's page looks."""
    about: Any = definition.document.get("app") if definition is not None else None
    about = about if isinstance(about, dict) else {}
    is_link = app.icon.startswith(("http://", "https://"))
    return {
        "title": app.name,
        "chat_color_theme": None,
        "chat_color_theme_inverted": False,
        "icon_type": about.get("icon_type") or ("image" if is_link else "emoji"),
        "icon": app.icon or None,
        "icon_background": app.icon_background or None,
        "icon_url": app.icon if is_link else None,
        "description": app.description or None,
        "copyright": None,
        "privacy_policy": None,
        "custom_disclaimer": "",
        "default_language": "en-US",
        "show_workflow_steps": True,
        "use_icon_as_answer_icon": about.get("use_icon_as_answer_icon") is True,
        "input_placeholder": None,
    }
