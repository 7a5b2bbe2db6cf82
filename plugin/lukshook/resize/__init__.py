"""Growing and shrinking. `resize` is for configured volumes; `standalone` for an image and its key.

Nothing of it depends on an earlier run having ended well: sizes are measured, what is done is left away, and so the
same command finishes whatever was cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen

from lukshook import guard, journal, kernel, rewrite, session, state, users
from lukshook.config import Volume
from lukshook.errors import NotSafe, Refused, Unavailable, Usage
from lukshook.fill import Progress
from lukshook.journal import Book, Record
from lukshook.layers import dmcrypt, filesystem
from lukshook.layers.base import open_image
from lukshook.resize import work
from lukshook.resize.plan import (
    Measured,
    Step,
    Store,
    check_minimum,
    check_space,
    exact,
    is_relative,
    plan,
    table,
    wanted,
)
from lukshook.resize.work import Job
from lukshook.secret import Secret
from lukshook.session import Site
from lukshook.trust import Pinned

__all__ = ["Resized", "Talk", "resize", "resize_locked"]


@frozen
class Talk:
    """How to talk to whoever asked: progress of writing, a question that takes a yes, a line for people."""

    progress: Progress
    consent: Callable[[str], bool]
    say: Callable[[str], None]


@frozen
class Resized:
    """Bytes of the image before and after, and bytes of the file system now; *online*: it was open all the time."""

    before: int
    after: int
    filesystem: int | None
    online: bool


@frozen
class Intent:
    """A change of size that has begun: as it was asked for, the length it counts from, the length it leads to."""

    text: str
    base: int
    target: int


def resize(volume: Volume, text: str, site: Site, talk: Talk) -> Resized | None:
    """Give *volume* the size that *text* says; None in a dry run, which prints the plan.

    It grows while it is used where the engine, the kernel and our capabilities allow, else it is opened, changed and
    closed. Raises `Usage` (size), `Unavailable` (in use, no space on the store, cut short), `Refused` (too small for
    what is in it; nothing was changed), `Denied` (key).
    """
    with journal.locked(site.run_folder, volume.name) as book:
        if not site.runner.dry:
            rewrite.finish(volume.image.image, site.state_folder, volume.name)
        known = state.load(site.state_folder, volume.name)
        trust = Pinned(volume.name, known, rewrite.pending(site.state_folder, volume.name))
        job = Job(volume, site, trust, known.fill or volume.image.fill, talk.progress)
        return resize_locked(job, text, book, talk)


def resize_locked(
    job: Job, text: str, book: Book, talk: Talk, foreign: Mapping[str, Any] | None = None
) -> Resized | None:
    """`resize` for those who hold the volume's lock; *foreign* are the layers of an image that others have open."""
    file = job.site.state_folder / f"{job.volume.name}.resize"
    with image_locked(job.image, job.site):
        store = measure_store(job.image)
        intent = _intend(text, store, _unfinished(file))
        sparse = job.fill == "sparse"
        if store.block or not sparse or job.volume.space == "refuse":
            check_space(intent.target, store, sparse=sparse)
        if job.site.runner.dry:
            _rehearse(job, intent, book.load(), foreign, store, talk)
            return None
        record = session.standing(job.volume, book, job.site) if foreign is None else None

        def begin() -> None:
            journal.private_folder(job.site.state_folder)
            journal.write_whole(file, json.dumps(asdict(intent)).encode(), durable=True)

        with one_key(job) as ready:
            if record is not None or foreign is not None:
                length = _grow_open(ready, intent, record, foreign, book, begin)
            elif store.length > intent.target:
                length = _shrink(ready, intent, book, store, talk, begin)
            else:
                length = _grow_closed(ready, intent, book, store, begin)
        file.unlink(missing_ok=True)
        opened_all_along = record is not None or foreign is not None
        return Resized(store.length, kernel.block_size(job.image), length, opened_all_along)


