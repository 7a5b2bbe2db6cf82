"""Carrying out a plan: before every step its precondition, after it a measurement, whatever tools say."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from lukshook import engine, fill, interrupt, kernel, luks, size, stack, state
from lukshook.command import Command, CommandFailed, change, read
from lukshook.config import Volume
from lukshook.errors import LukshookError, NotSafe, Unavailable
from lukshook.fill import Progress
from lukshook.layers import LAYERS, Opening, dmcrypt, filesystem, loop, mount
from lukshook.resize.plan import Means, Measured, Step, Store
from lukshook.site import Site, opening_of, remember
from lukshook.trust import Pinned

#: The layers that an open volume may have for it to grow while it is used.
GROW_OPEN = frozenset({"image", "loop", "dmcrypt", "filesystem", "mount"})


@frozen
class Job:
    """One change of size: the volume, its trust for this opening, how the image gets blocks, and who hears of it.

    *mounted*: a closed volume is mounted while its file system gets the new size.
    """

    volume: Volume
    site: Site
    trust: Pinned
    fill: str
    progress: Progress
    mounted: bool = False

    @property
    def image(self) -> Path:
        """The image's path."""
        return self.volume.image.image

    @property
    def kind(self) -> str:
        """The kind of its file system."""
        return self.volume.filesystem.filesystem

    def opening(self, *, read_only: bool = False) -> Opening:
        """One opening for the layers."""
        return opening_of(self.volume, self.site, self.trust, read_only=read_only)


def measure_store(path: Path) -> Store:
    """What the image and its store have room for."""
    found, under = path.stat(), os.statvfs(path.parent)
    return Store(
        kernel.block_size(path),
        found.st_blocks * 512,
        under.f_bavail * under.f_frsize,
        under.f_blocks * under.f_frsize,
        block=not path.is_file(),
    )


def measure_closed(job: Job, filesystem_size: int | None = None) -> Measured:
    """The image of a closed volume. Raises `Refused` (no sane header), `Unavailable`."""
    judged = luks.read_header(job.image)
    return Measured(
        kernel.block_size(job.image), judged.offset, judged.sector_size, filesystem=filesystem_size, block=4096
    )


def measure_open(job: Job, handles: Mapping[str, Any]) -> Measured:
    """All layers of an open volume, or of one that is open up to its file system."""
    measured = measure_closed(job)
    if "loop" in handles:
        measured = evolve(measured, loop=loop.size(handles["loop"]))
    place = handles["filesystem"].path
    measured = evolve(measured, mapping=kernel.block_size(place))
    found = filesystem.facts(job.kind, place)
    if found is None:
        return measured
    mounted = handles["mount"].path if "mount" in handles else None
    length = filesystem.size(job.kind, place, mounted, job.site.runner)
    return evolve(measured, filesystem=length, block=found.block)


def means_open(job: Job, handles: Mapping[str, Any]) -> Means:
    """How an open volume grows."""
    device, mountpoint = handles["filesystem"].path, handles["mount"].path
    opening = job.opening()
    return Means(
        online=True,
        file=lambda length: (fill.command(job.image, kernel.block_size(job.image), length, job.fill),),
        loop=lambda length: loop.grow_commands(handles["loop"]),
        mapping=lambda length: dmcrypt.grow_commands(job.volume.dmcrypt, handles["dmcrypt"], opening),
        filesystem=lambda length: _grow_mounted(job, device, mountpoint, length),
    )


def _grow_mounted(job: Job, device: str, mountpoint: str, length: int) -> tuple[Command, ...]:
    resize = filesystem.resize_command(job.kind, device, mountpoint, length)
    if not job.site.keeps_state:
        return (resize,)  # mounted by others, as they like it
    return mount.without_writing_tables(job.kind, mountpoint, resize)


def grows_mounted(job: Job) -> bool:
    """Whether a closed volume is mounted to grow: where the kernel does that, it is quicker and outlives a power cut.

    An image without configuration has no mount point.
    """
    if not filesystem.KINDS[job.kind].unmounted:
        return True
    layers = engine.stack(engine.choose(job.volume), job.volume)
    return job.site.keeps_state and "mount" in layers and kernel.can_resize_mounted()


