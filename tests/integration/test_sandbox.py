"""The sandbox against code that means harm: each attempt is contained, said clearly, and the next call is served.

Runs as the user that runs the tests and, when that is root, once more as another user: the walls differ there (no uid
of the sandbox's own), their strength must not.
"""

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, TypeVar

import pytest
from pydantic import JsonValue

from libs.serving import ReadableLines
from libs.workflow.definition import Node
from libs.workflow.outcome import Outcome
from libs.workflow.pool import Pool
from services.executor.nodes.code import CodeHandler
from services.executor.nodes.port import Attempt
from services.executor.nodes.template_transform import TemplateTransformHandler
from services.executor.sandbox import OutputTooLong, Sandbox, SandboxError, SandboxResult, SandboxUnavailable
from tests import servers
from tests.unit.nodes.compiled import compiled, failed, succeeded

NESTED = "FLOWLEDGER_TEST_NESTED"
ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="containment is a part of Linux"),
    pytest.mark.alone,
]


class Loop:
    """One event loop and one sandbox for all tests of the module, so that what one test breaks the next one meets."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.sandbox = self.run(_make(slots=4))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def outcome(self, code: str, timeout_s: float = 10, **inputs: JsonValue) -> SandboxResult:
        return self.run(self.sandbox.run("python3", dedent(code), inputs, timeout_s=timeout_s))

    def result(self, code: str, **inputs: JsonValue) -> dict[str, JsonValue]:
        outcome = self.outcome(code, 10, **inputs)
        assert outcome.error is None, outcome.error
        return outcome.result

    def error(self, code: str, timeout_s: float = 10, **inputs: JsonValue) -> str:
        outcome = self.outcome(code, timeout_s, **inputs)
        assert outcome.error is not None, outcome.result
        return outcome.error

    def close(self) -> None:
        self.sandbox.close()
        self._runner.close()


async def _make(**options: Any) -> Sandbox:
    return Sandbox(**options)


@pytest.fixture(scope="module")
def _loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def loop(_loop: Loop) -> Iterator[Loop]:
    """Whatever the test did: the sandbox serves, and no process of it is left."""
    yield _loop
    assert _loop.result("def main(a):\n    return {'b': a + 1}", a=1) == {"b": 2}


# The ordinary


def test_main_gets_inputs_by_name_and_its_dict_is_the_result(loop: Loop) -> None:
    outcome = loop.outcome("def main(a, b):\n    print('seen')\n    return {'sum': a + b, 'ä': [None, 'x']}", a=1, b=2)
    assert (outcome.result, outcome.stdout, outcome.error) == ({"sum": 3, "ä": [None, "x"]}, "seen\n", None)


def test_text_in_scientific_notation_becomes_a_number(loop: Loop) -> None:
    code = "def main():\n    return {'a': '1e+3', 'b': ['-2.5E-1', '1e3', 'x1e+3'], 'c': '1e+999'}"
    assert loop.result(code) == {"a": 1000.0, "b": [-0.25, "1e3", "x1e+3"], "c": "1e+999"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = 1", "The code must define a function main"),
        ("main = 1", "The code must define a function main"),
        ("def main():\n    return [1]", "main() must return a dict, got list"),
        ("def main():\n    pass", "main() must return a dict, got NoneType"),
        ("def main():\n    return {1: 2}", "main() must return a dict with string keys, got a key of type int"),
        ("def main():\n    return {'a': {1, 2}}", "main() must return what JSON can express: Object of type set"),
        ("def main():\n    return {'a': float('nan')}", "main() must return what JSON can express: Out of range"),
        ("def main():\n    return {'a': '\\ud800'}", "half of a surrogate pair"),
        ("def main():\n    a = {}\n    a['a'] = a\n    return a", "Circular reference"),
        ("def main():\n    a = []\n    for _ in range(10**5): a = [a]\n    return {'a': a}", "JSON can express"),
        ("def main(a):\n    return {}", "main() missing 1 required positional argument: 'a'"),
        ("def main():\n    raise SystemExit(3)", "The code ended itself with exit(3)"),
        ("def main(:", 'File "<code>", line 1'),
        ("def main():\n    return {'a': 'x' * 17_000_000}", "The result is larger than 16 MB"),
        ("def main():\n    return {'a': 10 ** 5000}", "JSON can express: Exceeds the limit"),
    ],
)
def test_a_mistake_is_said_in_words(loop: Loop, code: str, words: str) -> None:
    assert words in loop.error(code)


def test_an_exception_shows_the_authors_own_lines_only(loop: Loop) -> None:
    error = loop.error(
        """
        import json
        def helper(text):
            return json.loads(text)
        def main():
            try:
                helper("{")
            except ValueError as problem:
                raise RuntimeError("not readable") from problem
        """
    )
    assert 'File "<code>", line 4, in helper\n    return json.loads(text)' in error
    assert 'File "<code>", line 9, in main' in error
    assert error.endswith("RuntimeError: not readable")
    assert error.count("File ") == 3
    assert "/" not in error


def test_the_standard_library_is_there(loop: Loop) -> None:
    code = """
        import asyncio, concurrent.futures, dataclasses, mimetypes, os, pathlib, random, shutil, sqlite3, tempfile
        import threading, uuid, xml.dom.minidom, zoneinfo, wave, ctypes, decimal, datetime, logging, platform
        @dataclasses.dataclass
        class Point:
            x: int = 1
        async def later():
            await asyncio.sleep(0.001)
            return await asyncio.to_thread(lambda: 7)
        def main():
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, "a.txt")
                path.write_text("hello")
                shutil.copy2(path, folder + "/b.txt")
                os.chmod(path, 0o600)
                copied = pathlib.Path(folder, "b.txt").read_text()
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                squares = list(pool.map(lambda n: n * n, range(4)))
            database = sqlite3.connect(":memory:")
            row = database.execute("select 1 + 1").fetchone()
            logging.getLogger("x").warning("heard")
            return {
                "loop": asyncio.run(later()), "copied": copied, "squares": squares, "row": row[0],
                "type": mimetypes.guess_type("a.png")[0], "point": dataclasses.asdict(Point()),
                "random": random.random() != random.random(), "left": os.listdir("."),
                "noon": str(datetime.datetime(2024, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo("UTC"))),
            }
    """
    assert loop.result(code) == {
        "loop": 7,
        "copied": "hello",
        "squares": [0, 1, 4, 9],
        "row": 2,
        "type": "image/png",
        "point": {"x": 1},
        "random": True,
        "left": [],
        "noon": "2024-07-01 12:00:00+00:00",
    }


def test_processes_share_no_randomness_and_no_files(loop: Loop) -> None:
    code = """
        import os, random, uuid
        def main():
            found = os.listdir(".")
            open("left-behind", "w").write("x")
            os.makedirs("deep/" * 50)
            return {"found": found, "random": random.random(), "id": str(uuid.uuid4())}
    """
    results = [loop.result(code) for _ in range(12)]
    assert all(result["found"] == [] for result in results)
    assert len({result["random"] for result in results}) == len({result["id"] for result in results}) == 12


def test_large_inputs_and_results_pass(loop: Loop) -> None:
    text = "ä" * 4_000_000
    assert loop.result("def main(text):\n    return {'text': text}", text=text) == {"text": text}


def test_calls_run_beside_each_other(loop: Loop) -> None:
    async def several() -> list[SandboxResult]:
        code = """
