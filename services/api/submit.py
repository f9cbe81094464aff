"""Commands out: a run is started or stopped by a record in the commands topic, and the answer is read from the log.

A start is found by its command's acknowledged offset: accepted, or rejected with a reason. What the log did not
acknowledge in time is unknown, not failed: the caller is told to ask again with the same idempotency key.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import JsonValue

from libs.events.blobs import Blobs
from libs.events.claim_check import offload, oversized
from libs.events.codec import encode_body, encode_command
from libs.events.commands import (
    AnyCommand,
    Caller,
    ConversationCommand,
    NoteEndUser,
    PauseRun,
    ReleaseRun,
    ResumeRun,
    StartRun,
    StopRun,
    SubmitForm,
)
from libs.events.ids import (
    ConversationId,
    RunId,
    new_conversation_id,
    new_run_id,
    partition_for_key,
    partition_of,
)
from libs.events.log import Log, LogError, Topic
from libs.events.model import CommandRejected
from services.api.errors import ApiError, not_found, too_many_requests, unavailable
from services.api.tail import Answer, EventTail

logger = logging.getLogger(__name__)

UNKNOWN = (
    "the log did not confirm the start in time, so it may or may not happen. "
    "Repeat the request with the same Idempotency-Key to find out"
)

MOST_SAID = 100_000
"""Characters of a message that a stop carries, the first ones: a command must stay well below a record's size."""

UNKNOWN_WISH = "the log did not confirm this in time, so it may or may not happen. Ask for the run, or repeat it"


@dataclass(slots=True, frozen=True)
class Started:
    """A start that the log holds."""

    run_id: str
    attached: bool = False
    """An earlier request with the same idempotency key made the run."""


