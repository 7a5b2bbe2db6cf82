"""What the kernel says is so: mounts, mappings, processes. Only looks, never changes.

Names and exit statuses can lie or be stale; device and inode numbers do not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import signal
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path

from attrs import frozen

from lukshook.system import libc
from lukshook.system.one_look import same_for_all
from lukshook.system.path_walk import ways

_FS_IOC_GETFLAGS = 0x80086601  # linux/fs.h, for a 64-bit long
_FS_IMMUTABLE_FL, _FS_APPEND_FL, _FS_NOCOW_FL = 0x10, 0x20, 0x00800000
_PF_EXITING = 0x4  # linux/sched.h
#: How proc(5) writes the state of a process or thread that only waits to be forgotten.
_DEAD = ([b"Z"], [b"X"])
#: Seconds of the first pause of `wait_until`.
_FIRST_PAUSE = 0.002
CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 21, 24  # linux/capability.h
#: How proc(5) writes a byte that would end a field or a line.
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


@frozen(repr=False)
class Mount:
    """A line of mountinfo (proc(5)): *number* is the device, "major:minor", *id* the number of this mount.

    *own* are the options of this mount alone, *common* those of the super block, which all its mounts have. *groups*
    say with whom it shares mounts: "shared:X" with its peers of group X, "master:X" it follows group X.
    """

    number: str
    root: str
    target: str
    kind: str
    source: str
    own: frozenset[str]
    common: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    id: int = 0

    @property
    def options(self) -> frozenset[str]:
        """Those of the mount and those of the super block."""
        return self.own | self.common


def mounts(process: str = "self") -> tuple[Mount, ...]:
    """The mounts a process sees, oldest first; empty when the process is gone."""
    return _own_mounts() if process == "self" else _mounts_in(_content(f"/proc/{process}/mountinfo"))


@same_for_all
def _own_mounts() -> tuple[Mount, ...]:
    return _mounts_in(_content("/proc/self/mountinfo"))


@same_for_all
def _at_places() -> dict[str, list[Mount]]:
    """What is mounted at each place, the topmost last."""
    places: dict[str, list[Mount]] = {}
    for mount in mounts():
        places.setdefault(mount.target, []).append(mount)
    return places


@same_for_all
def fuse_names() -> frozenset[str]:
    """The names, without the folders above, of what FUSE has mounted or shows."""
    return frozenset(mount.target.rpartition("/")[2] for mount in mounts() if mount.kind.startswith("fuse"))


@lru_cache(maxsize=1)
def _mounts_in(mountinfo: bytes) -> tuple[Mount, ...]:
    """What a mountinfo says; worked out once as long as the kernel says the same."""
    found = (_mount(line) for line in _split(mountinfo, b"\n"))
    return tuple(mount for mount in found if mount is not None)


def _mount(line: bytes) -> Mount | None:
    """What a line of mountinfo says; None for one that is none, as an option with a raw line break in it leaves."""
    left, _, right = line.partition(b" - ")
    fields, after = left.split(b" "), right.split(b" ")
    if len(fields) < 6 or len(after) < 3 or not fields[0].isdigit():
        return None
    own, common = (frozenset(map(os.fsdecode, options.split(b","))) for options in (fields[5], after[2]))
    root, target, source, kind = map(unescaped, (fields[3], fields[4], after[1], after[0]))
    return Mount(
        os.fsdecode(fields[2]),
        root,
        target,
        kind,
        source,
        own,
        common,
        frozenset(map(os.fsdecode, fields[6:])),
        int(fields[0]),
    )


def unescaped(field: bytes) -> str:
    """A field of mountinfo, in which spaces and the like are octal numbers."""
    return os.fsdecode(_OCTAL.sub(lambda octal: bytes([int(octal[1], 8)]), field))


def _content(path: Path | str) -> bytes:
    """What is in a file of /proc or /sys; nothing where it is gone or not for us."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - `status` reads many, and pathlib takes as long again
            return file.read()
    except OSError:
        return b""


