"""What programs leave in folders, and its removal, however deep it lies and whatever its permissions are."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection

PREFIX = "sandbox-"  # of folders below /tmp, for machines without mount namespaces: sandbox-PID-RANDOM
_AT_MOST_BELOW = 3  # levels of folders below / in which everybody may write and that are looked through


def remove_tree(path: str) -> None:
    """Removes a folder that no process uses any more; what this user may not remove stays.

    Without recursion and with two descriptors at a time: folders that lie deeper are first moved up.
    """
    with contextlib.suppress(OSError):
        os.chmod(path, 0o700)
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        return
    try:
        moved, unique = 0, os.urandom(8).hex()
        waiting = _remove_files(top)
        while waiting:
            name = waiting.pop()
            try:
                folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
            except OSError:
                continue
            try:
                for inner in _remove_files(folder):
                    moved += 1
                    new = f"{unique}-{moved}"
                    with contextlib.suppress(OSError):
                        os.rename(inner, new, src_dir_fd=folder, dst_dir_fd=top)
                        waiting.append(new)
            finally:
                os.close(folder)
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _remove_files(folder: int) -> list[str]:
    """Removes all but folders from a folder; the names of those, opened for this user."""
    folders = []
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        with contextlib.suppress(OSError):
            if is_folder:
                os.chmod(name, 0o700, dir_fd=folder)
                folders.append(name)
            else:
                os.unlink(name, dir_fd=folder)
    return folders


def remove_old_folders(parent: str, owners: Collection[int]) -> None:
    """Folders, of these user ids, of workers that were killed before they could remove them."""
    for entry in os.scandir(parent):
        number = entry.name.removeprefix(PREFIX).partition("-")[0]
        if not entry.name.startswith(PREFIX) or not number.isdigit() or os.path.exists(f"/proc/{number}"):
            continue
        with contextlib.suppress(OSError):
            if entry.stat(follow_symlinks=False).st_uid in owners:
                remove_tree(entry.path)


def open_folders() -> list[str]:
    """The folders of this machine in which everybody may write, such as /tmp and /dev/shm."""
    found: list[str] = []
    level = ["/"]
    for _ in range(_AT_MOST_BELOW):
        below: list[str] = []
        for folder in level:
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.path in ("/proc", "/sys") or not entry.is_dir(follow_symlinks=False):
                        continue
                    writable = entry.stat(follow_symlinks=False).st_mode & stat.S_IWOTH
                    (found if writable else below).append(entry.path)
        level = below
    return found


def remove_of_owners(folders: Collection[str], owners: Collection[int]) -> None:
    """Removes from the folders what belongs to these user ids."""
    for folder in folders:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid in owners:
                        remove_tree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)


def changed_at(folders: Collection[str]) -> list[int]:
    """Differs when an entry has been made in or removed from one of the folders."""
    times = []
    for folder in folders:
        with contextlib.suppress(OSError):
            times.append(os.stat(folder).st_mtime_ns)
    return times
