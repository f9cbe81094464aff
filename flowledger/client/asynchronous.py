"""`AsyncClient`: the twin of `Client` for asyncio. Same names, same promises."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from flowledger.client.answers import Bulk, Event, HistoryEvent, Json, Result, RunInfo, RunState
from flowledger.client.asking import Answer, Call, Lost, Rest, Servers, Steps, found_servers, found_token
from flowledger.client.following import Following, FollowingMany, Outcome
from flowledger.client.http import Http
from flowledger.client.steps import Asking
from flowledger.lines import Lines

_T = TypeVar("_T")


class AsyncClient:
    """A Flowledger deployment.

    `url`: one base URL, or those of several replicas, asked in turn when one does not answer. Without one:
    FLOWLEDGER_URL, else the server that has the data folder open, else http://127.0.0.1:5001. `token`: an app's key
    (its runs only) or the admin token (all). Without one: FLOWLEDGER_ADMIN_TOKEN, else the data folder's.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        token: str | None = None,
        *,
        user: str = "python",
        data: str | Path = ".flowledger",
    ) -> None:
        """`user`: the caller's name for its user. `data`: the data folder to look into, when it has to be."""
        folder = Path(data)
        self._servers = Servers(found_servers(url, folder))
        self.user = user
        self._asking = Asking(self._servers, user)
        self._http = Http(found_token(token, folder))
        self._client = self._http.asynchronous()

    def __repr__(self) -> str:
        return f"AsyncClient({', '.join(self._servers.urls)})"

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.aclose()

    async def start(
        self,
        target: str | Path | None = None,
        inputs: Mapping[str, Any] | None = None,
        *,
        query: str | None = None,
        user: str | None = None,
        pins: Mapping[str, Any] | None = None,
        root: str | None = None,
        idempotency_key: str | None = None,
    ) -> "AsyncRun":
        """Start a run; returns when it is accepted.

        `target`: a document's file (imported unless this very document is an app), an app's id or name; None: the
        app of the key. `query`: the user's message, for chatflows. `pins`: pinned answers, with the admin token.
        `root`: the trigger or start node to begin at, by id or title; None: the start node, else the first trigger. The
        same `idempotency_key` gives the same run for 24 hours; without one the request has a key of its own.

        Raises Refused (wrong inputs, a document that cannot run, a key used for something else), Unreachable.
        """
        ids = await self._do(self._asking.start(target, inputs or {}, query, user, pins, root, idempotency_key))
        return AsyncRun(self, *ids, user=user)

    def run(self, run_id: str, *, user: str | None = None) -> "AsyncRun":
        """A run that exists already. `user`: the one it was started for, when the token is an app's key."""
        return AsyncRun(self, run_id, "", user=user)

    async def runs(
        self, *, status: str | None = None, app: str | None = None, since: str | None = None, limit: int = 20
    ) -> list[RunInfo]:
        """Runs, newest first. `app`: an id; `since`: an RFC 3339 instant."""
        return await self._do(self._asking.runs({"status": status, "app": app, "since": since}, limit))

    async def apps(self) -> list[Json]:
        return await self._do(self._asking.apps())

    async def import_document(self, document: str | bytes | Path, *, app: str | None = None) -> Json:
        """Publish a document (its file or its text): as a new app, or as a new version of `app`. Raises Refused."""
        return await self._do(self._asking.import_document(document, app))

    async def history(self, run_id: str, first: int | None = None, last: int | None = None) -> list[HistoryEvent]:
        """The run's facts from sequence `first` to `last`, read from the log."""
        return await self._do(self._asking.history(run_id, first, last))

    async def state(self, run_id: str, at: int | None = None) -> RunState:
        """The run now, or as of sequence `at`."""
        return await self._do(self._asking.state(run_id, at))

    async def stop(self, run_id: str, reason: str | None = None) -> Json:
        """Ask for the run to stop. A run that has ended stays as it is."""
        return await self._do(self._asking.stop(run_id, reason))

    async def pause(self, run_id: str, reason: str | None = None) -> Json:
        """Let nothing new begin in the run; what runs may end."""
        return await self._do(self._asking.pause(run_id, reason))

    async def resume(
        self,
        run_id: str,
        action: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        *,
        form: str | None = None,
    ) -> Json:
        """As `AsyncRun.resume`."""
        return await self._do(self._asking.resume(run_id, action, inputs, form))

    async def fork(
        self,
        run_id: str,
        at: int,
        edits: Mapping[str, Any] | None = None,
        *,
        user: str | None = None,
        idempotency_key: str | None = None,
    ) -> "AsyncRun":
        """As `AsyncRun.fork`."""
        return AsyncRun(self, *(await self._do(self._asking.fork(run_id, at, edits or {}, idempotency_key))), user=user)

    async def retry(self, run_id: str, *, user: str | None = None, idempotency_key: str | None = None) -> "AsyncRun":
        """As `AsyncRun.retry`."""
        return AsyncRun(self, *(await self._do(self._asking.retry(run_id, idempotency_key))), user=user)

    async def why(self, run_id: str, node_id: str | None = None) -> str:
        """As `AsyncRun.why`."""
        return await self._do(self._asking.why(run_id, node_id))

    def events(
        self, run_id: str, after: str | int = "0", *, user: str | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[Event]:
        """As `AsyncRun.events`."""
        return self._events(Following(self._servers, run_id, user or self.user, after, timeout_s))

    def follow(
        self, run_ids: Sequence[str], after: str = "0", *, timeout_s: float | None = None
    ) -> AsyncIterator[Event]:
        """What several runs say, on one connection, until all of them have ended; an event's `run_id` says which.

        `after`: the id of an event that came of the same runs, in the same order; "0": all from their starts. Raises
        StillRunning, Refused, Unreachable.
        """
        return self._events(FollowingMany(self._servers, run_ids, after, timeout_s))

    async def bulk(
        self,
        action: Literal["stop", "retry"],
        *,
        status: str | None = None,
        app: str | None = None,
        since: str | None = None,
        id_prefix: str | None = None,
        expect: int | None = None,
        reason: str | None = None,
    ) -> Bulk:
        """Stop or try again all runs that match; without `expect` nothing is done: it says how many they are.

        `expect`: how many were counted. Raises Refused: `count_changed` when they are not so many any more.
        """
        filters = {"status": status, "app": app, "since": since, "id_prefix": id_prefix}
        return await self._do(self._asking.bulk(action, filters, expect, reason))

    # --- asking ---

    async def _do(self, steps: Steps[_T]) -> _T:
        answer: Answer | Lost | None = None
        try:
            while True:
                step = steps.send(answer)
                answer = None
                if isinstance(step, Rest):
                    await asyncio.sleep(step.seconds)
                else:
                    answer = await self._ask(step)
        except StopIteration as done:
            result: _T = done.value
            return result

    async def _ask(self, call: Call) -> Answer | Lost:
        try:
            async with self._client.stream(**self._http.request(self._servers.url, call)) as response:
                whole = not call.headers_only or response.status_code >= 400
                return Answer(response.status_code, response.headers, await response.aread() if whole else b"")
        except self._http.errors as error:
            return self._http.lost(error)

    async def _events(self, following: Following) -> AsyncIterator[Event]:
        while True:
            try:
                request = self._http.request(self._servers.url, following.call(), following.silence_s)
                async with self._client.stream(**request) as response:
                    if response.status_code == 200:
                        lines = Lines()
                        async for data in response.aiter_bytes():
                            for line in lines.feed(data):
                                for event in following.feed(line):
                                    yield event
                                if following.over:
                                    return
                        following.closed()
                        if following.over:
                            return
                    else:
                        following.refused(Answer(response.status_code, response.headers, await response.aread()))
            except self._http.errors as error:
                following.lost(error)
            await asyncio.sleep(following.wait_s())


class AsyncRun:
    """One run. Made by `AsyncClient.start` and `AsyncClient.run`."""

    def __init__(self, client: AsyncClient, run_id: str, task_id: str, *, user: str | None = None) -> None:
        self.id = run_id
        self.task_id = task_id
        self._client = client
        self._user = user or client.user

    def __repr__(self) -> str:
        return f"AsyncRun({self.id})"

    def events(self, after: str | int = "0", *, timeout_s: float | None = None) -> AsyncIterator[Event]:
        """Everything the run's stream says behind the event with the id or sequence `after`, until the run ends.

        After a broken connection it goes on where it was, at any replica, without a gap or a repeat. Text that had
        been shown and does not hold any more is replaced by an event `text_replace`. Raises StillRunning, Unreachable.
        """
        return self._client.events(self.id, after, user=self._user, timeout_s=timeout_s)

    async def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end; a run that is paused is waited for, too.

        Raises RunFailed (with `node_id`, `attempt`, `error`), RunStopped, StillRunning, Unreachable.
        """
        outcome = Outcome(self.id)
        async for event in self.events(timeout_s=timeout_s):
            if (result := outcome.take(event)) is not None:
                return result
        raise AssertionError("events end with the run's end")

    async def history(self, first: int | None = None, last: int | None = None) -> list[HistoryEvent]:
        """Its facts, read from the log."""
        return await self._client.history(self.id, first, last)

    async def state(self, at: int | None = None) -> RunState:
        """Now, or as of sequence `at`."""
        return await self._client.state(self.id, at)

    async def stop(self, reason: str | None = None) -> Json:
        """Ask for it to stop."""
        return await self._client.stop(self.id, reason)

    async def pause(self, reason: str | None = None) -> Json:
        """Let nothing new begin in it; what runs may end."""
        return await self._client.pause(self.id, reason)

    async def resume(
        self, action: str | None = None, inputs: Mapping[str, Any] | None = None, *, form: str | None = None
    ) -> Json:
        """Answer the form that it waits for by `action` and `inputs`; without an action, take a pause back.

        `form`: which one, when there are several: its id, or its node's. What it waits for is in `state().waiting_for`.
        """
        return await self._client.resume(self.id, action, inputs, form=form)

    async def fork(
        self, at: int, edits: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> "AsyncRun":
        """A new run that shares this one's events up to `at`; `edits`: other values, `node.output` -> value.

        Raises Refused, also when the run cannot be forked there.
        """
        return await self._client.fork(self.id, at, edits, user=self._user, idempotency_key=idempotency_key)

    async def retry(self, *, idempotency_key: str | None = None) -> "AsyncRun":
        """A new run that tries again what made this one fail. Raises Refused."""
        return await self._client.retry(self.id, user=self._user, idempotency_key=idempotency_key)

    async def why(self, node_id: str | None = None) -> str:
        """One sentence: what it waits for, or why a node was skipped or failed."""
        return await self._client.why(self.id, node_id)
