"""An outside service that remembers who called it: a real HTTP server on loopback."""

import select
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit


@dataclass
class Call:
    path: str
    key: str | None
    """Its idempotency key."""
    at: float
    began_at: float
    """Wall clock, as of `gone_at`; `at` is monotonic."""
    gone_at: float | None = None
    """When the caller closed its side before the answer was due; wall clock."""


class Witness:
    """`url/anything?delay=0.5` answers after that many seconds."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        witness = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                parts = urlsplit(self.path)
                call = Call(parts.path, self.headers.get("Idempotency-Key"), time.monotonic(), time.time())
                witness.calls.append(call)
                if self._leaves(call, float(parse_qs(parts.query).get("delay", ["0"])[0])):
                    return
                body = b'{"ok": true}'
                try:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                    self.wfile.flush()
                except OSError:
                    return

            do_GET = do_POST

            def _leaves(self, call: Call, within_s: float) -> bool:
                """Wait; whether the caller closed its side meanwhile."""
                select.select([self.connection], [], [], within_s)
                if self._gone():
                    call.gone_at = time.time()
                    return True
                time.sleep(max(0.0, call.at + within_s - time.monotonic()))
                return False

            def _gone(self) -> bool:
                """Whether the caller closed its side (a killed process does, at once)."""
                self.connection.setblocking(False)
                try:
                    return bool(self.connection.recv(1) == b"")
                except BlockingIOError:
                    return False
                except ConnectionError:
                    return True
                finally:
                    self.connection.setblocking(True)

            def log_message(self, format: str, *arguments: object) -> None:
                """The list of calls is the log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
