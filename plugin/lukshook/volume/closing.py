"""Closing a volume for a user: the last one closes it. Who leaves, what was lost, and what is noted of the backup."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from attrs import evolve, frozen

from lukshook.config import Volume
from lukshook.errors import Busy, LukshookError, NotSafe, Unavailable
from lukshook.filesystems.kinds import KINDS
from lukshook.filesystems.mounts import lies_on
from lukshook.layers import mount
from lukshook.system import clock, kernel
from lukshook.system.command import TimedOut
from lukshook.volume import data_folder, records, unrecorded, users
from lukshook.volume.context import Site
from lukshook.volume.history import NOT_SAFE
from lukshook.volume.known_state import Known
from lukshook.volume.open_layers import leftovers
from lukshook.volume.records import Record, User
from lukshook.volume.recovery import warn_of_damage
from lukshook.volume.stack import closing_script, not_safe, save_on_closing, take_down
from lukshook.volume.waiting import device_of
from lukshook.volume.work import Work, work_on


def close_volume(
    volume: Volume, user: User | None, site: Site, *, failed: bool = False, backup: bool = True
) -> tuple[User, ...]:
    """*user* no longer needs *volume*; the last user closes it. None closes it for all users.

    Returns the users that are left, empty when it is closed. *backup*: a backup ends here, and *failed* says how.
    Raises `Busy` (still open; the next try continues where this one stopped), `NotSafe` (data lost, or the volume was
    closed under *user*; closed, or for those that are left still open).
    """
    _check_store_answers(volume, site)
    with work_on(volume, site, attach=False) as work:
        warn_of_damage(work)
        untold = work.record.untold(user) if user is not None and not site.runner.dry else ""
        try:
            left = _let_go(work, user, failed=failed or bool(untold), backup=backup)
        except NotSafe:
            if user is not None:
                with suppress(OSError):
                    work.record.told(user)
            raise
        if untold and user is not None:
            _note_not_safe(work)
            work.record.told(user)
            raise NotSafe(untold, hint="what this job wrote may not be complete; run the backup again")
        return left


def _note_not_safe(work: Work, known: Known | None = None) -> None:
    """Remember that the last backup is not safely stored, where that can be kept: the loss itself is what is reported.

    *known*: with what closing has shown; by default as it is.
    """
    with suppress(OSError, LukshookError):
        known = known or work.state.known
        work.remember_backup(evolve(known, last_result=NOT_SAFE, unclean=known.unclean + 1))


def _let_go(work: Work, user: User | None, *, failed: bool, backup: bool) -> tuple[User, ...]:
    """As `close_volume`, with the volume's lock held."""
    record = work.record.load()
    left = _leave(record, user) if record else ()
    ending = _Ending(_since(record, user, left), failed=failed or record.failed) if backup and record else None
    if record and left and user is not None:
        if not work.runner.dry:
            somebody_left = len(left) < len(record.users)
            _part(work, evolve(record, users=left), ending if somebody_left or failed else None)
        return left
    if work.runner.dry:
        rehearse(work, record, ending)
        return ()
    if record is not None:
        # A user that said that it has ended is not a user any more, also where closing has to be tried again.
        failed = failed or record.failed
        record = evolve(record, users=left, lost=record.lost or _vanished(record), failed=failed)
        save_on_closing(record, work.record)
    _close_last(work, record, ending)
    return ()


def end_users(volume: Volume, who: tuple[User, ...], site: Site, caller: User) -> None:
    """End those of *who* that work in the volume, and let the others go: a tool that only called a hook lives on.

    Its own closing tells it that the volume was closed. Not so *caller*, the job that has us close it.
    """
    from lukshook.volume import holders  # noqa: PLC0415 - seldom

    record = records.peek(site.run_folder, volume.name)
    device = device_of(record.layers[-1][1]) if record and record.layers else ""
    inside = {(holder.pid, holder.started) for holder in holders.of(device) if holder.uses_it}
    working = [user for user in who if user.ours or (user.pid, user.started) in inside]
    users.end(working, site.warn)
    with work_on(volume, site, attach=False) as work:
        record = work.record.load()
        if record is None:  # the last one that was ended has closed it
            return
        gone = [user for user in record.users if user in who and not (user in working and user.alive())]
        text = f"volume {volume.name} was closed (close --kill-holders) while it was in use"
        work.record.keep_untold((user for user in gone if user != caller), text)
        work.record.save(evolve(record, users=tuple(user for user in record.users if user not in gone)))


