"""The end of a backup: it is noted, and the snapshot after it is taken. Each happens once, whatever is killed.

The record says that a backup is to be noted before that is done, and under which time. It stays until all is done, so
the next command that works on the volume does the rest. What has that time already was done before the kill.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from attrs import evolve, field, frozen

from lukshook.config import Volume
from lukshook.errors import LukshookError, NotSafe, Unavailable
from lukshook.filesystems.kinds import KINDS
from lukshook.system import clock
from lukshook.volume import records
from lukshook.volume.history import NOT_SAFE
from lukshook.volume.known_state import Known
from lukshook.volume.records import Record
from lukshook.volume.work import Work


def to_be_noted(record: Record, since: float | None, *, failed: bool) -> Record:
    """*record* of a backup that has ended, which began at *since* (`clock.uptime`), None where that is not known."""
    if record.to_be_noted:  # a closing that is tried again
        return evolve(record, failed=record.failed or failed)
    return evolve(record, to_be_noted=True, backup_began=since, failed=failed)


def note_parted(work: Work) -> None:
    """Note the backup of a user that has left a volume that stays open, if there is one to be noted."""
    record = work.record.load()
    if work.runner.dry or record is None or record.settled or not record.to_be_noted or record.ended is None:
        return
    if record.lost:
        note_not_safe(work, record.ended)
    elif not record.read_only:
        _note(work, record, work.state.known, None)
    work.record.save(evolve(record, to_be_noted=False, backup_began=None, failed=False, ended=None))


def note_failed(work: Work, record: Record) -> Record:
    """Note a failed backup whose closing did not come to its end, before somebody else uses what it left open.

    Else that one's closing would say that the backup has ended well. The record that is valid then.
    """
    if not (record.to_be_noted and record.failed):
        return record
    work.record.save(evolve(record, ended=records.now()))
    note_parted(work)
    return work.record.load() or record


def note_not_safe(work: Work, ended: float | None, known: Known | None = None) -> None:
    """Remember that a backup is not safely stored, where that can be kept: the loss itself is what is reported.

    *ended*: when it did. *known*: with what closing has shown; by default as it is.
    """
    with suppress(OSError, LukshookError):
        known = known or work.state.known
        if known.last_end is None or known.last_end != ended:
            known = evolve(known, last_result=NOT_SAFE, unclean=known.unclean + 1, last_end=ended)
        work.remember_backup(evolve(known, doubted=True))


@frozen(eq=False, repr=False)
class Closed:
    """What follows when all layers of a volume are closed, and its ledger is up to date.

    *something*: some of them stood. *filled*: how full the volume was, as fields of `Known`. *hard*: a snapshot that is
    wanted and cannot be taken may be an error.
    """

    work: Work
    something: bool = True
    filled: Mapping[str, Any] = field(factory=dict)
    hard: bool = True

    def __call__(self, record: Record, loss: NotSafe | None, *, again: bool) -> None:
        """Note that *record*'s volume is closed, and how its backup has ended; then take its snapshot.

        *again*: a kill has interrupted that before.
        Raises `Unavailable` where it cannot be noted, or where a snapshot is wanted that cannot be taken; that one is
        not tried again.
        """
        known = evolve(self.work.state.known, **self.filled)
        if loss is not None:
            note_not_safe(self.work, record.ended, known)
            return
        if not self.something:
            return
        self._prove_bare()
        try:
            self._note(record, known)
        except OSError as error:
            raise Unavailable(
                f"volume {self.work.name} is closed, but that cannot be noted: {error.strerror}",
                hint=f"the backup is on the store; free space for {self.work.state.folder} and run: lukshook "
                f"after-backup {self.work.name}",
            ) from error
        if is_good(record):
            self._take_snapshot(record, again=again)

    def _note(self, record: Record, known: Known) -> None:
        own = None if record.shared else _bytes_between(self.work.volume, known.written, record.written)
        fresh = evolve(
            known,
            last_close=record.ended,
            written=known.written if record.written is None else record.written,
        )
        if record.to_be_noted and not record.read_only and (record.was_open or record.failed):
            _note(self.work, record, fresh, own)
        else:
            self.work.remember(fresh)

    def _take_snapshot(self, record: Record, *, again: bool) -> None:
        try:
            take_snapshot(self.work, record, hard=self.hard, again=again)
        except LukshookError:
            self.work.record.clear()
            raise

    def _prove_bare(self) -> None:
        """Check that the bare mount point is empty and guarded again."""
        try:
            self.work.secure_mount_point()
        except LukshookError as error:
            self.work.site.warn(f"volume {self.work.name} is closed, but {error.message}; {error.hint}")


def is_good(record: Record) -> bool:
    """Whether a backup that wrote has ended well."""
    return record.to_be_noted and not record.failed and not record.read_only and record.was_open


def take_snapshot(work: Work, record: Record, *, hard: bool = True, again: bool = False) -> None:
    """Take a snapshot of the store after a good backup. The volume's lock is held, so nobody opens the image."""
    policy = work.volume.snapshot
    if policy is not None:
        from lukshook.volume import snapshotting  # noqa: PLC0415 - few volumes have it

        ended = records.now() if record.ended is None else record.ended
        snapshotting.take(work, evolve(policy, hard=policy.hard and hard), ended, again=again)


def _note(work: Work, record: Record, known: Known, written: int | None) -> None:
    """Note the backup that *record* says is to be noted, once; *written*: bytes, None where they are not known."""
    if known.last_end is not None and known.last_end == record.ended:
        work.remember_backup(work.state.known)
        return
    work.remember_backup(
        evolve(
            known,
            last_result="failed" if record.failed else "done",
            duration=clock.elapsed(record.backup_began),
            last_written=written,
            last_success=known.last_success if record.failed else record.ended,
            last_end=record.ended,
        )
    )


def _bytes_between(volume: Volume, before: int | None, after: int | None) -> int | None:
    """How much was written between two counts of the file system, where they count that."""
    unit = KINDS[volume.filesystem.filesystem].written_unit
    if before is None or after is None or unit is None:
        return None
    return max(after - before, 0) * unit
