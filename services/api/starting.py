"""Starting runs and delivering their answers: streaming, blocking, and re-attached after a repeat of a request.

`RunStarter` is what the reference's paths and ours share; what differs (who may, what is in the body) is theirs.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue
from starlette.responses import Response

from libs.events.blobs import Blobs
from libs.events.codec import CodecError, decode_event
from libs.events.commands import StartRun
from libs.events.ids import created_at_us, task_id_of
from libs.events.log import LogError, Record
from libs.events.model import RunPaused
from libs.events.registry import AppCreated, RegistryTail, VersionPublished
from libs.events.sealing import SealError
from libs.workflow.catalog import Catalog, DefinitionMissing
from libs.workflow.definition import Definition, DefinitionInvalid
from libs.workflow.inputs import FilesInvalid, InputInvalid, accepted_files, validate_inputs
from libs.workflow.modes import PartInputInvalid, PartInvalid, find_node, prepare, reads
from libs.workflow.pins import check_pins, parse_pins
from libs.workflow.roots import RootInvalid, default_root, named_root, rooted
from libs.workflow.state import ROOT
from services.api.access import Principal
from services.api.detached import Detached
from services.api.errors import ApiError, invalid_param, unavailable
from services.api.folds import Folds, accepted_in
from services.api.frames import Cursor, Frame, FrameMaker, encode
from services.api.history import restored
from services.api.live import Receiver
from services.api.matcher import Matcher
from services.api.reads import RunSummary
from services.api.requests import RunRequest
from services.api.sse import EventStream, Outbox, Pinger
from services.api.streams import RunStreams
from services.api.submit import ConversationUnknown, Started, Submitter
from services.api.tail import EventTail, TailBehind
from services.api.talks import UNNAMED, Talks, missing, name_of
from services.api.threads import Threads
from services.api.uploads import FileUser, Uploads
from services.api.views import blocking, blocking_paused, message_answer

logger = logging.getLogger(__name__)

TELLING_TRIES = 3
"""How often a conversation may change from outside between reading its state and continuing it."""

STREAM_ANSWER_S = 0.5
"""How long a stream waits for the answer to its start before it opens anyway."""


@dataclass(slots=True, frozen=True)
class Wanted:
    """A run that somebody asks for."""

    principal: Principal
    app: AppCreated
    version: VersionPublished
    user: str
    request: RunRequest
    body_digest: str
    query: str | None = None
    pins: dict[str, JsonValue] | None = None
    triggered_from: str = "app-run"
    invoke_from: str = "service-api"
    root: str | None = None
    """The root at which the run begins (id or title); None: at the start node, without one at the first root."""
    only: str | None = None
    """The node to run alone (id or title), a container with its body. The request's inputs are then the values that it
    reads, by the keys that `libs.workflow.modes.prepare` takes."""
    from_run: str | None = None
    """With `only`: the run whose variables it begins with."""
    kept: dict[str, JsonValue] | None = None
    """With `only`: variables it begins with where no run is named, as a pool's dump has them."""
    lenient: bool = False
    """With `only`: inputs that it does not read are dropped, not refused."""
    conversation_id: str | None = None
    """Chatflows: the conversation that the message continues; None: it begins one."""
    named: bool = True
    """Chatflows: whether a new conversation is called after its first message."""
    as_message: bool = False
    """Blocking answers have the form of a message."""
    annotations: bool = False
    """Chatflows: whether an annotation may answer the message in place of the workflow."""


