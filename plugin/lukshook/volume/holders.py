"""Who keeps a file system in use: processes by what they hold, also in other mount namespaces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from lukshook.filesystems.mounts import lies_on
from lukshook.system import foreign_code, kernel, loops

_ELSEWHERE = "another mount namespace"


@frozen
class Holder:
    """A process and what it holds: "working folder", "file PATH", "mapping PATH", "another mount namespace" ...

    *pid* 0: the kernel itself holds it, without a process: "a mount on PATH", "the loop device NODE", "swap on PATH".
    *started*: when the process started, as `kernel.started` has it; 0 for one that is ending already.
    *pid* ours: "a plugin (NAME) keeps PATH open", or "it keeps PATH open" if it is not known whose code opened it.
    """

    pid: int
    command: str
    unit: str
    holds: str
    started: int = 0

    @property
    def uses_it(self) -> bool:
        """Whether it does something there, rather than only seeing a mount that it may know nothing of."""
        return self.pid not in (0, os.getpid()) and self.holds != _ELSEWHERE

    def __str__(self) -> str:
        if not self.pid:
            return self.holds
        if self.pid == os.getpid():
            return f"{self.command}, {self.holds}"
        unit = f" of {self.unit}" if self.unit else ""
        return f"{self.command} (pid {self.pid}{unit}, {self.holds})"


def of(number: str, besides: str = "") -> tuple[Holder, ...]:
    """Who holds device *number* ("major:minor") or the file system on it, without the mount *besides*.

    fuser and lsof do not see a mount that lives on in another namespace; mountinfo of every process does.
    """
    if not number:
        return ()
    device = _Device(number, _numbers_on(number))
    found: list[Holder] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            # First: what is found then was held by the process that started at that time, or by a later one.
            started = kernel.started(int(entry.name)) or 0
            holds = _holds(entry, device)
            if holds:
                found.append(Holder(int(entry.name), kernel.command(entry.name), _unit(entry.name), holds, started))
    held = (Holder(0, "", "", what) for what in _held_by_kernel(device, besides))
    return (*held, *_ourselves(device), *sorted(found, key=lambda holder: holder.pid))


def _ourselves(device: _Device) -> Iterator[Holder]:
    """What we hold, or code of others in this process; whose code it was where that is known."""
    for link in _listing(Path("/proc/self/fd")):
        if _touches(link, device):
            target = _target(link)
            who = foreign_code.opener(int(link.name), target) or "it"
            yield Holder(os.getpid(), "lukshook itself", "", f"{who} keeps {target} open")


@frozen
class _Device:
    """A device, and the numbers that files on it have: some kinds of file system give them another one."""

    number: str
    numbers: frozenset[str]

    def has(self, mount: kernel.Mount) -> bool:
        """Whether *mount* is of it."""
        return lies_on(mount, self.number)


def _numbers_on(number: str) -> frozenset[str]:
    found = {number}
    for mount in kernel.mounts():
        if lies_on(mount, number):
            with suppress(OSError):
                found.add(kernel.numbers(mount.target).device)
    return frozenset(found)


def _held_by_kernel(device: _Device, besides: str) -> Iterator[str]:
    """Mounts below ours, loop devices and swap on files of the volume: no process has any of them open."""
    mounts = kernel.mounts()
    ours = [mount.target for mount in mounts if device.has(mount)]
    for target in dict.fromkeys(mount.target for mount in mounts):
        if target != besides and any(Path(target).is_relative_to(place) for place in ours):
            yield f"a mount on {target}"
    for loop in loops.look():
        if loop.file and f"{os.major(loop.file.device)}:{os.minor(loop.file.device)}" in device.numbers:
            yield f"the loop device {loop.node}"
    for area in kernel.swaps():
        if _touches(Path(area), device):
            yield f"swap on {area}"


def _holds(entry: Path, device: _Device) -> str:
    for what in ("cwd", "root", "exe"):
        if _touches(entry / what, device):
            return {"cwd": "working folder", "root": "root folder", "exe": "program"}[what]
    for file in _listing(entry / "fd"):
        if _touches(file, device):
            return f"file {_target(file)}"
    for mapped in _mapped(entry, device):
        return f"mapping {mapped}"
    return _foreign_mount(entry, device)


def _foreign_mount(entry: Path, device: _Device) -> str:
    """A mount of the device in a mount namespace that is not ours, and that does not go when ours is unmounted."""
    try:
        if os.readlink(entry / "ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            return ""
    except OSError:
        return ""
    ours = [mount.groups for mount in kernel.mounts() if device.has(mount)]
    shared = {group.partition(":")[2] for groups in ours for group in groups if group.startswith("shared:")}
    follow = {f"{kind}:{group}" for kind in ("shared", "master") for group in shared}
    theirs = [mount.groups for mount in kernel.mounts(entry.name) if device.has(mount)]
    return _ELSEWHERE if any(groups.isdisjoint(follow) for groups in theirs) else ""


def _mapped(entry: Path, device: _Device) -> Iterator[str]:
    """Files mapped from the device; maps has it as hexadecimal "major:minor" (proc(5))."""
    numbers = {"{:02x}:{:02x}".format(*map(int, number.split(":"))) for number in device.numbers}
    for line in kernel.lines(entry / "maps"):
        fields = line.split(" ", 5)
        if len(fields) > 5 and fields[3] in numbers:
            yield fields[5].lstrip(" ")


def _touches(link: Path, device: _Device) -> bool:
    """Whether it lies on the device, or is it. Other programs' files may be on a dead store: not touched."""
    try:
        found = kernel.numbers(link)
    except OSError:
        return False
    return found.own == device.number or found.device in device.numbers


def _listing(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return "?"


def _unit(pid: str) -> str:
    """The systemd unit of a process: the last part of its cgroup that looks like one."""
    parts = [part for part in kernel.cgroup_of(pid).split("/") if part.endswith((".service", ".scope"))]
    return parts[-1] if parts else ""