import time
def main(n):
    began = time.monotonic()
    time.sleep(0.3)
    return {'n': n, 'began': began, 'ended': time.monotonic()}
"""
        return await asyncio.gather(*(loop.sandbox.run("python3", code, {"n": n}, timeout_s=30) for n in range(8)))

    results: list[Any] = [outcome.result for outcome in loop.run(several())]
    assert [result["n"] for result in results] == list(range(8))
    # By their own clocks: on a busy machine eight in four places take as long as they take.
    beside = [sum(each["began"] <= one["began"] < each["ended"] for each in results) for one in results]
    assert 2 <= max(beside) <= 4


# Resources


def test_a_fork_bomb_starts_nothing(loop: Loop) -> None:
    error = loop.error("import os\ndef main():\n    while True: os.fork()")
    assert "PermissionError" in error
    assert "without network, without other processes" in error


def test_ten_gigabytes_are_not_given(loop: Loop) -> None:
    error = loop.error("def main():\n    return {'n': len(bytearray(10 * 2**30))}")
    assert "The code needs more memory than it may use (512 MB)" in error


def test_memory_taken_piece_by_piece_ends(loop: Loop) -> None:
    error = loop.error("def main():\n    kept = []\n    while True: kept.append(bytearray(10**6))")
    assert "more memory than it may use" in error


def test_a_busy_loop_ends_with_its_time(loop: Loop) -> None:
    began_s = time.monotonic()
    error = loop.error("def main():\n    while True: pass", timeout_s=0.5)
    assert error == "The code did not finish within 0.5 s and was stopped"
    assert time.monotonic() - began_s < 2


def test_the_clock_alone_ends_code_that_computes(loop: Loop) -> None:
    code = "import resource\ndef main():\n    return {'cpu_s': resource.getrlimit(resource.RLIMIT_CPU)[0]}"
    # More processor time than all processors give within the limit: whoever meets this bound is late by the clock.
    allowed_s = loop.outcome(code, timeout_s=7).result["cpu_s"]
    assert isinstance(allowed_s, int)
    assert allowed_s > 7 * (os.cpu_count() or 1)
    spent = "import os, signal\ndef main():\n    os.kill(os.getpid(), signal.SIGXCPU)"
    assert loop.error(spent, timeout_s=7) == "The code did not finish within 7 s and was stopped"


def test_ignored_signals_and_endless_handlers_do_not_delay_the_end(loop: Loop) -> None:
    code = """
        import signal, time
        def main():
            for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_IGN)
            while True:
                try:
                    time.sleep(100)
                except BaseException:
                    pass
    """
    assert "did not finish within 0.4 s" in loop.error(code, timeout_s=0.4)


def test_a_stopped_process_ends_with_its_time(loop: Loop) -> None:
    code = "import os, signal\ndef main():\n    os.kill(os.getpid(), signal.SIGSTOP)"
    assert "did not finish within 0.4 s" in loop.error(code, timeout_s=0.4)


def test_deep_recursion_is_an_error_of_the_code(loop: Loop) -> None:
    assert "RecursionError" in loop.error("def main():\n    return main()")


def test_endless_recursion_without_a_limit_ends_the_process_only(loop: Loop) -> None:
    code = """
        import sys
        class Endless:
            def __repr__(self): return repr([self])
        def main():
            sys.setrecursionlimit(10**9)
            repr(Endless())
    """
    error = loop.error(code)
    assert "crashed its process with SIGSEGV" in error or "more memory" in error


def test_threads_that_never_end_do_not_keep_the_result(loop: Loop) -> None:
    code = """
        import threading, time
        def spin():
            while True: time.sleep(0.01)
        def main():
            for _ in range(20): threading.Thread(target=spin).start()
            return {"threads": threading.active_count()}
    """
    assert loop.result(code) == {"threads": 21}


def test_thousands_of_threads_are_refused(loop: Loop) -> None:
    code = """
        import threading, time
        def main():
            threading.stack_size(32768)
            for _ in range(5000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            return {}
    """
    assert "can't start new thread" in loop.error(code)


def test_a_hundred_megabytes_of_output_are_dropped(loop: Loop) -> None:
    code = """
        import os, sys
        def main():
            for _ in range(100): print("x" * 10**6)
            for _ in range(100): sys.stderr.write("y" * 10**6)
            for fd in (1, 2):
                for _ in range(100): os.write(fd, b"z" * 10**6)
            return {"done": True}
    """
    outcome = loop.outcome(code)
    assert outcome.result == {"done": True}
    assert outcome.stdout == "x" * (64 << 10)


def test_closed_streams_do_not_hurt(loop: Loop) -> None:
    code = """
        import os, sys
        def main():
            print("before")
            sys.stdout.close(); sys.stderr.close(); sys.stdin.close()
            for fd in (0, 1, 2): os.close(fd)
            return {"done": True}
    """
    outcome = loop.outcome(code)
    assert (outcome.result, outcome.stdout) == ({"done": True}, "before\n")


# Files


def test_the_private_folder_is_all_that_can_be_written(loop: Loop) -> None:
    targets: list[JsonValue] = [
        f"{ROOT}/x",
        "/tmp/x",
        "/var/tmp/x",
        "/dev/shm/x",
        "../x",
        os.path.expanduser("~/x"),
        "/etc/x",
        "/x",
    ]
    code = """
        import os
        def main(targets):
            written = []
            for path in [*targets, os.__file__, os.path.dirname(os.__file__) + "/x.py"]:
                for open_it in (lambda: open(path, "w"), lambda: os.mkdir(path), lambda: os.symlink("a", path)):
                    try:
                        open_it()
                    except OSError:
                        continue
                    written.append(path)
            open("x", "w").write("mine")
            return {"written": written, "mine": open("x").read()}
    """
    assert loop.result(code, targets=targets) == {"written": [], "mine": "mine"}


def test_files_of_the_service_and_the_system_cannot_be_read(loop: Loop) -> None:
    me = os.getpid()
    paths: list[JsonValue] = [
        f"{ROOT}/pyproject.toml",
        f"{ROOT}/services/executor/sandbox/inside/runner.py",
        pytest.__file__,
        "/etc/passwd",
        "/etc/hostname",
        "/proc/1/environ",
        "/proc/self/environ",
        "/proc/self/mem",
        "/proc/self/maps",
        *(f"/proc/{pid}/{name}" for pid in (me, "PARENT") for name in ("environ", "mem", "maps", "cmdline", "fd")),
        "/",
        "/tmp",
        "/proc",
        str(ROOT),
        os.path.expanduser("~"),
        "/dev/mem",
        "/dev/kmsg",
        "/dev/tty",
    ]
    code = """
        import os
        def main(paths):
            reached = []
            for path in paths:
                path = path.replace("PARENT", str(os.getppid()))
                for attempt in (lambda: open(path, "rb").read(1), lambda: os.listdir(path)):
                    try:
                        attempt()
                    except OSError:
                        continue
                    reached.append(path)
            return {"reached": reached}
    """
    assert loop.result(code, paths=paths) == {"reached": []}
    assert "without network, without other processes" in loop.error("def main():\n    open('/etc/passwd')")


def test_links_do_not_lead_out(loop: Loop) -> None:
    code = """
        import os
        def main(target):
            os.symlink(target, "link")
            os.symlink("/", "slash")
            reached = []
            for attempt in (lambda: open("link").read(), lambda: os.listdir("slash"), lambda: os.link(target, "hard"),
                            lambda: os.rename(target, "moved"), lambda: os.truncate(target, 0),
                            lambda: os.unlink(target), lambda: os.stat("link") and open("slash/etc/passwd").read()):
                try:
                    attempt()
                except OSError:
                    continue
                reached.append(1)
            return {"reached": reached}
    """
    assert loop.result(code, target=str(ROOT / "pyproject.toml")) == {"reached": []}


def test_permissions_of_other_files_stay_as_they_are(loop: Loop, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("x")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    mine.chmod(0o644)
    loop.outcome(
        "import os\ndef main(path):\n    os.chmod(path, 0)\n    os.utime(path, (0, 0))\n    return {}", path=str(mine)
    )
    assert mine.stat().st_mode & 0o777 == 0o644
    assert mine.stat().st_mtime > 1


def test_the_environment_is_empty(loop: Loop) -> None:
    code = """
        import ctypes, os
        def main():
            return {"python": dict(os.environ), "c": ctypes.CDLL(None).getenv(b"PATH")}
    """
    assert loop.result(code) == {"python": {}, "c": 0}


@pytest.mark.parametrize(
    "fill",
    [
        "open(f'{n}', 'wb').write(bytes(10**6))",
        "files.append(open('x', 'wb')); os.unlink('x'); files[-1].write(bytes(15 * 10**6)); files[-1].flush(); rest()",
        "open(f'{n}', 'wb').close()",
        "os.makedirs(f'd{n}')",
        "os.mkdir('d'); os.chdir('d')",
    ],
    ids=["files", "deleted-files", "many-files", "many-folders", "deep-folders"],
)
def test_a_full_folder_ends_the_code(loop: Loop, fill: str) -> None:
    code = f"""
        import itertools, os, time
        def rest():
            if len(files) == 20: time.sleep(1)
        files = []
        def main():
            for n in itertools.count(): {fill}
    """
    error = loop.error(code)
    # A container's root cannot see deleted files: there the number of open files bounds them.
    assert "wrote more than 64 MB or 2,000 files to its temporary directory" in error or "Too many open files" in error
    until_s = time.monotonic() + 30
    while (left := _left_behind()) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert left == []


def _left_behind() -> list[str]:
    """What lies in the private folders of all sandboxes that are ours."""
    slots = [
        slot
        for base in Path("/tmp").glob("flowledger-sandbox-*")
        if os.access(base, os.R_OK)
        for slot in base.iterdir()
    ]
    return [f"{slot}/{name}" for slot in slots for name in os.listdir(slot)]


def test_one_file_has_its_limit(loop: Loop) -> None:
    assert "File too large" in loop.error("def main():\n    open('x', 'wb').write(bytes(20 * 2**20))")


# The outside


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_INET6, socket.SOCK_STREAM)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)",
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "urllib.request.urlopen('http://127.0.0.1:9/')",
        "subprocess.run(['/bin/true'])",
        "os.system('true') == 0 or os.kill(1, 0)",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.setuid(0) if os.getuid() else os.kill(1, 0)",
        "os.chroot('.')",
        "os.mkfifo('pipe')",
        "os.memfd_create('x')",
        "os.setpriority(os.PRIO_PROCESS, 0, -5)",
        "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
        "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "fcntl.ioctl(0, 0x5412, b'x')",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "multiprocessing.Lock()",
        "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
    ],
)
def test_the_outside_cannot_be_reached(loop: Loop, attempt: str) -> None:
    imports = "import fcntl, multiprocessing, os, resource, signal, socket, subprocess, urllib.request"
    error = loop.error(f"{imports}\ndef main():\n    {attempt}\n    return {{'escaped': True}}")
    assert "not permitted" in error or "Permission denied" in error, error


@pytest.mark.parametrize("target", ["-1", "0", "1", "os.getppid()", "-os.getpgrp()", "EXECUTOR"])
@pytest.mark.parametrize("number", [9, 15, 19])
def test_nobody_else_can_be_signalled(loop: Loop, target: str, number: int) -> None:
    target = target.replace("EXECUTOR", str(os.getpid()))
    error = loop.error(f"import os\ndef main():\n    os.kill({target}, {number})\n    return {{}}")
    assert "PermissionError" in error


SYSCALLS = {
    # x86_64 numbers; what they stand for is in the ids
    "fork": (57,), "vfork": (58,), "clone": (56, 17, 0, 0, 0, 0), "clone3": (435, 0, 88), "execve": (59, 0, 0, 0),
    "ptrace": (101, 16, "parent", 0, 0), "process_vm_readv": (310, "parent", 0, 0, 0, 0, 0), "setuid": (105, 0),
    "unshare": (272, 0x10000000), "setns": (308, 0, 0), "mount": (165, 0, 0, 0, 0, 0), "socket": (41, 1, 1, 0),
    "io_uring_setup": (425, 1, 0), "bpf": (321, 0, 0, 0), "userfaultfd": (323, 0), "perf_event_open": (298, 0),
    "keyctl": (250, 0), "add_key": (248, 0, 0, 0, 0, 0), "shmget": (29, 0, 4096, 0o1600), "msgget": (68, 0, 0o1600),
    "semget": (64, 0, 1, 0o1600), "tkill": (200, "parent", 9), "tgkill": (234, "parent", "parent", 9),
    "rt_sigqueueinfo": (129, "parent", 9, 0), "pidfd_getfd": (438, 0, 0, 0), "pidfd_open": (434, "parent", 0),
    "open_by_handle_at": (304, 0, 0, 0), "prctl-pdeathsig": (157, 1, 0, 0, 0, 0), "prctl-dumpable": (157, 4, 1),
    "personality": (135, 0x0040000), "setsid": (112,), "pivot_root": (155, 0, 0), "kexec_load": (246, 0, 0, 0, 0),
    "landlock_create_ruleset": (444, 0, 0, 1), "seccomp": (317, 1, 0, 0), "sendmsg": (46, 0, 0, 0),
    "splice": (275, 0, 0, 0, 0, 0, 0), "memfd_create": (319, 0, 0), "name_to_handle_at": (303, -100, 0, 0, 0, 0),
}  # fmt: skip


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
def test_raw_system_calls_meet_the_same_walls(loop: Loop) -> None:
    code = """
        import ctypes, os
        def main(calls):
            libc, answers = ctypes.CDLL(None, use_errno=True), {}
            for name, call in calls.items():
                call = [os.getppid() if part == "parent" else part for part in call]
                ctypes.set_errno(0)
                answers[name] = [libc.syscall(*map(ctypes.c_long, call)), ctypes.get_errno()]
            return {"answers": answers}
    """
    calls: JsonValue = {name: list(call) for name, call in SYSCALLS.items()}
    answers = loop.result(code, calls=calls)["answers"]
    assert isinstance(answers, dict)
    assert {name: answer for name, answer in answers.items() if answer not in ([-1, 1], [-1, 38])} == {}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
def test_system_calls_by_other_numbers_end_the_process(loop: Loop) -> None:
    error = loop.error("import ctypes\ndef main():\n    ctypes.CDLL(None).syscall(0x40000000 + 41, 2, 1, 0)")
    assert "SIGSYS" in error


def test_a_crash_of_the_interpreter_is_named(loop: Loop) -> None:
    assert "crashed its process with SIGSEGV" in loop.error("import ctypes\ndef main():\n    ctypes.string_at(0)")


def test_a_process_that_ends_itself_is_named(loop: Loop) -> None:
    assert "ended its process (exit code 7)" in loop.error("import os\ndef main():\n    os._exit(7)")
    assert "was killed" in loop.error("import os\ndef main():\n    os.kill(os.getpid(), 9)")
    assert "SIGTERM" in loop.error("import os\ndef main():\n    os.kill(os.getpid(), 15)")


# The line that carries the result


@pytest.mark.parametrize(
    ("forged", "words"),
    [
        ("b'x' * 100", "wrote to the line that carries its result"),
        ("b'FLSB' + b'R' + b'\\xff' * 8 + b'x'", "wrote to the line that carries its result"),
        ("frame(b'not json')", "main() must return what JSON can express"),
        ("frame(b'[1]')", "main() must return a dict, got list"),
        ("frame(b'{\"a\": NaN}')", "NaN is not a JSON number"),
        ('frame(b\'{"a": "\\\\ud800"}\')', "main() must return what JSON can express"),
        ("frame(b'{\"a\":' * 100000)", "main() must return what JSON can express"),
        ("frame(b'\\xff\\xfe')", "main() must return what JSON can express"),
        ("frame(b'{\"a\": ' + b'9' * 10000 + b'}')", "main() must return what JSON can express"),
        ("b'FLSB'", "without a result"),
    ],
)
def test_a_forged_answer_is_checked_like_any_other(loop: Loop, forged: str, words: str) -> None:
    code = f"""
        import os, struct
        def frame(body): return struct.pack(">4scII", b"FLSB", b"R", 0, len(body)) + body
        def main():
            os.write(3, {forged})
            os._exit(0)
    """
    assert words in loop.error(code)


def test_a_forged_answer_does_not_keep_the_process(loop: Loop) -> None:
    code = """
        import os, struct, time
        def main():
            body = b'{"pid": %d}' % os.getpid()
            os.write(3, struct.pack(">4scII", b"FLSB", b"R", 0, len(body)) + body + b"more" * 1000)
            time.sleep(600)
    """
    pid = loop.result(code)["pid"]
    assert isinstance(pid, int)
    _wait_for_the_end_of(pid)


def test_a_closed_line_ends_the_call(loop: Loop) -> None:
    began_s = time.monotonic()
    assert "without a result" in loop.error("import os, time\ndef main():\n    os.close(3)\n    time.sleep(600)")
    assert time.monotonic() - began_s < 5


# Lifetimes


def _zygote(sandbox: Sandbox) -> int:
    pid = sandbox.pid
    assert pid is not None
    return pid


def _children(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            stat = Path("/proc", name, "stat").read_text() if name.isdigit() else ""
        except OSError:
            continue
        if stat and int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(name))
    return found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_for_the_end_of(*pids: int) -> None:
    until_s = time.monotonic() + 5
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < until_s:
        time.sleep(0.005)
    assert left == []


def test_a_cancelled_call_is_dead_within_a_tenth_of_a_second(loop: Loop) -> None:
    code = "import time\ndef main():\n    while True: time.sleep(0)"

    async def cancelled() -> float:
        await loop.sandbox.check()
        call = asyncio.create_task(loop.sandbox.run("python3", code, {}, timeout_s=60))
        running: list[int] = []
        async with asyncio.timeout(30):
            while not running:
                await asyncio.sleep(0.02)
                running = [pid for pid in _children(_zygote(loop.sandbox)) if _processor_ticks(pid) > 5]
        assert len(running) == 1
        began_s = time.monotonic()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        _wait_for_the_end_of(*running)
        return time.monotonic() - began_s

    # The shortest of a few: a busy machine may delay any of them.
    assert min(loop.run(cancelled()) for _ in range(5)) < 0.1


def _processor_ticks(pid: int) -> int:
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0  # it has ended
    return int(user) + int(system)


def test_the_end_of_the_warm_interpreter_ends_its_processes_and_the_next_call_starts_another(loop: Loop) -> None:
    async def interrupted() -> tuple[SandboxResult, list[int]]:
        code = "import time\ndef main():\n    time.sleep(1)\n    return {'done': True}"
        await loop.sandbox.check()
        call = asyncio.create_task(loop.sandbox.run("python3", code, {}, timeout_s=60))
        await asyncio.sleep(0.3)
        pid = _zygote(loop.sandbox)
        children = _children(pid)
        os.kill(pid, 9)
        return await call, children

    outcome, children = loop.run(interrupted())
    assert outcome.result == {"done": True}  # run again: nothing outside had seen the first try
    assert len(children) >= 1
    _wait_for_the_end_of(*children)


def test_a_frozen_warm_interpreter_is_replaced(loop: Loop) -> None:
    loop.run(loop.sandbox.check())
    servers.freeze(_zygote(loop.sandbox))
    code = "import time\ndef main():\n    time.sleep(60)"
    errors = [loop.error(code, timeout_s=0.3) for _ in range(4)]
    assert errors == ["The code did not finish within 0.3 s and was stopped"] * 4


def test_nothing_is_left_when_the_executor_is_killed(tmp_path: Path) -> None:
    program = """
        import asyncio, sys
        from services.executor.sandbox import Sandbox
        async def main():
            sandbox = Sandbox()
            await sandbox.check()
            print(sandbox.pid, flush=True)
            await sandbox.run("python3", "import time\\ndef main():\\n    time.sleep(600)", {}, timeout_s=600)
        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", dedent(program)], cwd=ROOT, stdout=subprocess.PIPE) as executor:
        assert executor.stdout is not None
        zygote = int(executor.stdout.readline())
        until_s = time.monotonic() + 5
        while len(_children(zygote)) < 3 and time.monotonic() < until_s:
            time.sleep(0.01)
        processes = [zygote, *_children(zygote)]
        assert len(processes) == 4
        executor.kill()
    _wait_for_the_end_of(*processes)


def test_a_closed_sandbox_leaves_no_folder_and_no_process() -> None:
    before = set(Path("/tmp").glob("flowledger-sandbox-*"))

    async def used() -> int:
        sandbox = Sandbox()
        await sandbox.check()
        await sandbox.run("python3", "def main():\n    return {}", {}, timeout_s=10)
        pid = _zygote(sandbox)
        sandbox.close()
        sandbox.close()
        return pid

    pid = asyncio.run(used())
    assert not Path(f"/proc/{pid}").exists()
    assert set(Path("/tmp").glob("flowledger-sandbox-*")) <= before


# Packages and modes


def test_other_packages_are_not_there_unless_named(loop: Loop) -> None:
    for name in ("jinja2", "markupsafe", "pydantic", "services", "inside", "pip"):
        assert f"No module named '{name}'" in loop.error(f"def main():\n    import {name}\n    return {{}}")


def test_named_packages_come_with_what_they_need() -> None:
    async def used() -> tuple[SandboxResult, SandboxResult]:
        sandbox = Sandbox(packages=["pydantic"])
        try:
            code = "import pydantic, annotated_types\ndef main():\n    return {'n': pydantic.TypeAdapter(int)"
            first = await sandbox.run("python3", code + ".validate_python('7')}", {}, timeout_s=20)
            return first, await sandbox.run("python3", "import jinja2\ndef main():\n    return {}", {}, timeout_s=20)
        finally:
            sandbox.close()

    first, second = asyncio.run(used())
    assert first.result == {"n": 7}, first.error
    assert "No module named 'jinja2'" in str(second.error)


def test_a_package_that_is_not_installed_is_named() -> None:
    async def used() -> None:
        sandbox = Sandbox(packages=["no_such_package"])
        try:
            await sandbox.check()
        finally:
            sandbox.close()

    with pytest.raises(SandboxUnavailable, match="FLOWLEDGER_SANDBOX_PACKAGES names 'no_such_package'"):
        asyncio.run(used())


def test_without_containment_nothing_is_run_and_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def used() -> None:
        sandbox = Sandbox()
        monkeypatch.setattr(sys, "platform", "darwin")
        try:
            await sandbox.run("python3", "def main():\n    return {}", {}, timeout_s=10)
        finally:
            monkeypatch.undo()
            sandbox.close()

    with pytest.raises(SandboxUnavailable, match=r"containment .* is a part of Linux, and this is darwin"):
        asyncio.run(used())


def test_the_mode_process_runs_without_walls_but_with_limits(caplog: pytest.LogCaptureFixture) -> None:
    async def used() -> list[SandboxResult]:
        sandbox = Sandbox("process")
        try:
            codes = [
                "import os\ndef main():\n    return {'entries': len(os.listdir('/')), 'env': dict(os.environ)}",
                "def main():\n    return {'n': len(bytearray(10 * 2**30))}",
                "import subprocess\ndef main():\n    subprocess.Popen(['sleep', '600'])\n    return {}",
                "def main():\n    while True: pass",
                "def main():\n    import jinja2",
                "import json\ndef main():\n    json.loads('{')",
            ]
            return [await sandbox.run("python3", code, {}, timeout_s=1) for code in codes]
        finally:
            sandbox.close()

    listed, large, started, busy, package, wrong = asyncio.run(used())
    assert listed.result["env"] == {}
    assert "more memory than it may use" in str(large.error)
    assert started.result == {}
    assert "did not finish within 1 s" in str(busy.error)
    assert "No module named 'jinja2'" in str(package.error)
    assert "JSONDecodeError" in str(wrong.error)
    (said,) = caplog.records
    assert said.message == "sandbox_without_containment"
    assert "setting=FLOWLEDGER_SANDBOX=process use=for development only" in ReadableLines().format(said)


def test_javascript_runs_where_its_engine_is_installed(loop: Loop) -> None:
    pytest.importorskip("quickjs", reason="JavaScript code nodes need the package quickjs")

    def outcome(code: str, timeout_s: float = 10, **inputs: JsonValue) -> SandboxResult:
        return loop.run(loop.sandbox.run("javascript", code, inputs, timeout_s=timeout_s))

    done = outcome("function main({a, b}) { console.log('sum', {a}); return {sum: a + b, text: '1e+3'} }", a=1, b=2)
    assert (done.result, done.stdout) == ({"sum": 3, "text": 1000.0}, 'sum {"a":1}\n')
    assert outcome("const main = async ({a}) => ({a: await a})", a=1).result == {"a": 1}
    assert "must define a function main" in str(outcome("let x = 1").error)
    assert "main() must return an object, got array" in str(outcome("const main = () => [1]").error)
    thrown = "TypeError: cannot read property 'x' of null\n    at main (<code>)"
    assert outcome("function main() { return null.x }").error == thrown
    assert "<code>" in str(outcome("function main( {").error)
    assert "nothing settles" in str(outcome("const main = () => new Promise(() => {})").error)
    assert "did not finish" in str(outcome("const main = () => { while (true); }", 0.4).error)
    assert outcome("const main = () => { const a = []; while (true) a.push(new ArrayBuffer(1e6)) }").error
    assert outcome("const main = () => main()").error


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("new Worker('x')", "Worker"),
        ("require('child_process').fork('x')", "require"),
        ("process.exit(0)", "process"),
        ("require('fs').readFileSync('/etc/passwd')", "require"),
        ("std.open('/etc/passwd', 'r')", "std"),
        ("os.remove('/etc/passwd')", "os"),
        ("return {env: process.env}", "process"),
        ("fetch('http://127.0.0.1:9/')", "fetch"),
        ("new WebSocket('ws://127.0.0.1:9/')", "WebSocket"),
        ("new XMLHttpRequest()", "XMLHttpRequest"),
    ],
)
def test_javascript_has_no_way_outside(loop: Loop, code: str, words: str) -> None:
    error = loop.run(loop.sandbox.run("javascript", f"function main() {{ {code} }}", {}, timeout_s=10)).error
    assert error is not None
    assert f"ReferenceError: '{words}' is not defined" in error


