"""What an earlier run left open after a kill or a power cut: found, closed, and reported."""

from __future__ import annotations

import os

from attrs import evolve

from lukshook.config import Volume
from lukshook.errors import NotSafe, Unavailable
from lukshook.filesystems.mounts import lies_on
from lukshook.layers.base import LayerHandle
from lukshook.system import kernel
from lukshook.volume.backup_end import Closed, note_parted
from lukshook.volume.open_layers import leftovers, spec_of, stands
from lukshook.volume.records import Record, RecordFile
from lukshook.volume.stack import take_down
from lukshook.volume.work import Work


def recovered(work: Work) -> Record | None:
    """The record of a volume that is open and sound; else what an earlier run left is cleaned up first.

    Those who still use what is taken down are noted, and their own closing reports it. Raises `Unavailable`
    where it is in use under an earlier configuration.
    """
    warn_of_damage(work)
    note_parted(work)
    record = work.record.load()
    moved = record is not None and _has_moved(work.volume, record)
    if record is not None and record.complete and stands(record):
        if not moved:
            return record
        _refuse_moved(work.volume, record)
    left = leftovers(work)
    if record is not None or left:
        _clean_up(work, record, left)
        work.attach()
    return None


def _clean_up(work: Work, record: Record | None, left: tuple[tuple[str, LayerHandle], ...]) -> None:
    """Close what an interrupted run left open, *left*, and report it. A backup that had ended is noted."""
    what = [name for name, handle in left if handle.inspect() and name not in ("image", "filesystem")]
    lost = ""
    to_be_noted = record is not None and record.to_be_noted
    if record is not None and to_be_noted:
        work.record.assume(evolve(record, lost=record.lost or vanished(record)))
    try:
        take_down(
            work,
            failed=record is not None and not record.was_open,
            closed=Closed(work, hard=False) if to_be_noted else None,
        )
    except NotSafe as error:
        lost = error.message
        work.site.warn(f"volume {work.name}: what an earlier run wrote is not safely stored: {lost}")
    _keep_unreported(work.record, record, lost)
    if what:
        parts = ", ".join(reversed(what))
        work.site.warn(
            f"volume {work.name}: an earlier run was interrupted; lukshook closed what it had left open ({parts})"
        )
        known = work.state.known
        work.remember(evolve(known, unclean=known.unclean + 1))


def vanished(record: Record) -> str:
    """What to report when the volume is not where it was mounted, or "": another process has unmounted or moved it.

    Then a loss may be unseen, because umount(8) exits 0 also where writing failed, and what was written
    at that path later went elsewhere.
    """
    if not record.complete or record.read_only or not record.layers:
        return ""
    handle = record.layers[-1][1]
    found = kernel.mount_at(handle.path)
    if found is not None and (found.number == handle.number or lies_on(found, handle.number)):
        return ""
    return f"volume {record.volume} was no longer mounted at {handle.path} when lukshook closed it"


def warn_of_damage(work: Work) -> None:
    """Say that the record cannot be read, so that users and losses of the volume until now are not known."""
    if work.record.damaged:
        work.site.warn(
            f"volume {work.name}: {work.record.damaged}; lukshook asks the kernel what is open, and keeps the record"
        )


def _has_moved(volume: Volume, record: Record) -> bool:
    """Whether the image or the mount point was another when it was opened than the configuration says now."""
    places = ((spec_of(volume, name).place, handle.path) for name, handle in record.layers)
    return any(place is not None and os.fspath(place) != path for place, path in places)


def _refuse_moved(volume: Volume, record: Record) -> None:
    """Check that it is no longer in use. Raises `Unavailable`."""
    users = ", ".join(user.who for user in record.users if user.alive())
    if users:
        where = f"{record.layers[0][1].path} at {record.layers[-1][1].path}"
        raise Unavailable(
            f"volume {volume.name} is still open for {users} with an earlier configuration, {where}",
            hint=f"close it first: lukshook close {volume.name}",
        )


def _keep_unreported(file: RecordFile, record: Record | None, lost: str) -> None:
    """Note those who used a volume that had to be taken down: their own closing says what was lost."""
    if record is not None and (record.complete or record.lost):
        text = f"volume {record.volume} was broken and had to be closed while it was in use"
        file.keep_unreported(record.users, lost or text)