def _unfinished(file: Path) -> Intent | None:
    try:
        return Intent(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _intend(text: str, store: Store, unfinished: Intent | None) -> Intent:
    """What is asked for now. The same relative size again, after one that was cut off, means the same end."""
    if unfinished is not None and unfinished.text == text and is_relative(text):
        return unfinished
    base = unfinished.base if unfinished is not None and is_relative(text) else store.length
    return Intent(text, base, wanted(text, base, store))


@contextmanager
def image_locked(path: Path, site: Site) -> Iterator[None]:
    """Keep others on this host that change this image's size away, under whatever name they know it.

    Not a lock on the image itself: that one belongs to whoever has it open. Raises `Unavailable`.
    """
    descriptor = open_image(path, writable=True)
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    with journal.locked(site.run_folder, f"resize-{found.st_dev:x}-{found.st_ino:x}"):
        yield


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


@contextmanager
def one_key(job: Job) -> Iterator[Job]:
    """The job with a key source that is asked once, and not before it is needed."""
    kept: list[Secret] = []

    def ask(volume: Volume) -> Secret:
        if not kept:
            kept.append(job.site.ask(volume))
        return Secret(kept[0].reveal())

    try:
        yield evolve(job, site=evolve(job.site, ask=ask))
    finally:
        for key in kept:
            key.wipe()


def _rehearse(
    job: Job, intent: Intent, record: Record | None, foreign: Mapping[str, Any] | None, store: Store, talk: Talk
) -> None:
    """Show the table and the commands."""
    if record is not None and record.complete:
        _check_record(job, record)
        foreign = dict(record.layers)
    if foreign is not None:
        _check_open(job, intent)
        measured, means = work.measure_open(job, foreign), work.means_open(job, foreign)
    else:
        measured, means = work.measure_closed(job), work.means_closed(job)
    steps = plan(_as_device(measured, intent, store), intent.target, means)
    talk.say(table(measured, steps))
    for step in steps:
        for command in step.commands:
            job.site.runner.note(str(command))


def _as_device(measured: Measured, intent: Intent, store: Store) -> Measured:
    """A block device has its length from elsewhere, so the image itself is no step."""
    return evolve(measured, file=intent.target) if store.block else measured


def _check_record(job: Job, record: Record) -> None:
    """See that a volume that is open for somebody can grow as it is. Raises `Unavailable`."""
    whose = ", ".join(user.who for user in record.users if user.alive()) or "somebody"
    close = f"when that has ended: lukshook close {job.volume.name}"
    if record.read_only:
        raise Unavailable(f"volume {job.volume.name} is open read-only for {whose}", hint=close)
    if any(name not in work.GROW_OPEN for name, _ in record.layers):
        raise Unavailable(f"volume {job.volume.name} is open for {whose}; its engine grows only closed", hint=close)


def _check_open(job: Job, intent: Intent) -> None:
    if kernel.block_size(job.image) > intent.target:
        raise Unavailable(
            f"{job.image} is open, and a file system shrinks only while it is not",
            hint="close it first; for a volume: lukshook close NAME",
        )
    if job.kind == "ext4" and not kernel.can_resize_mounted():
        raise Unavailable(
            f"{job.image} is open, and growing it as it is needs CAP_SYS_RESOURCE",
            hint="close it first; for a volume: lukshook close NAME",
        )


def _grow_open(
    job: Job,
    intent: Intent,
    record: Record | None,
    foreign: Mapping[str, Any] | None,
    book: Book,
    begin: Callable[[], None],
) -> int | None:
    """Grow a volume while it is used."""
    if record is not None:
        _check_record(job, record)
    _check_open(job, intent)
    length = grow_handles(job, foreign or dict(record.layers if record else ()), intent.target, begin)
    if record is not None:
        now = kernel.block_size(job.image)
        layers = tuple((name, evolve(part, size=now) if name == "image" else part) for name, part in record.layers)
        book.save(evolve(record, layers=layers))
    return length


def grow_handles(job: Job, handles: Mapping[str, Any], target: int, begin: Callable[[], None]) -> int | None:
    """Grow what is open and mounted, layer by layer from the bottom; returns bytes of the file system then."""
    device = "loop" not in handles

    def measure() -> Measured:
        measured = work.measure_open(job, handles)
        return evolve(measured, file=target) if device else measured

    def act(step: Step) -> None:
        if step.what == "file":
            work.change_file(job, target)
        elif step.what == "mapping":
            below = handles["loop"].path if "loop" in handles else os.fspath(job.image)
            dmcrypt.grow(job.volume.dmcrypt, handles["dmcrypt"], below, job.opening())
        elif step.what == "filesystem":
            work.run_long(job, step.commands)
        else:
            for command in step.commands:
                job.site.runner.run(command)

    measured = measure()
    steps = plan(measured, target, work.means_open(job, handles))
    if any(step.what == "mapping" for step in steps):
        job.site.ask(job.volume).wipe()  # a key source that fails has to fail before anything has changed
    if steps:
        begin()
    work.carry_out(steps, measure, act)
    return measure().filesystem


def _grow_closed(job: Job, intent: Intent, book: Book, store: Store, begin: Callable[[], None]) -> int | None:
    """Grow a volume that nobody uses: the file first, then the file system in the opened volume."""
    work.measure_closed(job)
    job.site.ask(job.volume).wipe()
    begin()
    if not store.block:
        work.change_file(job, intent.target)
    return _within(job, intent, book, store, None)


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
            return _as_device(work.measure_open(job, handles), intent, store)

        def act(step: Step) -> None:
            if step.what == "filesystem" and judge is not None:
                judge(handles)
            work.run_long(job, step.commands)

        steps = plan(measure(), intent.target, work.means_closed(job, handles))
        work.carry_out(tuple(step for step in steps if step.what in ("check", "filesystem")), measure, act)
        length = measure().filesystem
        written = session.take_down(job.volume, book, job.site)
    if job.keeps_state:
        after = evolve(job.trust.known, written=written if written is not None else known.written)
        session.remember(job.volume, job.site, known, after)
    return length


@contextmanager
def opened(job: Job, book: Book, *, read_only: bool = False) -> Iterator[Mapping[str, Any]]:
    """The layers of a closed volume, open up to its file system, for as long as the block lasts or it closes them."""
    us = users.ourselves("lukshook resize")
    with session.unwinding(job.volume, book, job.site):
        opening = job.opening(read_only=read_only)
        record = session.push_layers(job.volume, book, opening, us, stack=work.stack_below(job))
        yield dict(record.layers)
        if book.load() is not None:
            session.take_down(job.volume, book, job.site)


def _shrink(job: Job, intent: Intent, book: Book, store: Store, talk: Talk, begin: Callable[[], None]) -> int | None:
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
            raise Refused(f"the file system of volume {job.volume.name} does not say how small it can get")
        check_minimum(work.measure_open(job, handles), intent.target, found, kind.least)

    begin()
    length = measured.filesystem if fits else _within(job, intent, book, store, judge)
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
