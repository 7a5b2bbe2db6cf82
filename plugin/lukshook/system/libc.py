"""The calls of the C library that Python has no name for. Each says what failed in the system's words."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

_LIBRARY = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 1, 32, 4096  # sys/mount.h
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same numbers on all machines but Alpha (unistd.h)
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _AT_EMPTY_PATH = 1, os.O_CLOEXEC, 0x1000  # linux/mount.h, fcntl.h
_MOVE_MOUNT_EMPTY_PATHS = 0x04 | 0x40
_MOUNT_ATTR_RDONLY = 1
_KEPT_BY_REMOUNT = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC  # the same bits as those of mount(2)
_AT_FDCWD, _AT_NO_AUTOMOUNT, _AT_STATX_DONT_SYNC, _STATX_INO = -100, 0x800, 0x4000, 0x100  # linux/fcntl.h, stat.h
_STATX_MNT_ID, _STATX_MNT_ID_AT = 0x1000, 0x90  # Linux 5.8
_STATX_BYTES = 256
_FALLOC_PUNCH_HOLE = 0x01 | 0x02  # with FALLOC_FL_KEEP_SIZE (linux/falloc.h)
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1  # linux/mount.h
_FSCONFIG_CMD_CREATE = 6
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36  # linux/prctl.h


def bind(source: str, target: int, *, read_only: bool = False) -> int:
    """Show *source* at the open folder *target* as well, with the flags of its own mount; the number of that mount.

    As `mount --bind` does, but the target is not looked up by a path (open_tree(2), move_mount(2): Linux 5.2).
    *read_only*: before it can be seen, or, before Linux 5.12, right afterwards. Raises OSError; nothing is bound then.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    tree = _LIBRARY.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), ctypes.c_uint(flags))
    _check(-1 if tree < 0 else 0, source)
    try:
        hidden = read_only and _set_read_only(tree)
        _check(_LIBRARY.syscall(_MOVE_MOUNT, tree, b"", target, b"", _MOVE_MOUNT_EMPTY_PATHS))
        if read_only and not hidden:
            _remount_or_detach(tree)
        return mount_id(tree)
    finally:
        os.close(tree)


def _remount_or_detach(mount: int) -> None:
    try:
        _remount_read_only(mount)
    except OSError:
        _LIBRARY.umount2(f"/proc/self/fd/{mount}".encode(), _MNT_DETACH)  # just made, and nobody uses it
        raise


def make_read_only(mount: int) -> None:
    """Make the mount read-only whose root folder is open as *mount*; not its other mounts. Raises OSError."""
    if not _set_read_only(mount):
        _remount_read_only(mount)


def _set_read_only(mount: int) -> bool:
    """False where the kernel does not have mount_setattr(2) (before 5.12). Raises OSError."""
    wanted = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY)
    arguments = (mount, b"", ctypes.c_uint(_AT_EMPTY_PATH), wanted, ctypes.c_size_t(ctypes.sizeof(wanted)))
    result = _LIBRARY.syscall(_MOUNT_SETATTR, *arguments)
    if result and ctypes.get_errno() == errno.ENOSYS:
        return False
    _check(result)
    return True


def _remount_read_only(mount: int) -> None:
    _remount(mount, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _remount(mount: int, flags: int) -> None:
    """With *flags* of mount(2), and those that the mount has; how it handles times of access stays by itself."""
    kept = os.fstatvfs(mount).f_flag & _KEPT_BY_REMOUNT
    _check(_LIBRARY.mount(None, f"/proc/self/fd/{mount}".encode(), None, ctypes.c_ulong(flags | kept), None))


def remount_read_only(root: int) -> None:
    """Make the file system read-only whose root folder is open as *root*, as `mount -o remount,ro` does.

    All else of it, and of this mount, stays as it is (mount(2): MS_REMOUNT). Raises OSError, EBUSY where a file is open
    for writing.
    """
    _remount(root, _MS_REMOUNT | _MS_RDONLY)


def mount_id(descriptor: int) -> int:
    """The number of the mount that *descriptor* was opened in, as mountinfo has it; 0 before Linux 5.8."""
    found = ctypes.create_string_buffer(_STATX_BYTES)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    _check(_LIBRARY.statx(descriptor, b"", flags, _STATX_MNT_ID, found))
    known = int.from_bytes(found.raw[:4], sys.byteorder) & _STATX_MNT_ID
    return int.from_bytes(found.raw[_STATX_MNT_ID_AT : _STATX_MNT_ID_AT + 8], sys.byteorder) if known else 0


def unmount(target: str) -> None:
    """Unmount *target*, as umount(8) does: never lazily, never by force. Raises OSError."""
    _check(_LIBRARY.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW), target)


def mounted_nowhere(kind: str) -> int:
    """A descriptor of the root folder of a file system of that *kind*, such as "fusectl", which is mounted nowhere.

    It goes when it is closed (fsopen(2), fsmount(2): Linux 5.2). Raises OSError.
    """
    context = _LIBRARY.syscall(_FSOPEN, kind.encode(), ctypes.c_uint(_FSOPEN_CLOEXEC))
    _check(-1 if context < 0 else 0, kind)
    try:
        _check(_LIBRARY.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), kind)
        root = _LIBRARY.syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
        _check(-1 if root < 0 else 0, kind)
        return int(root)
    finally:
        os.close(context)


def flush(descriptor: int) -> None:
    """Write out the file system of *descriptor*. Raises OSError for what was lost since it was opened (syncfs(2))."""
    _check(_LIBRARY.syncfs(descriptor))


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Make a hole in a file (fallocate(2)). Raises OSError, EOPNOTSUPP where the store has none."""
    at, bytes_ = ctypes.c_int64(offset), ctypes.c_int64(length)
    _check(_LIBRARY.fallocate64(descriptor, _FALLOC_PUNCH_HOLE, at, bytes_))


def statx(path: str) -> bytes:
    """struct statx of *path* as the kernel has it now; no server is asked. Raises OSError. (os.statx: Python 3.15.)"""
    found = ctypes.create_string_buffer(_STATX_BYTES)
    flags = _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    _check(_LIBRARY.statx(_AT_FDCWD, os.fsencode(path), flags, _STATX_INO, found), path)
    return found.raw


def keep_in_memory(buffer: bytearray) -> None:
    """Keep *buffer* out of swap, as far as the limit on locked memory allows (mlock(2))."""
    start = ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
    _LIBRARY.mlock(ctypes.c_void_p(start), ctypes.c_size_t(len(buffer)))


def forbid_dumps() -> None:
    """Let only root read our memory, and write no core dump of it (prctl(2))."""
    _LIBRARY.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def adopt_orphans() -> None:
    """What is orphaned below us becomes a child of ours from now on (prctl(2))."""
    _LIBRARY.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _check(result: int, path: str | None = None) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
