"""Several runs on one connection, and what is done to many runs at once.

A stream of several runs has ids of its own: the place in each run, in the order of the query, so that one
`Last-Event-ID` resumes all of them, on any replica. The frames are those of each run's own stream.

What is done to many runs is counted first: a request without `expect` changes nothing and says how many runs it means;
with `expect` it is carried out if that is still the number.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from services.api import schemas
from services.api.access import Principal
from services.api.errors import ApiError, invalid_param, not_found, unavailable
from services.api.forks import retry
from services.api.frames import Cursor, Json
from services.api.parts import Parts
from services.api.records import Filter, RecordsUnavailable, row_place
from services.api.requests import read_json
from services.api.runs import STATUSES, instant
from services.api.schemas import answers, errors, json_body, secured
from services.api.sse import EventStream, Write

MOST_STREAMED = 100
MOST_AT_ONCE = 10_000
_PAGE = 1_000
_TOGETHER = 32
"""Requests of a bulk that are under way at once: they must not crowd out everybody else's."""

UNFINISHED = ("pending", "running", "paused")
_ACTIONS: Mapping[str, tuple[str, ...]] = {"stop": UNFINISHED, "retry": ("failed",)}
"""What can be done, and to runs in which states."""

_Act = Callable[[str], Awaitable[tuple[str, Json]]]
"""What is done to one run; where the answer lists it, and as what. Raises ApiError."""


def many_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1/runs", tags=["Runs"])
    both = secured("admin", "app_key")

    @router.get(
        "/events",
        summary="Follow several runs on one connection",
        description=f"`run` once for each run, at most {MOST_STREAMED}. A frame's id holds the place in every run: "
        "send it back as Last-Event-ID, with the same runs in the same order, to go on behind it. Without it every "
        "run is told from its start. The stream ends when all of them have ended.",
        responses=schemas.streamed(None) | errors(400, 401, 404, 503),
        openapi_extra=both | schemas.parameters("run", required=("run",)),
    )
    async def follow_runs(request: Request) -> Response:
        return await _follow(parts, request)

    @router.post(
        "/bulk",
        summary="Stop or retry all runs that match, counted first",
        responses=answers(schemas.BulkDone, 400, 401, 404, 409, 413, 415, 503),
        openapi_extra=json_body(schemas.BulkBody) | both,
    )
    async def bulk(request: Request) -> Response:
        return await _bulk(parts, request)

    return router


# --- several runs on one connection ---


async def _follow(parts: Parts, request: Request) -> Response:
    principal = await parts.access.anyone(request)
    run_ids = list(dict.fromkeys(request.query_params.getlist("run")))
    if not 1 <= len(run_ids) <= MOST_STREAMED:
        raise invalid_param(f"run: expected 1 to {MOST_STREAMED} runs, got {len(run_ids)}", "run")
    places = _places(request.headers.get("last-event-id"), len(run_ids))
    for run_id, place in zip(run_ids, places, strict=True):
        summary = await parts.reads.summary(run_id)
        if summary is None or not principal.may_see(summary.app_id):
            raise not_found(f'run "{run_id[:64]}" does not exist')
        if place.seq > summary.seq:
            raise invalid_param(
                f"Last-Event-ID {place.seq}: the run {run_id} has {summary.seq} events. Is it another run's id?"
            )
    together = _Together(parts, run_ids, places)
    return EventStream(together.outbox, together.write_all, parts.pinger, {}, on_close=together.discard)


def _places(given: str | None, count: int) -> list[Cursor]:
    """Where to begin in each run. Raises ApiError 400."""
    if not given:
        return [Cursor()] * count
    try:
        places = [Cursor.parse(text) for text in given.split(",")]
    except ValueError as error:
        raise invalid_param(str(error)) from error
    if len(places) != count:
        raise invalid_param(
            f"Last-Event-ID has places in {len(places)} runs, {count} are asked for: send the same runs"
        )
    return places


class _Together:
    """The streams of several runs, written to one client frame by frame."""

    def __init__(self, parts: Parts, run_ids: list[str], places: list[Cursor]) -> None:
        self._streams = parts.streams
        self._runs = run_ids
        self._places = places
        self.outbox = self._streams.new_outbox()
        """Of the connection: pings, and that the client is to be sent away."""
        self._outboxes = [self._streams.new_outbox(through_pauses=True) for _ in run_ids]
        # An id says where all runs are, so ids leave in the order in which they were made.
        self._writing = asyncio.Lock()

    async def write_all(self, write: Write) -> None:
        """Until all runs have ended or the client is gone."""
        async with asyncio.TaskGroup() as group:
            pings = group.create_task(self._ping(write))
            following = [
                group.create_task(self._streams.follow(run_id, place, outbox, self._writer(index, write)))
                for index, (run_id, place, outbox) in enumerate(
                    zip(self._runs, list(self._places), self._outboxes, strict=True)
                )
            ]
            await asyncio.wait(following)
            pings.cancel()

    async def _ping(self, write: Write) -> None:
        while data := await self.outbox.take():
            async with self._writing:
                await write(data)
        for outbox in self._outboxes:
            outbox.close()

    def _writer(self, index: int, write: Write) -> Write:
        async def write_numbered(data: bytes) -> None:
            async with self._writing:
                await write(self._numbered(index, data))

        return write_numbered

    def _numbered(self, index: int, data: bytes) -> bytes:
        """The frames of one run, with ids that hold the place in every run."""
        made = []
        for frame in data.split(b"\n\n"):
            if frame.startswith(b"id: "):
                own, _, rest = frame.partition(b"\n")
                self._places[index] = Cursor.parse(own[4:].decode())
                frame = b"id: " + ",".join(map(_text, self._places)).encode() + b"\n" + rest
            made.append(frame)
        return b"\n\n".join(made)

    def discard(self) -> None:
        self._streams.discard(self.outbox, "")
        for run_id, outbox in zip(self._runs, self._outboxes, strict=True):
            outbox.close()
            self._streams.discard(outbox, run_id)


