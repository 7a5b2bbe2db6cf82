"""Growing and shrinking a volume that is not in use: it is opened up to its file system, and closed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import evolve, frozen

from lukshook.errors import NotSafe, Refused, Usage
from lukshook.filesystems.kinds import KINDS, in_words
from lukshook.layers import filesystem
from lukshook.layers.base import Handles
from lukshook.resize import job as jobs
from lukshook.resize.intent import Intent, Interaction, as_device
from lukshook.resize.job import Job
from lukshook.resize.plan import Measured, Step, check_leap, check_minimum, exact, plan
from lukshook.store.room import Room
from lukshook.volume import stack, users


@frozen
class Seen:
    """What a closed volume showed while it was open read-only.

    *clean*: its super block can be believed; the size of one that is not clean is not known: a larger one can be in its
    journal alone (a power cut after it grew while it was mounted), and the check writes it into the super block.
    *least*: bytes that the file system needs, None where it cannot say. *mounted*, *unmounted*: why it cannot get the
    new size in that way, "" where it can.
    """

    measured: Measured
    clean: bool
    least: int | None
    mounted: str
    unmounted: str


def change_closed(job: Job, intent: Intent, store: Room, talk: Interaction, begin: Callable[[], None]) -> int | None:
    """Change the size of a volume that is not in use.

    It is looked at read-only first, with the key: whatever can be refused is refused there, and not one byte of the
    image has changed.
    """
    jobs.check_unused(job.image)
    job, seen = _look(job, intent)
    if store.length > intent.target:
        return _shrink(job, intent, store, talk, seen, begin)
    return _grow(job, intent, store, seen, begin)


def _look(job: Job, intent: Intent) -> tuple[Job, Seen]:
    """Open the volume read-only below its file system, look at that, and close. Gives the job for its kind."""
    try:
        with opened(job, read_only=True) as handles:
            place = list(handles.values())[-1].path
            job = _with_kind(job, place)
            checked = job.volume.filesystem.open(place, job.opening(read_only=True))
            return job, _seen(job, intent, {**handles, "filesystem": checked})
    except NotSafe:  # closing finds another image at the path, or a store that fails
        jobs.check_named(job.image, changed=False)
        raise


def _with_kind(job: Job, place: str) -> Job:
    if not job.any_kind:
        return job
    kind = filesystem.kind_of(place)
    if kind is None:
        raise Refused(f"there is no file system in {job.image.path} that lukshook can resize", hint=in_words())
    return evolve(job.of_kind(kind), trust=job.trust.as_known(), any_kind=False)


def _seen(job: Job, intent: Intent, handles: Handles) -> Seen:
    place = handles["filesystem"].path
    measured = evolve(jobs.measure_open(job, handles), loop=None, recorder=None, mapping=None)
    found = filesystem.facts(job.kind, place)
    clean = found is not None and found.clean
    room = measured.room(intent.target)
    mounted, unmounted = (filesystem.hindrance(job.kind, place, room, mounted=how) for how in (True, False))
    if not clean:
        return Seen(evolve(measured, filesystem=None), clean, None, mounted, unmounted)
    return Seen(measured, clean, filesystem.minimum(job.kind, place, job.site.runner), mounted, unmounted)


def _grow(job: Job, intent: Intent, store: Room, seen: Seen, begin: Callable[[], None]) -> int | None:
    """The file first, then the file system in the opened volume."""
    check_leap(intent.target, store, job.kind)
    job = evolve(job, mounted=jobs.grows_mounted(job) and not seen.mounted)
    _check_able(job, "" if job.mounted else seen.unmounted)
    steps = plan(as_device(seen.measured, intent, store), intent.target, jobs.means_closed(job))
    if not steps:
        return seen.measured.filesystem
    _prepare(job, steps, seen)
    begin()
    if not store.block:
        jobs.change_file(job, intent.target)
    return _within(job, intent, store, None)


def _shrink(
    job: Job, intent: Intent, store: Room, talk: Interaction, seen: Seen, begin: Callable[[], None]
) -> int | None:
    """The file system first, in the opened volume, then a look at what came of it, and the file last."""
    if not KINDS[job.kind].shrinks:
        raise Refused(f"lukshook does not shrink {job.kind}", hint="create a smaller volume and copy the data into it")
    _check_able(job, seen.unmounted)
    _check_fits(job, intent, seen)
    if not talk.consent(f"shrink {job.image.path} from {exact(store.length)} to {exact(intent.target)}"):
        raise Usage("shrinking was not confirmed", hint="without a terminal, use --yes")
    _prepare(job, plan(seen.measured, intent.target, jobs.means_closed(job)), seen)
    if not seen.clean:
        _, seen = _look(job, intent)
        _check_fits(job, intent, seen)

    def judge(handles: Handles) -> None:
        place, runner = handles["filesystem"].path, job.site.runner
        measured = jobs.measure_open(job, handles)
        least = filesystem.minimum(job.kind, place, runner)
        _check_fits(job, intent, evolve(seen, measured=measured, clean=True, least=least))

    begin()
    if not _is_within(seen.measured, intent):
        _within(job, intent, store, judge)
    length = _prove(job, intent)
    jobs.note_size(job, length)
    if not store.block:
        jobs.check_unused(job.image)
        _cut(job, seen.measured, intent.target, length)
    return length


def _check_able(job: Job, hindrance: str) -> None:
    if hindrance:
        raise Refused(
            f"the file system of {job.image.path} cannot have that size: {hindrance}",
            hint="nothing was changed; create another volume and copy the data into it",
        )


def _is_within(measured: Measured, intent: Intent) -> bool:
    """Whether the file system ends before the new end of the image already."""
    return measured.filesystem is not None and measured.filesystem <= measured.room(intent.target)


def _check_fits(job: Job, intent: Intent, seen: Seen) -> None:
    """Check that what is in the volume fits. One that is not clean is checked first and says it then."""
    if _is_within(seen.measured, intent) or not seen.clean:
        return
    if seen.least is None:
        raise Refused(
            f"cannot determine the minimum size of the file system of volume {job.volume.name}",
            hint=f"nothing was changed; {KINDS[job.kind].prove_by_hand} on the opened volume shows why",
        )
    check_minimum(seen.measured, intent.target, seen.least, KINDS[job.kind].least)


def _prepare(job: Job, steps: tuple[Step, ...], seen: Seen) -> None:
    """What can still fail before the size is changed: tools, the mount point, a file system that has to be repaired.

    Repairing is what every opening does, and leaves the length as it is.
    """
    jobs.check_tools(steps)
    if "mount" in jobs.stack_below(job):
        job.work.secure_mount_point()
    if not seen.clean and filesystem.is_repaired_by_opening(job.kind):
        with opened(evolve(job, mounted=False)) as handles:
            job.volume.filesystem.open(list(handles.values())[-1].path, job.opening())
    jobs.check_unused(job.image)


def _within(job: Job, intent: Intent, store: Room, judge: Callable[[Handles], None] | None) -> int | None:
    """Open up to the file system, give that its size, close; *judge* may raise before the size is changed."""
    with opened(job, jobs.stack_below(job)) as handles:

        def measure() -> Measured:
            return as_device(jobs.measure_open(job, handles), intent, store)

        def act(step: Step) -> None:
            if step.what == "filesystem" and judge is not None:
                judge(handles)
            jobs.run_long(job, step.commands)

        steps = plan(measure(), intent.target, jobs.means_closed(job, handles))
        jobs.carry_out(tuple(step for step in steps if step.what in ("check", "filesystem")), measure, act)
        length = measure().filesystem
        written = stack.take_down(job.work)
    job.work.learn(job.trust, written)
    return length


@contextmanager
def opened(job: Job, layers: tuple[str, ...] | None = None, *, read_only: bool = False) -> Iterator[Handles]:
    """The layers of a closed volume for as long as the block lasts, or it closes them; by default those below its file
    system.
    """
    us = users.ourselves("lukshook resize")
    below = jobs.stack_below(evolve(job, mounted=False))[:-1]
    with stack.unwinding(job.work):
        opening = job.opening(read_only=read_only)
        record = stack.push_layers(job.work, opening, us, layers=layers or below)
        yield dict(record.layers)
        if job.work.record.load() is not None:
            stack.take_down(job.work)


def _prove(job: Job, intent: Intent) -> int:
    """Check the whole of the file system that was made smaller, read-only, before anything behind it is given back.

    This is the last look before the one step that cannot be undone. Gives the bytes that it has. Raises `Unavailable`,
    `Refused` (it has errors, or does not end before the new end of the image).
    """
    with opened(job, read_only=True) as handles:
        place = list(handles.values())[-1].path
        measured = jobs.measure_open(job, {**handles, "filesystem": filesystem.Handle(place, job.kind, "")})
        wrong = filesystem.what_is_wrong(job.kind, place, job.site.runner)
    room = measured.room(intent.target)
    if not wrong and (measured.filesystem is None or measured.filesystem > room):
        wrong = f"it does not fit into {exact(intent.target)}"
    if wrong or measured.filesystem is None:
        raise Refused(
            f"the file system of {job.image.path} is damaged after it was shrunk: {wrong}",
            hint="the image still has its old length and no data was removed; copy it, then repair: docs/recovery.md",
        )
    return measured.filesystem


def _cut(job: Job, measured: Measured, target: int, length: int) -> None:
    """Truncate the image, once the file system has been seen to end before that."""

    def measure() -> Measured:
        return jobs.measure_closed(job, length)

    steps = plan(evolve(measured, filesystem=length), target, jobs.means_closed(job))
    jobs.carry_out(steps, measure, lambda step: jobs.change_file(job, target))
