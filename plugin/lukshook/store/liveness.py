"""The store an image lies on: whether it answers, and how far its locks reach.

Whatever touches a dead store (a hung NFS server, a stopped FUSE daemon) hangs in the kernel, and no signal ends it. So
the store is asked by a child that can be left behind, before anything of ours touches it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from lukshook.errors import Unavailable
from lukshook.system.command import Command, CommandFailed, Runner, TimedOut, read
from lukshook.system.forked_call import apart
from lukshook.system.kernel import Mount, is_overwritten_in_place, mounts_around
from lukshook.system.path_walk import ways

#: File systems of this machine itself: those with a server or a daemon behind them are asked first.
_LOCAL = frozenset(
    (
        *("bcachefs", "btrfs", "devtmpfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hostfs", "jfs", "nilfs2", "ntfs3"),
        *("overlay", "ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs", "udf", "vfat", "xfs", "zfs"),
    )
)
_COPY_ON_WRITE = ("bcachefs", "btrfs", "zfs")
_SMB = ("cifs", "smb3")
#: Seconds until a store that does not answer is given up: a disk that has to spin up takes half of that.
SECONDS = 20.0
_MOST_LINKS = 40  # as many as the kernel follows
#: Those that were asked, and of them those that gave no answer: a process waits for each of them once.
_asked: set[str] = set()
_silent: set[str] = set()


def probe(image: Path, runner: Runner) -> None:
    """Check that the store of *image* answers, whether or not there is an image. Raises `Unavailable`."""
    doubtful = next((mount for mount in _on_the_way(image) if mount.kind not in _LOCAL), None)
    name = doubtful.number if doubtful else os.fspath(image)
    if doubtful is None and not _is_device(image):
        return
    if name in _silent:
        raise _gone(image)
    _asked.add(name)
    for command in probe_commands(image):
        try:
            runner.run(command)
        except TimedOut as error:
            _silent.add(name)
            raise _gone(image) from error
        except CommandFailed:
            continue  # absent, forbidden, or no direct I/O: it has answered


def call(work: Callable[[int], None], descriptor: int, command: Command) -> None:
    """Make a system call that writes out. Raises OSError, and `TimedOut` when the store dies meanwhile.

    It is made by a child only where there is a store that may: that takes 2 ms longer.
    """
    _call(partial(work, descriptor), os.fstat(descriptor).st_dev, command, (descriptor,))


def call_outside(work: Callable[[], None], device: int, command: Command) -> None:
    """As `call`, for one that needs nothing open on *device* (st_dev), such as unmounting."""
    _call(work, device, command)


def _call(work: Callable[[], None], device: int, command: Command, kept: Collection[int] = ()) -> None:
    if _asked:
        apart(work, device, command, kept)
    else:
        work()


def probe_commands(image: Path) -> tuple[Command, ...]:
    """What no cache of ours can answer: the room on the store, and a block of the image past the page cache."""
    return (
        read("stat", "--file-system", "--format=%T", "--", os.fspath(image.parent), timeout=SECONDS),
        read(
            *("dd", f"if={image}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct,nonblock,nofollow"),
            timeout=SECONDS,
        ),
    )


def _gone(image: Path) -> Unavailable:
    return Unavailable(
        f"the store of {image} does not answer within {SECONDS:.0f} s",
        hint="is the server or network down? nothing was changed; when it is back, run the same command again",
    )


def _is_device(image: Path) -> bool:
    """A disk may be in the network."""
    try:
        return stat.S_ISBLK(os.stat(image).st_mode)
    except OSError:
        return False


def _on_the_way(path: Path) -> list[Mount]:
    """The mounts that *path* goes through, the innermost last; links are followed, but not into a doubtful store."""
    inside: list[Mount] = []
    for _ in range(_MOST_LINKS):
        inside = mounts_around(os.fspath(path))
        if any(mount.kind not in _LOCAL for mount in inside):
            break
        link = next((Path(way) for way in ways(os.fspath(path.parent)) if os.path.islink(way)), None)  # noqa: PTH114
        if link is None:
            break
        path = Path(os.path.normpath(link.parent / link.readlink() / path.relative_to(link)))
    return inside


def is_on_store_of(image: Path, file: Path) -> bool:
    """Whether *file* would lie beside *image*, or anywhere on the same server. Call `probe` for *file* before."""
    server = next((mount.number for mount in reversed(_on_the_way(image)) if mount.kind not in _LOCAL), None)
    return os.path.realpath(file.parent) == os.fspath(image.parent) or server in [
        mount.number for mount in _on_the_way(file)
    ]


def copies_on_write(image: Path) -> str:
    """The kind of a store that needs room also for what is overwritten, so reserving is not a guarantee; else ""."""
    kind = next((mount.kind for mount in reversed(_on_the_way(image))), "")
    return kind if kind in _COPY_ON_WRITE and not is_overwritten_in_place(image) else ""


def is_direct_when_opened(image: Path) -> bool:
    """Whether the store of *image* has direct I/O only for a file that was opened with O_DIRECT.

    cifs answers direct I/O on another open file with EINVAL (cifs_direct_io in fs/smb/client/file.c of Linux 6.1).
    """
    mount = next(iter(reversed(_on_the_way(image))), None)
    return mount is not None and mount.kind in _SMB


def local_locks(image: Path) -> str:
    """Why a lock on *image* may not be seen by other hosts that use the same store; "" where it is, or there are none.

    mount.nfs(5): local_lock; mount.cifs(8): nobrl. FUSE asks its daemon only if that wants to be asked, which the
    kernel does not show: sshfs, for one, does not want to.
    """
    mount = next(iter(reversed(_on_the_way(image))), None)
    if mount is None:
        return ""
    if mount.kind in ("nfs", "nfs4"):
        told = sorted(mount.options & {"local_lock=all", "local_lock=flock", "nolock"})
    elif mount.kind in _SMB:
        told = sorted(mount.options & {"nobrl"})
    else:
        return mount.kind if mount.kind.partition(".")[0] == "fuse" else ""
    return f"{mount.kind} with {','.join(told)}" if told else ""