def test_javascript_cannot_import_a_file(loop: Loop) -> None:
    code = "async function main() { return {read: Object.keys(await import('/etc/passwd'))} }"
    outcome = loop.run(loop.sandbox.run("javascript", code, {}, timeout_s=10))
    assert outcome.error is not None
    assert "root:" not in outcome.error


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("for (;;);", "did not finish within 1 s"),
        ("new ArrayBuffer(10 * 2 ** 30)", "RangeError: invalid array buffer length"),
        ("return {n: new Uint8Array(2 ** 31 - 1).length}", "more memory than it may use (512 MB)"),
        ("let text = 'x'; while (true) text += text", "more memory than it may use (512 MB)"),
        ("const a = []; while (true) a.push(new ArrayBuffer(1e6))", "more memory than it may use (512 MB)"),
        ("return {text: 'x'.repeat(17e6)}", "larger than 16 MB"),
        ("/(a+)+$/.test('a'.repeat(40) + 'b')", "did not finish within 1 s"),
        ("let deep = []; for (let i = 0; i < 1e6; i++) deep = [deep]; return {deep}", "SIGSEGV"),
        ("return main()", "InternalError: stack overflow"),
        ("const x = {}; x.x = x; return x", "circular"),
    ],
)
def test_javascript_that_asks_for_too_much_ends(loop: Loop, code: str, words: str) -> None:
    timeout_s = 1 if "did not finish" in words else 30
    outcome = loop.run(loop.sandbox.run("javascript", f"function main() {{ {code} }}", {}, timeout_s=timeout_s))
    assert outcome.error is not None
    assert words in outcome.error