def _split(content: bytes, end: bytes) -> list[bytes]:
    """What *end* ends in *content*: only that byte, because names in it may have any other, and need not be text."""
    return content.removesuffix(end).split(end) if content else []


def _rows(path: Path | str, end: bytes = b"\n") -> list[bytes]:
    """The lines of a file of /proc or /sys, or what *end* ends in it; none where it is gone or not for us."""
    return _split(_content(path), end)


def lines(path: Path | str, end: bytes = b"\n") -> list[str]:
    """The lines of a file of /proc or /sys as text (os.fsdecode), or what *end* ends in it; none where it is gone."""
    return [os.fsdecode(row) for row in _rows(path, end)]


def value(path: Path | str) -> str:
    """All that a file of /proc or /sys says, a name perhaps, without the line break behind it. Raises OSError."""
    return os.fsdecode(Path(path).read_bytes().removesuffix(b"\n"))


def is_fuse_of(mount: Mount, user: int) -> bool:
    """Whether *mount* is a FUSE mount that was made by *user*, a user ID."""
    return mount.kind.startswith("fuse") and f"user_id={user}" in mount.common


def mount_at(path: Path | str) -> Mount | None:
    """What is mounted at exactly *path* (the topmost), or None. Does not touch the path itself."""
    return next(reversed(_at_places().get(os.fspath(path), [])), None)


def mounts_around(path: str) -> list[Mount]:
    """The mounts that *path*, which has no links in it, lies in or is; the innermost last. Does not touch the path."""
    places = _at_places()
    return [mount for way in ways(path) for mount in places.get(way, [])]


def mount_above(path: Path) -> Mount | None:
    """The mount that the folder of *path*, which has no links in it, lies in. Does not touch the path itself."""
    return next(reversed(mounts_around(os.fspath(path.parent))), None)


