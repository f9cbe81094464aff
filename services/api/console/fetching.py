"""A document at a URL, fetched for an import: from where nodes may go too, within bounds of size and time."""

import asyncio
import re
from typing import Final

import httpx

from libs.net import GuardedHttp, TooLarge, read_at_most

FETCH_S: Final = 20.0
_ON_GITHUB: Final = re.compile(r"https://github\.com/([^/]+/[^/]+)/blob/(.+)")


class FetchFailed(Exception):
    """There is no document at the URL; the text says why."""


async def fetched(http: GuardedHttp, url: str, limit_bytes: int, *, within_s: float = FETCH_S) -> str:
    """The text at the URL. Raises FetchFailed."""
    try:
        async with asyncio.timeout(within_s):
            return await _fetched(http, raw_url(url), limit_bytes)
    except TimeoutError as error:
        raise FetchFailed(f"yaml_url: it has not come within {within_s:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchFailed(f"yaml_url: {error}") from error
    except UnicodeDecodeError as error:
        raise FetchFailed(f"yaml_url: what is there is no UTF-8 text: {error.reason} at byte {error.start}") from error


def raw_url(url: str) -> str:
    """Where a file is, for the page that GitHub shows of it; any other URL as it is."""
    return _ON_GITHUB.sub(r"https://raw.githubusercontent.com/\1/\2", url.strip())


async def _fetched(http: GuardedHttp, url: str, limit_bytes: int) -> str:
    if not url.startswith(("http://", "https://")):
        raise FetchFailed("yaml_url: expected a URL that begins with http:// or https://")
    request = httpx.Request("GET", url, headers={"Accept-Encoding": "gzip"})
    async with http.open(request) as response:
        if response.status_code != 200:
            raise FetchFailed(f"yaml_url: {response.url.host} answers with status {response.status_code}")
        try:
            return (await read_at_most(response, limit_bytes)).decode("utf-8")
        except TooLarge:
            text = f"yaml_url: it is larger than {limit_bytes >> 20} MB, the most that is taken"
            raise FetchFailed(text) from None
