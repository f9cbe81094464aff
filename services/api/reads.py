"""Reads of one run, never older than the request: from the live fold, the tables, or the log.

Every read first waits until this replica's tail has passed the end of the run's partition as of the request. Then
whatever the tail has seen is current; the tables count only as far as they have been projected; the log always does.
"""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from libs.events.blobs import BlobRef, Blobs, is_ref
from libs.events.codec import Recorded
from libs.events.ids import created_at_us, partition_of
from libs.events.log import Log, Topic
from libs.events.model import RunAccepted, RunEnd, RunPaused, RunResumed, RunStarted
from libs.events.sealed_values import read_value
from services.api.frames import END_STATUS, Json, encode
from services.api.history import Span, read_events, read_one
from services.api.records import Found, RecordsUnavailable
from services.api.tables import Tables
from services.api.tail import EventTail, Outline
from services.api.threads import DONE, Threads

CLOCK_SLACK_MS = 5 * 60 * 1000
"""How far the clocks of an API process and of the log may differ."""


@dataclass(slots=True, frozen=True)
class RunSummary:
    """A run without its nodes."""

    id: str
    app_id: str
    workflow_id: str
    version: str
    mode: str
    digest: str
    status: str
    inputs: Json
    """As stored: declared inputs and `sys.*` values."""
    outputs: Json
    error: str | None
    created_us: int
    started_us: int | None
    finished_us: int | None
    elapsed_s: float
    total_steps: int
    total_tokens: int
    exceptions_count: int
    seq: int
    triggered_from: str
    caller_role: str
    caller_id: str
    caller_user: str
    only: str | None
    forked_from: str | None
    forked_at: int | None

    @property
    def ended(self) -> bool:
        return self.finished_us is not None


