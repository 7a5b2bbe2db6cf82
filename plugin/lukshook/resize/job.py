"""Carrying out a plan: before every step its precondition, after it a measurement, whatever tools say."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from attrs import evolve, frozen

from lukshook import size
from lukshook.config import Volume
from lukshook.errors import LukshookError, NotSafe, Refused, Unavailable
from lukshook.filesystems.kinds import KINDS
from lukshook.layers import dmcrypt, era, filesystem, loop, loop_device, mount
from lukshook.layers.base import Handles, Opening, handle_of
from lukshook.luks import header
from lukshook.resize.plan import Means, Measured, Step
from lukshook.store import allocation
from lukshook.store.allocation import Progress
from lukshook.store.image_file import ImageFile, locked_by_others
from lukshook.system import kernel, signals
from lukshook.system.command import Command, CommandFailed, change, find_tools, read
from lukshook.system.secret import Secret
from lukshook.volume import engine_choice, stack
from lukshook.volume.context import Site
from lukshook.volume.judgement import Pinned
from lukshook.volume.work import Work

#: Seconds until the kernel has closed the image after a daemon with asynchronous I/O has ended.
_LOCK_SECONDS = 5.0


@frozen
class Job:
    """One change of size: the volume, its open image, its trust, how the image gets blocks, and who hears of progress.

    All of it works on that one *image*, whatever comes to lie at its path. *mounted*: a closed volume is mounted while
    its file system gets the new size. *any_kind*: the file system may be of any kind that we know.
    """

    work: Work
    image: ImageFile
    trust: Pinned
    fill: str
    progress: Progress
    mounted: bool = False
    any_kind: bool = False

    @property
    def volume(self) -> Volume:
        """What is configured of the volume."""
        return self.work.volume

    @property
    def site(self) -> Site:
        """Where and how we work."""
        return self.work.site

    @property
    def kind(self) -> str:
        """The kind of its file system."""
        return self.volume.filesystem.filesystem

    def opening(self, *, read_only: bool = False) -> Opening:
        """One opening for the layers, on the image that is open."""
        return self.work.opening(self.trust, read_only=read_only, image=self.image)

    def of_kind(self, kind: str) -> Job:
        """This job on a file system of that *kind*."""
        return evolve(self, work=evolve(self.work, volume=of_kind(self.volume, kind)))

    def asking(self, ask: Callable[[Volume], Secret]) -> Job:
        """This job with another source of the key."""
        return evolve(self, work=evolve(self.work, site=evolve(self.site, ask=ask)))


def of_kind(volume: Volume, kind: str) -> Volume:
    """*volume* with another kind of file system."""
    return evolve(volume, filesystem=filesystem.Spec(kind), mount=evolve(volume.mount, filesystem=kind))


def measure_closed(job: Job, filesystem_size: int | None = None) -> Measured:
    """The image of a closed volume. Raises `Refused` (no sane header)."""
    length = job.image.size
    judged = header.judge(header.copy(job.image.descriptor), length)
    return Measured(length, judged.offset, judged.sector_size, filesystem=filesystem_size, block=4096)


def measure_open(job: Job, handles: Handles) -> Measured:
    """All layers of an open volume, or of one that is open up to its file system."""
    measured = measure_closed(job)
    if "loop" in handles:
        measured = evolve(measured, loop=loop.size(handle_of(handles, loop.Handle)))
    if "era" in handles:
        measured = evolve(measured, recorder=kernel.block_size(handles["era"].path))
    place = handles["filesystem"].path
    measured = evolve(measured, mapping=kernel.block_size(place))
    found = filesystem.facts(job.kind, place)
    if found is None:
        return measured
    mounted = handles["mount"].path if "mount" in handles else None
    length = filesystem.size(job.kind, place, mounted, job.site.runner)
    return evolve(measured, filesystem=length, block=found.block)


def check_named(image: ImageFile, *, changed: bool) -> None:
    """Check that the path of *image* still leads to it. Raises `Refused`, or `NotSafe` where it is *changed*."""
    if image.is_named(image.path.name):
        return
    message = f"the image {image.path} was replaced while its size was being changed"
    if changed:
        raise NotSafe(message, hint="the file that was there before has the new size; find out who replaced it")
    raise Refused(message, hint="nothing was changed; find out who replaced it")


def check_unused(image: ImageFile) -> None:
    """Check that no process has *image* open that would not notice the change. Raises `Unavailable`."""
    loop_device.check_unattached(image)
    if not image.block and not kernel.wait_until(lambda: not image.is_locked(), _LOCK_SECONDS):
        raise locked_by_others(os.fspath(image.path))


def check_tools(steps: tuple[Step, ...]) -> None:
    """Check that the tools for all *steps* are there. Raises `Unavailable`."""
    find_tools(command.argv[0] for step in steps for command in step.commands)


def path_under(job: Job, handles: Handles, layer: str) -> str:
    """What the *layer* stands on."""
    names = tuple(handles)
    below = names[names.index(layer) - 1]
    return os.fspath(job.image.path) if below == "image" else handles[below].path


def means_open(job: Job, handles: Handles) -> Means:
    """How an open volume grows."""
    device, mountpoint = handles["filesystem"].path, handles["mount"].path
    opening = job.opening()
    return Means(
        online=True,
        file=lambda length: (allocation.command(job.image.path, job.image.size, length, job.fill),),
        loop=lambda length: loop.grow_commands(handle_of(handles, loop.Handle)),
        recorder=lambda length: era.grow_commands(handle_of(handles, era.Handle), path_under(job, handles, "era")),
        mapping=lambda length: dmcrypt.grow_commands(job.volume.dmcrypt, handle_of(handles, dmcrypt.Handle), opening),
        filesystem=lambda length: _grow_mounted(job, device, mountpoint, length),
    )


def _grow_mounted(job: Job, device: str, mountpoint: str, length: int) -> tuple[Command, ...]:
    resize = filesystem.resize_command(job.kind, device, mountpoint, length)
    if not job.site.keeps_state:
        return (resize,)  # mounted by others, as they like it
    return mount.growing(job.kind, mountpoint, resize)


def grows_mounted(job: Job) -> bool:
    """Whether a closed volume is mounted to grow: where the kernel does that, it is quicker and outlives a power cut.

    An image without configuration has no mount point.
    """
    kind = KINDS[job.kind]
    if not kind.unmounted:
        return True
    layers = engine_choice.stack_of(job.volume)
    return job.site.keeps_state and "mount" in layers and not kind.lacks()


def means_closed(job: Job, handles: Handles | None = None) -> Means:
    """How a closed volume changes its size; *handles* are its layers once it is open for that."""
    script = None
    if handles is None:
        script = stack.opening_script(job.volume, job.opening(), layers=stack_below(job))
        handles = dict(script.handles)
    device = handles["filesystem"].path
    mountpoint = os.fspath(job.volume.mountpoint)
    start = job.image.size

    def file(length: int) -> tuple[Command, ...]:
        path = job.image.path
        return (cut_command(path, length) if length < start else allocation.command(path, start, length, job.fill),)

    def inside(length: int) -> tuple[Command, ...]:
        if job.mounted:
            return _grow_mounted(job, device, mountpoint, length)
        return (filesystem.resize_command(job.kind, device, None, length),)

    return Means(
        online=False,
        file=file,
        filesystem=inside,
        opening=script.opening if script else (),
        check=() if job.mounted else filesystem.recheck_commands(job.kind, device),
        closing=script.closing if script else (),
    )


def note_size(job: Job, length: int | None) -> None:
    """Remember how large the file system is now, before anything else depends on it: `check` has no key to look."""
    if length is not None:
        job.work.remember(evolve(job.work.state.known, extent=length))


def cut_command(image: Path, length: int) -> Command:
    """Give the end of the image back to the store."""
    return change("truncate", "--no-create", f"--size={length}", "--", os.fspath(image))


def stack_below(job: Job) -> tuple[str, ...]:
    """The layers that have to stand for the file system to be resized in a closed volume."""
    whole = engine_choice.stack_of(job.volume)
    return whole if job.mounted else whole[: whole.index("filesystem") + 1]


def carry_out(steps: tuple[Step, ...], measure: Callable[[], Measured], act: Callable[[Step], None]) -> None:
    """Do the steps one after the other.

    Raises `Unavailable` when one does not have the effect it should have: what was done before stays, and the same
    command continues from there.
    """
    for step in steps:
        signals.check()
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
        f"the resize is incomplete: {what}",
        hint="nothing is lost; run the same command to continue (docs/resize.md)",
    )


def change_file(job: Job, target: int) -> None:
    """Give the image its new length, and wait until that outlives a power cut. Raises `NotSafe`, `Unavailable`."""
    with _noted(job, target):
        _change_file(job, target)


def _noted(job: Job, target: int) -> AbstractContextManager[None]:
    """The ledger, where there is one, learns that the image gets another length."""
    if not job.work.has_ledger:
        return nullcontext()
    from lukshook.volume import ledger_keeping  # noqa: PLC0415 - only with a ledger

    return ledger_keeping.length_changing(job.work.state, job.image, target)


def take_length(job: Job) -> None:
    """The ledger learns that the image is longer than it was: a device that has grown, or a file that somebody has."""
    if not job.work.has_ledger:
        return
    from lukshook.volume import ledger_keeping  # noqa: PLC0415 - only with a ledger

    ledger_keeping.take_length(job.work.state, job.image)


def _change_file(job: Job, target: int) -> None:
    start = job.image.size
    if job.work.attachment is not None and target != start:
        job.work.attachment.resize(job.image, target, job.fill)
        return
    if target > start:
        allocation.extend(job.image, target, job.fill, job.site.runner, job.progress)
    elif target < start:
        job.image.run(lambda place: cut_command(place, target), job.site.runner)
    try:
        job.image.sync()
    except OSError as error:
        raise NotSafe(
            f"the store did not accept the new length of {job.image.path}: {error.strerror}",
            hint="free space or repair the store; then run the same command to continue",
        ) from error


def run_long(job: Job, commands: tuple[Command, ...]) -> None:
    """Run what a shutdown must not interrupt, under an inhibitor where the system has one."""
    prefix = _inhibitor(job) if commands else ()
    for command in commands:
        job.site.runner.run(evolve(command, argv=(*prefix, *command.argv)))


def _inhibitor(job: Job) -> tuple[str, ...]:
    """systemd-inhibit(1), if it is there and logind answers it."""
    try:
        job.site.runner.run(read("systemd-inhibit", "--list", timeout=10))
    except LukshookError:
        return ()
    why = f"lukshook changes the size of {job.image.path}"
    return ("systemd-inhibit", "--what=shutdown:sleep", "--who=lukshook", f"--why={why}", "--mode=block")
