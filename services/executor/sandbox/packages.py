"""Which installed packages the sandbox's interpreter is shown, and where they are.

Looked up in the executor's own installation, by distribution metadata: a package comes with what it declares to need.
Nothing is imported here.
"""

import importlib.metadata as metadata
import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

_RUNNER_NEEDS = ("jinja2", "markupsafe", "_quickjs")
_REQUIREMENT_NAME = re.compile(r"[A-Za-z0-9._-]+")


class PackageMissing(Exception):
    """A package that the settings name is not installed."""


class Site(TypedDict):
    """Packages that lie in one folder."""

    folder: str
    entries: list[str]
    """File and folder names that may be read."""
    names: list[str]
    """Names that may be imported."""


def for_runner() -> list[Site]:
    """What the runner itself needs, where installed. Templates need Jinja; JavaScript needs QuickJS."""
    sites: list[Site] = []
    for name in _RUNNER_NEEDS:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            place = Path(spec.origin)
            folder = place.parent.parent if spec.submodule_search_locations else place.parent
            sites.append(Site(folder=str(folder), entries=[], names=[name]))
    return sites


def for_code(names: Sequence[str]) -> list[Site]:
    """Packages by import or distribution name, with their dependencies. Raises PackageMissing."""
    if not names:
        return []
    by_import = metadata.packages_distributions()
    asked: list[str] = []
    for name in names:
        found = by_import.get(name) or [each for each in (name,) if _distribution(each) is not None]
        if not found:
            raise PackageMissing(
                f"FLOWLEDGER_SANDBOX_PACKAGES names {name!r}, which is not installed beside the executor. "
                f"Install it there, or remove the name"
            )
        asked += found
    sites: dict[str, Site] = {}
    for distribution in _with_dependencies(asked):
        folder = str(Path(str(distribution.locate_file(""))).resolve())
        site = sites.setdefault(folder, Site(folder=folder, entries=[], names=[]))
        tops = {path.parts[0] for path in distribution.files or ()} - {"..", "__pycache__", "/"}
        site["entries"] += sorted(tops)
        site["names"] += sorted({name for top in tops if (name := top.partition(".")[0]).isidentifier()})
    return list(sites.values())


def _with_dependencies(names: Iterable[str]) -> list[metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    left = list(names)
    while left:
        distribution = _distribution(left.pop())
        if distribution is None or distribution.metadata["Name"] in found:
            continue
        found[distribution.metadata["Name"]] = distribution
        for requirement in distribution.requires or ():
            text, _, marker = requirement.partition(";")
            name = _REQUIREMENT_NAME.match(text.strip())
            if name is not None and "extra" not in marker:
                left.append(name.group())
    return list(found.values())


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        return None