def test_a_hundred_megabytes_of_javascript_output_are_dropped(loop: Loop) -> None:
    code = "function main() { for (let i = 0; i < 100; i++) console.log('x'.repeat(1e6)); return {done: true} }"
    outcome = loop.run(loop.sandbox.run("javascript", code, {}, timeout_s=30))
    assert (outcome.result, outcome.stdout) == ({"done": True}, "x" * (64 << 10))


def test_javascript_without_its_engine_says_so(loop: Loop) -> None:
    if importlib.util.find_spec("quickjs") is not None:
        pytest.skip("the engine is installed")
    outcome = loop.run(loop.sandbox.run("javascript", "", {}, timeout_s=10))
    assert "JavaScript needs the package quickjs" in str(outcome.error)


# Templates


TEMPLATES = [
    "plain",
    "Hello {{ name }}!\n\n",
    "{{ missing }}|{{ no_such }}|{{ user.no_such }}",
    "{{ user }} {{ items }} {{ user.name }} {{ items[1] }} {{ flag }} {{ half }}",
    "{% if n > 2 and name != 'x' %}a{% elif n %}b{% else %}c{% endif %}",
    "{% for i in items %}{{ loop.index }}/{{ loop.length }}:{{ i }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for k in user %}{{ k }}{% else %}none{% endfor %}",
    "{{ name|upper }}{{ name|default('x') }}{{ no_such|default('x') }}{{ items|length }}{{ markup|e }}{{ name|title }}",
    "{{ 'yes' if missing is none else 'no' }}{{ name ~ n }}",
    "{{ n|length }}",
    "{{ no_such.deeper }}",
    "{{ name.__class__ }}{{ items.append }}",
    "{{ broken",
    "{% if %}x{% endif %}",
    "{{ long }}",
    r"{{ '\ud800' }}",
    "{{ items|first }}{{ items|last }}{{ text|trim }}{{ half|int }}{{ text|float }}",
]
VALUES: dict[str, JsonValue] = {
    "name": "Ada", "n": 3, "items": [1, "zwei", None], "user": {"name": "Bob", "ü": [1.5]}, "flag": True, "half": 0.5,
    "markup": "<b>'\"&", "text": "  ä ", "long": "x" * 3_000,
}  # fmt: skip


