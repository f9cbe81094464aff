"""Reads JSON as templates and models write it: nearly.

Understood beyond JSON: control characters and unescaped quotes inside strings, single quotes, Python's `True`, `False`,
`None`, bare keys and words, comments, missing or trailing commas, missing closing brackets at the end, a Markdown
fence or prose around the value. Valid JSON always means what JSON says. What cannot be guessed raises ValueError.
"""

import json
import re
from typing import Final, NoReturn

from pydantic import JsonValue

_FENCE: Final = re.compile(r"```[a-zA-Z0-9_-]*[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_BLANK: Final = re.compile(r"(?:\s+|//[^\n]*|/\*.*?(?:\*/|\Z)|#[^\n]*)*", re.DOTALL)
_WORD: Final = re.compile(r"[^\s,:\[\]{}\"']+")
_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?\Z")
_PLAIN: Final = re.compile(r"[^\"'\\]+")
_KEY_AHEAD: Final = re.compile(r"\s*(?:\"[^\"\n]{0,200}\"|'[^'\n]{0,200}'|[A-Za-z_$][\w$-]{0,200})\s*:")
_ITEM_AHEAD: Final = re.compile(r"\s*(?:[\"'\[{\-\d]|true|false|null|True|False|None|\Z)")
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_WORDS: Final[dict[str, JsonValue]] = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "null": None,
    "None": None,
}
_DEEPEST: Final = 100
_MOST_STARTS: Final = 50
_MOST_SEARCHED: Final = 200_000
"""Brackets to try, and characters to look at, when searching prose for an object: it must not take seconds."""


def parse_leniently(text: str) -> JsonValue:
    """The value that `text` most likely means. Raises ValueError when there is none."""
    try:
        return _strictly(text)
    except (ValueError, RecursionError):
        pass
    value = _Reader(_unwrapped(text)).document()
    if not isinstance(value, (dict, list)):
        raise ValueError(f"expected JSON, got text that starts with {text.strip()[:40]!r}")
    return value


def first_object(text: str) -> dict[str, JsonValue] | None:
    """The first JSON object with anything in it, wherever in the text it stands; None when there is none."""
    if len(text) > _MOST_SEARCHED:
        try:
            whole = _strictly(text)
        except (ValueError, RecursionError):
            whole = None
        if isinstance(whole, dict):
            return whole or None
    text = text[:_MOST_SEARCHED]
    at = text.find("{")
    for _ in range(_MOST_STARTS):
        if at < 0:
            break
        try:
            value = parse_leniently(text[at:])
        except ValueError:
            value = None
        if isinstance(value, dict) and value:
            return value
        at = text.find("{", at + 1)
    return None


def _strictly(text: str) -> JsonValue:
    value: JsonValue = json.loads(text, strict=False, parse_constant=_refuse_constant)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unwrapped(text: str) -> str:
    """The part from the first bracket, or the inside of the first Markdown fence that has one."""
    fence = _FENCE.search(text)
    if fence and ("{" in fence[1] or "[" in fence[1]) and not text.lstrip().startswith(("{", "[")):
        text = fence[1]
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    if not starts:
        raise ValueError(f"expected JSON, got text that starts with {text.strip()[:40]!r}")
    return text[min(starts) :]


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def document(self) -> JsonValue:
        return self._value("")

    def _peek(self) -> str:
        """The next character that means something; empty at the end."""
        blank = _BLANK.match(self._text, self._at)
        self._at = blank.end() if blank else self._at
        return self._text[self._at : self._at + 1]

    def _value(self, inside: str) -> JsonValue:
        """One value; `inside` is the bracket that holds it, or empty."""
        character = self._peek()
        if character in ('"', "'"):
            return self._string(character, inside)
        if character not in ("{", "["):
            return self._bare()
        self._at += 1
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError(f"JSON is nested deeper than {_DEEPEST} levels")
        value: JsonValue = self._object() if character == "{" else self._array()
        self._depth -= 1
        return value

    def _object(self) -> dict[str, JsonValue]:
        found: dict[str, JsonValue] = {}
        while character := self._peek():
            if character == "}":
                self._at += 1
                break
            if character == ",":
                self._at += 1
                continue
            key = self._string(character, "key") if character in ('"', "'") else str(self._word())
            if self._peek() != ":":
                raise ValueError(f"expected ':' after the key {key[:40]!r}")
            self._at += 1
            found[key] = None if self._peek() in ("", "}", ",") else self._value("{")
        return found

    def _array(self) -> list[JsonValue]:
        found: list[JsonValue] = []
        while character := self._peek():
            if character == "]":
                self._at += 1
                break
            if character == ",":
                self._at += 1
                continue
            if character == "}":
                break  # the list was not closed; its object is
            found.append(self._value("["))
        return found

    def _bare(self) -> JsonValue:
        word = self._word()
        if word in _WORDS:
            return _WORDS[word]
        if _NUMBER.match(word):
            return float(word) if any(mark in word for mark in ".eE") else int(word)
        return word

    def _word(self) -> str:
        match = _WORD.match(self._text, self._at)
        if match is None:
            raise ValueError(f"unexpected {self._text[self._at : self._at + 1]!r} at character {self._at}")
        self._at = match.end()
        return match[0]

    def _string(self, quote: str, inside: str) -> str:
        """A string from its opening quote. A quote that nothing after it can follow belongs to the text."""
        self._at += 1
        pieces: list[str] = []
        while self._at < len(self._text):
            plain = _PLAIN.match(self._text, self._at)
            if plain:
                pieces.append(plain[0])
                self._at = plain.end()
                continue
            character = self._text[self._at]
            self._at += 1
            if character == "\\":
                pieces.append(self._escape())
            elif character == quote and self._closes(inside):
                break
            else:
                pieces.append(character)
        return "".join(pieces)

    def _closes(self, inside: str) -> bool:
        at = self._at
        while self._text[at : at + 1].isspace():
            at += 1
        following = self._text[at : at + 1]
        if not following or inside == "":
            return True
        if inside == "key":
            return following == ":"
        if following == ",":
            ahead = _KEY_AHEAD if inside == "{" else _ITEM_AHEAD
            return bool(ahead.match(self._text, at + 1)) or self._text[at + 1 : at + 80].lstrip()[:1] in ("}", "]", "")
        if following in "]}":
            return True
        # A missing comma: the next line begins another key.
        return inside == "{" and "\n" in self._text[self._at : at] and bool(_KEY_AHEAD.match(self._text, at))

    def _escape(self) -> str:
        character = self._text[self._at : self._at + 1]
        self._at += 1
        if character != "u":
            return _ESCAPES.get(character, character)
        digits = self._text[self._at : self._at + 4]
        try:
            code = int(digits, 16)
        except ValueError:
            return "\\u"
        self._at += 4
        if 0xD800 <= code < 0xDC00 and self._text[self._at : self._at + 2] == "\\u":
            low = int(self._text[self._at + 2 : self._at + 6] or "0", 16)
            self._at += 6
            return chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)) if 0xDC00 <= low < 0xE000 else "\ufffd"
        return chr(code) if not 0xD800 <= code < 0xE000 else "\ufffd"
