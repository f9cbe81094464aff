"""The content of files that values name: from a URL through the guarded client, bounded while it arrives, or kept."""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

import httpx
from pydantic import JsonValue

from libs.net import GuardedHttp, TooLarge, read_at_most
from services.executor.files import FileReader

FETCH_S: Final = 300.0
_TIMEOUT: Final = {"connect": 10.0, "read": 300.0, "write": 60.0, "pool": None}
_HEADERS: Final = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate", "User-Agent": "flowledger"}


class NotFetched(Exception):
    """The file cannot be had. The text says why, without its name."""


async def content_of(
    file: Mapping[str, JsonValue], kept: FileReader | None, http: GuardedHttp | None, limit_bytes: int
) -> tuple[bytes, str]:
    """Content of a file value, and what its source says that it is, if it does. Raises NotFetched.

    `limit_bytes`: of what comes from a URL.
    """
    inline = file.get("text")
    if isinstance(inline, str):
        return inline.encode("utf-8", "replace"), "text/plain"
    if file.get("transfer_method") == "remote_url" and http is not None:
        return await fetched(http, str(file.get("remote_url") or file.get("url") or ""), limit_bytes)
    if kept is None:
        raise NotFetched("it was uploaded, and this server keeps no uploaded files; pass it as a remote URL")
    try:
        return await kept.read(file), ""
    except OSError as error:
        raise NotFetched(f"it cannot be read: {error}") from error


async def fetched(http: GuardedHttp, url: str, limit_bytes: int) -> tuple[bytes, str]:
    """Content of a file, and what its server, or its `data:` URL, says that it is. Raises NotFetched."""
    return inlined(url, limit_bytes) if url.startswith("data:") else await _downloaded(http, url, limit_bytes)


async def _downloaded(http: GuardedHttp, url: str, limit_bytes: int) -> tuple[bytes, str]:
    try:
        request = httpx.Request("GET", url, headers=_HEADERS, extensions={"timeout": _TIMEOUT})
        async with asyncio.timeout(FETCH_S), http.open(request) as response:
            if not response.is_success:
                raise NotFetched(f"its server answered with status {response.status_code}")
            return await read_at_most(response, limit_bytes), response.headers.get("content-type", "")
    except TooLarge:
        raise NotFetched(f"it is larger than {limit_bytes // 1024 // 1024} MB") from None
    except TimeoutError:
        raise NotFetched(f"it did not arrive within {FETCH_S:g} s") from None
    except httpx.InvalidURL:
        raise NotFetched("its URL cannot be used") from None
    except httpx.HTTPError as error:
        raise NotFetched(f"it cannot be fetched: {str(error) or type(error).__name__}") from error


def inlined(url: str, limit_bytes: int) -> tuple[bytes, str]:
    """Content and media type of a `data:` URL. Raises NotFetched."""
    head, comma, data = url.removeprefix("data:").partition(",")
    if not comma or len(data) > 2 * limit_bytes:
        raise NotFetched("its data URL cannot be used")
    try:
        content = unquote_to_bytes(data)
        if head.endswith(";base64"):
            content = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NotFetched("its data URL is not valid base64") from error
    return content, head.removesuffix(";base64") or "text/plain"
