"""Closing a volume for a user: the last one closes it. Who leaves, what was lost, and what is noted of the backup."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from attrs import evolve

from lukshook.config import Volume
from lukshook.errors import Busy, LukshookError, NotSafe, Unavailable
from lukshook.layers import mount
from lukshook.system import kernel
from lukshook.system.command import TimedOut
from lukshook.volume import backup_end, data_folder, records, unrecorded, users
from lukshook.volume.backup_end import Closed
from lukshook.volume.context import Site
from lukshook.volume.open_layers import leftovers
from lukshook.volume.records import Record, User
from lukshook.volume.recovery import vanished, warn_of_damage
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
        unreported = work.record.unreported(user) if user is not None and not site.runner.dry else ""
        try:
            left = _let_go(work, user, failed=failed or bool(unreported), backup=backup)
        except NotSafe:
            if user is not None:
                with suppress(OSError):
                    work.record.reported(user)
            raise
        if unreported and user is not None:
            backup_end.note_not_safe(work, records.now())
            work.record.reported(user)
            raise NotSafe(unreported, hint="what this job wrote may not be complete; run the backup again")
        return left


def _let_go(work: Work, user: User | None, *, failed: bool, backup: bool) -> tuple[User, ...]:
    """As `close_volume`, with the volume's lock held."""
    backup_end.note_parted(work)
    record = work.record.load()
    left = _leave(record, user) if record else ()
    if record is not None and backup:
        record = backup_end.to_be_noted(record, _since(record, user, left), failed=failed)
    if record and left and user is not None:
        if not work.runner.dry:
            somebody_left = len(left) < len(record.users)
            to_be_noted = record.to_be_noted and (somebody_left or failed) and (record.complete or failed)
            _part(work, evolve(record, users=left, to_be_noted=to_be_noted))
        return left
    if work.runner.dry:
        rehearse(work, record)
        return ()
    if record is not None:
        # A user that said that it has ended is not a user any more, also where closing has to be tried again.
        record = evolve(record, users=left, lost=record.lost or vanished(record))
        save_on_closing(record, work.record)
    _close_last(work, record)
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
        work.record.keep_unreported((user for user in gone if user != caller), text)
        work.record.save(evolve(record, users=tuple(user for user in record.users if user not in gone)))


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
    return any(records.look(folder, volume.name)) or unrecorded.of(volume) is not None


def _check_store_answers(volume: Volume, site: Site) -> None:
    """Check that the store answers. Raises `Unavailable`, or `Busy` where the volume stays open."""
    try:
        volume.image.probe(site.runner)
    except Unavailable as error:
        if not may_be_open(volume, site):
            raise
        hint = f"the most recent writes may not be safe; when the store is back: lukshook close {volume.name}"
        raise Busy(f"volume {volume.name} cannot be closed: {error.message}", hint=hint) from error


def _leave(record: Record, user: User | None) -> tuple[User, ...]:
    return tuple(other for other in record.users if other != user and other.alive())


def _part(work: Work, record: Record) -> None:
    """Let a user go while others stay; what it may have written is written out, then its backup is noted.

    Raises `NotSafe` when that is not all on the store.
    """
    lost = "" if record.read_only or not record.complete else _write_out(record)
    if lost:
        text = f"some of the data written to {work.volume.mountpoint} did not reach the store: {lost}"
        record = evolve(record, lost=record.lost or text)
    to_be_noted = record.to_be_noted or bool(record.lost)
    work.record.save(evolve(record, to_be_noted=to_be_noted, ended=records.now() if to_be_noted else None))
    backup_end.note_parted(work)
    if record.lost:
        raise not_safe(record.lost)


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


def rehearse(work: Work, record: Record | None) -> None:
    if record is None:
        return
    for command in closing_script(record.layers):
        work.runner.run(command)
    work.runner.note(f"rm --force -- {shlex.quote(os.fspath(work.record.file))}")
    if backup_end.is_good(record):
        backup_end.take_snapshot(work, record)


def _close_last(work: Work, record: Record | None) -> None:
    damaged = _damage(work)
    something = bool(leftovers(work)) or (record is not None and record.stood)
    closed = None if damaged else Closed(work, something, _filled(work.volume, record) if something else {})
    take_down(work, failed=record is not None and not record.was_open, closed=closed)
    if not something:
        unrecorded.refuse(work.volume)
    if damaged:
        raise damaged


def _damage(work: Work) -> LukshookError | None:
    """Why what is known of the volume cannot be read: a damaged file must not keep the plaintext mounted."""
    try:
        work.state.known  # noqa: B018 - it is read here
    except LukshookError as error:
        return error
    return None


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
