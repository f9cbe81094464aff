"""Clients as they should be written: they attach again with the last id they saw until the run has ended."""

import threading
import time
from collections import Counter
from typing import Any

import httpx

from tests.e2e.deployment import Api, Frame, frames


class Patient(httpx.HTTPTransport):
    """Repeats what is answered 503, where that cannot do anything twice: reads, and what has an Idempotency-Key."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        super().__init__()
        self._timeout_s = timeout_s

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        until = time.monotonic() + self._timeout_s
        while True:
            answer = super().handle_request(request)
            harmless = request.method == "GET" or "Idempotency-Key" in request.headers
            if answer.status_code != 503 or not harmless or time.monotonic() > until:
                return answer
            answer.read()
            answer.close()
            time.sleep(0.2)  # sooner than Retry-After says: there is one client


class Follower:
    """Starts a run and follows it on a thread of its own, through every broken stream."""

    def __init__(self, url: str, key: str, inputs: dict[str, Any], timeout_s: float = 120.0) -> None:
        self.frames: list[Frame] = []
        self.run_id = ""
        self.attached = 0
        self._url, self._key, self._inputs = url, key, inputs
        self._deadline = time.monotonic() + timeout_s
        self._problem: BaseException | None = None
        self._accepted = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_accepted(self, timeout_s: float = 30.0) -> None:
        assert self._accepted.wait(timeout_s), "no answer to the start"
        if self._problem is not None:
            raise self._problem

    def join(self, timeout_s: float = 150.0) -> None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"run {self.run_id}: the stream has not ended"
        if self._problem is not None:
            raise self._problem

    @property
    def finished(self) -> bool:
        return bool(self.frames) and self.frames[-1]["event"] == "workflow_finished"

    def _run(self) -> None:
        api = Api(self._url)
        try:
            self._start(api)
            while not self.finished:
                assert time.monotonic() < self._deadline, f"run {self.run_id} has not ended"
                self._go_on(api)
        except BaseException as problem:  # shown by join, on the test's thread
            self._problem = problem
        finally:
            self._accepted.set()
            api.http.close()

    def _start(self, api: Api) -> None:
        with api.run(self._key, self._inputs) as answer:
            self.run_id = answer.headers["X-Workflow-Run-Id"]
            self._accepted.set()
            self._read(answer)

    def _go_on(self, api: Api) -> None:
        # Frames behind the last id come again: an event's id is on the last frame it makes.
        last = max((index for index, frame in enumerate(self.frames) if frame.id), default=-1)
        del self.frames[last + 1 :]
        try:
            with api.attach(self._key, self.run_id, self.frames[-1].id if self.frames else "0") as answer:
                self.attached += 1
                self._read(answer)
        except (AssertionError, httpx.TransportError):
            time.sleep(0.3)  # the server said 503 or is not there: what a client does is to come back

    def _read(self, answer: httpx.Response) -> None:
        try:
            for frame in frames(answer):
                if frame["event"] == "error":
                    return
                self.frames.append(frame)
        except httpx.TransportError:
            return

    def check(self, nodes: int) -> None:
        """Every event once, in order, to a good end. `nodes`: how many the run executes."""
        names = Counter(frame["event"] for frame in self.frames)
        assert names["workflow_started"] == names["workflow_finished"] == 1, names
        assert names["node_started"] == names["node_finished"] == nodes, names
        ids = [tuple(map(int, frame.id.split("."))) for frame in self.frames if frame.id]
        assert ids == sorted(set(ids)), ids
        assert self.frames[-1]["data"]["status"] == "succeeded", self.frames[-1]
