"""A real deployment for end-to-end tests: services as processes, over a real broker and a real database.

Processes are started as people start them (`flowledger api`, ...), spoken to over HTTP, and killed as they die.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from tests import servers

READY = re.compile(r"^flowledger (\w+) ready(?: on (\S+))?$")
PROGRAM = "import sys; from flowledger.cli import main; sys.exit(main())"
ADMIN_TOKEN = "test-admin-token"


class Service:
    """One process; its ready line has been seen when the constructor returns. It dies with the starting thread."""

    def __init__(self, verb: str, settings: dict[str, str], *options: str, timeout_s: float = 30.0) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FLOWLEDGER_")}
        self.verb = verb
        self.url = ""
        self.log: list[str] = []
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            servers.tied([sys.executable, "-c", PROGRAM, verb, *options]),
            env=clean | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(timeout_s) or not self.alive:
            self.kill()
            raise AssertionError(f"flowledger {verb} did not become ready:\n" + "\n".join(self.log[-40:]))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line.rstrip())
            found = READY.match(line.strip())
            if found:
                self.url = found[2] or ""
                self._ready.set()
        self._ready.set()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL: no last word."""
        if self.alive:
            self.process.kill()
        self.process.wait()
        self._end()

    def _end(self) -> None:
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def freeze(self) -> None:
        servers.freeze(self.process.pid)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def terminate(self, timeout_s: float = 20.0) -> int:
        """SIGTERM, and the exit code. A process that does not end in time is killed."""
        self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        finally:
            self.kill()


class Deployment:
    """Services over one topic prefix and one database."""

    def __init__(self, bootstrap: str, prefix: str, database: str, folder: Path, partitions: int = 4) -> None:
        self.settings = {
            "FLOWLEDGER_KAFKA": bootstrap,
            "FLOWLEDGER_TOPIC_PREFIX": prefix,
            "FLOWLEDGER_PARTITIONS": str(partitions),
            "FLOWLEDGER_DATABASE_URL": database,
            "FLOWLEDGER_ADMIN_TOKEN": ADMIN_TOKEN,
            "FLOWLEDGER_MODELS": "offline",
            "FLOWLEDGER_DATA": str(folder),
            "FLOWLEDGER_HTTP_ALLOW": "127.0.0.1",
        }
        self.partitions = partitions
        self.services: list[Service] = []
        self._clients: list[Api] = []

    def client(self, service: Service) -> "Api":
        """A client of this API process."""
        return self.client_of(service.url)

    def client_of(self, url: str, transport: httpx.BaseTransport | None = None) -> "Api":
        """A client of whatever answers there."""
        api = Api(url, transport=transport)
        self._clients.append(api)
        return api

    def start(self, verb: str, **settings: str) -> Service:
        service = Service(verb, self.settings | settings, "--port", "0")
        self.services.append(service)
        return service

    def close(self) -> None:
        for api in self._clients:
            api.http.close()
        for service in self.services:
            if service.alive:
                service.process.send_signal(signal.SIGCONT)
                service.kill()


@contextmanager
def deployment(bootstrap: str, prefix: str, database: str, folder: Path, partitions: int = 4) -> Iterator[Deployment]:
    deployed = Deployment(bootstrap, prefix, database, folder, partitions)
    try:
        yield deployed
    finally:
        deployed.close()


class Api:
    """What a client does, over HTTP."""

    def __init__(self, url: str, timeout_s: float = 30.0, transport: httpx.BaseTransport | None = None) -> None:
        self.http = httpx.Client(base_url=url, timeout=timeout_s, trust_env=False, verify=False, transport=transport)
        self.admin = {"Authorization": f"Bearer {ADMIN_TOKEN}"}

    def import_document(self, text: str) -> dict[str, Any]:
        answer = self.http.post(
            "/v1/apps/import?key=true", content=text, headers={**self.admin, "Content-Type": "application/yaml"}
        )
        assert answer.status_code in (200, 201), answer.text
        return dict(answer.json())

    @contextmanager
    def run(self, key: str, inputs: dict[str, Any], **headers: str) -> Iterator[httpx.Response]:
        """A streaming run; read its frames with `frames`.

        With an idempotency key, so that its start is decided when the answer begins; without one half a second is
        all that an answer waits for that.
        """
        body = {"inputs": inputs, "response_mode": "streaming", "user": "tester"}
        given = {"Authorization": f"Bearer {key}", "Idempotency-Key": str(uuid4()), **headers}
        with self.http.stream("POST", "/v1/workflows/run", json=body, headers=given) as answer:
            assert answer.status_code == 200, answer.read()
            yield answer

    @contextmanager
    def attach(self, key: str, run_id: str, last_event_id: str | None = "0") -> Iterator[httpx.Response]:
        headers = {"Authorization": f"Bearer {key}"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        with self.http.stream("GET", f"/v1/workflow/{run_id}/events?user=tester", headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            yield answer

    def detail(self, key: str, run_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/v1/workflows/run/{run_id}", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def history(self, run_id: str) -> list[dict[str, Any]]:
        answer = self.http.get(f"/v1/runs/{run_id}/history", headers=self.admin)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]


class Frame(dict[str, Any]):
    """A data frame's JSON; `id` is its SSE id, None when it has none."""

    id: str | None = None


def frames(answer: httpx.Response) -> Iterator[Frame]:
    """The data frames of a stream; pings are left out."""
    name: str | None = None
    for line in answer.iter_lines():
        if line.startswith("id:"):
            name = line[3:].strip()
        elif line.startswith("data:"):
            frame = Frame(json.loads(line[5:]))
            frame.id = name
            yield frame
        elif not line:
            name = None


def wait_until(holds: Any, what: str, timeout_s: float = 30.0, *, every_s: float = 0.02) -> None:
    """Raise `every_s` where a look is a process or reads a whole log: the services have the same processors."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(every_s)