@frozen(eq=False, repr=False)
class _Ending:
    """How a backup ends, and when it began (`clock.uptime`), None where it is not known."""

    since: float | None
    failed: bool

    def noted(self, known: Known, written: int | None) -> Known:
        """*known* with it; *written*: bytes, None where it is not known what it alone has written."""
        now = records.now()
        return evolve(
            known,
            last_result="failed" if self.failed else "done",
            duration=clock.elapsed(self.since),
            last_written=written,
            last_success=known.last_success if self.failed else now,
        )


def _since(record: Record, user: User | None, left: tuple[User, ...]) -> float | None:
    """Since when the leaving user has used what is open: *user*, or else the only one that ended; None: not known."""
    gone = [one for one in record.users if one not in left]
    times = [one.since for one in gone if one == user] or [one.since for one in gone]
    if len(times) == 1 and times[0]:
        return times[0]
    return None if left or record.shared else record.began


def may_be_open(volume: Volume, site: Site) -> bool:
    """Whether something may stand of *volume*, by its record, by one that cannot be read, or by what the kernel shows.

    Without the lock, and without asking the store.
    """
    folder = site.run_folder
    return bool(records.peek(folder, volume.name) or records.problem(folder, volume.name) or unrecorded.of(volume))


def _check_store_answers(volume: Volume, site: Site) -> None:
    """Check that the store answers. Raises `Unavailable`, or `Busy` where the volume stays open."""
    try:
        volume.image.probe(site.runner)
    except Unavailable as error:
        if not may_be_open(volume, site):
            raise
        hint = f"the most recent writes may not be safe; when the store is back: lukshook close {volume.name}"
        raise Busy(f"volume {volume.name} cannot be closed: {error.message}", hint=hint) from error


def _vanished(record: Record) -> str:
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


def _leave(record: Record, user: User | None) -> tuple[User, ...]:
    return tuple(other for other in record.users if other != user and other.alive())


def _part(work: Work, record: Record, ending: _Ending | None) -> None:
    """Let a user go while others stay; what it may have written is written out, then its backup is noted.

    Raises `NotSafe` when that is not all on the store.
    """
    lost = "" if record.read_only or not record.complete else _write_out(record)
    if lost:
        text = f"some of the data written to {work.volume.mountpoint} did not reach the store: {lost}"
        record = evolve(record, lost=record.lost or text)
    work.record.save(record)
    if record.lost:
        _note_not_safe(work)
        raise not_safe(record.lost)
    known = work.state.known
    if ending is not None and not record.read_only and (record.complete or ending.failed):
        work.remember_backup(ending.noted(known, None))


def _write_out(record: Record) -> str:
    """Write out an open volume; what was lost, in words, or "". The kernel reports it once, to the first caller."""
    handle = record.layers[-1][1]
    found = kernel.mount_at(handle.path)
    if found is None or not handle.inspect():
        return "it is no longer open as before"
    try:
        descriptor = kernel.enter(found)
    except OSError as error:
        return error.strerror or "it cannot be opened"
    try:
        return mount.flush(descriptor)
    except TimedOut as error:
        return error.message
    finally:
        os.close(descriptor)


def rehearse(work: Work, record: Record | None, ending: _Ending | None = None) -> None:
    if record is None:
        return
    for command in closing_script(record.layers):
        work.runner.run(command)
    work.runner.note(f"rm --force -- {shlex.quote(os.fspath(work.record.file))}")
    _take_snapshot(work, record, ending)


