"""What model nodes remember: the run's own history, in a window of messages."""

import asyncio
from dataclasses import replace

import pytest

from libs.workflow.conversation import Turn
from services.executor.models.port import Message
from services.executor.nodes.memory import ConversationMemory
from tests.attempts import attempt_of

TURNS = tuple(Turn(f"q{number}", f"a{number}") for number in range(3))


@pytest.mark.parametrize(("window", "first"), [(None, 0), (5, 0), (2, 1), (0, 3)])
def test_a_window_counts_messages_with_their_answers(window: int | None, first: int) -> None:
    attempt = replace(attempt_of("code", {"code_language": "python3", "code": "", "outputs": {}}), history=TURNS)
    found = asyncio.run(ConversationMemory().recent(attempt, window))
    expected = [message for turn in TURNS[first:] for message in (turn.query, turn.answer)]
    assert [message.text for message in found] == expected
    assert [message.role for message in found] == ["user", "assistant"] * (3 - first)
    assert all(isinstance(message, Message) for message in found)