def _text(place: Cursor) -> str:
    return f"{place.seq}.{place.position}" if place.position else str(place.seq)


# --- many runs at once ---


async def _bulk(parts: Parts, request: Request) -> Response:
    principal = await parts.access.anyone(request)
    body = await read_json(request, parts.limits.max_body_bytes)
    action, expect = body.get("action"), body.get("expect")
    if not isinstance(action, str) or action not in _ACTIONS:
        raise invalid_param(f"action: expected {' or '.join(_ACTIONS)}", "action")
    if expect is not None and (type(expect) is not int or expect < 0):
        raise invalid_param("expect: expected the number of runs that was counted", "expect")
    found = await _matching(parts, _filters(principal, body.get("filter"), _ACTIONS[action]))
    answer: Json = {"action": action, "count": len(found), "done": False, "changed": [], "already": [], "failed": []}
    if expect is None:
        return JSONResponse(answer)
    if expect != len(found):
        message = f"{len(found)} runs match now, {expect} were expected. Look again, then send the number of now"
        raise ApiError(409, "count_changed", message)
    reason = body.get("reason")
    act = _acting(parts, principal, action, reason if isinstance(reason, str) and reason else "Stopped with others")
    return JSONResponse(answer | {"done": True} | await _each(found, act))


def _filters(principal: Principal, given: object, states: tuple[str, ...]) -> list[Filter]:
    """One filter per state. Raises ApiError 400, 404."""
    if given is not None and not isinstance(given, dict):
        raise invalid_param("filter: expected an object", "filter")
    wanted: Json = given or {}
    unknown = set(wanted) - {"status", "app", "since", "id_prefix"}
    if unknown:
        # A misspelt filter would mean more runs than was meant.
        raise invalid_param(f"filter: {', '.join(sorted(unknown))} is not known. Use status, app, since, id_prefix")
    for name, value in wanted.items():
        if not isinstance(value, str):
            raise invalid_param(f"filter.{name}: expected a string", f"filter.{name}")
    status, app_id = wanted.get("status"), wanted.get("app")
    if status is not None and status not in states:
        known = "no state" if status not in STATUSES else "a state in which that cannot be done"
        raise invalid_param(f"filter.status: {status[:40]} is {known}. Use {', '.join(states)}", "filter.status")
    if principal.app is not None:
        if app_id not in (None, principal.app.app_id):
            raise not_found(f'app "{str(app_id)[:64]}" does not exist')
        app_id = principal.app.app_id
    since_us = instant(wanted.get("since"))
    return [Filter(app_id, one, since_us, wanted.get("id_prefix")) for one in ([status] if status else states)]


async def _matching(parts: Parts, filters: list[Filter]) -> list[str]:
    """Ids of the runs as of now. Raises ApiError."""
    found: list[str] = []
    try:
        tables = await parts.fresh.tables()
        for wanted in filters:
            after = None
            while True:
                page = Filter(wanted.app_id, wanted.status, wanted.since_us, wanted.id_prefix, after)
                rows = await tables.runs(page, _PAGE)
                found += [str(row["id"]) for row in rows]
                if len(found) > MOST_AT_ONCE:
                    raise invalid_param(f"more than {MOST_AT_ONCE} runs match. Narrow the filter", "filter")
                if len(rows) < _PAGE:
                    break
                after = row_place(rows[-1])
    except RecordsUnavailable as error:
        raise unavailable("runs cannot be looked up now") from error
    return found


def _acting(parts: Parts, principal: Principal, action: str, reason: str) -> _Act:
    async def stop(run_id: str) -> tuple[str, Json]:
        await parts.submitter.stop(run_id, reason, "admin" if principal.admin else "")
        return "changed", {"id": run_id}

    async def try_again(run_id: str) -> tuple[str, Json]:
        # The key makes a bulk that is sent again after a lost answer attach to the runs of the first one.
        started = await retry(parts, principal, run_id, f"bulk-retry/{run_id}")
        return "already" if started.attached else "changed", {"id": run_id, "retried_as": started.run_id}

    return stop if action == "stop" else try_again


async def _each(run_ids: list[str], act: _Act) -> dict[str, list[Json]]:
    """What was done, what had been done before, and what could not be done and why."""
    told: dict[str, list[Json]] = {"changed": [], "already": [], "failed": []}
    free = asyncio.Semaphore(_TOGETHER)

    async def one(run_id: str) -> None:
        async with free:
            try:
                name, entry = await act(run_id)
            except ApiError as error:
                name, entry = "failed", {"id": run_id, "code": error.code, "message": error.message}
            told[name].append(entry)

    await asyncio.gather(*map(one, run_ids))
    return told
