"""Growing a volume while it is used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from attrs import evolve

from lukshook import kernel
from lukshook.errors import Unavailable
from lukshook.journal import Book, Record
from lukshook.layers import dmcrypt
from lukshook.resize import work
from lukshook.resize.intent import Intent
from lukshook.resize.plan import Measured, Step, plan
from lukshook.resize.work import Job
from lukshook.trust import see_whole


def check_record(job: Job, record: Record) -> None:
    """See that a volume that is open for somebody can grow as it is. Raises `Unavailable`."""
    whose = ", ".join(user.who for user in record.users if user.alive()) or "somebody"
    close = f"when that has ended: lukshook close {job.volume.name}"
    if record.read_only:
        raise Unavailable(f"volume {job.volume.name} is open read-only for {whose}", hint=close)
    if any(name not in work.GROW_OPEN for name, _ in record.layers):
        raise Unavailable(f"volume {job.volume.name} is open for {whose}; its engine grows only closed", hint=close)


def check_open(job: Job, intent: Intent) -> None:
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


def grow_open(
    job: Job,
    intent: Intent,
    record: Record | None,
    foreign: Mapping[str, Any] | None,
    book: Book,
    begin: Callable[[], None],
) -> int | None:
    """Grow a volume while it is used."""
    if record is not None:
        check_record(job, record)
    check_open(job, intent)
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
    see_whole(os.fspath(job.image), kernel.block_size(job.image), measured.offset + (measured.filesystem or 0))
    steps = plan(measured, target, work.means_open(job, handles))
    if any(step.what == "mapping" for step in steps):
        job.site.ask(job.volume).wipe()  # a key source that fails has to fail before anything has changed
    if steps:
        begin()
    work.carry_out(steps, measure, act)
    return measure().filesystem
