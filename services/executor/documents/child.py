"""The process that parses one document: limits itself, reads standard input, writes an answer, ends.

The answer is a line `text` or `error`, and behind it the text or the reason in UTF-8: large JSON would stop the loop
of the executor while it is parsed.

What it is given up to: no time and memory beyond the limits, no file to write, no environment, and where the kernel
knows how, no network and no other program. It may still read files; what it says goes to the executor only.
"""

import contextlib
import ctypes
import importlib
import os
import resource
import sys
import warnings
from collections.abc import Callable
from typing import Final

from services.executor.documents import office, plain

MAX_TEXT_CHARS: Final = 8_000_000

READERS: Final[dict[str, Callable[[bytes], str]]] = {
    "text": plain.decoded,
    "json": plain.read_json,
    "yaml": plain.read_yaml,
    "csv": plain.read_csv,
    "properties": plain.read_properties,
    "vtt": plain.read_vtt,
    "eml": plain.read_eml,
    "pdf": office.read_pdf,
    "docx": office.read_docx,
    "xlsx": office.read_xlsx,
    "pptx": office.read_pptx,
    "epub": office.read_epub,
    **dict.fromkeys(("odt", "ods", "odp"), office.read_opendocument),
}


def main(kind: str, memory_bytes: int, cpu_s: int, sandbox: str) -> None:
    """`sandbox`: folder of the package `inside`, whose system call filter is used."""
    warnings.simplefilter("ignore")
    _limit(memory_bytes, cpu_s)
    content = sys.stdin.buffer.read()
    close_off(sandbox)
    for word, said in answered(kind, content).items():
        sys.stdout.buffer.write(f"{word}\n{said}".encode("utf-8", "replace"))
    sys.stdout.buffer.flush()
    os._exit(0)  # tearing down a large tree takes longer than reading it did


def answered(kind: str, content: bytes) -> dict[str, str]:
    """`text`, or `error` with a reason that follows the file's name."""
    try:
        text = READERS[kind](content)
    except office.LibraryMissing as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "reading it needs more memory than a document may use"}
    except RecursionError:
        return {"error": f"it is not a {kind} file that can be read: it is nested too deeply"}
    except Exception as error:  # the libraries raise anything at broken files, and the reason is for the author
        said = str(error).strip().split("\n")[0][:300] or type(error).__name__
        return {"error": f"it is not a {kind} file that can be read: {said}"}
    if len(text) > MAX_TEXT_CHARS:
        return {"error": f"it has {len(text)} characters of text; at most {MAX_TEXT_CHARS} are read"}
    # Halves of surrogate pairs come out of broken files and fit into no JSON text of ours.
    return {"text": text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "")}


def _limit(memory_bytes: int, cpu_s: int) -> None:
    for what, most in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory_bytes),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS cannot bound the address space
            resource.setrlimit(what, (most, most))
    with contextlib.suppress(OSError):
        os.nice(5)


def close_off(sandbox: str) -> None:
    """No network and no other program from here on, where the kernel can do that."""
    sys.path.insert(0, sandbox)
    try:
        seccomp = importlib.import_module("inside.seccomp")
        if seccomp.supported() is None:
            program = seccomp.Filter()
            ctypes.CDLL(None, use_errno=True).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            program.install()
    except (ImportError, OSError, AttributeError):
        pass  # the limits hold in any case
    finally:
        sys.path.remove(sandbox)