def _template_node(template: str) -> Node:
    variables = [{"variable": name, "value_selector": ["n", name]} for name in (*VALUES, "missing")]
    return compiled("template-transform", template=template, variables=variables)


def _attempt(node: Node) -> Attempt:
    pool = Pool()
    for name, value in VALUES.items():
        pool.set("n", name, value)
    definition: Any = None  # the handlers under test do not look at it
    return Attempt("run", "app", "user", definition, node, "", 1, "key", pool, lambda name, text: None)


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_give_the_same_inline_and_in_the_sandbox(loop: Loop, template: str) -> None:
    handler = TemplateTransformHandler(loop.sandbox, limit_chars=2_000)
    attempt = _attempt(_template_node(template))
    inline = handler.evaluate(attempt.node, attempt.pool)
    outcome: Outcome = loop.run(handler.run(attempt))
    assert inline in (None, outcome)


def test_most_of_these_templates_are_rendered_inline(loop: Loop) -> None:
    handler = TemplateTransformHandler(loop.sandbox)
    attempts = [_attempt(_template_node(template)) for template in TEMPLATES]
    inline = [attempt for attempt in attempts if handler.evaluate(attempt.node, attempt.pool) is not None]
    assert len(inline) == len(TEMPLATES) - 2  # the broken ones are left to the sandbox