def enter(mount: Mount) -> int:
    """A descriptor of the root folder of *mount*. Raises OSError, also where its path leads to another mount now."""
    descriptor = os.open(mount.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    if libc.mount_id(descriptor) not in (0, mount.id):
        os.close(descriptor)
        raise OSError(errno.ESTALE, "another mount is there now", mount.target)
    return descriptor


def number(path: Path | str) -> str:
    """ "major:minor" of a block device node. Raises OSError."""
    found = os.stat(path)
    if not stat.S_ISBLK(found.st_mode):
        raise OSError(f"{path} is not a block device")
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def block_size(path: Path | str) -> int:
    """Bytes of a block device, or of a file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def number_within(path: Path | str) -> str:
    """ "major:minor" of the file system that *path* lies in. Raises OSError."""
    device = os.stat(path).st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def blocks_moved(device: int) -> str:
    """How often *device* (st_dev) has read and written, as text; "-" where there is no such block device.

    Fields 1 and 5 of Documentation/block/stat.rst; the times in it advance while nothing moves.
    """
    fields = b"".join(_rows(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")).split()
    return f"{int(fields[0])} {int(fields[4])}" if fields else "-"


@frozen(repr=False)
class Numbers:
    """What a path leads to: the number of its file system and of the device it is, "" for none; both with inode."""

    device: str
    own: str
    inode: int


def numbers(path: Path | str) -> Numbers:
    """As the kernel has them now: without asking a server or daemon, which may be dead. Raises OSError.

    Offsets of struct statx by linux/stat.h.
    """
    found = libc.statx(os.fspath(path))
    mode = struct.unpack_from("H", found, 0x1C)[0]
    inode = struct.unpack_from("Q", found, 0x20)[0]
    major, minor, *device = struct.unpack_from("4I", found, 0x80)
    return Numbers("{}:{}".format(*device), f"{major}:{minor}" if stat.S_ISBLK(mode) else "", inode)


@frozen(repr=False)
class Mapping:
    """A device-mapper device: its name, its uuid ("CRYPT-LUKS2-<uuid>-<name>"), its number and those under it."""

    name: str
    uuid: str
    number: str
    under: frozenset[str]


def mappings() -> Iterator[Mapping]:
    """All device-mapper devices, from sysfs."""
    for entry in Path("/sys/block").glob("dm-*"):
        try:
            under = frozenset(value(slave / "dev") for slave in (entry / "slaves").iterdir())
            texts = [value(entry / part) for part in ("dm/name", "dm/uuid", "dev")]
        except OSError:  # gone meanwhile
            continue
        yield Mapping(texts[0], texts[1], texts[2], under)


def mapping(name: str) -> Mapping | None:
    """The mapping of that name, or None."""
    return next((m for m in mappings() if m.name == name), None)


@cache
def has_device_mapper() -> bool:
    """Whether this kernel has device-mapper, or a module that it can load for it; found out once."""
    if any(line.endswith(" device-mapper") for line in lines("/proc/misc")):
        return True
    modules = Path("/lib/modules") / os.uname().release / "modules.dep"
    return any("/dm-mod.ko" in line for line in lines(modules))


@cache
def has_capability(number: int) -> bool:
    """Whether this process has a capability, by its number in linux/capability.h; found out once."""
    return any(mask >> number & 1 for mask in _masks("self", "CapEff:"))


def _masks(pid: int | str, *names: str) -> Iterator[int]:
    """What /proc/PID/status says under *names* in hexadecimal; nothing where the process is gone."""
    return (int(line.partition("\t")[2], 16) for line in lines(f"/proc/{pid}/status") if line.startswith(names))


def processes_with(program: str, device: int, inode: int) -> tuple[int, ...]:
    """The processes of that name (comm) that have the file with these numbers open."""
    return tuple(pid for pid in processes_named(program) if has_open(pid, device, inode))


def processes_named(program: str) -> Iterator[int]:
    """The processes of that name (comm)."""
    found = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return (pid for pid in found if command(pid) == program)


def owner(pid: int) -> int | None:
    """The user id that a process runs as, or None when it is gone."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def swaps(table: Path = Path("/proc/swaps")) -> list[str]:
    """The files and devices that are swapped to (proc(5)); none where the kernel has no swap."""
    return [unescaped(row.partition(b" ")[0]) for row in _rows(table)[1:]]


def command(pid: int | str) -> str:
    """The name of a process (proc(5), `comm`): up to 15 bytes of its own choice; "?" when it is gone."""
    try:
        return value(f"/proc/{pid}/comm")
    except OSError:
        return "?"


def words(pid: int | str) -> list[str]:
    """The command line of a process (proc(5), `cmdline`); empty when it is gone."""
    return lines(f"/proc/{pid}/cmdline", b"\0")


def parent(pid: int) -> int:
    """The process that has started *pid*, or has adopted it since; 1 when it is gone."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 1


def _stat(pid: int | str) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on, the state; they are numbers. Empty when it is gone."""
    return b"".join(_rows(f"/proc/{pid}/stat")).rpartition(b")")[2].split()


def boot_id() -> str:
    """Names this boot of this kernel; what is open does not outlive it."""
    return value("/proc/sys/kernel/random/boot_id")


def started(pid: int) -> int | None:
    """When process *pid* started, in clock ticks since boot; None when it is gone. Both together name a process."""
    fields = _stat(pid)
    return int(fields[19]) if fields and not _has_ended(pid, fields) else None


def is_dying(pid: int, started: int) -> bool:
    """Whether the process that got *pid* when it *started* has ended, but one of its threads still works in the kernel.

    The first thread can be gone before the others.
    """
    fields = _stat(pid)
    if not fields or int(fields[19]) != started or not _has_ended(pid, fields):
        return False
    states = (_stat(f"{pid}/task/{thread}")[:1] for thread in _threads(pid))
    return any(state not in ([], *_DEAD) for state in states)


def _has_ended(pid: int, fields: list[bytes]) -> bool:
    return fields[:1] in _DEAD or bool(int(fields[6]) & _PF_EXITING) or _is_killed(pid)


def _is_killed(pid: int) -> bool:
    """Whether SIGKILL is on its way to a process, which can take a while to die of it (proc(5): SigPnd, ShdPnd)."""
    return any(mask >> (signal.SIGKILL - 1) & 1 for mask in _masks(pid, "SigPnd:", "ShdPnd:"))


def children(pid: int) -> list[int]:
    """The processes that *pid* has started and that live (proc(5), `children`); empty when it is gone."""
    files = (f"/proc/{pid}/task/{thread}/children" for thread in _threads(pid))
    return [int(child) for file in files for row in _rows(file) for child in row.split()]


def _threads(pid: int) -> list[str]:
    try:  # glob looks whether the folder is there, and then fails where it is gone
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def is_immutable(path: Path | str) -> bool:
    """Whether *path* has the immutable flag (chattr(1) `+i`); False where the file system knows no flags."""
    return bool(_flags(path) & _FS_IMMUTABLE_FL)


def is_overwritten_in_place(path: Path) -> bool:
    """Whether *path* has the flag against copying on write (chattr(1) `+C`)."""
    return bool(_flags(path) & _FS_NOCOW_FL)


def _flags(path: Path | str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return _flags_of(descriptor)
    finally:
        os.close(descriptor)


def _flags_of(descriptor: int) -> int:
    try:
        return int(struct.unpack("l", fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(8)))[0])
    except OSError:
        return 0


def write_lock(descriptor: int) -> str:
    """The chattr(1) flag that keeps all users, root too, from changing an open file: "i", "a" (append only) or ""."""
    flags = _flags_of(descriptor)
    return "i" if flags & _FS_IMMUTABLE_FL else "a" if flags & _FS_APPEND_FL else ""


def wait_until(done: Callable[[], bool], seconds: float, process: int | None = None) -> bool:
    """Poll *done* with growing pauses until it holds or *seconds* are over; whether it held.

    Polling, because nothing else names the moment: `udevadm settle` waits for other people's devices. *process*: a
    descriptor of pidfd_open(2); the end of that process ends a pause, and the pauses begin again.
    """
    end = time.monotonic() + seconds
    pause, waiting = _FIRST_PAUSE, select.poll()
    if process is not None:
        waiting.register(process, select.POLLIN)
    while not done():
        if time.monotonic() >= end:
            return False
        if waiting.poll(pause * 1000):
            pause, waiting = _FIRST_PAUSE, select.poll()
        else:
            pause = min(pause * 2, 0.25)
    return True


def cgroup_of(pid: int | str = "self") -> str:
    """The cgroup of a process in the unified hierarchy (or systemd's own), or ""."""
    for line in lines(f"/proc/{pid}/cgroup"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (hierarchy == "0" and not controllers) or controllers == "name=systemd":
            return path
    return ""


def cgroup_has_processes(path: str) -> bool:
    """Whether any process lives in the cgroup."""
    roots = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd"))
    return any(_rows(f"{root}{path}/cgroup.procs") for root in roots)


def unit_is_active(name: str) -> bool:
    """Whether the system's systemd unit *name* is starting, running or stopping.

    Its cgroup does not tell: between two of its commands nothing lives in there, and a unit with RemainAfterExit=
    loses it. systemd keeps this link for journald until the unit has ended (src/core/unit.c; seen with 252).
    """
    return os.path.lexists(f"/run/systemd/units/invocation:{name}")


def open_names(pid: int) -> set[str]:
    """The names of the files that process *pid* has open, as the kernel has them now; no file is touched (proc(5))."""
    names = set()
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                names.add(os.readlink(link))
    return names


def has_open(pid: int, device: int, inode: int) -> bool:
    """Whether process *pid* has the file with these numbers open."""
    return open_file(pid, device, inode) is not None


def open_file(pid: int, device: int, inode: int) -> Path | None:
    """The name under /proc of the file with these numbers that process *pid* has open, or None."""
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return None
    return next((link for link in links if _is_file(link, device, inode)), None)


def _is_file(link: Path, device: int, inode: int) -> bool:
    try:
        found = numbers(link)
    except OSError:
        return False
    return (found.device, found.inode) == (f"{os.major(device)}:{os.minor(device)}", inode)
