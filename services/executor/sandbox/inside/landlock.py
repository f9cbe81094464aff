"""Landlock: which files a process may reach, decided by the process itself before it runs foreign code.

Raw system calls, because no maintained package offers them. Rules hold for whole hierarchies and cannot be taken back,
so what must stay hidden inside a readable folder (installed packages inside the standard library's) is kept out by
naming the folder's other entries one by one.
"""

import ctypes
import errno
import os
import struct

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on all architectures

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_REG, _MAKE_SYM, _REFER, _TRUNCATE = 1 << 7, 1 << 8, 1 << 12, 1 << 13, 1 << 14
_ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NET_ALL, _SCOPE_ALL = 0b11, 0b11

READ_FILE = _READ_FILE
LIST = _READ_DIR
READ_TREE = _READ_FILE | _READ_DIR
READ_WRITE_FILE = _READ_FILE | _WRITE_FILE
OWN_TREE = READ_TREE | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def abi() -> int:
    """The kernel's Landlock version; 0: none."""
    return max(0, int(_syscall(_CREATE, None, ctypes.c_size_t(0), 1)))


def supported() -> str | None:
    """None, or what is missing."""
    if abi() > 0:
        return None
    if ctypes.get_errno() == errno.EPERM:
        return "Landlock is forbidden here, probably by the container's system call filter (allow landlock_* there)"
    return "Landlock is not available in this kernel (needs Linux 5.13 with CONFIG_SECURITY_LANDLOCK, switched on)"


class Ruleset:
    """Files that may be reached; all others, and the network, may not. Owns a file descriptor."""

    def __init__(self) -> None:
        version = abi()
        self._handled = _ALL_BY_ABI[min(version, 5)]
        size = 8 if version < 4 else 16 if version < 6 else 24
        attributes = struct.pack("QQQ", self._handled, _NET_ALL, _SCOPE_ALL)[:size]
        self.fd = int(_syscall(_CREATE, ctypes.c_char_p(attributes), ctypes.c_size_t(size), 0))
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "Landlock refused a set of rules")

    def allow(self, path: str, rights: int) -> None:
        """Let `path`, and what is below it, be used in these ways. A path that does not exist is left out."""
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            self.allow_fd(place, rights if os.path.isdir(path) else rights & _FILE_RIGHTS)
        finally:
            os.close(place)

    def allow_fd(self, place: int, rights: int) -> None:
        rule = struct.pack("=Qi", rights & self._handled, place)
        if _syscall(_ADD, self.fd, 1, ctypes.c_char_p(rule), 0) != 0:
            raise OSError(ctypes.get_errno(), "Landlock refused a rule")

    def enforce(self) -> None:
        """Bind the calling process (which must have one thread and no_new_privs). Irrevocable."""
        if _syscall(_RESTRICT, self.fd, 0) != 0:
            raise OSError(ctypes.get_errno(), "Landlock refused to bind the process")

    def close(self) -> None:
        os.close(self.fd)