def test_expensive_templates_end(loop: Loop) -> None:
    def render(template: str, timeout_s: float = 10, **values: JsonValue) -> str:
        return loop.run(loop.sandbox.render(template, values, limit_chars=400_000, timeout_s=timeout_s))

    assert render("{{ 'a' * n }}{% for i in range(n) %}{{ i }}{% endfor %}", n=3) == "aaa012"
    with pytest.raises(OutputTooLong, match="Output length exceeds 400000 characters"):
        render("{{ 'a' * 400001 }}")
    with pytest.raises(OutputTooLong):
        render("{% for i in range(99999) %}{% for j in range(99999) %}xxxxx{% endfor %}{% endfor %}")
    with pytest.raises(SandboxError, match="The template did not finish within"):
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", 0.5)
    with pytest.raises(SandboxError, match="The template needs more memory than it may use"):
        render("{{ 'a' * 2000000000 }}")
    with pytest.raises(SandboxError, match=r"TemplateSyntaxError: .* \(line 2 of the template\)"):
        render("a\n{{ b")


# The code node


def _code(code: str, outputs: dict[str, Any], language: str = "python3") -> Attempt:
    variables = [{"variable": name, "value_selector": ["n", name]} for name in ("name", "missing")]
    data: dict[str, Any] = {"code": code, "code_language": language, "outputs": outputs, "variables": variables}
    return _attempt(compiled("code", **data))


