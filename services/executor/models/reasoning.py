"""Separates `<think>` blocks from an answer while it streams.

A block is `<think ...>...</think>`, in any case, with up to 512 characters of attributes; one without an end reaches
to the end of the answer. White space around a block's content and behind the block is dropped; several blocks are
joined by a line break. What only looks like a tag (`<thinking>`, a lone `<`, `</think>` outside of a block) is text.
Any cutting of the answer into pieces gives the same text and the same reasoning.
"""

import re
from dataclasses import dataclass
from typing import Final

_OPEN: Final = re.compile(r"<think(?:\s[^>]{0,512})?>", re.IGNORECASE)
_CLOSE: Final = re.compile(r"</think\s{0,64}>", re.IGNORECASE)
_MAYBE_OPEN: Final = re.compile(r"<(?:t(?:h(?:i(?:n(?:k(?:\s[^>]{0,512})?)?)?)?)?)?\Z", re.IGNORECASE)
_MAYBE_CLOSE: Final = re.compile(r"<(?:/(?:t(?:h(?:i(?:n(?:k\s{0,64})?)?)?)?)?)?\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Split:
    text: str = ""
    reasoning: str = ""


class ReasoningSplitter:
    """`feed` the answer piece by piece, then `finish`; the parts in order are the text and the reasoning."""

    def __init__(self) -> None:
        self._held = ""
        """The end of what was fed, as long as it may be the beginning of a tag."""
        self._inside = False
        self._skip_blanks = False
        """Drop white space: it follows a tag."""
        self._blanks = ""
        """White space inside a block that counts only if more of the block follows."""
        self._joint = ""
        """What goes between the last block and the next."""

    def feed(self, piece: str) -> Split:
        waiting = self._held + piece
        text: list[str] = []
        reasoning: list[str] = []
        while True:
            tag = (_CLOSE if self._inside else _OPEN).search(waiting)
            if tag is None:
                break
            (reasoning if self._inside else text).append(self._content(waiting[: tag.start()]))
            waiting = waiting[tag.end() :]
            self._turn()
        held = (_MAYBE_CLOSE if self._inside else _MAYBE_OPEN).search(waiting)
        self._held = waiting[held.start() :] if held else ""
        (reasoning if self._inside else text).append(self._content(waiting[: held.start()] if held else waiting))
        return Split("".join(text), "".join(reasoning))

    def finish(self) -> Split:
        """What was held back."""
        rest, self._held = self._content(self._held), ""
        return Split(reasoning=rest) if self._inside else Split(text=rest)

    def _turn(self) -> None:
        self._inside = not self._inside
        self._skip_blanks = True
        self._blanks = ""

    def _content(self, piece: str) -> str:
        if self._skip_blanks:
            piece = piece.lstrip()
            if not piece:
                return ""
            self._skip_blanks = False
            if self._inside:
                piece, self._joint = self._joint + piece, "\n"
        if not self._inside:
            return piece
        whole = self._blanks + piece
        kept = whole.rstrip()
        self._blanks = whole[len(kept) :]
        return kept


def split_reasoning(text: str) -> Split:
    """A whole answer, separated."""
    splitter = ReasoningSplitter()
    first, last = splitter.feed(text), splitter.finish()
    return Split(first.text + last.text, first.reasoning + last.reasoning)
