"""Growing and shrinking. `resize` is for configured volumes; `standalone` for an image and its key.

Nothing of it depends on an earlier run having ended well: sizes are measured, finished steps are skipped, and so the
same command finishes an interrupted change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import asdict, evolve

from lukshook.config import Volume
from lukshook.errors import Unavailable
from lukshook.layers.base import Handles
from lukshook.resize import job as jobs
from lukshook.resize.intent import Intent, Interaction, Resized, as_device, intend, unfinished
from lukshook.resize.job import Job
from lukshook.resize.offline import change_closed
from lukshook.resize.online import check_open, check_record, check_recorded_one, grow_open
from lukshook.resize.plan import check_leap, plan, table
from lukshook.store import room
from lukshook.store.image_file import ImageFile, open_image
from lukshook.store.room import Room
from lukshook.system import files
from lukshook.system.secret import Secret
from lukshook.volume import engine_choice, records, recovery
from lukshook.volume.context import Site
from lukshook.volume.records import Record
from lukshook.volume.work import work_on

__all__ = ["Resized", "Interaction", "resize", "resize_locked"]


def resize(volume: Volume, text: str, site: Site, talk: Interaction) -> Resized | None:
    """Give *volume* the size that *text* says; None in a dry run, which prints the plan.

    It grows while it is used where the engine, the kernel and our capabilities allow, else it is opened, changed and
    closed. All that can be refused is refused before the first change. Raises `Usage` (size), `Unavailable` (in use, no
    space on the store, cut short), `Refused` (too small for what is in it, not as this host knows it), `Denied` (key),
    `NotSafe` (the image was replaced meanwhile, or the store failed).
    """
    with (
        work_on(volume, site) as work,
        open_image(volume.image.image, writable=True) as image,
    ):
        if not site.runner.dry:
            work.complete_header_change(image)
        fill = work.state.known.fill or volume.image.fill
        return resize_locked(Job(work, image, work.trust(), fill, talk.progress), text, talk)


def resize_locked(job: Job, text: str, talk: Interaction, foreign: Handles | None = None) -> Resized | None:
    """`resize` for those who hold the volume's lock; *foreign* are the layers of an image that others have open."""
    record, file = job.work.record, job.work.state.resizing
    with image_locked(job.image, job.site):
        store = job.work.room(job.image)
        jobs.measure_closed(job)  # an image that ends in its header has no size to count from
        intent = intend(text, store, unfinished(file))
        _check_store(job, intent, store)
        if job.site.runner.dry:
            _rehearse(job, intent, record.load(), foreign, store, talk)
            return None
        check_recorded_one(job, record.load())
        opened = recovery.recovered(job.work) if foreign is None else None
        if opened is not None and job.work.attachment is not None:
            raise Unavailable(
                f"volume {job.volume.name} is open, and a remote image gets another size only while it is closed",
                hint=f"when it is not used: lukshook close {job.volume.name}",
            )

        def begin() -> None:
            """Everything was checked: from here on things change."""
            jobs.check_named(job.image, changed=False)
            job.work.state.make_folder()
            files.write_whole(file, json.dumps(asdict(intent)).encode(), durable=True)
            if foreign is None:
                jobs.take_length(job)

        if opened is None and foreign is None:
            engine_choice.check_image(job.volume)
        with one_key(job) as ready:
            if opened is not None or foreign is not None:
                length = grow_open(ready, intent, opened, foreign, begin)
            else:
                length = change_closed(ready, intent, store, talk, begin)
        jobs.check_named(job.image, changed=job.image.size != store.length)
        jobs.note_size(job, length)
        file.unlink(missing_ok=True)
        online = opened is not None or foreign is not None
        return Resized(store.length, job.image.size, length, online)


def _check_store(job: Job, intent: Intent, store: Room) -> None:
    """Check that the store can hold the image of the size that is wanted. Raises `Unavailable`."""
    sparse = job.fill == "sparse"
    if store.block or not sparse or job.volume.space == "refuse":
        store.check(intent.target, sparse=sparse)
    if intent.target > store.length:
        room.check_length(job.image, intent.target)


@contextmanager
def image_locked(image: ImageFile, site: Site) -> Iterator[None]:
    """Keep others on this host that change this image's size away, under whatever name they know it.

    Not a lock on the image itself: that lock belongs to the process that has it open. Raises `Unavailable`.
    """
    which = image.identity
    with records.locked(site.run_folder, f"resize-{which.device:x}-{which.inode:x}"):
        yield


@contextmanager
def one_key(job: Job) -> Iterator[Job]:
    """The job with a key source that is asked once, and not before it is needed."""
    kept: list[Secret] = []

    def ask(volume: Volume) -> Secret:
        if not kept:
            kept.append(job.site.ask(volume))
        return Secret(kept[0].reveal())

    try:
        yield job.asking(ask)
    finally:
        for key in kept:
            key.wipe()


def _rehearse(
    job: Job, intent: Intent, record: Record | None, foreign: Handles | None, store: Room, talk: Interaction
) -> None:
    """Show the table and the commands."""
    check_leap(intent.target, store, job.kind)
    job = evolve(job, mounted=store.length <= intent.target and jobs.grows_mounted(job))
    if record is not None and record.complete:
        check_record(job, record)
        foreign = dict(record.layers)
    if foreign is not None:
        check_open(job, intent)
        measured, means = jobs.measure_open(job, foreign), jobs.means_open(job, foreign)
    else:
        engine_choice.check_image(job.volume)
        measured, means = jobs.measure_closed(job), jobs.means_closed(job)
    steps = plan(as_device(measured, intent, store), intent.target, means)
    for line in table(measured, steps).split("\n"):
        talk.say(f"# {line}")
    for step in steps:
        for command in step.commands:
            job.site.runner.run(command)
