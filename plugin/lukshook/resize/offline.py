"""Growing and shrinking a volume that nobody uses: it is opened up to its file system for that, and closed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import evolve

from lukshook import guard, stack, users
from lukshook.errors import NotSafe, Refused, Usage
from lukshook.journal import Book
from lukshook.layers import filesystem
from lukshook.resize import work
from lukshook.resize.intent import Intent, Talk, as_device
from lukshook.resize.plan import Measured, Step, Store, check_minimum, exact, plan
from lukshook.resize.work import Job
from lukshook.site import remember


def grow_closed(job: Job, intent: Intent, book: Book, store: Store, begin: Callable[[], None]) -> int | None:
    """Grow a volume that nobody uses: the file first, then the file system in the opened volume."""
    work.measure_closed(job)
    job.site.ask(job.volume).wipe()
    _see_whole(job, book)
    begin()
    if not store.block:
        work.change_file(job, intent.target)
    return _within(job, intent, book, store, None)


def _see_whole(job: Job, book: Book) -> None:
    """See that the image holds its whole file system, as every opening does: zeroes would take the place of the rest.

    One whose journal is not empty is opened for writing too: the journal may hold a larger size.
    """
    below = evolve(job, mounted=False)
    with opened(below, book, read_only=True) as handles:
        whole = handles["filesystem"].whole
    if not whole:
        with opened(below, book):
            pass


def _within(
    job: Job, intent: Intent, book: Book, store: Store, judge: Callable[[Mapping[str, Any]], None] | None
) -> int | None:
    """Open up to the file system, give that its size, close; *judge* may raise before the size is changed."""
    known = job.trust.known
    if "mount" in work.stack_below(job):
        guard.check_bare(job.volume.mountpoint, job.site.runner)
        guard.put(job.volume.mountpoint, job.site.runner)
    with opened(job, book) as handles:

        def measure() -> Measured:
            return as_device(work.measure_open(job, handles), intent, store)

        def act(step: Step) -> None:
            if step.what == "filesystem" and judge is not None:
                judge(handles)
            work.run_long(job, step.commands)

        steps = plan(measure(), intent.target, work.means_closed(job, handles))
        work.carry_out(tuple(step for step in steps if step.what in ("check", "filesystem")), measure, act)
        length = measure().filesystem
        written = stack.take_down(job.volume, book, job.site)
    after = evolve(job.trust.known, written=written if written is not None else known.written)
    remember(job.volume, job.site, known, after)
    return length


@contextmanager
def opened(job: Job, book: Book, *, read_only: bool = False) -> Iterator[Mapping[str, Any]]:
    """The layers of a closed volume, open up to its file system, for as long as the block lasts or it closes them."""
    us = users.ourselves("lukshook resize")
    with stack.unwinding(job.volume, book, job.site):
        opening = job.opening(read_only=read_only)
        record = stack.push_layers(job.volume, book, opening, us, layers=work.stack_below(job))
        yield dict(record.layers)
        if book.load() is not None:
            stack.take_down(job.volume, book, job.site)


def shrink(job: Job, intent: Intent, book: Book, store: Store, talk: Talk, begin: Callable[[], None]) -> int | None:
    """Shrink a volume that nobody uses: the file system first, in the opened volume, and the file last.

    It is looked at without writing a single byte first, and refused there when it would not fit.
    """
    kind = filesystem.KINDS[job.kind]
    if not kind.minimum:
        raise Refused(f"lukshook does not shrink {job.kind}", hint="make a smaller volume and copy what is in this one")
    measured, least = _look(job, book)
    fits = measured.filesystem is not None and measured.filesystem <= measured.room(intent.target)
    if not fits and least is not None:
        check_minimum(measured, intent.target, least, kind.least)
    if not talk.consent(f"shrink {job.image} from {exact(store.length)} to {exact(intent.target)}"):
        raise Usage("shrinking was not confirmed", hint="without a terminal, say --yes")

    def judge(handles: Mapping[str, Any]) -> None:
        found = filesystem.minimum(job.kind, handles["filesystem"].path, job.site.runner)
        if found is None:
            raise Refused(
                f"the file system of volume {job.volume.name} does not say how small it can get",
                hint="nothing was changed; e2fsck -fn on the opened volume says why",
            )
        check_minimum(work.measure_open(job, handles), intent.target, found, kind.least)

    begin()
    length = measured.filesystem if fits else _within(job, intent, book, store, judge)
    work.note_size(job, length)
    if not store.block:
        _cut(job, measured, intent.target, length)
    return length


def _cut(job: Job, measured: Measured, target: int, length: int | None) -> None:
    """Truncate the image, once the file system has been seen to end before that."""

    def measure() -> Measured:
        return work.measure_closed(job, length)

    steps = plan(evolve(measured, filesystem=length), target, work.means_closed(job))
    work.carry_out(steps, measure, lambda step: work.change_file(job, target))


def _look(job: Job, book: Book) -> tuple[Measured, int | None]:
    """Sizes, and the least the file system needs in bytes, or None where it has to be checked first to say that.

    The size of one that is not clean is not known: a larger one can be in its journal alone (a power cut after it grew
    while it was mounted), and the check writes it into the super block.
    """
    least: int | None = None
    try:
        with opened(job, book, read_only=True) as handles:
            measured, place = work.measure_open(job, handles), handles["filesystem"].path
            found = filesystem.facts(job.kind, place)
            if found is None or not found.clean:
                measured = evolve(measured, filesystem=None)
            else:
                least = filesystem.minimum(job.kind, place, job.site.runner)
    except NotSafe:  # closing tells of errors that were noted in it before: the check comes before the change
        return measured, None
    return evolve(measured, loop=None, mapping=None), least
