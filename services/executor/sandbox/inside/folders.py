"""Measures and deletes folders that foreign code has filled, without trusting their size, depth or names."""

import contextlib
import os
import stat


def overfull(folder: str, pid: int, most_bytes: int, most_entries: int) -> bool:
    """Whether the process holds more of the disk than it may: below `folder`, or in deleted files still open."""
    size = entries = 0
    left = [folder]
    try:
        while left:
            with os.scandir(left.pop()) as found:
                for entry in found:
                    status = entry.stat(follow_symlinks=False)
                    size += status.st_blocks * 512
                    entries += 1
                    if entries > most_entries or size > most_bytes:
                        return True
                    if stat.S_ISDIR(status.st_mode):
                        left.append(entry.path)
    except FileNotFoundError:
        pass  # deleted while we looked
    except OSError:
        return True  # a tree too deep to be walked
    return size + _deleted_bytes(pid) > most_bytes


def _deleted_bytes(pid: int) -> int:
    """Root without CAP_SYS_PTRACE cannot see these; then only the number and size of open files bound them."""
    size = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                status = os.stat(f"/proc/{pid}/fd/{name}")
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
                    size += status.st_blocks * 512
    return size


def empty(folder: str) -> None:
    """Delete all that is in the folder. Raises OSError. Nobody else may write there any more.

    Folders inside folders are moved up first, so that depth costs neither stack nor path length.
    """
    mark = os.urandom(8).hex()
    number = 0
    while names := os.listdir(folder):
        for name in names:
            path = os.path.join(folder, name)
            if not _is_folder(path):
                os.unlink(path)
                continue
            for inner in os.listdir(path):
                inner_path = os.path.join(path, inner)
                if _is_folder(inner_path):
                    number += 1
                    os.rename(inner_path, os.path.join(folder, f"{mark}.{number}"))
                else:
                    os.unlink(inner_path)
            os.rmdir(path)


def remove(folder: str) -> None:
    """Delete the folder with all that is in it, as far as possible."""
    with contextlib.suppress(OSError):
        empty(folder)
        os.rmdir(folder)


def _is_folder(path: str) -> bool:
    """Says so without following links, and makes it one that can be listed and moved."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        return False
    os.chmod(path, 0o700)
    return True