class RunStarter:
    def __init__(
        self,
        registry: RegistryTail,
        catalog: Catalog,
        blobs: Blobs,
        tail: EventTail,
        streams: RunStreams,
        submitter: Submitter,
        uploads: Uploads,
        threads: Threads,
        pinger: Pinger,
        folds: Folds,
        talks: Talks,
        matcher: Matcher,
        decide_s: float,
    ) -> None:
        self._registry = registry
        self._catalog = catalog
        self._blobs = blobs
        self._tail = tail
        self._streams = streams
        self._submitter = submitter
        self._uploads = uploads
        self._threads = threads
        self._pinger = pinger
        self._folds = folds
        self._talks = talks
        self._matcher = matcher
        self._decide_s = decide_s

    async def definition(self, version: VersionPublished) -> Definition:
        """The version's compiled definition. Raises ApiError."""
        definition = self._catalog.cached(version.digest)
        if definition is not None:
            return definition
        try:
            return await self._threads.run(self._compile, version.digest)
        except SealError as error:
            raise unavailable(f"the workflow's document cannot be read: {error}") from error
        except (DefinitionMissing, LogError) as error:
            raise unavailable("the workflow's document cannot be looked up now. Try again") from error
        except DefinitionInvalid as error:
            raise invalid_param(f"the workflow's document cannot run: {error}") from error

    def _compile(self, digest: str) -> Definition:
        try:
            return self._catalog.get(digest)
        except DefinitionMissing:
            self._registry.refresh()
            return self._catalog.get(digest)

    async def start(self, wanted: Wanted, after: Cursor | None) -> Response:
        """Start the run, answer as the request wants it; a repeated stream goes on after `after`. Raises ApiError."""
        command = await self._command(wanted)
        if wanted.request.streaming:
            return await self._streaming(command, after)
        if wanted.as_message:
            return await self._message(command)
        return await self._blocking(command)

    async def begun(self, wanted: Wanted) -> Started:
        """Start the run for a caller who waits for nothing: the log has the start when this returns. Raises ApiError.

        Whether it was accepted is waited for only a moment where nothing can refuse it but a deadline; a refusal that
        comes later is logged.
        """
        command = await self._command(wanted)
        return await self._submit(
            command,
            self._decide_s if self._may_refuse(command) else STREAM_ANSWER_S,
            lambda error: logger.warning("start_refused", extra={"run_id": command.run_id, "problem": error.message}),
        )

    async def finished(self, wanted: Wanted) -> str:
        """Start the run and wait for its end, however long that takes; its id. Raises ApiError."""
        command = await self._command(wanted)
        end = self._tail.end_of(command.run_id)
        try:
            started = await self._submit(command, self._decide_s)
            await _come(end)
        finally:
            end.cancel()
        return started.run_id

    async def ended(self, run_id: str) -> None:
        """Wait for the end of a run that exists, however long that takes. Raises ApiError."""
        end = self._tail.end_of(run_id)
        try:
            summary = await self._streams.reads.summary(run_id)
            if summary is None:
                raise unavailable("the run cannot be looked up now. Try again")
            if not summary.ended:
                await _come(end)
        finally:
            end.cancel()

    async def _submit(
        self, command: StartRun, answer_s: float, on_late_refusal: Callable[[ApiError], None] | None = None
    ) -> Started:
        """As the submitter's `start`; an owner that has forgotten the conversation is told its state."""
        for _ in range(TELLING_TRIES):
            try:
                return await self._submitter.start(command, answer_s=answer_s, on_late_refusal=on_late_refusal)
            except ConversationUnknown as error:
                unknown = error
                command = await self._talks.tell(command)
        raise unknown

    async def _command(self, wanted: Wanted) -> StartRun:
        whole = await self.definition(wanted.version)
        variables: dict[str, JsonValue] | None = None
        only: str | None = None
        user = FileUser(wanted.app.app_id, wanted.principal, wanted.user)
        try:
            definition = _begun_at(whole, wanted)
            given, attached = await self._uploads.resolved(
                definition, wanted.request.inputs, wanted.request.files, user
            )
            files = accepted_files(definition, attached)
            if wanted.only is None:
                inputs = validate_inputs(definition, given, files=attached)
            else:
                only = find_node(definition, wanted.only)
                inputs, variables = await self._part(definition, wanted, only, user)
        except (InputInvalid, PartInputInvalid) as error:
            raise invalid_param(str(error), "files" if isinstance(error, FilesInvalid) else "inputs") from error
        except (PartInvalid, RootInvalid) as error:
            raise invalid_param(str(error)) from error
        if wanted.pins is not None:
            problems = check_pins(parse_pins(wanted.pins), definition)
            if any(problem.severity == "error" for problem in problems):
                raise invalid_param("\n".join(map(str, problems)), "pins")
        app_id = wanted.app.app_id
        chat = definition.mode == "advanced-chat" and only is None
        continued = wanted.conversation_id if chat else None
        try:
            run_id = self._submitter.new_run_id(app_id, wanted.request.idempotency_key, continued)
        except ValueError as error:
            raise missing() from error
        opened: dict[str, Any] = {"conversation_id": continued, "continues": True} if continued else {}
        if chat and not continued:
            opened = {
                "conversation_id": self._submitter.new_conversation_id(run_id),
                "conversation_name": name_of(wanted.query or "") if wanted.named else UNNAMED,
                "introduction": str(definition.features.get("opening_statement") or "") or None,
            }
        may_answer = chat and wanted.annotations and wanted.query is not None
        annotation = await self._matcher.match(app_id, wanted.query or "") if may_answer else None
        return StartRun(
            run_id=run_id,
            app_id=app_id,
            workflow_id=wanted.version.workflow_id,
            version=wanted.version.version,
            digest=wanted.version.digest,
            mode=definition.mode,
            inputs=inputs,
            files=tuple(files),
            query=wanted.query,
            **opened,
            caller=wanted.principal.caller(wanted.user),
            triggered_from=wanted.triggered_from,
            invoke_from=wanted.invoke_from,
            idempotency_key=wanted.request.idempotency_key,
            body_digest=wanted.body_digest,
            not_after_us=self._submitter.not_after_us(),
            pins=wanted.pins,
            only=only,
            root=None if only is not None else named_root(definition),
            variables=variables,
            annotation=annotation,
        )

    async def _part(
        self, definition: Definition, wanted: Wanted, node_id: str, user: FileUser
    ) -> tuple[dict[str, JsonValue], dict[str, JsonValue]]:
        """(inputs, variables) of a run of a part. Raises InputInvalid, PartInvalid, ApiError."""
        given = await self._uploads.among(wanted.request.inputs, user)
        earlier = wanted.kept
        skipped: set[str] = set()
        if wanted.from_run is not None:
            state = await self._folds.state(wanted.from_run, wanted.principal, sealed=True)
            earlier, skipped = state.pool.dump(), state.frames[ROOT].skipped
        prepared = prepare(definition, node_id, given, earlier, skipped)
        if prepared.unused and not wanted.lenient:
            known = ", ".join(reads(definition, node_id)) or "nothing from other nodes"
            raise PartInputInvalid(
                f'{", ".join(prepared.unused)}: node "{node_id}" does not read that. It reads {known}'
            )
        return prepared.inputs, prepared.variables

    # --- streaming ---

    async def _streaming(self, command: StartRun, after: Cursor | None) -> Response:
        outbox = self._streams.new_outbox()
        self._streams.begin(command.run_id, outbox)
        try:
            started = await self._submit(
                command,
                self._decide_s if self._may_refuse(command) else STREAM_ANSWER_S,
                lambda error: outbox.fail(error.code, error.message),
            )
        except BaseException:
            self._abandon(command.run_id, outbox)
            raise
        if started.run_id == command.run_id:
            return self._stream(command.run_id, outbox, None)
        self._abandon(command.run_id, outbox)
        return self.attach(started.run_id, after or Cursor())

    def _may_refuse(self, command: StartRun) -> bool:
        """Whether the owner may answer with something that belongs into the status of the answer."""
        limited = self._submitter.limits(command.app_id)
        return bool(command.idempotency_key is not None or command.continues or limited)

    def _abandon(self, run_id: str, receiver: Receiver) -> None:
        self._streams.discard(receiver, run_id)
        live = self._tail.live(run_id)
        if live is not None and live.fold is None:
            self._tail.forget(run_id)

    def attach(self, run_id: str, after: Cursor | None, *, through_pauses: bool = False) -> Response:
        """A stream of what follows `after` in a run that exists; None: of what is still to come."""
        return self._stream(run_id, self._streams.new_outbox(through_pauses=through_pauses), (after,))

    def _stream(self, run_id: str, outbox: Outbox, follow: tuple[Cursor | None] | None) -> EventStream:
        streams = self._streams

        async def source(write: Any) -> None:
            if follow is None:
                await streams.resume(run_id, outbox, write)
            else:
                await streams.follow(run_id, follow[0], outbox, write)

        return EventStream(
            outbox, source, self._pinger, run_headers(run_id), on_close=lambda: streams.discard(outbox, run_id)
        )

    # --- blocking ---

    async def _blocking(self, command: StartRun) -> Response:
        end = self._tail.end_of(command.run_id)
        try:
            started = await self._submit(command, self._decide_s)
            if started.attached:
                end.cancel()
                return await self._attached_blocking(started)
        except BaseException:
            end.cancel()
            raise
        outline = self._tail.outline(command.run_id)
        created_us = outline.accepted_us if outline is not None else created_at_us(command.run_id)

        def made(ended: Any, ended_us: int) -> bytes:
            return encode(
                blocking(command.run_id, task_id_of(command.run_id), command.workflow_id, created_us, ended, ended_us)
            )

        return WaitingAnswer(command.run_id, lambda: self._end(end, made), end.cancel)

    async def _message(self, command: StartRun) -> Response:
        """The answer as a message, when there is one: its status depends on how the run ends."""
        collector = Collector()
        streams = self._streams
        streams.begin(command.run_id, collector)
        try:
            started = await self._submit(command, self._decide_s)
        except BaseException:
            self._abandon(command.run_id, collector)
            raise
        run_id = started.run_id
        if run_id != command.run_id:
            self._abandon(command.run_id, collector)
            collector = Collector()
            live = await streams.live(run_id)
            if live is None:
                raise unavailable("the run cannot be looked up now. Try again")
            live.attach(collector, live.place)
            if live.fold is not None and live.fold.maker.paused:
                collector.finish()

        def made() -> tuple[int, bytes]:
            live = self._tail.live(run_id)
            if live is None or live.fold is None or collector.problem is not None:
                problem = unavailable("the answer cannot be read now. Ask for the messages of the conversation")
                return problem.status, bytes(problem.response().body)
            return message_answer(live.fold.maker)

        end = self._tail.end_of(run_id)
        end.add_done_callback(lambda done: collector.fail("", "nothing new arrives") if done.cancelled() else None)

        def close() -> None:
            streams.discard(collector, run_id)
            end.cancel()

        return MessageAnswer(run_id, collector, made, close)

    async def _end(self, end: "asyncio.Future[Record]", made: Callable[[Any, int], bytes]) -> bytes:
        recorded = decode_event(await end)
        if isinstance(recorded.event, RunPaused):
            return await self._paused(recorded.run_id, recorded.event)
        recorded = await self._threads.run(restored, recorded, self._blobs)
        return made(recorded.event, recorded.at_us)

    async def _paused(self, run_id: str, event: RunPaused | None = None) -> bytes:
        """The answer at a pause of the run, at its present one by default; empty when it is in none."""
        history = await self._folds.history(run_id, Principal(None))
        maker = FrameMaker(run_id)
        for recorded in history:
            maker.on_event(recorded)
        event = event or maker.asked.paused
        if event is None:
            return b""
        workflow_id = accepted_in(history).workflow_id
        return encode(blocking_paused(run_id, task_id_of(run_id), workflow_id, maker.paused_answer(event)))

    async def _attached_blocking(self, started: Started) -> Response:
        """The answer of the run that an earlier request with the same key made."""
        run_id = started.run_id
        end = self._tail.end_of(run_id)
        summary = await self._streams.reads.summary(run_id)
        if summary is None:
            end.cancel()
            raise unavailable("the run cannot be looked up now. Try again")
        if summary.ended:
            end.cancel()
            return Response(encode(_ended_answer(summary)), 200, run_headers(run_id), "application/json; charset=utf-8")
        if summary.status == "paused" and (body := await self._paused(run_id)):
            end.cancel()
            return Response(body, 200, run_headers(run_id), "application/json; charset=utf-8")
        task_id, workflow_id, created_us = task_id_of(run_id), summary.workflow_id, summary.created_us

        def made(ended: Any, ended_us: int) -> bytes:
            return encode(blocking(run_id, task_id, workflow_id, created_us, ended, ended_us))

        return WaitingAnswer(run_id, lambda: self._end(end, made), end.cancel)


