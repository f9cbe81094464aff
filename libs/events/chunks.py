"""Chunks: streamed text of running nodes. Shown to people, never part of state; may be lost."""

from pydantic import BaseModel, ConfigDict, ValidationError

from libs.events.log import Entry, Record


class Chunk(BaseModel):
    """A piece of text that an attempt produced for one of its outputs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    epoch: int
    """Epoch of the owner that ran the attempt; a later epoch's chunks replace it."""
    node_id: str
    path: str = ""
    attempt: int = 1
    field: str
    """Name of the output it belongs to: `text`, `reasoning_content`, ..."""
    position: int
    """Characters of this output that came before this chunk in this attempt."""
    text: str
    after: int
    """The run's sequence that this chunk follows: show it only when that event was shown."""


def encode_chunk(chunk: Chunk) -> Entry:
    return Entry(key=chunk.run_id.encode(), value=chunk.model_dump_json().encode(), headers=())


def decode_chunk(record: Record) -> Chunk | None:
    """The chunk of a record; None when it cannot be read (chunks may be lost, so this is no error)."""
    try:
        return Chunk.model_validate_json(record.value or b"")
    except ValidationError:
        return None
