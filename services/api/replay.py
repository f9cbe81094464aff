"""What a client that comes back has not seen, from a run's history alone.

Pure. How much text the client has seen may be unknown, or may be more than the log holds by then: streamed text
reaches the log only when its node is done. Where that cannot be settled, the client gets all text that holds anew.
"""

from collections.abc import Iterator

from libs.events.codec import Recorded
from libs.events.model import NodeFailed, NodeRestarted, NodeRetryScheduled
from services.api.frames import Cursor, Frame
from services.api.live import Fold

Step = tuple[Recorded, list[Frame], Fold]
"""An event of the history, the frames it makes, and the fold behind it."""

PAGE_BYTES = 64 * 1024


def replay(history: Iterator[Step], after: Cursor, to_seq: int) -> Iterator[tuple[list[Frame], Cursor]]:
    """Pages of frames behind `after` and up to event `to_seq`, each with what the client has seen then."""
    resumed = _Resumed(after)
    page: list[Frame] = []
    size = 0
    for recorded, frames, fold in history:
        if recorded.seq > to_seq:
            break
        for frame in resumed.unseen(recorded, frames, fold):
            page.append(frame)
            size += len(frame.wire)
        if size > PAGE_BYTES:
            yield page, Cursor(recorded.seq, resumed.shown)
            page, size = [], 0
    yield page, Cursor(max(to_seq, after.seq), resumed.shown)


class _Resumed:
    """A client's place in the history."""

    def __init__(self, after: Cursor) -> None:
        self._after = after
        self.shown = after.position
        """Characters of text the client shows; None until the history says it."""

    def unseen(self, recorded: Recorded, frames: list[Frame], fold: Fold) -> list[Frame]:
        if recorded.seq < self._after.seq:
            return []
        if recorded.seq == self._after.seq:
            return self._at_the_cursor(frames, fold)
        lost = isinstance(recorded.event, NodeRestarted | NodeRetryScheduled | NodeFailed)
        maker = fold.maker
        if lost and self.shown is not None and self.shown > maker.position:
            # It has seen text of an attempt that no longer holds, and which never was in the log.
            self.shown = maker.position
            return [*frames, maker.replacement(maker.text, maker.seq)]
        return [each for frame in frames if (each := self._unseen(frame, fold)) is not None]

    def _at_the_cursor(self, frames: list[Frame], fold: Fold) -> list[Frame]:
        """The event that the client saw last: text may follow it."""
        maker = fold.maker
        following = [frame for frame in frames if frame.kind == "text" and frame.seq == self._after.seq]
        if self.shown is None:
            own = [frame for frame in frames if frame not in following]
            self.shown = own[-1].position if own else maker.position
            if own and own[-1].unsettled and maker.position:
                self.shown = maker.position
                return [maker.replacement(maker.text, maker.seq)]
        return [each for frame in following if (each := self._unseen(frame, fold)) is not None]

    def _unseen(self, frame: Frame, fold: Fold) -> Frame | None:
        if frame.kind == "event":
            return frame
        shown = self.shown or 0
        if frame.kind == "replace":
            self.shown = frame.position
            return frame
        if frame.position <= shown:
            return None
        self.shown = frame.position
        if frame.position - len(frame.text) == shown:
            return frame
        maker = fold.maker
        return maker.text_frame(maker.text[shown : frame.position], frame.selector, frame.seq, frame.position)