class Reads:
    def __init__(
        self, log: Log, blobs: Blobs, tail: EventTail, tables: Tables | None, threads: Threads, fresh_s: float
    ) -> None:
        self._log = log
        self._blobs = blobs
        self._tail = tail
        self._tables = tables
        self._threads = threads
        self._fresh_s = fresh_s

    async def fresh(self, run_id: str) -> tuple[int, int] | None:
        """(partition, end offset as of now), all of it read by the tail; None when it cannot be one of our runs.

        Raises TailBehind.
        """
        try:
            partition = partition_of(run_id)
        except ValueError:
            return None
        if partition >= self._log.partitions:
            return None
        return partition, await self._tail.fresh(partition, self._fresh_s)

    async def summary(self, run_id: str) -> RunSummary | None:
        """The run as of now; None: there is no such run. Raises TailBehind, LogError, CodecError."""
        place = await self.fresh(run_id)
        if place is None:
            return None
        live = self._tail.live(run_id)
        if live is not None and live.current and live.fold is not None:
            maker = live.fold.maker
            if maker.accepted is not None:
                ended_us = maker.ended_us if maker.ended else None
                accepted = (maker.accepted, maker.accepted_us)
                ending = (maker.end, ended_us)
                pause = maker.asked.last_pause
                return summarize(
                    run_id, accepted, maker.started_us, ending, maker.seq, paused=maker.paused, pause=pause
                )
        outline = self._tail.outline(run_id)
        if outline is not None:
            return await self._from_outline(run_id, place[0], outline)
        found = await self.find(run_id, place[0])
        if found is not None and found.next_offset >= place[1]:
            return None if found.row is None else await self._threads.run(self._from_row, found.row)
        return await self._from_log(await self._threads.run(self._span, run_id, place, found))

    async def span(self, run_id: str) -> Span | None:
        """Where the run's events stand, as of now; None: there is no such run, as far as that is known already."""
        place = await self.fresh(run_id)
        if place is None:
            return None
        outline = self._tail.outline(run_id)
        if outline is not None:  # everything up to the end as of now was read, so nothing of the run stands behind
            return Span(run_id, place[0], outline.first_offset, outline.last_offset + 1)
        found = await self.find(run_id, place[0])
        if found is not None and found.row is None and found.next_offset >= place[1]:
            return None
        return await self._threads.run(self._span, run_id, place, found)

    async def events(self, span: Span) -> AsyncIterator[list[Recorded]]:
        """The run's events in batches, with all their values. Raises LogError, CodecError."""
        batches = read_events(self._log, self._blobs, span)
        while (batch := await self._threads.following(batches)) is not DONE:
            yield batch  # type: ignore[misc]  # not DONE

    async def set_aside(self, run_id: str) -> Mapping[str, Any] | None:
        """The row of a run that executors leave alone; None: as far as the tables know they do not."""
        place = await self.fresh(run_id)
        found = await self.find(run_id, place[0]) if place is not None else None
        row = found.row if found is not None else None
        return row if row is not None and row["set_aside"] and row["finished_at"] is None else None

    async def find(self, run_id: str, partition: int) -> Found | None:
        """The run's row; None when there are no tables to ask now."""
        if self._tables is None:
            return None
        try:
            return await self._tables.run(run_id, partition)
        except RecordsUnavailable:
            return None

    def _span(self, run_id: str, place: tuple[int, int], found: Found | None) -> Span:
        partition, end = place
        if found is not None and found.row is not None and found.row["first_offset"] is not None:
            row = found.row
            whole = row["finished_at"] is not None or found.next_offset >= end
            stop = row["last_offset"] + 1 if whole else end
            return Span(run_id, partition, int(row["first_offset"]), stop)
        since_ms = created_at_us(run_id) // 1000 - CLOCK_SLACK_MS
        offset = self._log.offset_at(Topic.EVENTS, partition, since_ms)
        return Span(run_id, partition, self._tail.waymark(partition, offset), end)

    async def _from_outline(self, run_id: str, partition: int, outline: Outline) -> RunSummary:
        first, last, seq = outline.first_offset, outline.last_offset, outline.seq
        started_us, ended = outline.started_us, outline.ended
        accepted = await self._threads.run(read_one, self._log, self._blobs, partition, first)
        end = await self._threads.run(read_one, self._log, self._blobs, partition, last) if ended else None
        pause: Recorded | None = None
        if outline.pause_offset is not None and not ended:
            pause = await self._threads.run(read_one, self._log, self._blobs, partition, outline.pause_offset)
        return _summary_of(accepted, started_us, end, seq, paused=outline.status == "paused", pause=pause)

    async def _from_log(self, span: Span) -> RunSummary | None:
        accepted: Recorded | None = None
        end: Recorded | None = None
        started_us = seq = 0
        paused = False
        pause: Recorded | None = None
        async for events in self.events(span):
            for recorded in events:
                seq = recorded.seq
                if isinstance(recorded.event, RunAccepted):
                    accepted = recorded
                elif isinstance(recorded.event, RunStarted):
                    started_us = recorded.at_us
                elif isinstance(recorded.event, RunPaused):
                    paused, pause = True, recorded
                elif isinstance(recorded.event, RunResumed):
                    paused = False
                elif type(recorded.event) in END_STATUS:
                    end = recorded
        return None if accepted is None else _summary_of(accepted, started_us, end, seq, paused=paused, pause=pause)

    def _from_row(self, row: Mapping[str, Any]) -> RunSummary:
        """Blocking: a large value is fetched from the blobs."""
        return RunSummary(
            id=row["id"],
            app_id=row["app_id"],
            workflow_id=row["workflow_id"],
            version=row["version"],
            mode="workflow" if row["type"] == "workflow" else "advanced-chat",
            digest=row["digest"],
            status=row["status"],
            inputs=self.restored(row["inputs"]),
            outputs=self.restored(row["outputs"]),
            error=row["error"],
            created_us=row["created_at"],
            started_us=row["started_at"],
            finished_us=row["finished_at"],
            elapsed_s=row["elapsed_time"] or 0.0,
            total_steps=row["total_steps"] or 0,
            total_tokens=row["total_tokens"] or 0,
            exceptions_count=row["exceptions_count"] or 0,
            seq=row["seq"],
            triggered_from=row["triggered_from"],
            caller_role=row["created_by_role"],
            caller_id=row["created_by"],
            caller_user=row["created_by_user"],
            only=row["only"],
            forked_from=row["forked_from"],
            forked_at=row["forked_at"],
        )

    def restored(self, text: str | None) -> Json:
        """The values of a JSON column, large ones fetched. Blocking."""
        values = json.loads(text) if text else {}
        if '"$blob"' not in (text or ""):
            return dict(values)
        if is_ref(values):
            return dict(self._stored(values))
        return {name: self._stored(each) if is_ref(each) else each for name, each in values.items()}

    def _stored(self, ref: BlobRef) -> Any:
        return read_value(json.loads(self._blobs.get(ref)), None)