def test_a_code_node_returns_its_declared_outputs(loop: Loop) -> None:
    attempt = _code(
        "def main(name, missing):\n    return {'text': name + '\\0', 'n': True, 'list': [], 'none': missing}",
        {
            "text": {"type": "string"},
            "n": {"type": "number"},
            "list": {"type": "array[string]"},
            "none": {"type": "object"},
        },
    )
    outcome = succeeded(loop.run(CodeHandler(loop.sandbox).run(attempt)))
    assert outcome.outputs == {"text": "Ada", "n": 1, "list": [], "none": None}
    assert outcome.inputs == {"name": "Ada", "missing": None}
    assert outcome.output_types == {"list": "array[string]"}


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("def main(name, missing):\n    return {'b': 1}", "OutputValidationError", "Output a is missing."),
        ("def main(name, missing):\n    return {'a': 1 / 0}", "CodeExecutionError", "ZeroDivisionError"),
        ("def main(name):\n    return {'a': 1}", "CodeExecutionError", "unexpected keyword argument 'missing'"),
    ],
)
def test_a_code_node_fails_by_value(loop: Loop, code: str, kind: str, words: str) -> None:
    outcome = failed(loop.run(CodeHandler(loop.sandbox).run(_code(code, {"a": {"type": "number"}}))))
    assert outcome.error_type == kind
    assert words in outcome.error
    assert outcome.inputs == {"name": "Ada", "missing": None}


