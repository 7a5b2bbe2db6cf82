"""Growing a volume while it is used."""

from __future__ import annotations

import os
from collections.abc import Callable

from attrs import evolve

from lukshook.errors import Denied, Refused, Unavailable
from lukshook.filesystems.kinds import KINDS
from lukshook.layers import dmcrypt, era, filesystem, image
from lukshook.layers.base import Handles, handle_of
from lukshook.layers.engines import ENGINES
from lukshook.luks import cryptsetup, header
from lukshook.resize import job as jobs
from lukshook.resize.intent import Intent
from lukshook.resize.job import Job
from lukshook.resize.plan import Measured, Step, plan
from lukshook.store.image_file import Identity
from lukshook.system import loops
from lukshook.volume.judgement import check_whole
from lukshook.volume.records import Record


def check_record(job: Job, record: Record) -> None:
    """Check that an open volume can grow while it is open. Raises `Unavailable`."""
    whose = ", ".join(user.who for user in record.users if user.alive()) or "an unknown user"
    close = f"when it is no longer in use: lukshook close {job.volume.name}"
    if record.read_only:
        raise Unavailable(f"volume {job.volume.name} is open read-only for {whose}", hint=close)
    if not ENGINES[record.engine].grows_open:
        raise Unavailable(
            f"volume {job.volume.name} is open for {whose}; its engine can grow only a closed volume", hint=close
        )


def check_open(job: Job, intent: Intent) -> None:
    """Check that what is open can get that size as it is. Raises `Unavailable`."""
    if job.image.size > intent.target:
        raise Unavailable(
            f"{job.image.path} is open; a file system can be shrunk only while it is closed",
            hint="close it first; for a volume: lukshook close NAME",
        )
    lacking = KINDS[job.kind].lacks()
    if lacking:
        raise Unavailable(
            f"{job.image.path} is open, and growing it while it is open needs {lacking}",
            hint="close it first; for a volume: lukshook close NAME",
        )


def grow_open(
    job: Job,
    intent: Intent,
    record: Record | None,
    foreign: Handles | None,
    begin: Callable[[], None],
) -> int | None:
    """Grow a volume while it is used. All that can be refused is refused before *begin*."""
    if record is not None:
        check_record(job, record)
    check_open(job, intent)
    handles = foreign or dict(record.layers if record else ())
    _check_open_one(job, handles)
    length = _grow_handles(job, handles, intent.target, begin)
    if record is not None:
        layers = tuple(
            (name, evolve(part, size=job.image.size) if isinstance(part, image.Handle) else part)
            for name, part in record.layers
        )
        job.work.record.save(evolve(record, layers=layers))
    return length


def _check_open_one(job: Job, handles: Handles) -> None:
    """Check that the image at the path is the very one that is open. Raises `Refused`."""
    which, opened = job.image.identity, handle_of(handles, image.Handle)
    found = [Identity(opened.device, opened.inode)]
    if "loop" in handles:
        behind = loops.backing(handles["loop"].path)
        found.append(Identity(behind.device, behind.inode) if behind else Identity(0, 0))
    elif _lowest_mapping(handles).under != f"{os.major(which.device)}:{os.minor(which.device)}":
        found.append(Identity(0, 0))
    if any(one != which for one in found):
        raise _exchanged(job)


def _lowest_mapping(handles: Handles) -> era.Handle | dmcrypt.Handle:
    """The one that stands on the image or its loop device."""
    return handle_of(handles, era.Handle) if "era" in handles else handle_of(handles, dmcrypt.Handle)


def check_recorded_one(job: Job, record: Record | None) -> None:
    """Check that the image at the path is that of a volume of which anything is open. Raises `Refused`.

    A command that takes *record* down because of the replaced image would take it from its users.
    """
    layers = dict(record.layers) if record else {}
    there = layers.pop("image", None)
    if not isinstance(there, image.Handle) or there.path != os.fspath(job.image.path):
        return
    same = Identity(there.device, there.inode) == job.image.identity
    if not same and any(handle.inspect() for name, handle in layers.items() if name != "filesystem"):
        raise _exchanged(job)


def _exchanged(job: Job) -> Refused:
    return Refused(
        f"the image {job.image.path} is not the one that is open: it was replaced",
        hint="nothing was changed; close the volume, and find out who replaced the image",
    )


def _grow_handles(job: Job, handles: Handles, target: int, begin: Callable[[], None]) -> int | None:
    """Grow what is open and mounted, layer by layer from the bottom; returns bytes of the file system then."""
    device = "loop" not in handles

    def measure() -> Measured:
        measured = jobs.measure_open(job, handles)
        return evolve(measured, file=target) if device else measured

    def act(step: Step) -> None:
        if step.what == "file":
            jobs.change_file(job, target)
        elif step.what == "recorder":
            era.grow(handle_of(handles, era.Handle), jobs.path_under(job, handles, "era"), job.opening())
        elif step.what == "mapping":
            if "era" in handles:
                era.limit(handle_of(handles, era.Handle))
            below = jobs.path_under(job, handles, "dmcrypt")
            dmcrypt.grow(job.volume.dmcrypt, handle_of(handles, dmcrypt.Handle), below, job.opening())
        elif step.what == "filesystem":
            jobs.run_long(job, step.commands)
        else:
            for command in step.commands:
                job.site.runner.run(command)

    measured = measure()
    check_whole(os.fspath(job.image.path), job.image.size, measured.offset + (measured.filesystem or 0))
    steps = plan(measured, target, jobs.means_open(job, handles))
    if steps:
        _check_all(job, handles, measured, target, steps)
        begin()
    jobs.carry_out(steps, measure, act)
    return measure().filesystem


def _check_all(job: Job, handles: Handles, measured: Measured, target: int, steps: tuple[Step, ...]) -> None:
    """Check everything that *steps* need, before the first of them. Raises `Refused`, `Denied`, `Unavailable`."""
    jobs.check_tools(steps)
    hindrance = filesystem.hindrance(job.kind, handles["filesystem"].path, measured.room(target), mounted=True)
    if hindrance:
        raise Unavailable(
            f"the file system of {job.image.path} cannot grow while it is mounted: {hindrance}",
            hint="close it first; for a volume: lukshook close NAME",
        )
    if any(step.what == "mapping" for step in steps):
        _check_key(job, handle_of(handles, dmcrypt.Handle))


def _check_key(job: Job, mapping: dmcrypt.Handle) -> None:
    """Check that the mapping is that of the header on the image, and that the key opens it: it is read back later."""
    copy, runner = header.copy(job.image.descriptor), job.site.runner
    judged = job.trust.judge(copy, job.image.size)
    dmcrypt.compare(mapping, judged, runner)
    key = job.site.ask(job.volume)
    try:
        job.trust.vouch(judged, key)
        if not cryptsetup.opens(copy, judged, key, runner):
            raise Denied(
                f"the key does not open volume {job.volume.name}",
                hint=f"nothing was changed; check which key is expected with: lukshook key test {job.volume.name}",
            )
    finally:
        key.wipe()
