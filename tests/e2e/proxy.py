"""What stands before several API processes: a plain TCP proxy that knows nothing of HTTP."""

import asyncio

import httpx

from tests.e2e.line import Line


class Proxy(Line):
    """Connections go to the servers in turn; a server that refuses one is passed over."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1", 0)
        self._servers: list[tuple[str, int]] = []
        self.taken: list[int] = []
        """Of every connection so far, which server took it: its place among the servers."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lead_to(self, *urls: str) -> None:
        """New connections go to these servers; those that stand are left alone."""
        self._servers = [(url.host, url.port or 80) for url in map(httpx.URL, urls)]

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        servers = self._servers
        turn = self.taken[-1] + 1 if self.taken else 0
        for number in range(turn, turn + len(servers)):
            place = number % len(servers)
            try:
                made = await asyncio.open_connection(*servers[place])
            except OSError:
                continue
            self.taken.append(place)
            return made
        raise OSError("no server takes the connection")