def test_code_may_sleep_for_seconds(loop: Loop) -> None:
    code = "import time\ndef main(name, missing):\n    time.sleep(2)\n    return {'a': 1}"
    assert succeeded(loop.run(CodeHandler(loop.sandbox).run(_code(code, {"a": {"type": "number"}})))).outputs == {
        "a": 1
    }


# Other users

AS_ANOTHER_USER = ["--reuid=65534", "--regid=65534", "--clear-groups"]
# An interpreter in root's home: let the other user walk there. The sandboxed processes must give this up, too.
AS_ANOTHER_USER += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
CONTAINER = "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,sys_chroot,mknod"
AS_ROOT_OF_A_CONTAINER = [f"--bounding-set=-all,+{CONTAINER.replace(',', ',+')}", "--inh-caps=-all"]


def _setpriv(*arguments: str) -> "subprocess.CompletedProcess[str]":
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv (util-linux) is not installed")
    environment = {"PATH": os.environ["PATH"], "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([setpriv, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.geteuid() != 0 or NESTED in os.environ, reason="only root can become another user")
@pytest.mark.parametrize("identity", [AS_ANOTHER_USER, AS_ROOT_OF_A_CONTAINER], ids=["another-user", "container-root"])
def test_all_of_this_holds_for_other_users(identity: list[str]) -> None:
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).resolve())]
    done = _setpriv(*identity, "env", f"{NESTED}=1", *pytest_command)
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up capabilities")
def test_root_without_its_capabilities_is_told_which_are_missing() -> None:
    program = "import asyncio; from services.executor.sandbox import Sandbox; asyncio.run(Sandbox().check())"
    done = _setpriv("--bounding-set=-kill", "--inh-caps=-all", sys.executable, "-c", program)
    assert "root lacks the capabilities CAP_KILL to run code as another user" in done.stderr
