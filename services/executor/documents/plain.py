"""Readers that need the standard library only (and PyYAML): bytes to text. They raise ValueError for a broken file."""

import csv
import email
import email.policy
import io
import json
import re
from collections.abc import Iterable, Sequence
from email.message import EmailMessage
from html.parser import HTMLParser
from typing import Final

_DECLARED: Final = re.compile(rb"<(?:meta[^>]{1,200}charset|\?xml[^>]{1,100}encoding)\s*=\s*[\"']?([\w.:-]{2,40})")
_KANA: Final = re.compile("[\u3040-\u30ff]")
_BLANKS: Final = re.compile(r"[ \t\r\f\v]*\n[ \t\r\f\v]*")


def decoded(content: bytes) -> str:
    """Text of bytes whose encoding nobody names. Never raises: the last guess takes any byte."""
    if content.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return content.decode("utf-32", "replace")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    declared = _DECLARED.search(content[:1024])
    for encoding in ("utf-8-sig", declared[1].decode() if declared else ""):
        try:
            if encoding:
                return content.decode(encoding)
        except (LookupError, ValueError):
            continue
    return _guessed(content)


def _guessed(content: bytes) -> str:
    try:
        # Only pairs of two high bytes: a lone accented letter of a Western text is no Chinese.
        content.decode("gb2312")
        return content.decode("gb18030")
    except ValueError:
        pass
    try:
        japanese = content.decode("shift_jis")
        if _KANA.search(japanese):
            return japanese
    except ValueError:
        pass
    try:
        return content.decode("cp1252")
    except ValueError:
        return content.decode("latin-1")


def read_json(content: bytes) -> str:
    return json.dumps(json.loads(decoded(content)), indent=2, ensure_ascii=False)


def read_yaml(content: bytes) -> str:
    import yaml  # here: the child process imports what it needs, and that takes time

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    try:
        documents = list(yaml.load_all(decoded(content), Loader=loader))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    # Aliases stay aliases, so that a few lines of them cannot become gigabytes.
    text: str = yaml.dump_all(documents, Dumper=dumper, allow_unicode=True, sort_keys=False)
    return text


def read_csv(content: bytes) -> str:
    text = decoded(content)
    csv.field_size_limit(max(len(text) + 1, csv.field_size_limit()))  # of the whole process: only ever raised
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in (",", ";", "\t") if mark in first), ",")
    try:
        return markdown_table(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(str(error)) from error


def read_properties(content: bytes) -> str:
    lines = []
    for line in decoded(content).splitlines():
        stripped = line.strip()
        if not stripped or stripped[0] in "#!":
            lines.append(stripped)
            continue
        key, _, value = re.sub(r"\s*[=:]\s*", "\0", stripped, count=1).partition("\0")
        lines.append(f"{key}: {value}")
    return "\n".join(lines)


def read_vtt(content: bytes) -> str:
    """What was said, a line per speaker as long as he speaks; times are left out."""
    turns: list[tuple[str, list[str]]] = []
    for block in re.split(r"\n\s*\n", decoded(content).replace("\r\n", "\n")):
        lines = block.split("\n")
        timing = next((number for number, line in enumerate(lines) if "-->" in line), None)
        if timing is None:
            continue  # the head, a note, a style
        said = " ".join(line.strip() for line in lines[timing + 1 :] if line.strip())
        voice = re.match(r"<v(?:\.[^\s>]*)?\s+([^>]{1,200})>", said)
        speaker = voice[1].strip() if voice else ""
        words = re.sub(r"<[^>]{0,200}>", "", said).strip()
        if turns and turns[-1][0] == speaker:
            turns[-1][1].append(words)
        elif words:
            turns.append((speaker, [words]))
    return "\n".join(f"{speaker}: {' '.join(words)}" if speaker else " ".join(words) for speaker, words in turns)


def read_eml(content: bytes) -> str:
    """Who, to whom, when, about what, and the body; attachments by name only."""
    message = email.message_from_bytes(content, EmailMessage, policy=email.policy.default)
    head = [f"{name}: {message[name]}" for name in ("From", "To", "Cc", "Date", "Subject") if message[name]]
    body = message.get_body(("plain", "html"))
    text = ""
    if body is not None:
        payload = body.get_payload(decode=True)
        raw = payload if isinstance(payload, bytes) else b""
        charset = body.get_content_charset()
        try:
            text = raw.decode(charset) if charset else decoded(raw)
        except (LookupError, ValueError):
            text = decoded(raw)
        if body.get_content_subtype() == "html":
            text = text_of_html(text)
    attached = [f"Attachment: {part.get_filename() or 'without a name'}" for part in message.iter_attachments()]
    return "\n\n".join(
        part for part in ("\n".join(head), text.replace("\r\n", "\n").strip(), "\n".join(attached)) if part
    )


# --- shared by readers ------------------------------------------------------------------------------------------------


def markdown_table(rows: Iterable[Sequence[object]]) -> str:
    """The first row is the head. Empty rows and columns are left out; a cell has no line break and no bare `|`."""
    kept = [[_cell(value) for value in row] for row in rows]
    kept = [row for row in kept if any(row)]
    if not kept:
        return ""
    width = max(len(row) for row in kept)
    filled = [row + [""] * (width - len(row)) for row in kept]
    used = [column for column in range(width) if any(row[column] for row in filled)]
    lines = ["| " + " | ".join(row[column] for column in used) + " |" for row in filled]
    lines.insert(1, "| " + " | ".join("---" for _ in used) + " |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return re.sub(r"\s*[\r\n]+\s*", " ", str(value)).strip().replace("|", "\\|")


def text_of_html(source: str) -> str:
    """What a reader of the page reads."""
    parser = _Words()
    parser.feed(source)
    parser.close()
    lines = _BLANKS.sub("\n", "".join(parser.pieces))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


class _Words(HTMLParser):
    _SILENT = frozenset({"script", "style", "head", "template", "noscript"})
    _BREAKING = frozenset(
        "p div br li tr h1 h2 h3 h4 h5 h6 section article blockquote pre table ul ol dl dt dd figure hr".split()
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._SILENT:
            self._silent += 1
        elif tag in self._BREAKING:
            self.pieces.append("\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._BREAKING:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag in self._BREAKING:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.pieces.append(data)
