"""The text of a workflow document as plain values: YAML or JSON in, mappings, lists and scalars out.

Built from the parser's events, without recursion, because a document comes from anybody: nesting is bounded, and an
alias counts as large as what it stands for, so a few lines cannot grow into gigabytes. Differences from a plain YAML
loader are deliberate: keys are always text, dates stay text (a run is JSON all through), `0123`, `1_000` and `12:30`
stay text as well, infinities and NaN too, and a key given twice is reported.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Final

import yaml

from libs.workflow.problems import Findings, kind_of

MAX_BYTES: Final = 10 * 1024 * 1024
MAX_DEPTH: Final = 200

# In characters, aliases counted as often as they are used. Twice the largest document is generous for honest use.
_MAX_EXPANDED: Final = 2 * MAX_BYTES

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MISSING: Final = object()
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
_INTEGER: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,999})")
_BASED: Final = re.compile(r"0x[0-9a-fA-F]{1,64}|0o[0-7]{1,64}")
_FLOAT: Final = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?)")

_TAG: Final = "tag:yaml.org,2002:"
_HINTS: Final = (
    ("cannot start any token", "YAML indents with spaces, never tabs; text that begins with @, ` or % needs quotes"),
    ("mapping values are not allowed", 'Text that holds ": " needs quotes'),
    # The reader looks ahead and may meet its own limit before ours.
    (
        "exceeded maximum nesting depth",
        f"A document nested deeper than {MAX_DEPTH} levels is not read: none needs that",
    ),
    ("undefined alias", "An alias (*name) needs an anchor (&name) before it"),
    ("could not find expected ':'", "Check the indentation and the quotes of this line and the one before"),
    ("did not find expected", "Check the indentation and the quotes of this line and the one before"),
)


def parse(text: str | bytes, findings: Findings) -> dict[str, Any] | None:
    """The document as a mapping, or None with the reasons in `findings`. Never raises."""
    source = _decoded(text, findings)
    if source is None:
        return None
    value = _from_json(source, findings) if source.lstrip()[:1] in ("{", "[", '"') else _MISSING
    if value is _MISSING:
        value = _from_yaml(source, findings)
    if value is _MISSING:
        return None
    value = _unwrapped(value, findings)
    if isinstance(value, dict):
        return value
    if not findings.failed:
        findings.error(
            "",
            f"expected a mapping with `app` and `workflow`, got {kind_of(value)}",
            "Give the text of a workflow document (Dify DSL), not its name or an excerpt",
        )
    return None


def _decoded(text: str | bytes, findings: Findings) -> str | None:
    if len(text) > MAX_BYTES:
        findings.error("", f"the document has {len(text)} bytes; the limit is {MAX_BYTES}", "Split the workflow")
        return None
    try:
        if isinstance(text, str):
            text.encode()
            return text.removeprefix("\ufeff")
        return text.decode("utf-8-sig")
    except UnicodeError as error:
        position = getattr(error, "start", 0)
        findings.error("", f"not UTF-8 text (at byte {position})", "Save the document as UTF-8")
        return None


def _unwrapped(value: Any, findings: Findings) -> Any:
    """Some exports put the document's text into a JSON object: `{"data": "app: ..."}`."""
    for _ in range(3):
        inner = value
        if isinstance(value, dict) and "workflow" not in value and "app" not in value:
            inner = next((value[key] for key in ("data", "yaml_content", "dsl") if key in value), value)
        if inner is value and not (isinstance(value, str) and "\n" in value):
            return value
        findings.warn("", "the document is wrapped in JSON; the text inside was read", "Export it as a plain file")
        if isinstance(inner, str):
            inner = _from_json(inner, findings) if inner.lstrip()[:1] == "{" else _from_yaml(inner, findings)
            if inner is _MISSING:
                return None
        value = inner
    return value


# --- JSON ------------------------------------------------------------------------------------------------------------


