"""A run as a client sees it: the driver, a response stream over its events, and chunks made by the test."""

from typing import Any

from libs.events.chunks import Chunk
from libs.events.model import RunEvent
from libs.workflow.definition import Definition
from libs.workflow.machine import Rejection
from libs.workflow.state import Key
from libs.workflow.streaming import ResponseStream, Text
from tests.driver import RUN_ID, Driver


class Screen(Driver):
    """`shown` is the text on the client's screen; `said` every `Text`, with the event or chunk that caused it."""

    def __init__(self, document: str | Definition, q: str = "", accepted: dict[str, Any] | None = None) -> None:
        self.stream: ResponseStream | None = None
        self.said: list[tuple[str, Text]] = []
        self.shown = ""
        super().__init__(document, accepted=accepted, q=q)

    def fold(self, event: RunEvent | Rejection) -> None:
        super().fold(event)
        assert not isinstance(event, Rejection)
        if self.stream is None:
            self.stream = ResponseStream(self.state.definition)
        node_id = getattr(event, "node_id", None)
        self.show(f"{event.type}({node_id})" if node_id else event.type, self.stream.on_event(event, self.state))

    def show(self, cause: str, texts: list[Text]) -> None:
        for text in texts:
            self.said.append((cause, text))
            self.shown = text.text if text.replace else self.shown + text.text
        assert self.stream is not None
        assert self.stream.position == len(self.shown)

    def chunk(
        self,
        node_id: str,
        text: str,
        position: int = 0,
        *,
        name: str = "result",
        path: str = "",
        attempt: int | None = None,
        epoch: int | None = None,
        after: int | None = None,
    ) -> None:
        """A chunk of the running attempt, unless told otherwise."""
        execution = self.state.executions[Key(path, node_id)]
        chunk = Chunk(
            run_id=RUN_ID,
            epoch=self.epoch if epoch is None else epoch,
            node_id=node_id,
            path=path,
            attempt=execution.attempt if attempt is None else attempt,
            field=name,
            position=position,
            text=text,
            after=self.state.seq if after is None else after,
        )
        assert self.stream is not None
        self.show("chunk", self.stream.on_chunk(chunk))

    def texts(self) -> list[tuple[str, str]]:
        """(cause, text) in order."""
        return [(cause, text.text) for cause, text in self.said]
