"""A chroot whose root folder is no mount point, and what to do about it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18


def root_is_mounted() -> bool:
    """Whether the root folder is a mount point, as proc(5) tells this process. True where nobody knows."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return True
    return any(line.split(b" ")[4] == b"/" for line in lines)


def mount_root() -> None:
    """In a chroot made from a plain folder: make our root folder a mount point, in a mount namespace of our own.

    Without that, unshare(1) fails: "cannot change root filesystem propagation". The new mount must not reach the
    machine around the chroot, and only from there can the propagation be changed: a process whose working folder lies
    outside its root folder is free to go up (chroot(2)). Raises OSError.
    """
    _check(_LIBC.unshare(_CLONE_NEWNS), "unshare")
    inside = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chroot("/proc")
    os.fchdir(inside)
    while not os.path.samefile("..", "."):
        os.chdir("..")
    os.chroot(".")
    _mount(b"none", b"/", _MS_REC | _MS_PRIVATE)
    os.fchdir(inside)
    os.close(inside)
    place = os.fsencode(Path.cwd())
    _mount(place, place, _MS_BIND | _MS_REC)
    os.chdir(place)
    os.chroot(".")


def _mount(source: bytes, target: bytes, flags: int) -> None:
    _check(_LIBC.mount(source, target, None, ctypes.c_ulong(flags), None), "mount")


def _check(result: int, call: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
