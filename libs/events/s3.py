"""Blobs in a bucket of an S3-compatible store: objects named by their content's hash, signed with Signature V4.

What was stored elsewhere before stays readable: references whose place is not a bucket go to `others`.

Does not: make the bucket, delete, or use multipart uploads; a blob is one object (up to 5 GB).
"""

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from pydantic import JsonValue

from libs.events.blobs import (
    PIECE_BYTES,
    BlobError,
    BlobLost,
    BlobRef,
    Blobs,
    checked,
    make_ref,
    measured,
    parse_ref,
    without_first,
)

if TYPE_CHECKING:
    import httpx

PLACE: Final = "s3"
TIMEOUT_S: Final = 30.0
_ATTEMPTS: Final = 3
_PAUSE_S: Final = 0.2
_PUTTERS: Final = 8


@dataclass(slots=True, frozen=True)
class Bucket:
    """Where the objects are. `endpoint` has no path; the bucket is the first part of an object's path."""

    endpoint: str
    name: str
    prefix: str = ""
    region: str = "us-east-1"
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)

    def url(self, key: str) -> str:
        return f"{self.endpoint.rstrip('/')}/{quote(self.name)}/{quote(self.prefix + key)}"


class S3Blobs:
    """`others`: reads what is not in the bucket; closed with it."""

    def __init__(self, bucket: Bucket, others: Blobs, *, now_s: Callable[[], float] = time.time) -> None:
        self._bucket = bucket
        self._others = others
        self._now_s = now_s
        self._pool = ThreadPoolExecutor(_PUTTERS, thread_name_prefix="s3")
        self._lock = threading.Lock()
        self._opened: httpx.Client | None = None

    def put(self, run_id: str, data: bytes) -> "Future[BlobRef]":
        return self._pool.submit(self._store, data)

    def _store(self, data: bytes) -> BlobRef:
        digest = hashlib.sha256(data).hexdigest()
        answer = self._ask("PUT", digest, data)
        if not answer.is_success:
            raise self._refused("store", digest, answer)
        return make_ref(digest, len(data), PLACE)

    def get(self, ref: JsonValue) -> bytes:
        digest, size, place = parse_ref(ref)
        if place != PLACE:
            return self._others.get(ref)
        answer = self._ask("GET", digest, b"")
        if not answer.is_success:
            raise self._refused("read", digest, answer)
        return checked(answer.content, digest, size)

    def pieces(self, ref: JsonValue, start: int = 0) -> Iterator[bytes]:
        digest, size, place = parse_ref(ref)
        if place != PLACE:
            yield from self._others.pieces(ref, start)
            return
        import httpx

        answer = self._ask("GET", digest, b"", {"Range": f"bytes={start}-"} if start else {}, stream=True)
        try:
            if not answer.is_success:
                raise self._refused("read", digest, answer)
            skipped = start if answer.status_code == 200 else 0  # a store may give all of it, whatever was asked for
            yield from measured(without_first(answer.iter_bytes(PIECE_BYTES), skipped), digest, size, start)
        except httpx.HTTPError as error:
            raise BlobError(f"blob {digest} in bucket {self._bucket.name} breaks off: {error}") from error
        finally:
            answer.close()

    def close(self) -> None:
        self._pool.shutdown()
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None
        self._others.close()

    def _ask(
        self, method: str, digest: str, data: bytes, more: Mapping[str, str] | None = None, *, stream: bool = False
    ) -> "httpx.Response":
        """The answer; asked again when the store does not answer or says that it has trouble. Raises BlobError.

        `more`: headers that are not signed. `stream`: the body is not read yet; close the answer.
        """
        import httpx  # here: the embedded mode and the command line use no bucket

        problem = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_S * attempt)
            url = self._bucket.url(f"{digest[:2]}/{digest}")
            headers = signed(self._bucket, method, url, hashlib.sha256(data).hexdigest(), {}, self._now_s())
            try:
                client = self._client()
                request = client.build_request(method, url, content=data or None, headers=headers | dict(more or {}))
                answer = client.send(request, stream=stream)
            except httpx.HTTPError as error:
                problem = str(error) or type(error).__name__
                continue
            if answer.status_code < 500 and answer.status_code != 429:
                return answer
            answer.close()
            problem = f"status {answer.status_code}"
        raise BlobError(
            f"{method} of blob {digest} in bucket {self._bucket.name} at {self._bucket.endpoint}: {problem}. "
            "Check that the store answers"
        )

    def _client(self) -> "httpx.Client":
        import httpx

        with self._lock:
            if self._opened is None:
                self._opened = httpx.Client(timeout=TIMEOUT_S, trust_env=False)
            return self._opened

    def _refused(self, what: str, digest: str, answer: "httpx.Response") -> BlobError:
        kind = BlobLost if (what, answer.status_code) == ("read", 404) else BlobError
        return kind(
            f"cannot {what} blob {digest} in bucket {self._bucket.name} at {self._bucket.endpoint}: "
            f"status {answer.status_code}. Check the bucket, the region and the keys"
        )


def signed(
    bucket: Bucket, method: str, url: str, payload_sha256: str, more: Mapping[str, str], now_s: float
) -> dict[str, str]:
    """The headers of a request, its signature among them; `more` are signed too.

    Source: AWS, "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)".
    """
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    parts = urlsplit(url)
    headers = {"host": parts.netloc, "x-amz-content-sha256": payload_sha256, "x-amz-date": at}
    headers |= {name.lower(): value.strip() for name, value in more.items()}
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = "\n".join([method, parts.path or "/", parts.query, lines, names, payload_sha256])
    scope = f"{at[:8]}/{bucket.region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", at, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{bucket.secret_key}".encode()
    for part in (at[:8], bucket.region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"{bucket.access_key}/{scope}"
    return headers | {
        "authorization": f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={signature}"
    }
