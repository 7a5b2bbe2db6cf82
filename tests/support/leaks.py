"""The leak counter: what a test left behind in the kernel, among the processes and in the folders of temporary files.

In the test kernel everything counts. Elsewhere a test shares mounts, devices and folders with others, so there only
processes below the test, mappings that do not stand on files of others, and what names lukshook or one of ``roots``
count.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
OWN_NAME = "lukshook"
BLOCKS = Path("/sys/block")
GUEST = "linux.uml"
#: Daemons of a cluster that several tests use, some of which start them again: `ceph_cluster` ends them.
OF_A_CLUSTER = ("ceph-mon", "ceph-mgr", "ceph-osd")
# A lock file stays: removing it would let a second process lock a file that no name leads to any more.
# The others belong to pytest, tests/run and guests, which clear them away themselves.
LASTING = re.compile(r"\.lock$|^pytest-of-|^lukshook-guest-|^backup-tests-")
PATIENCE = 2.0  # seconds that a killed process and an autoclear loop device get to disappear


@dataclass(frozen=True)
class Snapshot:
    """What there is now; each entry is one line that tells a person what it is."""

    things: frozenset[str]

    def leaked_since(self, before: Snapshot) -> list[str]:
        """What is here that was not there ``before``, sorted."""
        return sorted(self.things - before.things)


@dataclass(frozen=True)
class Counter:
    """Takes snapshots. ``roots``: where the test may put files; ``alone``: nobody else uses this machine."""

    roots: tuple[Path, ...]
    folders: tuple[Path, ...]
    alone: bool

    def snapshot(self) -> Snapshot:
        lines = [*self.mounts(), *self.mappings(), *self.loops(), *descendants(os.getpid()), *self.files()]
        return Snapshot(frozenset(lines))

    def leaked_since(self, before: Snapshot) -> list[str]:
        """What is still there that was not there ``before``, after at most ``PATIENCE`` seconds of waiting."""
        deadline = time.monotonic() + PATIENCE
        while (leaked := self.snapshot().leaked_since(before)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return leaked

    def mine(self, *names: str) -> bool:
        return self.alone or any(self._names_us(name) for name in names)

    def _names_us(self, name: str) -> bool:
        """Whether it lies below one of our roots, or says lukshook without lying below another pytest's folder."""
        below = any(f"{root}/" in f"{name}/" for root in self.roots)
        return below or (OWN_NAME in name and "/pytest-of-" not in name)

    def is_here(self, file: str) -> bool:
        """Whether *file* is one of ours, and not one of another root or mount namespace, where paths mean others."""
        return self.alone or any(file.startswith(f"{root}/") for root in self.roots) or os.path.lexists(file)

    def mounts(self) -> Iterator[str]:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            number, point, source = mount_fields(line)
            if self.mine(point, source):
                yield f"mount {point} of {source} (mount {number})"

    def mappings(self) -> Iterator[str]:
        for entry in BLOCKS.glob("dm-*"):
            name, files = read_or_none(entry / "dm/name"), list(files_below(entry))
            if name is not None and (not files or any(map(self.is_of_us, files))):
                yield f"mapping {name} (/dev/{entry.name})"

    def is_of_us(self, file: str) -> bool:
        """Whether the file of a loop device is ours: the device is one for all roots and namespaces."""
        return self.mine(file) and self.is_here(file)

    def loops(self) -> Iterator[str]:
        for entry in BLOCKS.glob("loop*"):
            backing = read_or_none(entry / "loop/backing_file")
            if backing is not None and self.is_of_us(backing):
                yield f"loop device /dev/{entry.name} on {backing}"

    def files(self) -> Iterator[str]:
        for folder in self.folders:
            for name in names_in(folder):
                if not LASTING.search(name) and (self.alone or OWN_NAME in f"{folder}/{name}"):
                    yield f"file {folder}/{name}"


def files_below(device: Path) -> Iterator[str]:
    """The files of the loop devices that *device* of /sys/block is, or stands on."""
    file = read_or_none(device / "loop/backing_file")
    if file is not None:
        yield file
    for below in names_in(device / "slaves"):
        yield from files_below(BLOCKS / below)


def descendants(ancestor: int) -> Iterator[str]:
    """Every living process that ``ancestor`` started, directly or not; orphans too, once it is a subreaper.

    A guest counts as one: what its kernel starts for the processes inside goes when it goes.
    """
    table = dict(processes())
    for pid, (parent, start, name) in table.items():
        inside = parent in table and table[parent][2] == GUEST
        if name in OF_A_CLUSTER:
            continue
        if not inside and any(above == ancestor for above in chain(parent, lambda p: table[p][0] if p in table else 0)):
            yield f"process {pid} {name} (started at tick {start})"


def chain(pid: int, above: Callable[[int], int]) -> Iterator[int]:
    while pid > 0:
        yield pid
        pid = above(pid)


def processes() -> Iterator[tuple[int, tuple[int, str, str]]]:
    """pid -> parent, start time in ticks, name; without zombies. Source: proc(5), /proc/PID/stat."""
    for entry in Path("/proc").iterdir():
        text = read_or_none(entry / "stat") if entry.name.isdigit() else None
        if text is None:
            continue
        head, _, tail = text.rpartition(")")
        fields = tail.split()
        if fields[0] not in "ZX":
            yield int(entry.name), (int(fields[1]), fields[19], head.partition("(")[2])


def mount_fields(line: str) -> tuple[str, str, str]:
    """Number, mount point and source of a line of mountinfo (proc(5)); optional fields end with a lone dash."""
    left, _, right = line.partition(" - ")
    fields = left.split()
    return fields[0], fields[4], right.split()[1]


def names_in(folder: Path) -> Iterable[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, PermissionError):
        return ()


def read_or_none(path: Path) -> str | None:
    """What a file of /proc or /sys says, None when the thing it tells of has just gone."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def adopt_orphans() -> None:
    """Make this process the parent of every orphan below it, so that ``descendants`` sees daemons as well."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def end_orphans() -> None:
    """A daemon that a failed test left behind has become a child of ours: it would go on for ever.

    Its mount namespace is held until it has ended: as the last process there, it would unmount what lies on its own
    file, and wait for itself.
    """
    while orphans := [pid for pid, (parent, _, _) in processes() if parent == os.getpid()]:
        with ExitStack() as held:
            for pid in orphans:
                with suppress(OSError):
                    held.callback(os.close, os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)
