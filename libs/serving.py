"""What every service process needs around its work: log lines, a health port, a clean end.

Imported by `main` modules only.
"""

import asyncio
import json
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

logger = logging.getLogger(__name__)

_STANDARD = frozenset(vars(logging.makeLogRecord({})))


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, event, and the facts given in `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class ReadableLines(logging.Formatter):
    """For a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD)
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{moment} {record.levelname:<7} {record.getMessage()} {facts}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure_logging(level: int = logging.INFO) -> None:
    """Log to stderr: readable on a terminal, JSON lines elsewhere. stdout stays for data and ready lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ReadableLines() if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    hush_http()


def hush_http() -> None:
    """No line per request of our own: its URL and headers may hold a document's secrets, whatever level is logged."""
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


class PortTaken(Exception):
    """Nobody can listen there. The text says where, why, and what to do."""


GONE_MS = 60_000
"""How long what was sent to a client may stay unconfirmed, or unread by it, until its connection is given up.

Without it a client that vanished (pulled plug, dropped packets) would be kept for a quarter of an hour: the system
takes that long to give up sending.
"""


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """A socket that listens, and whose connections end `GONE_MS` after their client vanished. Raises PortTaken."""
    listening = socket.socket(_family(host), socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise PortTaken(cannot_listen(host, port, error)) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; what is accepted inherits it
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_MS)
    listening.listen(backlog)
    listening.setblocking(False)
    return listening


def cannot_listen(host: str, port: int, error: OSError) -> str:
    return f"cannot listen on {in_url(host)}:{port}: {error.strerror}. Choose another: --port, --host"


def in_url(host: str) -> str:
    """`host` as URLs write it: an IPv6 address stands in brackets."""
    return f"[{host}]" if ":" in host else host


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def refuse(message: str, code: int) -> int:
    """Say on stderr why the process does not start; the exit code."""
    print(message, file=sys.stderr)  # noqa: T201  # before logging has anything to say
    return code


class HealthServer:
    """`/healthz`, `/readyz` and `/metrics` on a thread of its own, so it answers while the loop is busy.

    `ready()` returns None, or why the process is not ready; `metrics()` returns Prometheus text. Raises PortTaken.
    """

    def __init__(
        self, host: str, port: int, ready: Callable[[], str | None], metrics: Callable[[], bytes], service: str
    ) -> None:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name http.server calls
                status, kind, body = _answer(self.path.partition("?")[0], ready, metrics, service)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *arguments: object) -> None:
                """Probes are not worth a line."""

        class Server(ThreadingHTTPServer):
            address_family = _family(host)

        try:
            self._server = Server((host, port), Answer)
        except OSError as error:
            raise PortTaken(cannot_listen(host, port, error)) from error
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        logger.info(f"{service} health and metrics", extra={"host": host, "port": self.port})
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _answer(
    path: str, ready: Callable[[], str | None], metrics: Callable[[], bytes], service: str
) -> tuple[int, str, bytes]:
    if path == "/healthz":
        return 200, "application/json", json.dumps({"status": "ok", "service": service}).encode()
    if path == "/readyz":
        problem = ready()
        body = {"status": "ready" if problem is None else "not ready", "service": service}
        if problem is not None:
            body["problem"] = problem
        return (200 if problem is None else 503), "application/json", json.dumps(body).encode()
    if path == "/metrics":
        return 200, "text/plain; version=0.0.4; charset=utf-8", metrics()
    return 404, "application/json", b'{"code": "not_found", "message": "/healthz, /readyz or /metrics", "status": 404}'


async def until_asked_to_stop() -> None:
    """Wait for SIGTERM or SIGINT."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    try:
        await asked.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