async def _come(end: "asyncio.Future[Record]") -> None:
    """Wait for the end of a run. Raises ApiError 503 when this process reads the log no more."""
    await asyncio.wait([end])
    if end.cancelled():
        raise unavailable("the run's end cannot be seen here now. Ask for the run, or try again")


def _begun_at(definition: Definition, wanted: Wanted) -> Definition:
    """The definition of the whole workflow, with the root where the run begins. Raises PartInvalid, RootInvalid."""
    if wanted.only is not None:
        return definition
    root = default_root(definition) if wanted.root is None else find_node(definition, wanted.root)
    return rooted(definition, root)


def _ended_answer(run: RunSummary) -> dict[str, Any]:
    data = {
        "id": run.id,
        "workflow_id": run.workflow_id,
        "status": run.status,
        "outputs": run.outputs,
        "error": run.error,
        "elapsed_time": run.elapsed_s,
        "total_tokens": run.total_tokens,
        "total_steps": run.total_steps,
        "created_at": run.created_us // 1_000_000,
        "finished_at": (run.finished_us or 0) // 1_000_000,
    }
    return {"task_id": task_id_of(run.id), "workflow_run_id": run.id, "data": data}


def run_headers(run_id: str) -> dict[str, str]:
    return {"X-Workflow-Run-Id": run_id, "X-Task-Id": task_id_of(run_id)}


