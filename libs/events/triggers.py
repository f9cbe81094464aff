"""What begins runs from outside: webhooks, instants of schedules that are over, who waits for an event. Facts and fold.

| fact | record key |
|---|---|
| `WebhookCreated` | `webhook/<webhook id>` |
| `ScheduleFired` | `schedule/<app id>/<node id>` |
| `TriggerSwitched` | `trigger/<app id>/<node id>` |
| `TriggerAwaited` | `awaited/<app id>/<node id>/<whole or alone>` |

Of a schedule's last instant, of a switch and of a wait the newest record says enough. An instant only ever moves on:
should an older one win a race of two replicas, it fires again and the log refuses the second run.

Two replicas may begin a wait at once. The first in the log keeps its id and is only made longer by the other: what has
reached it in between is found. Should compaction leave just the other's record, a process that starts while the wait
lasts does not know the first id, and an event that came for that one is not shown; its run is in the log.
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


class TriggerAwaited(_Fact):
    """Somebody waits for an event that begins a run of the draft; with a run: it has come, and the wait is over."""

    type: Literal["TriggerAwaited"] = "TriggerAwaited"
    wait_id: str
    app_id: str
    node_id: str
    alone: bool
    """The node is to run alone, not the whole draft."""
    since_us: int
    until_us: int
    """Nobody waits any more: who does says so again in time. With a run: nobody is told of it any more."""
    run_id: str | None = None


TriggerFact = WebhookCreated | ScheduleFired | TriggerSwitched | TriggerAwaited


def key_of_trigger_fact(fact: TriggerFact) -> str:
    match fact:
        case WebhookCreated():
            return f"webhook/{fact.webhook_id}"
        case ScheduleFired():
            return f"schedule/{fact.app_id}/{fact.node_id}"
        case TriggerSwitched():
            return f"trigger/{fact.app_id}/{fact.node_id}"
        case TriggerAwaited():
            return awaited_key(fact.app_id, fact.node_id, alone=fact.alone)


def awaited_key(app_id: str, node_id: str, *, alone: bool) -> str:
    """The key of the record that says who waits for the node."""
    return f"awaited/{app_id}/{node_id}/{'alone' if alone else 'whole'}"


class TriggerBook:
    """The fold. Like the registry it belongs to: one thread applies, any thread looks up."""

    def __init__(self) -> None:
        self._webhooks: dict[str, WebhookCreated] = {}
        self._addresses: dict[tuple[str, str], WebhookCreated] = {}
        self._fired: dict[tuple[str, str], ScheduleFired] = {}
        self._switched: dict[tuple[str, str], TriggerSwitched] = {}
        self._awaited: dict[str, TriggerAwaited] = {}
        """By record key."""

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
            case TriggerAwaited():
                self._await(fact)

    def _await(self, fact: TriggerAwaited) -> None:
        key = key_of_trigger_fact(fact)
        known = self._awaited.get(key)
        if known is None or fact.since_us >= known.until_us:
            self._awaited[key] = fact
        elif fact.run_id is not None:
            if fact.wait_id == known.wait_id:
                self._awaited[key] = fact
        elif known.run_id is None:
            self._awaited[key] = known.model_copy(update={"until_us": max(known.until_us, fact.until_us)})

    def forget(self, key: str) -> None:
        """The record with this key was taken back."""
        self._awaited.pop(key, None)

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

    def awaited(self, app_id: str, node_id: str, *, alone: bool) -> TriggerAwaited | None:
        """The newest wait for the node, which may be over."""
        return self._awaited.get(awaited_key(app_id, node_id, alone=alone))
