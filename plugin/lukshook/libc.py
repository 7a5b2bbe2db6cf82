"""The calls of the C library that Python has no name for. Each says what failed in the system's words."""

from __future__ import annotations

import ctypes
import os

_LIBRARY = ctypes.CDLL(None, use_errno=True)
_MS_BIND = 4096  # sys/mount.h
_UMOUNT_NOFOLLOW = 8
_AT_FDCWD, _AT_NO_AUTOMOUNT, _AT_STATX_DONT_SYNC, _STATX_INO = -100, 0x800, 0x4000, 0x100  # linux/fcntl.h, stat.h
_STATX_BYTES = 256
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36  # linux/prctl.h


def bind(source: str, target: str) -> None:
    """Show *source* at *target* as well, with the flags of its own mount, as `mount --bind` does. Raises OSError."""
    _check(_LIBRARY.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(_MS_BIND), None), target)


def unmount(target: str) -> None:
    """Unmount *target*, as umount(8) does: never lazily, never by force. Raises OSError."""
    _check(_LIBRARY.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW), target)


def flush(descriptor: int) -> None:
    """Write out the file system of *descriptor*. Raises OSError for what was lost since it was opened (syncfs(2))."""
    _check(_LIBRARY.syncfs(descriptor))


def statx(path: str) -> bytes:
    """struct statx of *path* as the kernel has it now, asking nobody. Raises OSError. (os.statx: Python 3.15.)"""
    found = ctypes.create_string_buffer(_STATX_BYTES)
    flags = _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    _check(_LIBRARY.statx(_AT_FDCWD, os.fsencode(path), flags, _STATX_INO, found), path)
    return found.raw


def keep_in_memory(buffer: bytearray) -> None:
    """Keep *buffer* out of swap, as far as the limit on locked memory allows (mlock(2))."""
    start = ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
    _LIBRARY.mlock(ctypes.c_void_p(start), ctypes.c_size_t(len(buffer)))


def forbid_dumps() -> None:
    """Nobody but root looks into our memory, and there is no core dump of it (prctl(2))."""
    _LIBRARY.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def adopt_orphans() -> None:
    """What is orphaned below us becomes a child of ours from now on (prctl(2))."""
    _LIBRARY.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _check(result: int, path: str | None = None) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