def _summary_of(
    accepted: Recorded,
    started_us: int,
    end: Recorded | None,
    seq: int,
    *,
    paused: bool = False,
    pause: Recorded | None = None,
) -> RunSummary:
    assert isinstance(accepted.event, RunAccepted)
    ending: Any = (end.event, end.at_us) if end is not None else (None, None)
    begun = (accepted.event, accepted.at_us)
    told: Any = pause.event if pause is not None else None
    return summarize(accepted.run_id, begun, started_us, ending, seq, paused=paused, pause=told)


def summarize(
    run_id: str,
    begun: tuple[RunAccepted, int],
    started_us: int,
    ending: tuple[RunEnd | None, int | None],
    seq: int,
    *,
    paused: bool = False,
    pause: RunPaused | None = None,
) -> RunSummary:
    """A summary from the run's first event, the time it was admitted (0: not yet), and its end.

    `pause`: its last one; until the end it tells what the run has done.
    """
    accepted, created_us = begun
    end, finished_us = ending
    open_status = "paused" if paused else "running" if started_us else "pending"
    status = END_STATUS[type(end)] if end is not None else open_status
    counted = end if end is not None else pause
    return RunSummary(
        id=run_id,
        app_id=accepted.app_id,
        workflow_id=accepted.workflow_id,
        version=accepted.version,
        mode=accepted.mode,
        digest=accepted.digest,
        status=status,
        inputs=stored_inputs(run_id, accepted),
        outputs=end.outputs if end is not None else {},
        error=end.error if end is not None else None,
        created_us=created_us,
        started_us=started_us or None,
        finished_us=finished_us,
        elapsed_s=counted.elapsed_s if counted is not None else 0.0,
        total_steps=counted.total_steps if counted is not None else 0,
        total_tokens=counted.total_tokens if counted is not None else 0,
        exceptions_count=end.exceptions_count if end is not None else 0,
        seq=seq,
        triggered_from=accepted.triggered_from,
        caller_role=accepted.caller.role,
        caller_id=accepted.caller.id,
        caller_user=accepted.caller.user,
        only=accepted.only,
        forked_from=accepted.forked_from.run_id if accepted.forked_from else None,
        forked_at=accepted.forked_from.seq if accepted.forked_from else None,
    )


def stored_inputs(run_id: str, accepted: RunAccepted) -> Json:
    """The inputs of a run as its record holds them: the same keys, in the same order, as the tables."""
    inputs: Json = {**accepted.inputs, "sys.files": list(accepted.files)}
    if accepted.mode == "advanced-chat":
        inputs |= {"sys.query": accepted.query or "", "sys.conversation_id": accepted.conversation_id or ""}
    return inputs | {
        "sys.user_id": accepted.caller.user,
        "sys.app_id": accepted.app_id,
        "sys.workflow_id": accepted.workflow_id,
        "sys.workflow_run_id": run_id,
    }


def inputs_text(summary: RunSummary) -> str:
    return encode(summary.inputs).decode()
