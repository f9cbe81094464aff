"""Connections that send nothing, or no whole request, to a real server."""

import socket
import time
from pathlib import Path

import pytest

from flowledger.dev import start_embedded
from libs.settings import Settings
from services.api import connections

ASKED = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_connection_whose_request_does_not_come_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 1.0)
    instance = start_embedded(tmp_path, "127.0.0.1", 0, Settings(models="offline", data=tmp_path))
    try:
        address = ("127.0.0.1", int(instance.url.rpartition(":")[2]))
        silent, slow, kept, slow_later = (socket.create_connection(address, 10) for _ in range(4))
        slow.sendall(ASKED[:-4] + b"\r\nX-Slow: ")
        for each in (kept, slow_later):
            each.sendall(ASKED)
            assert each.recv(4096).startswith(b"HTTP/1.1 200")
        slow_later.sendall(ASKED[:20])
        begun = time.monotonic()
        for number in range(5):
            time.sleep(0.3)
            if number < 2:
                slow.sendall(b"x")
            kept.sendall(ASKED)
            assert kept.recv(4096).startswith(b"HTTP/1.1 200"), "who asks again and again goes on"
        for each in (silent, slow, slow_later):
            each.settimeout(5)
            assert each.recv(4096) == b""
            each.close()
        assert time.monotonic() - begun < 10
        kept.close()
    finally:
        instance.stop()