class Submitter:
    """`random_bits(n)`: a random number of n bits. `now_us`: the wall clock."""

    def __init__(
        self,
        log: Log,
        blobs: Blobs,
        tail: EventTail,
        *,
        now_us: Callable[[], int],
        random_bits: Callable[[int], int],
        send_s: float,
        lifetime_s: float,
        max_app_runs: Callable[[str], int] = lambda _: 0,
        max_runs: int = 0,
    ) -> None:
        """`max_app_runs(app id)`, `max_runs`: runs of an app, and of all apps, that may be under way; 0: any number."""
        self._log = log
        self._blobs = blobs
        self._tail = tail
        self._now_us = now_us
        self._random_bits = random_bits
        self._send_s = send_s
        self._lifetime_s = lifetime_s
        self._max_app_runs = max_app_runs
        self._max_runs = max_runs
        self._starting = 0
        """Starts that are under way here, so that a burst does not pass before the tail shows its first one."""
        self._late_answers: set[asyncio.Task[None]] = set()

    def new_run_id(self, app_id: str, idempotency_key: str | None, conversation_id: str | None = None) -> RunId:
        """Runs of a conversation live in its partition. Starts with equal keys meet in one; so do all of an app that
        has a limit, or nobody could count. Others go anywhere.

        Raises ValueError when `conversation_id` is not one of ours.
        """
        partitions = self._log.partitions
        if conversation_id is not None:
            partition = partition_of(conversation_id)
            if partition >= partitions:
                raise ValueError(f"there is no partition {partition}")
        elif self._max_app_runs(app_id):
            partition = partition_for_key(app_id, "", partitions)
        elif idempotency_key is not None:
            partition = partition_for_key(app_id, idempotency_key, partitions)
        else:
            partition = self._random_bits(32) % partitions
        return new_run_id(partition, self._now_us(), self._random_bits(62))

    def new_conversation_id(self, run_id: str) -> ConversationId:
        """Of a conversation that begins with this run."""
        return new_conversation_id(partition_of(run_id), self._now_us(), self._random_bits(62))

    def not_after_us(self) -> int:
        """Until when a start may be decided: a late one must not surprise a caller who has given up."""
        return self._now_us() + int(self._lifetime_s * 1e6)

    async def start(
        self, command: StartRun, *, answer_s: float, on_late_refusal: Callable[[ApiError], None] | None = None
    ) -> Started:
        """Send the start and wait at most `answer_s` for its answer. Raises ApiError.

        With `on_late_refusal` a start without an idempotency key whose answer takes longer counts as started: its run
        id is known; should it be refused after all, that is called.
        """
        partition = partition_of(command.run_id)
        command = await self._light(self._limited(command))
        with self._tail.expecting(partition), self._one_more():
            offset = await self._send(command, partition)
            try:
                answer = await self._tail.answer(partition, offset, answer_s)
            except TimeoutError:
                if command.idempotency_key is None and on_late_refusal is not None:
                    late = asyncio.ensure_future(self._late(partition, offset, on_late_refusal))
                    self._late_answers.add(late)
                    late.add_done_callback(self._late_answers.discard)
                    await asyncio.sleep(0)  # let it begin to expect, and to count, before this stops
                    return Started(command.run_id)
                raise unavailable(
                    "no executor has decided the start yet. Repeat the request with the same Idempotency-Key"
                ) from None
        if not isinstance(answer, CommandRejected):
            return Started(str(answer))
        if answer.code == "duplicate" and answer.duplicate_of is not None:
            return Started(answer.duplicate_of, attached=True)
        raise _refused(answer)

    def limits(self, app_id: str) -> bool:
        """Whether the app may have so many runs only: then a start may be refused."""
        return self._max_app_runs(app_id) > 0

    def _limited(self, command: StartRun) -> StartRun:
        """The start with the limits in force. Raises ApiError 429 when it can be refused without asking its owner.

        All runs together are counted by what this replica has read of the log: beyond the limit may go as many as the
        other replicas are starting at the moment, and runs from before this process that have been silent since.
        """
        full = self._max_runs > 0 and self._tail.open_runs + self._starting >= self._max_runs
        if full and command.idempotency_key is None:
            raise too_many_requests(f"{self._max_runs} runs are under way, the most at once. Try again later")
        most = self._max_app_runs(command.app_id)
        if not full and not most:
            return command
        return command.model_copy(update={"max_app_runs": most or None, "full": full or None})

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1

    async def _light(self, command: StartRun) -> StartRun:
        """The command with large inputs moved to the blobs."""
        if not oversized(encode_body(command)):
            return command
        try:
            return await asyncio.wrap_future(offload(command, self._blobs, command.run_id))
        except LogError as error:
            logger.warning("inputs_not_stored", extra={"run_id": command.run_id, "problem": str(error)})
            raise unavailable("the inputs could not be stored now. Try again") from error

    async def _late(self, partition: int, offset: int, on_refusal: Callable[[ApiError], None]) -> None:
        with self._tail.expecting(partition), self._one_more():
            try:
                answer = await self._tail.answer(partition, offset, self._lifetime_s * 2)
            except TimeoutError:
                return  # nobody executes; the stream says so by its silence
        if isinstance(answer, CommandRejected):
            on_refusal(_refused(answer))

    async def stop(self, run_id: str, reason: str, by: str, *, answer_s: float = 0) -> Answer | None:
        """Ask for a run to stop; the answer if it comes within `answer_s`. Raises ApiError (503).

        What this replica has shown of a message goes with it: streamed text is in no event before its node is done.
        """
        live = self._tail.live(run_id)
        said = live.said if live is not None else None
        command = StopRun(run_id=run_id, reason=reason, by=by, said=said and said[:MOST_SAID])
        return await self._ask(command, answer_s)

    async def pause(self, run_id: str, reason: str, by: str, *, answer_s: float) -> Answer | None:
        """As `stop`."""
        return await self._ask(PauseRun(run_id=run_id, reason=reason, by=by), answer_s)

    async def resume(self, run_id: str, by: str, *, answer_s: float) -> Answer | None:
        """As `stop`."""
        return await self._ask(ResumeRun(run_id=run_id, by=by), answer_s)

    async def release(self, run_id: str, by: str, *, answer_s: float) -> Answer | None:
        """As `stop`; the answer comes when the run's history was folded once more, or could not be."""
        return await self._ask(ReleaseRun(run_id=run_id, by=by), answer_s)

    async def submit_form(
        self, run_id: str, form_id: str, action: str, inputs: dict[str, JsonValue], by: str, *, answer_s: float
    ) -> Answer | None:
        """As `stop`. The inputs fit the form and into a record."""
        return await self._ask(
            SubmitForm(run_id=run_id, form_id=form_id, action=action, inputs=inputs, by=by), answer_s
        )

    async def _ask(self, command: AnyCommand, answer_s: float) -> Answer | None:
        partition = partition_of(command.run_id)
        with self._tail.expecting(partition):
            offset = await self._send(command, partition)
            if not answer_s:
                return None
            try:
                return await self._tail.answer(partition, offset, answer_s)
            except TimeoutError:
                return None

    async def change(self, command: ConversationCommand, *, answer_s: float) -> None:
        """Have a conversation changed; returns when that is in the log. Raises ApiError."""
        partition = partition_of(command.conversation_id)
        with self._tail.expecting(partition):
            offset = await self._send(command, partition)
            try:
                answer = await self._tail.answer(partition, offset, answer_s)
            except TimeoutError:
                raise unavailable("no executor has decided the change yet. Try again") from None
        if isinstance(answer, CommandRejected):
            raise _refused(answer)

    async def note_end_user(self, app_id: str, caller: Caller, invoke_from: str, *, answer_s: float) -> None:
        """Have it kept who has done something; the log has the wish when this returns. Raises ApiError (503)."""
        partition = partition_for_key(app_id, caller.id, self._log.partitions)
        note_id = new_run_id(partition, self._now_us(), self._random_bits(62))
        note = NoteEndUser(note_id=note_id, app_id=app_id, caller=caller, invoke_from=invoke_from)
        await self._ask(note, answer_s)

    async def _send(self, command: AnyCommand, partition: int) -> int:
        try:
            # Sending may wait for the local buffer; the acknowledgement comes on the adapter's thread.
            return await asyncio.wrap_future(
                self._log.send(Topic.COMMANDS, partition, encode_command(command), self._send_s)
            )
        except LogError as error:
            logger.warning("command_unconfirmed", extra={"run_id": command.run_id, "problem": str(error)})
            raise unavailable(UNKNOWN if isinstance(command, StartRun) else UNKNOWN_WISH) from error


class ConversationUnknown(ApiError):
    """The owner of the partition has to be told the state of the conversation."""


def _refused(rejected: CommandRejected) -> ApiError:
    if rejected.code == "conversation_unknown":
        return ConversationUnknown(503, "service_unavailable", "the conversation could not be continued. Try again")
    if rejected.code == "conversation_not_found":
        return not_found("Conversation does not exist")
    if rejected.code == "idempotency_key_reused":
        return ApiError(422, "idempotency_key_reused", "the Idempotency-Key was used with another request body")
    if rejected.code == "expired":
        return unavailable("the start came too late to the executor and was not carried out. Try again")
    if rejected.code == "too_many_requests":
        return too_many_requests(rejected.message)
    if rejected.code == "unreadable":  # made here, so it can be read: what does not leave it for the blobs is too large
        return ApiError(413, "request_entity_too_large", f"query and user are too large: {rejected.message}")
    return ApiError(500, "internal_server_error", f"the start was refused: {rejected.code}")
