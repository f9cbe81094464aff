"""The memory of model nodes: earlier messages of the conversation, as the run's own first events carry them.

So an attempt that is made again after a crash asks with the same messages, whatever was said meanwhile.
"""

from collections.abc import Sequence

from services.executor.models.context import tokens_in
from services.executor.models.port import Message
from services.executor.nodes.port import Attempt


class ConversationMemory:
    """A window counts messages of the user, each with its answer, as the reference's does."""

    async def recent(self, attempt: Attempt, limit: int | None) -> Sequence[Message]:
        past = attempt.history if limit is None else attempt.history[max(len(attempt.history) - limit, 0) :]
        pairs = ((Message("user", turn.query), Message("assistant", turn.answer)) for turn in past)
        return [message for pair in pairs for message in pair]


def fitting(past: Sequence[Message], room: int) -> list[Message]:
    """The newest part of a memory that fills no more than `room` tokens.

    The oldest message of the user is left out with its answer: a memory that begins with an answer is one that some
    servers refuse.
    """
    kept = list(past)
    filled = tokens_in(kept)
    while kept and filled > room:
        filled -= tokens_in(kept[:2])
        del kept[:2]
    return kept
