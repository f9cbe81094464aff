"""What a run asks of people: its forms, and its pauses, in the reference's shapes. Pure: events in, JSON out."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from libs.events.model import (
    FormExpired,
    FormOpened,
    FormSubmitted,
    NodeStopped,
    PauseRequested,
    ResumeRequested,
    RunEvent,
    RunFailed,
    RunPartiallySucceeded,
    RunPaused,
    RunResumed,
    RunStopped,
    RunSucceeded,
)
from libs.workflow.forms import fill, title_of

Json = dict[str, Any]

FormStatus = Literal["waiting", "submitted", "timeout", "expired"]
"""`timeout`: nobody answered in time; `expired`: the run ended before."""

OPEN: Final = "waiting"
SUBMITTED: Final = "submitted"
EXPIRED: Final = "timeout"
CLOSED: Final = "expired"


@dataclass(slots=True)
class AskedForm:
    """A form that the run has opened."""

    opened: FormOpened
    title: str
    """Of its node."""
    status: FormStatus = "waiting"
    submitted: FormSubmitted | None = None

    def definition(self) -> Json:
        """`GET /form/human_input/{token}`."""
        form = self.opened.form
        return {
            "form_content": form.get("form_content", ""),
            "inputs": form.get("inputs") or [],
            "resolved_default_values": form.get("resolved_default_values") or {},
            "user_actions": form.get("user_actions") or [],
            "expiration_time": self.opened.due_us // 1_000_000,
        }

    def required(self) -> Json:
        """`data` of `human_input_required`."""
        definition = self.definition()
        return {
            "form_id": self.opened.form_id,
            "node_id": self.opened.node_id,
            "node_title": self.title,
            "form_content": definition["form_content"],
            "inputs": definition["inputs"],
            "actions": definition["user_actions"],
            "display_in_ui": bool(self.opened.form.get("display_in_ui", True)),
            "form_token": self.opened.token,
            "resolved_default_values": definition["resolved_default_values"],
            "expiration_time": definition["expiration_time"],
        }

    def closed(self) -> tuple[str, Json]:
        """Name and `data` of the frame that says how it was closed."""
        about = {"node_id": self.opened.node_id, "node_title": self.title}
        if self.submitted is None:
            return "human_input_form_timeout", about | {"expiration_time": self.opened.due_us // 1_000_000}
        action, inputs = self.submitted.action, self.submitted.inputs
        return "human_input_form_filled", about | {
            "rendered_content": fill(self.opened.form, inputs),
            "action_id": action,
            "action_text": title_of(self.opened.form, action),
            "submitted_data": inputs,
        }


class Asked:
    """The forms and pauses of one run. Give it every event, in order."""

    def __init__(self) -> None:
        self.forms: dict[str, AskedForm] = {}
        """By id, in order of opening."""
        self.paused: RunPaused | None = None
        """The pause that the run is in."""
        self.last_pause: RunPaused | None = None
        """Also when the run has gone on since: what it had done by then."""
        self.pause_reason: str | None = None
        """Somebody asked for a pause and has not taken it back."""
        self._moving = False

    @property
    def parked(self) -> bool:
        """Whether the run is paused and nothing has come since that will let it go on."""
        return self.paused is not None and not (self._moving and self.pause_reason is None)

    def open_forms(self) -> list[AskedForm]:
        return [form for form in self.forms.values() if form.status == OPEN]

    def by_token(self, token: str) -> AskedForm | None:
        return next((form for form in self.forms.values() if form.opened.token == token), None)

    def take(self, event: RunEvent, title: str = "") -> None:
        """`title`: of the node that opens a form."""
        match event:
            case FormOpened():
                self.forms[event.form_id] = AskedForm(event, title)
            case FormSubmitted():
                self._close(event.form_id, SUBMITTED, event)
            case FormExpired():
                self._close(event.form_id, EXPIRED)
            case PauseRequested():
                self.pause_reason = event.reason
            case ResumeRequested():
                self.pause_reason = None
                self._moving = self._moving or not self.open_forms()
            case RunPaused():
                self.paused = self.last_pause = event
                self._moving = False
            case RunResumed():
                self.paused = None
            case NodeStopped():
                form_id = next((form.opened.form_id for form in self.open_forms() if _at(form, event)), None)
                if form_id is not None:
                    self._close(form_id, CLOSED)
            case RunSucceeded() | RunPartiallySucceeded() | RunFailed() | RunStopped():
                self.paused = self.pause_reason = None
                for form in self.open_forms():
                    form.status = CLOSED
            case _:
                pass

    def _close(self, form_id: str, status: FormStatus, submitted: FormSubmitted | None = None) -> None:
        form = self.forms.get(form_id)
        if form is not None and form.status == OPEN:
            form.status, form.submitted = status, submitted
        self._moving = True

    def pause(self, event: RunPaused) -> Json:
        """`paused_nodes` and `reasons` of a pause that the run is in, or was in."""
        forms = [form for form_id in event.forms if (form := self.forms.get(form_id)) is not None]
        reasons = [_reason("human_input_required") | form.required() for form in forms]
        if event.reason is not None:
            reasons.append(_reason("scheduled_pause") | {"message": event.reason})
        return {"paused_nodes": [form.opened.node_id for form in forms], "reasons": reasons}


def _at(form: AskedForm, event: NodeStopped) -> bool:
    return (form.opened.path, form.opened.node_id) == (event.path, event.node_id)


def _reason(kind: str) -> Json:
    """Releases of the reference spell the discriminator in both ways."""
    return {"TYPE": kind, "type": kind}
