"""A client that vanishes without a word: its packets are dropped, on a network of the test's own."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from libs import serving

HERE, THERE = "10.231.77.1", "10.231.77.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture
def network() -> Iterator[tuple[str, str]]:
    """The name of another host's network, and of its link; this host is `HERE` for it."""
    name = f"flg{os.getpid()}"
    if sys.platform != "linux" or shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("makes a network: needs Linux, root and `ip` (iproute2)")
    try:
        ip("netns", "add", name)
        ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p", "netns", name)
    except subprocess.CalledProcessError as error:
        with suppress(subprocess.CalledProcessError):
            ip("netns", "del", name)
        pytest.skip(f"no network can be made here: {error.stderr.decode().strip()}")
    ip("addr", "add", f"{HERE}/30", "dev", name)
    ip("link", "set", name, "up")
    ip("-n", name, "addr", "add", f"{THERE}/30", "dev", f"{name}p")
    ip("-n", name, "link", "set", f"{name}p", "up")
    yield name, f"{name}p"
    ip("link", "del", name)  # before its network, which takes a link along some time later
    ip("netns", "del", name)


def test_the_connection_of_a_client_that_vanished_is_given_up(
    network: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a twentieth of the time, and a ping every tenth of a second."""
    monkeypatch.setattr(serving, "GONE_MS", 3000)
    name, link = network
    read = (
        "import socket, sys; c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)\nwhile c.recv(64): pass"
    )

    async def seconds_until_it_is_given_up(listening: socket.socket) -> float:
        gone_at = ended_at = 0.0
        connected, ended = asyncio.Event(), asyncio.Event()

        async def ping(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal ended_at
            connected.set()
            try:
                while True:
                    writer.write(b"event: ping\n\n")
                    await writer.drain()
                    await asyncio.sleep(0.1)
            except OSError:
                ended_at = time.monotonic()
                ended.set()
            finally:
                writer.close()

        port = listening.getsockname()[1]
        async with await asyncio.start_server(ping, sock=listening):
            words = ["ip", "netns", "exec", name, sys.executable, "-c", read, HERE, str(port)]
            with subprocess.Popen(words) as client:  # noqa: ASYNC220 (it takes no time, and nobody else has the loop)
                try:
                    await asyncio.wait_for(connected.wait(), 20)
                    await asyncio.sleep(1)
                    assert not ended.is_set()
                    await asyncio.to_thread(ip, "-n", name, "link", "set", link, "down")
                    gone_at = time.monotonic()
                    await asyncio.wait_for(ended.wait(), 30)
                finally:
                    client.kill()
        return ended_at - gone_at

    with closing(serving.listen(HERE, 0, 10)) as listening:
        assert 1 < asyncio.run(seconds_until_it_is_given_up(listening)) < 20
