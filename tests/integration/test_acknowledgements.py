"""Acknowledgements come to an executor on threads of the log and on its own; their order is the log's all the same."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from libs.events.codec import decode_event
from libs.events.local import LocalAppender
from libs.events.log import Ack, Topic
from libs.events.memory import MemoryLog, MemoryStore
from tests.api_world import VAULT, Server
from tests.documents import document, edges, end, start, template
from tests.real_executor import RealExecutor

FLOW = document(
    [start("q"), template("a", "{{ q }}!", q="start.q"), template("b", "{{ q }}?", q="start.q"), end(a="a.output")],
    edges("start > a > end", "start > b > end"),
)


class TwoThreads(MemoryLog):
    """Of what is acknowledged together the first comes on another thread, the rest right behind it on the caller's."""

    split = 0

    def open_appender(self, on_acks: Callable[[list[Ack]], None], *, collects: bool = False) -> LocalAppender:
        def take(acks: list[Ack]) -> None:
            thread = threading.Thread(target=on_acks, args=(acks[:1],))
            thread.start()
            thread.join()
            if acks[1:]:
                self.split += 1
                on_acks(acks[1:])

        return super().open_appender(take, collects=collects)


def test_what_another_thread_has_brought_is_not_overtaken(tmp_path: Path) -> None:
    log = TwoThreads(MemoryStore(partitions=1))
    executor, server = RealExecutor(log, tmp_path, VAULT), Server(log)
    try:
        key = server.import_app(FLOW)["api_key"]
        answers: list[Any] = [server.start(key, {"inputs": {"q": "x"}}).json() for _ in range(20)]
    finally:
        server.close()
        executor.close()
    assert [answer["data"]["outputs"] for answer in answers] == [{"a": "x!"}] * 20
    events = [decode_event(record) for batch in log.read(Topic.EVENTS, 0, 0) for record in batch]
    assert log.split >= 20
    assert {event.epoch for event in events if event.run_id} == {1}, "it has lost its partition to itself"
