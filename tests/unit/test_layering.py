"""Who may import whom: inward only, services never each other, heavy libraries only where they belong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("libs", "services", "flowledger")


INSIDE = ROOT / "services/executor/sandbox/inside"
"""Runs in the sandbox's own interpreter, which sees nothing else of ours: its imports are relative."""


def sources(*folders: str) -> list[Path]:
    found = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return [file for file in found if INSIDE not in file.parents]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(file: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Names of the modules that `file` imports; `top_level_only` leaves out what functions import when called."""
    tree = ast.parse(file.read_text("utf-8"))
    nodes = _at_import_time(tree) if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield str(node.module)


def _at_import_time(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported; `if TYPE_CHECKING` does not."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def offences(files: list[Path], allowed: tuple[str, ...]) -> list[str]:
    return [
        f"{module_of(file)} imports {name}"
        for file in files
        for name in imported(file)
        if within(name, *OURS) and not within(name, *allowed)
    ]


def test_events_import_nothing_of_ours_but_themselves() -> None:
    assert offences(sources("libs/events"), ("libs.events",)) == []


def test_workflow_imports_only_events() -> None:
    assert offences(sources("libs/workflow"), ("libs.workflow", "libs.events")) == []


def test_libs_import_no_service() -> None:
    assert offences(sources("libs"), ("libs",)) == []


@pytest.mark.parametrize("service", ["api", "executor", "projector"])
def test_services_import_libs_and_themselves_never_a_sibling(service: str) -> None:
    assert offences(sources(f"services/{service}"), ("libs", f"services.{service}")) == []


def test_nobody_imports_the_command_line() -> None:
    assert offences(sources("libs", "services"), ("libs", "services")) == []


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("confluent_kafka", ("libs.events.kafka",)),
        ("sqlalchemy", ("libs.tables", "services.api", "services.projector")),
        ("psycopg2", ("services.projector",)),
        ("fastapi", ("services.api",)),
        ("uvicorn", ("services.api", "flowledger.dev")),
        ("prometheus_client", ("services",)),
        ("click", ("flowledger.cli",)),
        ("rich", ("flowledger.cli",)),
    ],
)
def test_a_library_is_imported_only_where_it_belongs(library: str, owners: tuple[str, ...]) -> None:
    assert [
        module_of(file)
        for file in sources(*OURS)
        if not within(module_of(file), *owners)
        and any(within(name, library) for name in imported(file, top_level_only=True))
    ] == []


def test_only_mains_and_the_command_line_read_the_environment() -> None:
    allowed = ("libs.settings", "services.api.main", "services.executor.main", "services.projector.main", "flowledger")
    assert [
        module_of(file)
        for file in sources(*OURS)
        if not within(module_of(file), *allowed) and "load_settings" in file.read_text("utf-8")
    ] == []
