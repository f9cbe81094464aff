"""Compiled definitions by digest: a document is parsed once per process, never once per run."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from threading import Lock

from libs.workflow.definition import Definition, WorkflowError, compile_document
from libs.workflow.segments import mask


class DefinitionMissing(WorkflowError):
    """No document with this digest is known here. The registry may be behind: refresh it, then ask again."""


class Catalog:
    """Keeps the `size` definitions used last. Thread-safe; two threads may compile the same document once each.

    `document` looks a document up by digest (None: unknown).
    """

    def __init__(self, document: Callable[[str], str | None], size: int = 256) -> None:
        self._document = document
        self._size = size
        self._compiled: OrderedDict[str, Definition] = OrderedDict()
        self._lock = Lock()

    def cached(self, digest: str) -> Definition | None:
        """The definition if it is compiled already; never blocks for long."""
        with self._lock:
            definition = self._compiled.get(digest)
            if definition is not None:
                self._compiled.move_to_end(digest)
            return definition

    def get(self, digest: str) -> Definition:
        """The definition; compiles it if need be (milliseconds). Raises DefinitionMissing or DefinitionInvalid."""
        definition = self.cached(digest)
        if definition is not None:
            return definition
        definition = self._make(digest)
        with self._lock:
            self._compiled[digest] = definition
            while len(self._compiled) > self._size:
                self._compiled.popitem(last=False)
        return definition

    def _make(self, digest: str) -> Definition:
        text = self._document(digest)
        if text is None:
            raise DefinitionMissing(f"no document with digest {digest} in the definitions topic")
        return compile_document(text)


class ShownCatalog(Catalog):
    """The same definitions for who shows runs and executes nothing: their secret variables have masked values."""

    def __init__(self, catalog: Catalog, size: int = 256) -> None:
        super().__init__(lambda digest: None, size)
        self._catalog = catalog

    def _make(self, digest: str) -> Definition:
        definition = self._catalog.get(digest)
        if all(each.type != "secret" for each in definition.environment):
            return definition
        shown = (
            replace(each, value=mask(str(each.value))) if each.type == "secret" else each
            for each in definition.environment
        )
        return replace(definition, environment=tuple(shown))