def _from_json(source: str, findings: Findings) -> Any:
    """The value, or _MISSING when this is not JSON (it may still be YAML)."""
    repeated: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            repeated.append(next(name for name in made if names.count(name) > 1))
        return made

    try:
        value = json.loads(source, object_pairs_hook=mapping, parse_constant=str, parse_float=_float)
    except (ValueError, RecursionError):
        return _MISSING
    if _depth(value) > MAX_DEPTH:
        findings.error("", f"nested deeper than {MAX_DEPTH} levels", "No workflow needs that; check the document")
        return None
    for name in repeated:
        findings.warn("", f'the key "{name}" appears twice in one object; the last one counts')
    return value


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
        if depth > MAX_DEPTH:
            break
    return depth


# --- YAML ------------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """The document is YAML, but of a kind that is not read."""

    def __init__(self, problem: str, hint: str, mark: Any) -> None:
        self.problem, self.hint, self.mark = problem, hint, mark


class _Frame:
    """A mapping or list that is being filled."""

    __slots__ = ("anchor", "height", "key", "merged", "start", "value")

    def __init__(self, value: Any, anchor: str | None, start: int) -> None:
        self.value = value
        self.key: str | None = None
        self.merged: list[dict[str, Any]] = []
        self.anchor = anchor
        self.start = start
        self.height = 1


def _from_yaml(source: str, findings: Findings) -> Any:
    """The value, or _MISSING with the reason in `findings`."""
    tree = _Tree(findings)
    try:
        loader = _Loader(source)
        try:
            tree.read(loader.get_event)
        finally:
            loader.dispose()
    except _Refused as refused:
        findings.error(_place(refused.mark), refused.problem, refused.hint)
        return _MISSING
    except yaml.MarkedYAMLError as error:
        problem = error.problem or error.context or "broken YAML"
        hint = next((hint for words, hint in _HINTS if words in problem), "The text after this place was not read")
        findings.error(_place(error.problem_mark or error.context_mark), f"broken YAML: {problem}", hint)
        return _MISSING
    except yaml.YAMLError as error:
        findings.error(_position(source, error), f"broken YAML: {getattr(error, 'reason', error)}", "Remove it")
        return _MISSING
    return tree.root


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _position(source: str, error: Exception) -> str:
    position = getattr(error, "position", None)
    if not isinstance(position, int):
        return ""
    before = source.encode()[:position].decode(errors="ignore")  # the parser counts bytes
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


