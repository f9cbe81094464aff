"""What a forked process gives up before it runs foreign code, in the only order that works.

`Walls` is prepared once, in the warm interpreter; `close` runs in each child and ends with a process that can compute,
read the standard library, write a bounded amount into its own folder, and nothing else. In the mode `process` only
limits are set: the code then can do whatever the service's user can.
"""

import contextlib
import ctypes
import os
import resource
import signal
import struct
from dataclasses import dataclass, field

from . import landlock, seccomp

FILE_BYTES = 16 << 20
FOLDER_BYTES = 64 << 20
FOLDER_ENTRIES = 2_000
OPEN_FILES = 32
"""Together with FILE_BYTES this bounds what deleted but open files can hide from the folder's limit."""
THREADS = 64
_SHARED_USER_THREADS = 256
_COUNT_INTERVAL_S = 10.0
_NICE = 5

# A range that distributions leave unused. The pid spreads executors that share a machine.
_FIRST_UID, _UIDS = 20_000, 40_000

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 1, 38, 47, 4
_ROOT_NEEDS = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
_CAPSET = {"x86_64": 126, "aarch64": 91}

READABLE_DEVICES = ("/dev/zero", "/dev/random", "/dev/urandom")
READABLE_FILES = ("/etc/ld.so.cache", "/etc/localtime")
READABLE_TREES = ("/usr/share/zoneinfo",)
PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True)
class Readable:
    """What of the interpreter's installation the code may read. Descriptors stay open in the children."""

    stdlib_fd: int
    libraries: tuple[str, ...]
    """Shared libraries, or folders that hold nothing else."""
    packages: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """A folder of installed packages, and those of its entries that are allowed."""


@dataclass(frozen=True)
class Slot:
    """A place for one execution at a time: its private folder and, when we are root, its own user."""

    number: int
    folder: str
    uid: int | None
    ruleset: landlock.Ruleset | None = field(default=None, repr=False)


def missing() -> str | None:
    """None, or the first part of the containment that this machine does not give, as a sentence's beginning."""
    return landlock.supported() or seccomp.supported() or _missing_capabilities()


def _missing_capabilities() -> str | None:
    """What root needs to start processes of another user, to end them, and to clear up after them."""
    if os.geteuid() != 0:
        return None
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        held = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    lacking = [name for name, bit in _ROOT_NEEDS.items() if not held >> bit & 1]
    if not lacking:
        return None
    return (
        f"root lacks the capabilities {', '.join(lacking)} to run code as another user "
        f"(grant them, or run the executor as another user than root)"
    )


def slot(number: int, base: str, readable: Readable | None) -> Slot:
    """Make a place for executions below the folder `base`. `readable`: None in the mode `process`."""
    folder = os.path.join(base, str(number))
    os.mkdir(folder, 0o700)
    if readable is None:
        return Slot(number, folder, None)
    uid = None
    if os.geteuid() == 0:
        uid = _FIRST_UID + (os.getpid() * 64 + number) % _UIDS
        os.chown(folder, uid, uid)
    return Slot(number, folder, uid, _ruleset(folder, readable))


def _ruleset(folder: str, readable: Readable) -> landlock.Ruleset:
    rules = landlock.Ruleset()
    rules.allow(folder, landlock.OWN_TREE)
    rules.allow("/dev/null", landlock.READ_WRITE_FILE)
    for path in (*READABLE_DEVICES, *READABLE_FILES):
        rules.allow(path, landlock.READ_FILE)
    for path in (*READABLE_TREES, *readable.libraries):
        rules.allow(path, landlock.READ_TREE)
    # Installed packages may lie inside the standard library's folder: its entries are named one by one.
    inner = [name for name in os.listdir(readable.stdlib_fd) if name not in PACKAGE_FOLDERS]
    for place, entries in ((readable.stdlib_fd, inner), *readable.packages):
        rules.allow_fd(place, landlock.LIST)
        for entry in entries:
            rules.allow(f"/proc/self/fd/{place}/{entry}", landlock.READ_TREE)
    return rules


