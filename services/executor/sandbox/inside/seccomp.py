"""The system calls that code in the sandbox may make: an allow-list, as a classic BPF program for the kernel.

Everything not listed answers EPERM, so Python code sees a PermissionError and may go on. Left out on purpose: starting
processes, programs and namespaces, sockets (but a stream pair of one's own, which asyncio needs), tracing, signals to
others, shared memory and other things that outlive the process.

Numbers by architecture come from the kernel's unistd headers; None: the architecture has no such call.
"""

import ctypes
import errno
import os
import platform
import struct

# name: (x86_64, aarch64)
_Numbers = dict[str, tuple[int | None, int | None]]

_ALLOWED: _Numbers = {
    # open files
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "close": (3, 57), "close_range": (436, 436),
    "lseek": (8, 62), "fstat": (5, 80), "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83),
    "ftruncate": (77, 46), "fallocate": (285, 47), "fadvise64": (221, 223), "sendfile": (40, 71),
    "copy_file_range": (326, 285), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None),
    "pipe2": (293, 59), "getdents": (78, None), "getdents64": (217, 61),
    # paths: what they reach is Landlock's business
    "creat": (85, None), "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "statfs": (137, 43), "fstatfs": (138, 44), "getcwd": (79, 17), "chdir": (80, 49),
    "fchdir": (81, 50), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None),
    "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None),
    "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "umask": (95, 166), "getxattr": (191, 8),
    "lgetxattr": (192, 9), "fgetxattr": (193, 10), "listxattr": (194, 11), "llistxattr": (195, 12),
    "flistxattr": (196, 13),
    # memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "mincore": (27, 232), "msync": (26, 227),
    # waiting
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441), "eventfd": (284, None), "eventfd2": (290, 19), "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86), "timerfd_gettime": (287, 87), "pause": (34, None), "alarm": (37, None),
    "getitimer": (36, 102), "setitimer": (38, 103), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "futex": (202, 98), "futex_waitv": (449, 449), "sched_yield": (24, 124), "wait4": (61, 260), "waitid": (247, 95),
    # a stream pair of one's own, see _socket_rules
    "recvfrom": (45, 207), "shutdown": (48, 210), "getsockname": (51, 204), "getsockopt": (55, 209),
    # signals to oneself
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigsuspend": (130, 133),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # clocks, and what a process may ask about itself
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148),
    "getresgid": (120, 150), "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "uname": (63, 160),
    "getrandom": (318, 278), "getcpu": (309, 168), "getpriority": (140, 141), "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121), "sched_getscheduler": (145, 120), "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    # threads, and the end
    "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293), "membarrier": (324, 283),
    "set_tid_address": (218, 96), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

# Answered with success, without effect: without another uid of its own the process could otherwise lock the service
# out of its files; and with EPERM instead, copying a file in the private directory would fail.
_PRETENDED: _Numbers = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip

# Answered with ENOSYS, so that the C library falls back to the older call, whose arguments a filter can see.
_ABSENT: _Numbers = {"clone3": (435, 435), "openat2": (437, 437)}

_LD, _JEQ, _JSET, _JGE, _JA, _AND, _RET = 0x20, 0x15, 0x45, 0x35, 0x05, 0x54, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_DENY = _ERRNO | errno.EPERM
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data; arguments start at 16, 8 bytes each

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020080  # CLONE_NEWTIME NS CGROUP UTS IPC USER PID NET
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1033, 1034)  # dup, flags, locks, seals; F_SETOWN sends signals
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
_PRCTL = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF
_O_ACCMODE, _O_TRUNC = 3, 0o1000

_Op = tuple[int, int, int, int]


def supported() -> str | None:
    """None, or what is missing."""
    if platform.machine() not in _MACHINES:
        known = ", ".join(_MACHINES)
        return f"the system call filter (seccomp) knows the processors {known}, not {platform.machine()}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(21, 0, 0, 0, 0) < 0:  # PR_GET_SECCOMP
        return "the system call filter (seccomp) is not available in this kernel (CONFIG_SECCOMP_FILTER)"
    return None


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> _Op:
    return (code, jt, jf, k)


def _load_low(argument: int) -> _Op:
    """The lower half: all that the kernel looks at, for arguments of type int."""
    return _op(_LD, 16 + 8 * argument)


def _load_high(argument: int) -> _Op:
    return _op(_LD, 20 + 8 * argument)


def _if_one_of(argument: int, values: tuple[int, ...]) -> list[_Op]:
    body = [_load_low(argument)]
    for value in values:
        body += [_op(_JEQ, value, 0, 1), _op(_RET, _ALLOW)]
    return [*body, _op(_RET, _DENY)]


