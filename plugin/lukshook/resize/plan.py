"""What a change of size takes: from measured sizes to a list of steps. Pure: asks nothing, changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

from attrs import field, frozen

from lukshook import size
from lukshook.errors import Refused, Unavailable, Usage
from lukshook.filesystems.kinds import KINDS
from lukshook.store.room import RESERVE, Room
from lukshook.system.command import Command

#: The part of the store that `max` leaves free; at least `room.RESERVE`.
RESERVE_PART = 100
#: resize2fs leaves away a last block group with less than its own tables and 50 blocks in it (resize/resize2fs.c,
#: adjust_fs_info). Tables take some 600 blocks of 4 KiB, reserved group descriptors at most 1024 more.
SHORT_OF = 8 * 1024 * 1024
#: `resize2fs -P` is an estimate that "may be incorrect" (resize2fs(8), KNOWN BUGS).
SLACK = 16 * 1024 * 1024
SLACK_PART = 50


def wanted(text: str, base: int, store: Room) -> int:
    """Bytes of the image that "750GiB", "+100GiB", "-50GiB" or "max" ask for, counted from *base*. Raises `Usage`."""
    sign, number = text[:1], text.strip()
    if number == "max":
        return _most(store)
    if sign not in ("+", "-"):
        return size.parse_aligned(number)
    change = size.parse_aligned(number[1:])
    result = base + change if sign == "+" else base - change
    if result <= 0:
        raise Usage(f'"{text}" leaves nothing of {size.show(base)}', hint="lukshook resize NAME 10GiB sets a size")
    return down(result) if sign == "+" else up(result)


def _most(store: Room) -> int:
    if store.free is None or store.total is None:
        return store.length
    reserve = max(RESERVE, store.total // RESERVE_PART)
    most = down(store.length - store.holes + store.free - reserve)
    if most < store.length:
        raise Unavailable(
            f"the store has {size.show(store.free)} free, no more than the reserve of {size.show(reserve)}",
            hint="free space there, or move the image to a larger store",
        )
    return most


def down(number: int) -> int:
    """The multiple of 1 MiB at or below."""
    return number - number % size.ALIGNMENT


def up(number: int) -> int:
    """The multiple of 1 MiB at or above."""
    return number + -number % size.ALIGNMENT


def check_leap(target: int, store: Room, kind: str) -> None:
    """Check that the file system can grow that much in one step. Raises `Usage` with a size to go through."""
    row = KINDS[kind]
    most = row.largest_step(store.length)
    if most is not None and not store.block and target > most:
        tool = row.resize("", target).argv[0]
        raise Usage(
            f"an image cannot grow from {size.show(store.length)} to {size.show(target)} in one step: {tool} fails",
            hint=f"use two steps: first {exact(most)}, then the rest",
        )


@frozen
class Measured:
    """Sizes in bytes, from the bottom up; None for what is closed, or not there, and so cannot be measured.

    The data begin at *offset* in the image and come in sectors of *sector* bytes; *block* is the block size of the
    file system.
    """

    file: int
    offset: int
    sector: int = 512
    loop: int | None = None
    recorder: int | None = None
    mapping: int | None = None
    filesystem: int | None = None
    block: int = 4096

    def room(self, length: int) -> int:
        """Bytes of the largest file system in an image of *length* bytes."""
        inside = max(length - self.offset, 0)
        inside -= inside % self.sector
        return inside - inside % self.block


@frozen
class Need:
    """What has to be true before a step: the size of *what* is at least, or at most, so many bytes."""

    what: str
    least: int = 0
    most: int | None = None

    def met(self, measured: Measured) -> bool:
        """Whether the measured size satisfies this need."""
        found = getattr(measured, self.what)
        return found is not None and found >= self.least and (self.most is None or found <= self.most)

    def __str__(self) -> str:
        limit = f"at most {size.show(self.most)}" if self.most is not None else f"at least {size.show(self.least)}"
        return f"{self.what} {limit}"


@frozen
class Step:
    """One change: of *what*, to *after* bytes, by *commands*, and what has to be true before.

    *least* and *most* bound what is measured after it when it went well. "open", "check" and "close" have no size.
    """

    what: str
    commands: tuple[Command, ...]
    after: int | None = None
    need: Need | None = None
    least: int = 0
    most: int | None = None

    def done(self, measured: Measured) -> bool:
        """Whether the measured size is what the step was for."""
        return self.after is None or Need(self.what, self.least, self.most).met(measured)


def no_commands(length: int) -> tuple[Command, ...]:
    """For a layer that is not there."""
    return ()


@frozen
class Means:
    """How each part is changed here: functions from a size in bytes to commands, which are not run by planning.

    *online*: everything is open and stays so. Otherwise *opening*, *check* and *closing* stand around the file system.
    """

    online: bool
    file: Callable[[int], tuple[Command, ...]]
    filesystem: Callable[[int], tuple[Command, ...]]
    loop: Callable[[int], tuple[Command, ...]] = field(default=no_commands)
    recorder: Callable[[int], tuple[Command, ...]] = field(default=no_commands)
    mapping: Callable[[int], tuple[Command, ...]] = field(default=no_commands)
    opening: tuple[Command, ...] = ()
    check: tuple[Command, ...] = ()
    closing: tuple[Command, ...] = ()


def plan(measured: Measured, target: int, means: Means) -> tuple[Step, ...]:
    """The steps from what was measured to an image of *target* bytes; what is done already is left away.

    Growing goes from the bottom up, shrinking from the top down: nothing is ever larger than what it lies in.
    Raises `Refused` when that would shrink something that is open.
    """
    room = measured.room(target)
    if measured.file > target or (measured.filesystem or 0) > room:
        if means.online:
            raise Refused("a volume can be shrunk only while it is closed", hint="close it first: lukshook close NAME")
        return _shrink(measured, target, room, means)
    file, filesystem = _grow_file(measured, target, means), _grow_filesystem(measured, target, room, means)
    if means.online:
        return (*file, *_grow_between(measured, target, means), *filesystem)
    return (*file, *_around(filesystem, means))


def _grow_file(measured: Measured, target: int, means: Means) -> tuple[Step, ...]:
    if measured.file == target:
        return ()
    return (Step("file", means.file(target), target, Need("file", 0, target), target, target),)


def _grow_between(measured: Measured, target: int, means: Means) -> tuple[Step, ...]:
    steps = []
    below = "file"
    for what, found, commands in (("loop", measured.loop, means.loop), ("recorder", measured.recorder, means.recorder)):
        if found is not None:
            if found < target:
                steps.append(Step(what, commands(target), target, Need(below, target), target, target))
            below = what
    inside = target - measured.offset - (target - measured.offset) % measured.sector
    if measured.mapping is not None and measured.mapping < inside:
        steps.append(Step("mapping", means.mapping(inside), inside, Need(below, target), inside, inside))
    return tuple(steps)


def _grow_filesystem(measured: Measured, target: int, room: int, means: Means) -> tuple[Step, ...]:
    if measured.filesystem is not None and measured.filesystem >= room:
        return ()
    least = max(room - SHORT_OF, measured.filesystem or 0)
    return (Step("filesystem", means.filesystem(room), room, Need("mapping", room), least, room),)


def _around(steps: tuple[Step, ...], means: Means) -> tuple[Step, ...]:
    """The steps on a file system in a volume that is closed before and after."""
    if not steps:
        return ()
    check = (Step("check", means.check),) if means.check else ()
    return (Step("open", means.opening), *check, *steps, Step("close", means.closing))


def _shrink(measured: Measured, target: int, room: int, means: Means) -> tuple[Step, ...]:
    steps: tuple[Step, ...] = ()
    if measured.filesystem is None or measured.filesystem > room:
        least = max(room - SHORT_OF, 0)
        steps = (Step("filesystem", means.filesystem(room), room, Need("mapping", room), least, room),)
    if measured.file > target:
        cut = Step("file", means.file(target), target, Need("filesystem", 1, room), target, target)
        return (*_around(steps, means), cut)
    return _around(steps, means)


def check_minimum(measured: Measured, target: int, minimum: int | None, least: int) -> None:
    """Check that what is in the file system fits an image of *target* bytes.

    *minimum* is what the file system itself says it needs, None where it could not say; *least* the smallest size of
    its kind; both in bytes. Raises `Refused` with the smallest size that would do.
    """
    inside = max(least, minimum + max(SLACK, minimum // SLACK_PART) if minimum is not None else 0)
    smallest = up(measured.offset + inside)
    if target < smallest:
        raise Refused(
            f"{size.show(target)} is too small for what is in it",
            hint=f"the smallest possible size is {exact(smallest)}; nothing was changed",
        )


def exact(length: int) -> str:
    """A size that `size.parse_aligned` reads back as the same."""
    text = size.show(length)
    return text if not text.startswith("~") else f"{length // size.ALIGNMENT}MiB"


def table(measured: Measured, steps: tuple[Step, ...]) -> str:
    """Before and after, one line for every part that has a size."""
    after = {step.what: step.after for step in steps if step.after is not None}
    rows = [("", "before", "after")]
    for what in ("file", "loop", "recorder", "mapping", "filesystem"):
        found = getattr(measured, what)
        if found is not None or what in after:
            target = after.get(what, found)
            rows.append((what, "closed" if found is None else exact(found), exact(target or 0)))
    return "\n".join(f"{name:<12}{before:>14}{then:>14}" for name, before, then in rows)


def is_relative(text: str) -> bool:
    """Whether a size counts from the present one."""
    return re.match(r"\s*[+-]", text) is not None