class Walls:
    """Everything prepared for `close`, so that a child does as little as possible."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._linux = hasattr(self._libc, "prctl")
        self._filter = seccomp.Filter() if strict else None
        self._threads_elsewhere, self._counted_s = 0, float("-inf")

    def refresh(self, now_s: float) -> None:
        """Look again, now and then, at what the children will share with the rest of the user's processes."""
        if os.geteuid() != 0 and now_s - self._counted_s > _COUNT_INTERVAL_S:
            self._threads_elsewhere, self._counted_s = _threads_of_user(), now_s

    def close(self, slot: Slot, parent: int) -> None:
        """Give up everything but computing. Raises OSError: then no foreign code may run in this process."""
        os.setsid()
        os.umask(0o077)
        os.chdir(slot.folder)
        with contextlib.suppress(OSError):
            os.nice(_NICE)
        # The kernel, when memory runs out, shall take this process and not the service.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as score:
            score.write(b"1000")
        if slot.uid is not None:
            # Before the change of user: the limit then counts this slot's processes only.
            resource.setrlimit(resource.RLIMIT_NPROC, (THREADS, THREADS))
            os.setgroups([])
            os.setresgid(slot.uid, slot.uid, slot.uid)
            os.setresuid(slot.uid, slot.uid, slot.uid)
        self.die_with(parent)  # after the change of user, which would reset it
        self._limit(slot)
        if not self._strict:
            return
        assert slot.ruleset is not None
        assert self._filter is not None
        self._drop_capabilities()
        self._prctl(_PR_SET_NO_NEW_PRIVS, 1)
        slot.ruleset.enforce()
        self._filter.install()

    def die_with(self, parent: int) -> None:
        """Have the kernel kill this process when its parent ends; end at once when it has ended already."""
        if self._linux:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    def _limit(self, slot: Slot) -> None:
        """Time and memory are each execution's own: `limit_execution`."""

        def limit(what: int, most: int) -> None:
            resource.setrlimit(what, _capped(what, most, most))

        limit(resource.RLIMIT_FSIZE, FILE_BYTES)
        limit(resource.RLIMIT_NOFILE, OPEN_FILES)
        limit(resource.RLIMIT_CORE, 0)
        if slot.uid is None and os.geteuid() != 0:
            limit(resource.RLIMIT_NPROC, self._threads_elsewhere + _SHARED_USER_THREADS)
        if self._linux:
            limit(resource.RLIMIT_MEMLOCK, 0)
            limit(resource.RLIMIT_MSGQUEUE, 0)

    def _drop_capabilities(self) -> None:
        """Another user than root may hold some, too."""
        self._libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        number = _CAPSET[os.uname().machine]
        header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
        if self._libc.syscall(number, ctypes.c_char_p(header), ctypes.c_char_p(nothing)) != 0:
            raise OSError(ctypes.get_errno(), "the process could not give up its capabilities")

    def _prctl(self, option: int, value: int) -> None:
        if self._libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}) was refused")


def limit_execution(memory_bytes: int, cpu_s: int) -> None:
    """Bound what the process may use from here on. A first sign of too much processor time comes a second early."""
    resource.setrlimit(resource.RLIMIT_CPU, _capped(resource.RLIMIT_CPU, cpu_s, cpu_s + 1))
    with contextlib.suppress(ValueError):  # macOS cannot bound the address space
        resource.setrlimit(resource.RLIMIT_AS, _capped(resource.RLIMIT_AS, memory_bytes, memory_bytes))


def _capped(what: int, soft: int, hard: int) -> tuple[int, int]:
    """Limits as asked, or those that hold already when they are stricter: only root may raise a hard limit."""
    ceiling = resource.getrlimit(what)[1]
    if ceiling == resource.RLIM_INFINITY:
        return soft, hard
    return min(soft, ceiling), min(hard, ceiling)


def _threads_of_user() -> int:
    """Threads that our user runs already: where the user is shared, the limit counts them all."""
    own, count = os.geteuid(), 0
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{name}").st_uid == own:
                        count += os.stat(f"/proc/{name}/task").st_nlink - 2
    return count
