"""Forms that runs wait for: shown and answered by their token (Dify's path), and by their run (ours).

The token names the run, so a form is found without a table. What fits is checked here, against the form as it was
opened; whether the form is still open is decided by the executor, in the order of the log.
"""

from fastapi import APIRouter, Request
from pydantic import JsonValue
from starlette.responses import JSONResponse, Response

from libs.events.ids import run_id_of_form
from libs.events.model import CommandRejected
from libs.workflow.forms import FormInvalid, check_submission
from services.api import schemas
from services.api.access import Principal, required_user
from services.api.asked import AskedForm
from services.api.errors import ApiError, invalid_param, not_found, unavailable
from services.api.frames import FrameMaker, Json, encode
from services.api.parts import Parts
from services.api.requests import read_json
from services.api.schemas import answers, json_body, secured
from services.api.uploads import FileUser

MAX_BYTES = 256 * 1024
"""Of a submission: texts of people, and mentions of files."""

DECIDE_S = 5.0


def form_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["Workflow apps (Dify-compatible)"])

    @router.get(
        "/form/human_input/{form_token}",
        summary="A form that a run waits for",
        responses=answers(schemas.FormDefinition, 401, 404, 412, 503),
        openapi_extra=secured("app_key", "admin"),
    )
    async def get_form(request: Request, form_token: str) -> Response:
        return await shown(parts, form_token, await parts.access.anyone(request))

    @router.post(
        "/form/human_input/{form_token}",
        summary="Answer a form: the run goes on",
        responses=answers(schemas.Nothing, 400, 401, 404, 412, 413, 415, 503),
        openapi_extra=json_body(schemas.SubmissionBody) | secured("app_key", "admin"),
    )
    async def submit_form(request: Request, form_token: str) -> Response:
        principal = await parts.access.anyone(request)
        body = await read_json(request, min(MAX_BYTES, parts.limits.max_body_bytes))
        return await submitted(parts, form_token, principal, body, required_user(body.get("user")))

    return router


async def shown(parts: Parts, form_token: str, principal: Principal) -> Response:
    """The form, while it is open. Raises ApiError."""
    _, form = await form_by_token(parts, form_token, principal)
    _require_open(form)
    return Response(encode(form.definition()), media_type="application/json")


async def submitted(parts: Parts, form_token: str, principal: Principal, body: Json, user: str) -> Response:
    """Answer the form. Raises ApiError."""
    maker, form = await form_by_token(parts, form_token, principal)
    await parts.end_users.seen(principal, user)  # first: the answer to the submission must not hang on it
    await submit(parts, maker, form, body, FileUser(_app_id(maker), principal, user))
    return JSONResponse({})


async def form_by_token(parts: Parts, token: str, principal: Principal) -> tuple[FrameMaker, AskedForm]:
    """The form, with the frames of its run, as of now. Raises ApiError 404; TailBehind, LogError."""
    try:
        run_id = run_id_of_form(token)
    except ValueError:
        raise not_found("Form not found") from None
    maker = await asking(parts, run_id)
    form = maker.asked.by_token(token) if maker is not None else None
    if maker is None or form is None or not principal.may_see(_app_id(maker)):
        raise not_found("Form not found")
    return maker, form


async def asking(parts: Parts, run_id: str) -> FrameMaker | None:
    """What the run asks of people, as of now; None: there is no such run. Raises TailBehind, LogError, CodecError."""
    if await parts.reads.fresh(run_id) is None:
        return None
    live = await parts.streams.live(run_id)
    if live is None:
        return None
    if live.current and live.fold is not None:
        return live.fold.maker
    maker = FrameMaker(run_id)
    for recorded in await parts.folds.history(run_id, Principal(None)):
        maker.on_event(recorded)
    return maker


async def submit(parts: Parts, maker: FrameMaker, form: AskedForm, body: Json, user: FileUser) -> None:
    """Answer the form by `action` and `inputs` of the body. Raises ApiError."""
    action, inputs = body.get("action"), body.get("inputs")
    if not isinstance(action, str) or not action:
        raise invalid_param("action is required: the id of one of the form's actions", "action")
    inputs = {} if inputs is None else inputs
    if not isinstance(inputs, dict):
        raise invalid_param("inputs: expected an object", "inputs")
    _require_open(form)
    opened = form.opened
    values = await fitting(parts, opened.form, opened.actions, action, inputs, user)
    answer = await parts.submitter.submit_form(
        maker.run_id, opened.form_id, action, values, user.user, answer_s=DECIDE_S
    )
    if answer is None:
        raise unavailable("no executor has decided the submission yet. Ask for the form to find out, or submit again")
    if isinstance(answer, CommandRejected):
        await _refused(parts, maker.run_id, form, answer)


async def fitting(
    parts: Parts, form: Json, actions: tuple[str, ...], action: str, inputs: Json, user: FileUser
) -> dict[str, JsonValue]:
    """The values that answer the form, with what is known of uploaded files. Raises ApiError 400, 503."""
    try:
        given = {name: await parts.uploads.mentioned(name, value, user) for name, value in inputs.items()}
        return check_submission(form, actions, action, given)
    except FormInvalid as error:
        raise ApiError(400, "invalid_form_data", str(error)) from error


async def _refused(parts: Parts, run_id: str, form: AskedForm, rejected: CommandRejected) -> None:
    """Somebody, or the clock, was faster."""
    if rejected.code == "unknown_action":
        raise ApiError(400, "invalid_form_data", rejected.message)
    maker = await asking(parts, run_id)
    found = maker.asked.forms.get(form.opened.form_id) if maker is not None else None
    _require_open(found or form)
    raise ApiError(412, "human_input_form_expired", "the run does not wait for this form any more")


def _require_open(form: AskedForm) -> None:
    """Raises ApiError 412."""
    match form.status:
        case "submitted":
            raise ApiError(412, "human_input_form_submitted", "the form was answered already")
        case "timeout":
            raise ApiError(412, "human_input_form_expired", "nobody answered the form in time")
        case "expired":
            raise ApiError(412, "human_input_form_expired", "the run has ended, so the form is closed")
        case "waiting":
            return


def _app_id(maker: FrameMaker) -> str:
    assert maker.accepted is not None  # the first event of every run
    return maker.accepted.app_id