def means_closed(job: Job, handles: Mapping[str, Any] | None = None) -> Means:
    """How a closed volume changes its size; *handles* are its layers once it is open for that."""
    commands, device = _rehearsal(job) if handles is None else ((), handles["filesystem"].path)
    mountpoint = os.fspath(job.volume.mountpoint)
    start = kernel.block_size(job.image)

    def file(length: int) -> tuple[Command, ...]:
        return (cut_command(job.image, length) if length < start else fill.command(job.image, start, length, job.fill),)

    def inside(length: int) -> tuple[Command, ...]:
        if job.mounted:
            return _grow_mounted(job, device, mountpoint, length)
        return (filesystem.resize_command(job.kind, device, None, length),)

    return Means(
        online=False,
        file=file,
        filesystem=inside,
        opening=commands,
        check=() if job.mounted else filesystem.recheck_commands(job.kind, device),
        closing=_closing(job, device),
    )


def note_size(job: Job, length: int | None) -> None:
    """Remember how large the file system is now, before anything else depends on it: `check` has no key to look."""
    if length is not None:
        known = state.load(job.site.state_folder, job.volume.name)
        remember(job.volume, job.site, known, evolve(known, extent=length))


def cut_command(image: Path, length: int) -> Command:
    """Give the end of the image back to the store."""
    return change("truncate", "--no-create", f"--size={length}", "--", os.fspath(image))


def stack_below(job: Job) -> tuple[str, ...]:
    """The layers that have to stand for the file system to be resized in a closed volume."""
    whole = engine.stack(engine.choose(job.volume), job.volume)
    return whole if job.mounted else whole[: whole.index("filesystem") + 1]


def _rehearsal(job: Job) -> tuple[tuple[Command, ...], str]:
    opening, below = job.opening(), ""
    commands: list[Command] = []
    device = ""
    for name in stack_below(job):
        layer, spec = LAYERS[name], stack.spec_of(job.volume, name)
        expected = layer.expect(spec, below, opening)
        commands += layer.open_commands(spec, below, opening)
        device = expected if name == "filesystem" else device
        below = expected
    return tuple(commands), device


def _closing(job: Job, device: str) -> tuple[Command, ...]:
    """What closes it again, as far as a closed volume shows; the loop device goes by itself."""
    if "dmcrypt" not in stack_below(job):
        return ()
    mounted = (mount.unmount(str(job.volume.mountpoint)),) if job.mounted else ()
    return (*mounted, *dmcrypt.close_commands(dmcrypt.Handle(device, Path(device).name, "", "", "")))


def carry_out(steps: tuple[Step, ...], measure: Callable[[], Measured], act: Callable[[Step], None]) -> None:
    """Do the steps one after the other.

    Raises `Unavailable` when one does not have the effect it should have: what was done before stays, and the same
    command goes on from there.
    """
    for step in steps:
        interrupt.check()
        if step.need is not None and not step.need.met(measure()):
            raise _stuck(f"before the {step.what} can change it needs {step.need}")
        try:
            act(step)
        except CommandFailed as error:
            raise _stuck(f"{error.command.argv[0]} failed: {error.result.reason}") from error
        measured = measure()
        if not step.done(measured):
            found = getattr(measured, step.what)
            shown = "unreadable" if found is None else size.show(found)
            raise _stuck(f"the {step.what} is {shown}, not {size.show(step.after or 0)}, although no command failed")


def _stuck(what: str) -> LukshookError:
    return Unavailable(
        f"the volume has its new size only in part: {what}",
        hint="nothing is lost; the same command goes on from here. docs/resize.md",
    )


def change_file(job: Job, target: int) -> None:
    """Give the image its new length, and see that this outlives a power cut."""
    start = kernel.block_size(job.image)
    if target > start:
        fill.extend(job.image, start, target, job.fill, job.site.runner, job.progress)
    elif target < start:
        job.site.runner.run(cut_command(job.image, target))
    descriptor = os.open(job.image, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise NotSafe(
            f"the store did not take the new length of {job.image}: {error.strerror}",
            hint="free space or repair the store; the same command goes on from here",
        ) from error
    finally:
        os.close(descriptor)


def run_long(job: Job, commands: tuple[Command, ...]) -> None:
    """Run what must not be cut off by a shutdown, under an inhibitor where the system has one."""
    prefix = _inhibitor(job) if commands else ()
    for command in commands:
        job.site.runner.run(evolve(command, argv=(*prefix, *command.argv)))


def _inhibitor(job: Job) -> tuple[str, ...]:
    """systemd-inhibit(1), if it is there and logind answers it."""
    try:
        job.site.runner.run(read("systemd-inhibit", "--list", timeout=10))
    except LukshookError:
        return ()
    why = f"lukshook changes the size of {job.image}"
    return ("systemd-inhibit", "--what=shutdown:sleep", "--who=lukshook", f"--why={why}", "--mode=block")
