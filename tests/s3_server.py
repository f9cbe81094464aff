"""A bucket over HTTP that speaks enough of S3 for blobs, checks every signature, and can be told to fail."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from libs.events.s3 import Bucket, signed

DAY_S = 24 * 3600


class BucketServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.failing = 0
        """So many requests to come are answered 503."""
        endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.bucket = Bucket(endpoint, "flow", "blobs/", "eu-test-1", "the-key", "the-secret")


class _Handler(BaseHTTPRequestHandler):
    server: BucketServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms behind its headers

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes | None:
        """The body of a request that is signed as it stands; None: it was answered already."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.failing:
            self.server.failing -= 1
            self._answer(503)
            return None
        bucket = self.server.bucket
        at = time.strptime(self.headers["x-amz-date"], "%Y%m%dT%H%M%SZ")
        seconds = time.mktime(at) - time.timezone
        digest = hashlib.sha256(body).hexdigest()
        url = f"http://{self.headers['Host']}{self.path}"
        expected = signed(bucket, self.command, url, digest, {}, seconds)["authorization"]
        if self.headers["authorization"] != expected or abs(time.time() - seconds) > DAY_S:
            self._answer(403)
            return None
        return body

    def do_PUT(self) -> None:
        body = self._body()
        if body is not None:
            self.server.objects[self.path] = body
            self._answer(200)

    def do_GET(self) -> None:
        if self._body() is not None:
            found = self.server.objects.get(self.path)
            self._answer(404 if found is None else 200, found or b"")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def bucket_server() -> Iterator[BucketServer]:
    server = BucketServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
