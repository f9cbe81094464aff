"""The open corpus in the deterministic world: each file with the inputs, query and pins that lie beside it.

The handlers are the executor's own. Only what runs code and templates is replaced: it runs in this process, without
walls and without sleeping, because a crash at every append means thousands of runs. The real sandbox has tests of its
own (tests/integration/test_sandbox.py).
"""

import contextlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import NAMESPACE_URL, uuid5

import yaml
from pydantic import JsonValue

from libs.events.model import NodeSucceeded
from libs.settings import Settings
from libs.workflow.catalog import Catalog
from libs.workflow.definition import Definition, Node, NodeKind, compile_document
from libs.workflow.inputs import validate_inputs
from libs.workflow.state import RunState
from services.executor.nodes import NodeHandlers
from services.executor.nodes.code import CodeHandler
from services.executor.nodes.port import Handler
from services.executor.nodes.template_transform import TemplateTransformHandler
from services.executor.sandbox import OutputTooLong, SandboxError, SandboxResult
from services.executor.sandbox.inside import templates
from tests.simulation.world import World

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"
EXPECTED: dict[str, Any] = (
    json.loads((CORPUS / "expected.json").read_text("utf-8")) if (CORPUS / "expected.json").is_file() else {}
)
ABSENT = f"no corpus at {CORPUS}: put the corpus beside the project (../shared/corpus) to run these tests"


class InProcess:
    """Stands in for the sandbox: the same calls, no walls, and no waiting."""

    async def run(
        self, language: str, code: str, inputs: Mapping[str, JsonValue], *, timeout_s: float
    ) -> SandboxResult:
        assert language == "python3", f"the stand-in runs Python only, not {language}"
        scope: dict[str, Any] = {"__name__": "__main__"}
        try:
            with mock.patch.object(time, "sleep"), contextlib.redirect_stdout(io.StringIO()):
                exec(compile(code, "<code>", "exec", dont_inherit=True), scope)  # a corpus file's own code
                if not callable(scope.get("main")):
                    return SandboxResult({}, "The code must define a function main", "", 0.0)
                result = json.loads(json.dumps(scope["main"](**deepcopy(dict(inputs))), allow_nan=False))
        except Exception as error:  # whatever the author's code raises is the node's failure
            return SandboxResult({}, f"{type(error).__name__}: {error}", "", 0.0)
        return SandboxResult(result, None, "", 0.0)

    async def render(
        self, template: str, variables: Mapping[str, JsonValue], *, limit_chars: int, timeout_s: float
    ) -> str:
        try:
            return templates.render_bounded(templates.ENVIRONMENT.from_string(template), variables, limit_chars)
        except templates.OutputTooLong as error:
            raise OutputTooLong(str(error)) from error
        except Exception as error:  # whatever the author's expressions raise is the node's failure
            raise SandboxError(templates.describe(error)) from error


@cache
def handlers() -> dict[str, Handler]:
    """The executor's table of handlers."""
    inside: Any = InProcess()
    return NodeHandlers.build(Settings(models="offline")).by_type | {
        "code": CodeHandler(inside),
        "template-transform": TemplateTransformHandler(inside),
    }


@dataclass(frozen=True, slots=True)
class Case:
    """One run of a corpus file."""

    file: str
    definition: Definition
    inputs: dict[str, JsonValue]
    query: str | None
    pins: dict[str, Any]
    ends: str
    """Status to be reached."""

    def missing(self) -> list[str]:
        """Node types that nothing here can run and no pin answers for."""
        found = {
            node.type
            for node in self.definition.nodes.values()
            if node.kind not in (NodeKind.CONTAINER, NodeKind.MARKER)
            and node.type not in handlers()
            and node.type not in (self.pins.get("types") or {})
            and node.id not in (self.pins.get("nodes") or {})
        }
        return sorted(found)

    def branch_handles(self) -> list[tuple[Node, str]]:
        """Every handle that an if-else or a classifier of the document can select."""
        found = []
        for node in self.definition.nodes.values():
            if node.type == "if-else":
                cases = node.config.cases
                handles = ["true", "false"] if cases is None else [*(case.case_id for case in cases), "false"]
                found += [(node, handle) for handle in handles]
            if node.type == "question-classifier":
                found += [(node, each.id) for each in node.config.classes]
        return found

    def pinned(self, choices: Mapping[str, str]) -> "Case":
        """The same run with branch nodes pinned to handles."""
        nodes = (self.pins.get("nodes") or {}) | {node_id: {"branch": handle} for node_id, handle in choices.items()}
        return replace(self, pins=self.pins | {"nodes": nodes})


@cache
def case(file: str) -> Case:
    document = (CORPUS / file).read_bytes()
    given = yaml.safe_load((CORPUS / "pins" / file).read_bytes())
    definition = compile_document(document)
    inputs = {name: _file(value) if isinstance(value, dict) else value for name, value in given["inputs"].items()}
    return Case(
        file=file,
        definition=definition,
        inputs=validate_inputs(definition, inputs),
        query=given.get("query"),
        pins=given["pins"],
        ends=given["ends"],
    )


def _file(value: dict[str, Any]) -> dict[str, Any]:
    """`{name, text}` as the upload that it stands for."""
    name, text = value["name"], value["text"]
    return {
        "type": "document",
        "transfer_method": "local_file",
        "upload_file_id": str(uuid5(NAMESPACE_URL, name)),
        "filename": name,
        "mime_type": "text/csv",
        "size": len(text.encode()),
    }


@contextlib.contextmanager
def running(wanted: Case) -> Iterator[tuple[World, str]]:
    """A world in which the run has been asked for; nothing has happened yet."""
    world = World(handlers=handlers())
    world.catalog = _catalog()
    run_id = world.request(
        wanted.file,
        mode=wanted.definition.mode,
        inputs=wanted.inputs,
        query=wanted.query,
        conversation_id="conversation" if wanted.definition.mode == "advanced-chat" else None,
        pins=wanted.pins,
    )
    try:
        yield world, run_id
    finally:
        world.close()


@cache
def _catalog() -> Catalog:
    return Catalog(lambda file: (CORPUS / file).read_text("utf-8"))


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    status: str
    outputs: dict[str, JsonValue]
    error: str | None
    appends: int
    handles: frozenset[tuple[str, str]]
    """Handles that branch nodes selected."""


def ending(wanted: Case, *, crash_at: int | None = None) -> Ending:
    """Run it to its end. With `crash_at`, its executor dies after that many appends, and another one goes on."""
    with running(wanted) as (world, run_id):
        world.start_executor()
        if crash_at is not None:
            world.run(landings=crash_at)
            world.crash()
            world.start_executor()
        world.run()
        state: RunState = world.fold(run_id)
        handles = frozenset(
            (each.event.node_id, each.event.handle)
            for each in world.events(run_id)
            if isinstance(each.event, NodeSucceeded) and each.event.handle is not None
        )
        return Ending(state.status, state.outputs, state.error, world.landed, handles)
