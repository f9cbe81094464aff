"""Large values leave their event for the blob port and come back when it is read.

An event whose JSON exceeds `LIMIT_BYTES` is written with references (see `libs.events.blobs`) in the place of its
largest values: values of `inputs`, `outputs`, `process_data`, `metadata`, `variables`, `pins`, `form`, `conversation`,
written variables, a round's output, a snapshot's state, a conversation's history, the beginning of a fork, the answer
of a message so far; whole fields when many small values are too much together. References stand only in these places,
so a reader looks nowhere else.

A value of the user's that merely looks like a reference must not be taken for one: it is moved out too, whatever its
size, and comes back as what it was. That is why `oversized` is also true for a body that may contain such a value.
"""

import json
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from threading import Lock
from typing import Any, TypeVar

from pydantic import BaseModel, JsonValue
from pydantic_core import PydanticSerializationError, from_json, to_json

from libs.events.blobs import BlobLost, BlobRef, Blobs, is_ref
from libs.events.codec import encode_body
from libs.events.sealed_values import SENT, read_value
from libs.events.sealing import Vault
from libs.events.slots import Slot, fields_of, slots, with_values

LIMIT_BYTES = 32 * 1024
"""What an event's JSON may have in the log."""

SMALLEST_BYTES = 1024
"""Values below it do not leave alone: their references would hardly be shorter."""

_MARK = b'"$blob"'

E = TypeVar("E", bound=BaseModel)


def oversized(body: bytes) -> bool:
    """Whether the event with this JSON must pass through `offload` before it is written."""
    return len(body) > LIMIT_BYTES or _MARK in body


def contains_ref(event: BaseModel) -> bool:
    """Whether `restore` would have to fetch something."""
    return any(is_ref(value) for _, value in slots(event))


def offload(event: E, blobs: Blobs, run_id: str) -> "Future[E]":
    """The event with its largest values moved to `blobs`, when they are durable there. Fails with LogError.

    An event without movable values (a part of a checkpoint) comes back as it is. `run_id` decides where the blobs live;
    empty for events that name their run themselves or have none.
    """
    result: Future[E] = Future()
    moves = _moves(event)
    if not moves:
        result.set_result(event)
        return result
    owner = run_id or getattr(event, "run_id", "") or getattr(event, "conversation_id", "")
    puts = {slot: blobs.put(owner, data) for slot, data in moves.items()}
    _Puts(event, puts, result)
    return result


def restore(event: E, blobs: Blobs, vault: Vault | None = None) -> E:
    """The event with all its values; sealed ones opened with `vault`, without it as readers are shown them.

    Blocking when it has references. Raises LogError.
    """
    fetched: dict[Slot, JsonValue] = {}
    for slot, value in slots(event):
        if is_ref(value):
            try:
                stored = from_json(blobs.get(value))
                fetched[slot] = stored if isinstance(event, SENT) else read_value(stored, vault)
            except ValueError as error:
                raise BlobLost(f"{type(event).__name__}.{slot[0]}: the blob of {slot[1]!r} is no JSON") from error
    return with_values(event, fetched) if fetched else event


class _Puts:
    """Settles the future of an event when all of its values are stored."""

    def __init__(self, event: BaseModel, puts: "dict[Slot, Future[BlobRef]]", result: "Future[Any]") -> None:
        self._event = event
        self._puts = puts
        self._result = result
        self._left = len(puts)
        self._lock = Lock()
        for put in puts.values():
            put.add_done_callback(self._one_done)

    def _one_done(self, _: "Future[BlobRef]") -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        failed = next((error for put in self._puts.values() if (error := put.exception()) is not None), None)
        with suppress(InvalidStateError):  # who waited has cancelled it
            if failed is not None:
                self._result.set_exception(failed)
            else:
                self._result.set_result(
                    with_values(self._event, {slot: put.result() for slot, put in self._puts.items()})
                )


def _moves(event: BaseModel) -> dict[Slot, bytes]:
    """What has to leave: its JSON by its place."""
    values = dict(slots(event))
    moves = {slot: _encode(value) for slot, value in values.items() if is_ref(value)}
    left = len(encode_body(event)) - _size(moves)
    if left <= LIMIT_BYTES:
        return moves
    sizes = {slot: _encode(value) for slot, value in values.items() if slot not in moves}
    for slot, data in sorted(sizes.items(), key=lambda item: len(item[1]), reverse=True):
        if left <= LIMIT_BYTES or len(data) < SMALLEST_BYTES:
            break
        moves[slot] = data
        left -= len(data)
    if left > LIMIT_BYTES:
        _move_whole_fields(event, moves, left)
    return moves


def _move_whole_fields(event: BaseModel, moves: dict[Slot, bytes], left: int) -> None:
    """Many small values: replace the moves of the largest object fields by moves of the fields."""
    fields = {name: _encode(value) for name in fields_of(type(event))[0] if (value := getattr(event, name))}
    for name, data in sorted(fields.items(), key=lambda item: len(item[1]), reverse=True):
        if left <= LIMIT_BYTES:
            return
        its = {slot: moves.pop(slot) for slot in list(moves) if slot[0] == name}
        left -= len(data) - _size(its)
        moves[name, None] = data


def _encode(value: Any) -> bytes:
    try:
        return to_json(value, inf_nan_mode="null")
    except PydanticSerializationError:  # half a surrogate pair, as in `encode_body`
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _size(moves: dict[Slot, bytes]) -> int:
    return sum(map(len, moves.values()))