class _Tree:
    """Builds values from YAML events."""

    def __init__(self, findings: Findings) -> None:
        self.root: Any = None
        self._findings = findings
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int, int]] = {}  # value, weight, height
        self._weight = 0
        self._documents = 0

    def read(self, next_event: Callable[[], Any]) -> None:
        scalar, start_map, start_list = self._scalar, self._mapping, self._sequence
        while True:
            event = next_event()
            kind = type(event)
            if kind is yaml.ScalarEvent:
                scalar(event)
            elif kind is yaml.MappingStartEvent:
                start_map(event)
            elif kind is yaml.SequenceStartEvent:
                start_list(event)
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                self._end()
            elif kind is yaml.AliasEvent:
                self._alias(event)
            elif kind is yaml.DocumentStartEvent:
                self._document(event)
            elif kind is yaml.StreamEndEvent:
                return

    def _scalar(self, event: Any) -> None:
        text = event.value
        self._weight += len(text) + 1
        stack = self._stack
        if stack:
            frame = stack[-1]
            if frame.key is None and type(frame.value) is dict:
                frame.key = text
                if event.anchor is not None:
                    self._anchors[event.anchor] = (text, len(text) + 1, 0)
                return
        value = _plain(text) if event.tag is None and event.implicit[0] else self._tagged(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, len(text) + 1, 0)
        self._put(value, event)

    def _tagged(self, event: Any) -> Any:
        tag = event.tag
        if tag is None or tag == "!" or tag in (_TAG + "str", _TAG + "timestamp"):
            return event.value
        if tag in (_TAG + "int", _TAG + "float", _TAG + "bool", _TAG + "null"):
            return _plain(event.value)
        raise _Refused(
            f"the tag {tag[:100]} is not read", "Use plain text, numbers, lists and mappings", event.start_mark
        )

    def _mapping(self, event: Any) -> None:
        self._begin(event, {}, "map")

    def _sequence(self, event: Any) -> None:
        self._begin(event, [], "seq")

    def _begin(self, event: Any, value: Any, tag: str) -> None:
        if event.tag is not None and event.tag not in ("!", _TAG + tag):
            self._tagged(event)
        stack = self._stack
        if stack and stack[-1].key is None and type(stack[-1].value) is dict:
            raise _Refused("a list or mapping cannot be a key", "Use text as key", event.start_mark)
        if len(stack) >= MAX_DEPTH:
            raise _Refused(f"nested deeper than {MAX_DEPTH} levels", "No workflow needs that", event.start_mark)
        anchor = event.anchor
        if anchor is not None:
            self._anchors.pop(anchor, None)  # complete only at its end: an alias inside would never end
        stack.append(_Frame(value, anchor, self._weight))
        self._weight += 1

    def _end(self) -> None:
        frame = self._stack.pop()
        for merged in frame.merged:
            for key, value in merged.items():
                frame.value.setdefault(key, value)
        if frame.anchor is not None:
            self._anchors[frame.anchor] = (frame.value, self._weight - frame.start, frame.height)
        if self._stack and self._stack[-1].height <= frame.height:
            self._stack[-1].height = frame.height + 1
        self._put(frame.value, None)

    def _alias(self, event: Any) -> None:
        found = self._anchors.get(event.anchor)
        if found is None:
            raise _Refused(
                f"the alias *{event.anchor} has no complete anchor before it",
                "An alias must follow its anchor and not lie inside it",
                event.start_mark,
            )
        value, weight, height = found
        self._weight += weight
        if len(self._stack) + height > MAX_DEPTH:
            raise _Refused(f"nested deeper than {MAX_DEPTH} levels", "No workflow needs that", event.start_mark)
        if self._stack and self._stack[-1].height <= height:
            self._stack[-1].height = height + 1
        if self._weight > _MAX_EXPANDED:
            raise _Refused(f"aliases expand to more than {_MAX_EXPANDED} bytes", "Write values out", event.start_mark)
        frame = self._stack[-1] if self._stack else None
        if frame is not None and frame.key is None and type(frame.value) is dict:
            if not isinstance(value, str):
                raise _Refused("an alias used as a key must stand for text", "Use text as key", event.start_mark)
            frame.key = value
            return
        self._put(value, event)

    def _document(self, event: Any) -> None:
        self._documents += 1
        if self._documents > 1:
            raise _Refused("more than one YAML document in the text", "Keep one, up to its `---`", event.start_mark)

    def _put(self, value: Any, event: Any) -> None:
        if not self._stack:
            self.root = value
            return
        frame = self._stack[-1]
        target = frame.value
        if type(target) is list:
            target.append(value)
            return
        key, frame.key = frame.key, None
        assert key is not None  # a key always came first: _scalar, _alias and _begin see to it
        if key == "<<" and self._merge(frame, value):
            return
        if key in target:
            self._findings.warn(self._path(key), "the key appears twice; the last one counts", "Remove one of them")
        target[key] = value

    def _merge(self, frame: _Frame, value: Any) -> bool:
        merged = value if isinstance(value, list) else [value]
        if not all(isinstance(each, dict) for each in merged):
            return False
        frame.merged.extend(merged)
        return True

    def _path(self, key: str) -> str:
        parts = [f".{f.key}" if type(f.value) is dict else f"[{len(f.value)}]" for f in self._stack[:-1]]
        return "".join([*parts, "." + key]).removeprefix(".")


def _float(text: str) -> float | str:
    number = float(text)
    return text if number in (float("inf"), float("-inf")) else number


def _plain(text: str) -> Any:
    """The value of a plain scalar."""
    word = _WORDS.get(text, _MISSING)
    if word is not _MISSING:
        return word
    if text[0] in "-+.0123456789":
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return _float(text)
        if _BASED.fullmatch(text):
            return int(text, 0)
    return text
