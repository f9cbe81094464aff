"""What begins runs from outside: addresses of webhooks, and which instants of schedules are over. Facts and their fold.

| fact | record key |
|---|---|
| `WebhookCreated` | `webhook/<webhook id>` |
| `ScheduleFired` | `schedule/<app id>/<node id>` |
| `TriggerSwitched` | `trigger/<app id>/<node id>` |

Of a schedule's last instant and of a switch the newest record says enough. An instant only ever moves on: should an
older one win a race of two replicas, it fires again and the log refuses the second run.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class WebhookCreated(_Fact):
    """An address for requests that start runs at a node; whoever knows it may call."""

    type: Literal["WebhookCreated"] = "WebhookCreated"
    webhook_id: str
    app_id: str
    node_id: str
    created_at_us: int


class ScheduleFired(_Fact):
    """The instant `due_us` of a schedule has its run, or was given up; so have all before it."""

    type: Literal["ScheduleFired"] = "ScheduleFired"
    app_id: str
    node_id: str
    due_us: int
    run_id: str | None = None
    """None: it could not be started, and trying again would not have helped."""
    fired_at_us: int


class TriggerSwitched(_Fact):
    """A trigger begins runs, or does not, until it is switched again; one that never was does."""

    type: Literal["TriggerSwitched"] = "TriggerSwitched"
    app_id: str
    node_id: str
    enabled: bool
    switched_at_us: int


TriggerFact = WebhookCreated | ScheduleFired | TriggerSwitched


def key_of_trigger_fact(fact: TriggerFact) -> str:
    match fact:
        case WebhookCreated():
            return f"webhook/{fact.webhook_id}"
        case ScheduleFired():
            return f"schedule/{fact.app_id}/{fact.node_id}"
        case TriggerSwitched():
            return f"trigger/{fact.app_id}/{fact.node_id}"


class TriggerBook:
    """The fold. Like the registry it belongs to: one thread applies, any thread looks up."""

    def __init__(self) -> None:
        self._webhooks: dict[str, WebhookCreated] = {}
        self._addresses: dict[tuple[str, str], WebhookCreated] = {}
        self._fired: dict[tuple[str, str], ScheduleFired] = {}
        self._switched: dict[tuple[str, str], TriggerSwitched] = {}

    def evolve(self, fact: TriggerFact) -> None:
        match fact:
            case WebhookCreated():
                self._webhooks[fact.webhook_id] = fact
                self._addresses.setdefault((fact.app_id, fact.node_id), fact)
            case ScheduleFired():
                known = self._fired.get((fact.app_id, fact.node_id))
                if known is None or fact.due_us > known.due_us:
                    self._fired[fact.app_id, fact.node_id] = fact
            case TriggerSwitched():
                self._switched[fact.app_id, fact.node_id] = fact

    def webhook(self, webhook_id: str) -> WebhookCreated | None:
        return self._webhooks.get(webhook_id)

    def address(self, app_id: str, node_id: str) -> WebhookCreated | None:
        """The webhook of a node that was made first; later ones work too."""
        return self._addresses.get((app_id, node_id))

    def fired(self, app_id: str, node_id: str) -> ScheduleFired | None:
        """The newest instant of the schedule that is over."""
        return self._fired.get((app_id, node_id))

    def switched(self, app_id: str, node_id: str) -> TriggerSwitched | None:
        """How the trigger was switched last; None: it never was."""
        return self._switched.get((app_id, node_id))

    def enabled(self, app_id: str, node_id: str) -> bool:
        switched = self.switched(app_id, node_id)
        return switched is None or switched.enabled
