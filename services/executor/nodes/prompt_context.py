"""The context of an `llm` node: its text, its files, and what of it a reader may want to look up.

What knowledge bases have found carries its source; that goes to the reader of the answer as citations, in the members
that clients of the format know.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from libs.workflow.configs.models import Context
from libs.workflow.outcome import Values
from libs.workflow.pool import Pool
from libs.workflow.segments import files_in

File = Mapping[str, JsonValue]

_CITED: Final[Mapping[str, str]] = {
    "position": "position",
    "dataset_id": "dataset_id",
    "dataset_name": "dataset_name",
    "document_id": "document_id",
    "document_name": "document_name",
    "data_source_type": "data_source_type",
    "segment_id": "segment_id",
    "retriever_from": "retriever_from",
    "score": "score",
    "hit_count": "segment_hit_count",
    "word_count": "segment_word_count",
    "segment_position": "segment_position",
    "index_node_hash": "segment_index_node_hash",
    "page": "page",
    "doc_metadata": "doc_metadata",
}
"""Member of a citation -> member of a result's metadata."""


class PromptError(Exception):
    """The prompt cannot be made of this document and these values."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


@dataclass(frozen=True, slots=True)
class ContextFound:
    text: str = ""
    files: tuple[File, ...] = ()
    sources: tuple[Values, ...] = ()


def context_of(context: Context, pool: Pool) -> ContextFound:
    """Empty when it is not enabled, or not there. Raises PromptError."""
    segment = pool.get(context.variable_selector) if context.enabled else None
    value = segment.value if segment is not None else None
    if isinstance(value, str):
        return ContextFound(value)
    lines: list[str] = []
    files: list[File] = []
    sources: list[Values] = []
    for number, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, str):
            lines.append(item)
        elif isinstance(item, dict):
            if "content" not in item:
                text = f"context: item {number} is an object without `content`; expected texts or search results"
                raise PromptError("InvalidContextStructureError", text)
            lines += [str(part) for part in (item.get("summary"), item["content"]) if part]
            files += files_in(item.get("files"))
            metadata = item.get("metadata")
            if isinstance(metadata, dict) and metadata.get("_source") == "knowledge":
                sources.append(_citation(item, metadata))
    return ContextFound("\n".join(lines).strip(), tuple(files), tuple(sources))


def _citation(item: Mapping[str, JsonValue], metadata: Mapping[str, JsonValue]) -> Values:
    cited: Values = {name: metadata.get(member) for name, member in _CITED.items()}
    return cited | {name: item.get(name) for name in ("content", "title", "files", "summary")}