def _close_last(work: Work, record: Record | None, ending: _Ending | None) -> None:
    known, damaged = _known(work)
    something = bool(leftovers(work)) or (record is not None and record.stood)
    if something:
        known = evolve(known, **_filled(work.volume, record))

    def note(written: int | None) -> None:
        if something and damaged is None:
            _prove_bare(work)
            _note_closed(work, known, written, record, ending)

    try:
        take_down(work, failed=record is not None and not record.was_open, note=note)
    except NotSafe:
        if damaged is None:
            _note_not_safe(work, known)
        raise
    if not something:
        unrecorded.refuse(work.volume)
    if damaged is not None:
        raise damaged
    if something:
        _take_snapshot(work, record, ending)


def _note_closed(work: Work, known: Known, written: int | None, record: Record | None, ending: _Ending | None) -> None:
    """Note that the volume is closed, and how its backup has ended. Raises `Unavailable` where that cannot be kept."""
    fresh = evolve(known, last_close=records.now(), written=written if written is not None else known.written)
    try:
        if ending is not None and record and not record.read_only and (record.was_open or ending.failed):
            own = None if record.shared else _bytes_between(work.volume, known.written, written)
            work.remember_backup(ending.noted(fresh, own))
        else:
            work.remember(fresh)
    except OSError as error:
        raise Unavailable(
            f"volume {work.name} is closed, but that cannot be noted: {error.strerror}",
            hint=f"the backup is on the store; free space for {work.state.folder} and run: lukshook after-backup "
            + work.name,
        ) from error


def _take_snapshot(work: Work, record: Record | None, ending: _Ending | None) -> None:
    """Take a snapshot of the store after a good backup. The volume's lock is held, so nobody opens the image."""
    done = ending is not None and not ending.failed
    good = done and record is not None and not record.read_only and record.was_open
    if good and work.volume.snapshot is not None:
        from lukshook.volume import snapshotting  # noqa: PLC0415 - few volumes have it

        snapshotting.take(work, work.volume.snapshot)


def _known(work: Work) -> tuple[Known, LukshookError | None]:
    """What is known of the volume, or why that cannot be read: a damaged file must not keep the plaintext mounted."""
    try:
        return work.state.known, None
    except LukshookError as error:
        return Known(), error


def _bytes_between(volume: Volume, before: int | None, after: int | None) -> int | None:
    """How much was written between two counts of the file system, where they count that."""
    unit = KINDS[volume.filesystem.filesystem].written_unit
    if before is None or after is None or unit is None:
        return None
    return max(after - before, 0) * unit


def _filled(volume: Volume, record: Record | None) -> dict[str, Any]:
    """How full the volume is, for `status` while it is closed."""
    if record is None or not record.complete:
        return {}
    try:
        with data_folder.root_of(volume) as root:
            found = os.statvfs(root)
    except (OSError, Unavailable):  # the daemon behind it was killed
        return {}
    return {
        "capacity": found.f_blocks * found.f_frsize,
        "used": (found.f_blocks - found.f_bfree) * found.f_frsize,
    }


def _prove_bare(work: Work) -> None:
    """Check that the bare mount point is empty and guarded again."""
    try:
        work.secure_mount_point()
    except LukshookError as error:
        work.site.warn(f"volume {work.name} is closed, but {error.message}; {error.hint}")


@contextmanager
def held(volume: Volume, site: Site) -> Iterator[None]:
    """While something writes to *volume*: it is not unmounted, and no lost write goes unseen.

    A descriptor that was opened before the writing sees every error since, also those that another process's `sync`
    has already taken (syncfs(2)). Raises `NotSafe`, and `Busy` where the store no longer answers.
    """
    with data_folder.root_of(volume) as root:
        yield
        _check_store_answers(volume, site)
        if not data_folder.is_root(volume, root):
            raise NotSafe(
                f"volume {volume.name} was no longer mounted at {volume.mountpoint} after it was used",
                hint="after it was unmounted or moved, reads and writes there did not reach the volume",
            )
        lost = mount.flush(root)
        if lost:
            text = f"some of the data written to {volume.mountpoint} did not reach the store: {lost}"
            _note_lost(volume, site, text)
            raise not_safe(text)


def _note_lost(volume: Volume, site: Site, text: str) -> None:
    """Write down what the kernel has reported to us only: every user's closing says it."""
    with work_on(volume, site, attach=False) as work:
        record = work.record.load()
        if record is not None:
            work.record.save(evolve(record, lost=record.lost or text))
