"""The interpreter that the children inherit: what is imported before the first fork, and from where.

In the mode `strict` everything is imported through open descriptors, so that a process without access to the
installation's path can go on importing, and learns nothing about that path.
"""

import contextlib
import importlib
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from . import runner, walls

STDLIB = 4
"""The descriptor of the standard library's folder; folders of packages follow."""

# Imported before the first fork: what code nodes commonly use, and what opens files at its first use that the code
# may not open.
_WARM = """
    abc argparse ast asyncio base64 binascii bisect bz2 calendar cmath codecs collections.abc colorsys
    concurrent.futures configparser contextlib copy csv ctypes dataclasses datetime decimal difflib email.utils enum
    errno fnmatch fractions functools glob gzip hashlib heapq hmac html html.parser http inspect io ipaddress itertools
    json keyword linecache locale logging lzma math mimetypes numbers operator os pathlib pickle platform pprint queue
    random re secrets shlex signal socket sqlite3 ssl statistics string struct subprocess tempfile textwrap threading
    time timeit tokenize traceback types typing unicodedata urllib.error urllib.parse urllib.request uuid warnings
    weakref xml.etree.ElementTree xml.sax.saxutils zipfile zlib zoneinfo
""".split()
_WARM_OWN = ("jinja2", "jinja2.constants", "jinja2.debug", "jinja2.sandbox", "_quickjs")


class _Packages:
    """Finds the named packages in their folders of installed packages, and no others."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        folder = self._folders.get(name)
        return None if folder is None else PathFinder.find_spec(name, [folder])


def move_imports(config: dict[str, Any]) -> walls.Readable:
    """Import the standard library, and packages, through open descriptors from here on.

    A child has another user, which may not be able to walk the path to the installation (a private home, say); and it
    need not learn where that is.
    """
    stdlib = os.path.dirname(os.__file__)
    _open_at(stdlib, STDLIB)
    shown = f"/proc/self/fd/{STDLIB}"
    runner.hide(shown, "<python>")
    for module in list(sys.modules.values()):
        path = getattr(module, "__path__", None)
        if isinstance(path, list):
            module.__path__ = [shown + each[len(stdlib) :] if each.startswith(stdlib) else each for each in path]
    sys.path[:] = [shown, f"{shown}/lib-dynload"]
    sys.path_importer_cache.clear()
    packages = []
    for number, site in enumerate(config["packages"]):
        place = STDLIB + 1 + number
        _open_at(site["folder"], place)
        site["folder"] = f"/proc/self/fd/{place}"
        packages.append((place, tuple(site["entries"])))
    _import_warm()
    return walls.Readable(STDLIB, _libraries(stdlib), tuple(packages))


def _open_at(folder: str, number: int) -> None:
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    if place != number:
        os.dup2(place, number, inheritable=False)
        os.close(place)


def _import_warm() -> None:
    for name in _WARM:
        with contextlib.suppress(ImportError):  # an interpreter built without it
            importlib.import_module(name)
    mimetypes = sys.modules.get("mimetypes")
    if mimetypes is not None:
        mimetypes.init()


def import_packages(config: dict[str, Any], *, strict: bool) -> set[str]:
    """Make the configured packages importable, warm; returns the top names of those that only the runner may use."""
    if not strict:
        _import_warm()
    own = {name: site["folder"] for site in config["own"] for name in site["names"]}
    named = {name: site["folder"] for site in config["packages"] for name in site["names"]}
    finder = _Packages({**own, **named})
    sys.meta_path.append(finder)
    for name in (*_WARM_OWN, *config["warm"]):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from . import templates  # noqa: F401  # warm, while it can be imported

    sys.meta_path[-1] = _Packages(named)
    return {__name__.partition(".")[0], *own} - set(named)


def _libraries(stdlib: str) -> tuple[str, ...]:
    """The shared libraries in use; where the C library's folder holds nothing else, all of that folder."""
    found: set[str] = set()
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if ".so" in path:
                found.add(f"/{path}")
    for path in [each for each in found if os.path.basename(each).startswith(("libc.so", "libc-", "ld-musl"))]:
        folder = os.path.realpath(os.path.dirname(path))
        if not os.path.realpath(stdlib).startswith(folder + os.sep):
            found.add(folder)
    return tuple(sorted(found))