def _unless_truncating_a_reader(flags: int) -> list[_Op]:
    """O_TRUNC with O_RDONLY truncates, and Landlock before ABI 3 takes it for reading."""
    return [
        _load_low(flags),
        _op(_AND, _O_ACCMODE | _O_TRUNC),
        _op(_JEQ, _O_TRUNC, 0, 1),
        _op(_RET, _DENY),
        _op(_RET, _ALLOW),
    ]


_THREADS_ONLY = [
    _load_low(0),
    _op(_JSET, _CLONE_NAMESPACES, 2, 0),
    _op(_JSET, _CLONE_THREAD, 0, 1),
    _op(_RET, _ALLOW),
    _op(_RET, _DENY),
]
_STREAM_PAIR = [
    _load_low(0),
    _op(_JEQ, _AF_UNIX, 0, 4),
    _load_low(1),
    _op(_AND, _SOCK_TYPE_MASK),
    _op(_JEQ, _SOCK_STREAM, 0, 1),
    _op(_RET, _ALLOW),
    _op(_RET, _DENY),
]
_NO_ADDRESS = [
    _load_low(4),
    _op(_JEQ, 0, 0, 3),
    _load_high(4),
    _op(_JEQ, 0, 0, 1),
    _op(_RET, _ALLOW),
    _op(_RET, _DENY),
]

_RULES: dict[str, tuple[tuple[int | None, int | None], list[_Op]]] = {
    "open": ((2, None), _unless_truncating_a_reader(1)),
    "openat": ((257, 56), _unless_truncating_a_reader(2)),
    "clone": ((56, 220), _THREADS_ONLY),
    "prctl": ((157, 167), _if_one_of(0, _PRCTL)),
    "prlimit64": ((302, 261), _if_one_of(0, (0,))),
    "ioctl": ((16, 29), _if_one_of(1, _IOCTL)),
    "fcntl": ((72, 25), _if_one_of(1, _FCNTL)),
    "socketpair": ((53, 199), _STREAM_PAIR),
    "sendto": ((44, 206), _NO_ADDRESS),
}
_SIGNALS: _Numbers = {"kill": (62, 129), "tgkill": (234, 131)}


_Interval = tuple[int, list[_Op]]
_DENIED = [_op(_RET, _DENY)]
_OWN_PID = 0x7FFFFFFE  # stands for the process id until `install` knows it


class Filter:
    """The program for this machine, ready but for the one process id that may be signalled.

    A search tree over the numbers, not a list: on installing, the kernel walks the program once for every number.
    """

    def __init__(self) -> None:
        self._column, arch = _MACHINES[platform.machine()]
        head = [_op(_LD, _ARCH), _op(_JEQ, arch, 1, 0), _op(_RET, _KILL), _op(_LD, _NUMBER)]
        if self._column == 0:  # the x32 calls: the same kernel functions under other numbers
            head += [_op(_JGE, 0x40000000, 0, 1), _op(_RET, _KILL)]
        self._code = _assembled(head + _tree(self._intervals()))
        self._set = ctypes.CDLL(None, use_errno=True).prctl

    def _intervals(self) -> list[_Interval]:
        """What happens from each number on, until the next interval's first."""
        bodies: dict[int, list[_Op]] = {}

        def put(numbers: tuple[int | None, int | None], body: list[_Op]) -> None:
            number = numbers[self._column]
            if number is not None:
                bodies[number] = body

        for numbers in _ALLOWED.values():
            put(numbers, [_op(_RET, _ALLOW)])
        for numbers in _PRETENDED.values():
            put(numbers, [_op(_RET, _ERRNO)])
        for numbers in _ABSENT.values():
            put(numbers, [_op(_RET, _ERRNO | errno.ENOSYS)])
        for numbers in _SIGNALS.values():
            put(numbers, _if_one_of(0, (_OWN_PID,)))
        for numbers, body in _RULES.values():
            put(numbers, body)
        found: list[_Interval] = [(0, _DENIED)]
        for number in range(max(bodies) + 2):
            body = bodies.get(number, _DENIED)
            if body != found[-1][1]:
                found.append((number, body))
        return found

    def install(self) -> None:
        """Filter this process from here on. Irrevocable; needs no_new_privs. Raises OSError."""
        code = self._code.replace(struct.pack("I", _OWN_PID), struct.pack("I", os.getpid()))
        buffer = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
        if self._set(22, 2, ctypes.c_char_p(program), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
            raise OSError(ctypes.get_errno(), "the system call filter (seccomp) was refused")


def _tree(intervals: list[_Interval]) -> list[_Op]:
    if len(intervals) == 1:
        return intervals[0][1]
    middle = len(intervals) // 2
    low, high = _tree(intervals[:middle]), _tree(intervals[middle:])
    # Conditional jumps reach 255 instructions, plain ones any distance.
    return [_op(_JGE, intervals[middle][0], 0, 1), _op(_JA, len(low)), *low, *high]


def _assembled(ops: list[_Op]) -> bytes:
    return b"".join(struct.pack("HBBI", *op) for op in ops)
