"""End users that no run tells of: who only uploaded a file, or answered the form of another's run.

A run's record says who began it; of everybody else a fact of their own must be in the log. It is said once for each
user, as far as this process remembers: what is said again changes nothing but a time.
"""

from collections import OrderedDict
from typing import Final

from services.api.access import Principal
from services.api.submit import Submitter

REMEMBERED: Final = 10_000
ANSWER_S: Final = 1.0
"""How long to wait until the fact is there, so that whoever asks next finds it; the wish is in the log already."""


class EndUsers:
    def __init__(self, submitter: Submitter) -> None:
        self._submitter = submitter
        self._known: OrderedDict[str, None] = OrderedDict()

    async def seen(self, principal: Principal, user: str) -> None:
        """Have the end user kept, if it is one. Raises ApiError 503."""
        caller = principal.caller(user)
        if principal.app is None or caller.id in self._known:
            return
        invoke_from = "web-app" if principal.surface == "browser" else "service-api"
        await self._submitter.note_end_user(principal.app.app_id, caller, invoke_from, answer_s=ANSWER_S)
        self._known[caller.id] = None
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
