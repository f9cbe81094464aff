"""Conversations as the API needs them: found for their user, told to an executor that has forgotten them, changed.

Reads are from tables that are as new as the request. Changes are commands; what they cause is read back from the log.
"""

import json
from typing import Any

from pydantic import JsonValue
from sqlalchemy.engine import Connection

from libs.events.blobs import Blobs, is_ref, read_member
from libs.events.commands import ConversationCommand, StartRun
from libs.events.ids import partition_of
from libs.events.model import VariableForm
from libs.workflow.conversation import MOST_TURNS, Conversation, Held, Turn, told
from services.api import talk_records
from services.api.errors import ApiError, not_found, unavailable
from services.api.fresh import FreshTables
from services.api.records import RecordsUnavailable
from services.api.submit import Submitter
from services.api.tables import Tables
from services.api.talk_records import Row, value_of
from services.api.threads import Threads

NAME_CHARACTERS = 50
UNNAMED = "New conversation"


class Talks:
    def __init__(self, fresh: FreshTables, submitter: Submitter, blobs: Blobs, threads: Threads, decide_s: float):
        self._fresh = fresh
        self._submitter = submitter
        self._blobs = blobs
        self._threads = threads
        self._decide_s = decide_s

    async def tables(self, about: str | None = None) -> Tables:
        """The tables, as new as now; `about` a conversation or a run: as far as that is concerned. Raises ApiError."""
        if about is not None and not self._placed(about):
            raise missing()
        try:
            return await self._fresh.tables(None if about is None else partition_of(about))
        except RecordsUnavailable as error:
            raise unavailable("conversations cannot be read now. Try again") from error

    async def found(self, conversation_id: str, app_id: str, caller_id: str) -> tuple[Tables, Row]:
        """The conversation of this user, and the tables it was found in. Raises ApiError: 404, 503."""
        tables = await self.tables(conversation_id)
        row = await ask(tables, talk_records.conversation, conversation_id)
        if row is None or row["app_id"] != app_id or row["created_by"] != caller_id:
            raise missing()
        return tables, row

    def _placed(self, about: str) -> bool:
        try:
            return partition_of(about) < self._fresh.partitions
        except ValueError:
            return False

    async def tell(self, command: StartRun) -> StartRun:
        """The start with the state of its conversation. Raises ApiError: 404, 503."""
        assert command.conversation_id is not None
        tables, row = await self.found(command.conversation_id, command.app_id, command.caller.id)
        said = await ask(tables, talk_records.ended_messages, command.conversation_id, MOST_TURNS)
        rows = await ask(tables, talk_records.variables, command.conversation_id)
        state = await self._threads.run(self._state, said, rows)
        return command.model_copy(
            update={
                "conversation": told(state, row["dialogue_count"] or 0),
                "conversation_as_of": row["changed_by"],
                "not_after_us": self._submitter.not_after_us(),
            }
        )

    def _state(self, said: Any, rows: Any) -> Conversation:
        """Blocking: large values are fetched from the blobs."""
        found = Conversation()
        for row in said:
            answer = self.answer(row)
            if answer:
                found.history.append(Turn(row["query"] or "", answer))
        for row in rows:
            form = VariableForm(id=row["id"], value_type=row["value_type"], description=row["description"] or "")
            held = Held(row["name"], form, self.value(row))
            found.variables[held.key] = held
        return found

    def answer(self, row: Row) -> str:
        """The answer of a message's row. Blocking, as is `value`."""
        found = self._restored(row["answer"]) if row["answer"] else ""
        if isinstance(found, dict):  # all outputs in one blob
            found = found.get("answer")
        return found if isinstance(found, str) else ""

    def value(self, row: Row) -> JsonValue:
        """The value of a variable's row."""
        text = value_of(row)
        member = read_member(text)
        if member is None:
            return self._restored(text)
        ref, name = member
        found: JsonValue = json.loads(self._blobs.get(ref))
        return found.get(name) if isinstance(found, dict) else None

    def values(self, text: str | None) -> JsonValue:
        """Start inputs of a row, with their large values. Blocking."""
        found = self._restored(text) if text else {}
        return (
            {name: self._restored(json.dumps(each)) for name, each in found.items()} if isinstance(found, dict) else {}
        )

    def _restored(self, text: str) -> JsonValue:
        value: JsonValue = json.loads(text)
        return json.loads(self._blobs.get(value)) if is_ref(value) else value

    async def change(self, command: ConversationCommand) -> None:
        """Have it done. Raises ApiError: 404 when the conversation was deleted meanwhile, 503."""
        await self._submitter.change(command, answer_s=self._decide_s)


async def ask(tables: Tables, question: Any, *arguments: Any) -> Any:
    """What a question of `talk_records` finds. Raises ApiError 503."""

    def asked(connection: Connection) -> Any:
        return question(connection, *arguments)

    try:
        return await tables.ask(asked)
    except RecordsUnavailable as error:
        raise unavailable("conversations cannot be read now. Try again") from error


def missing() -> ApiError:
    return not_found("Conversation does not exist")


def name_of(query: str) -> str:
    """What a conversation is called after its first message: its beginning, whole words, on one line."""
    words = query.replace("\x00", "").split()
    name = ""
    for word in words:
        longer = f"{name} {word}" if name else word
        if len(longer) > NAME_CHARACTERS:
            return f"{name or word[: NAME_CHARACTERS - 1]}…"
        name = longer
    return name or UNNAMED