class Collector:
    """Waits for the end of a run that somebody folds, or for its pause."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.problem: str | None = None

    def push(self, frames: list[Frame]) -> None:
        if frames[-1].last or frames[-1].pauses:
            self.finish()

    def fail(self, code: str, message: str) -> None:
        self.problem = message
        self.finish()

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class MessageAnswer(Detached):
    """The answer to a blocking message: a failed run is an error, so nothing leaves before the run has ended."""

    def __init__(
        self, run_id: str, collector: Collector, made: Callable[[], tuple[int, bytes]], on_close: Callable[[], object]
    ) -> None:
        super().__init__({"content-type": "application/json; charset=utf-8"} | run_headers(run_id))
        self._collector = collector
        self._made = made
        self._on_close = on_close

    async def run(self, gone: "asyncio.Future[None]", send: Any) -> None:
        try:
            await asyncio.wait([gone, self._collector.done], return_when=asyncio.FIRST_COMPLETED)
            if self._collector.done.done():
                status, body = self._made()
                await send({"type": "http.response.start", "status": status, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            self.abandon()

    def abandon(self) -> None:
        self._on_close()


class WaitingAnswer(Detached):
    """A JSON answer whose headers leave at once and whose body leaves when the run has ended.

    A client that goes away frees it; the run goes on.
    """

    def __init__(self, run_id: str, body_when_done: Callable[[], Any], on_close: Callable[[], object]) -> None:
        super().__init__({"content-type": "application/json; charset=utf-8"} | run_headers(run_id))
        self._body_when_done = body_when_done
        self._on_close = on_close
        self._run_id = run_id

    async def run(self, gone: "asyncio.Future[None]", send: Any) -> None:
        done = asyncio.ensure_future(self._body_when_done())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await asyncio.wait([gone, done], return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                await send({"type": "http.response.body", "body": self._result(done), "more_body": False})
        finally:
            done.cancel()
            self.abandon()

    def abandon(self) -> None:
        self._on_close()

    def _result(self, done: "asyncio.Future[bytes]") -> bytes:
        try:
            return done.result()
        except (LogError, CodecError, TailBehind, ApiError, asyncio.CancelledError) as error:
            # The status has left already; the envelope is the best that can be said.
            logger.warning("answer_unreadable", extra={"run_id": self._run_id, "problem": str(error)})
            problem = unavailable("the run's result cannot be read now. Ask for the run by its id")
            return bytes(problem.response().body)
