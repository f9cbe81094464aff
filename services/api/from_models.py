"""What the model nodes of a run leave for the message that it answers: files, and the sources that they were given.

Pure. Files of models belong to the message also where no answer names them, as in the reference.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import JsonValue

from libs.workflow.segments import file_attribute, files_in

Json = dict[str, Any]

TYPE: Final = "llm"
"""The type of node that leaves any."""


class FromModels:
    """Give it every `llm` node that is done, in order."""

    __slots__ = ("files", "resources")

    def __init__(self) -> None:
        self.files: list[Any] = []
        self.resources: list[Json] = []

    def take(self, outputs: Mapping[str, Any] | None, process_data: Mapping[str, Any] | None) -> None:
        self.files += files_of(outputs or {})
        reported = (process_data or {}).get("retriever_resources")
        known = {_document(each) for each in self.resources}
        for each in reported if isinstance(reported, list) else ():
            # What an earlier node named is named once; the parts of a document that one node saw all count.
            if isinstance(each, dict) and (_document(each) is None or _document(each) not in known):
                self.resources.append(each | {"position": len(self.resources) + 1})

    def files_with(self, others: Iterable[Any]) -> list[Any]:
        """The files of models, then `others`, each once."""
        found: dict[Any, Any] = {}
        for file in (*self.files, *others):
            key = file_attribute(file, "related_id") or file_attribute(file, "url") or id(file)
            found.setdefault(key, file)
        return list(found.values())


def files_of(outputs: Mapping[str, JsonValue]) -> list[JsonValue]:
    """The file objects among the values of `outputs`, and in lists there."""
    return [file for value in outputs.values() for file in files_in(value)]


def _document(resource: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """The document that a source is of; None when it does not say."""
    base, document = resource.get("dataset_id"), resource.get("document_id")
    return (base, document) if isinstance(base, str) and isinstance(document, str) else None
