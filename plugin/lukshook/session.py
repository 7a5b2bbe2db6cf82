"""Opening and closing for users: who joins, who leaves, and what is told of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attrs import evolve

from lukshook import engine, fill, guard, interrupt, journal, kernel, rewrite, size, state, store, users
from lukshook.command import TimedOut
from lukshook.config import Volume
from lukshook.errors import Busy, LukshookError, NoRoom, NotSafe, Refused, Unavailable
from lukshook.journal import Book, Record, User
from lukshook.layers import ENGINES, LAYERS, mount
from lukshook.site import Site, opening_of, remember
from lukshook.stack import leftovers, not_safe, push_layers, spec_of, standing, take_down, unwinding
from lukshook.state import Known
from lukshook.trust import Pinned

#: What to do where a lock on the image may not be seen by every host.
SECOND_HOST = "where another host uses it too: mmp = true (docs/configuration.md)"


def open_volume(volume: Volume, user: User, site: Site, *, read_only: bool = False) -> None:
    """Open *volume* for *user*, or join those who have it open already.

    When it returns the volume is mounted and proven; when it raises nothing of it is left open. Raises any
    `LukshookError`.
    """
    read_only = read_only or volume.read_only
    store.probe(volume.image.image, site.runner)
    if site.runner.dry:
        _rehearse(volume, site, read_only=read_only)
        return
    with journal.locked(site.run_folder, volume.name) as book:
        record = standing(volume, book, site)
        if record is not None:
            _check_there(user, volume)
            _check_whole(volume, record, user, site)
            _join(record, user, book, site, read_only=read_only)
            return
        if not read_only:
            rewrite.finish(volume.image.image, site.state_folder, volume.name)
        known = state.load(site.state_folder, volume.name)
        guard.check_bare(volume.mountpoint, site.runner)
        guard.put(volume.mountpoint, site.runner)
        trust = Pinned(volume.name, known, rewrite.pending(site.state_folder, volume.name))
        if not read_only:
            _check_room(volume, site)
        with unwinding(volume, book, site):
            record = push_layers(volume, book, opening_of(volume, site, trust, read_only=read_only), user)
            _check_whole(volume, record, user, site)
            check_data(volume)
            locks = _warn_of_locks(volume, known, site)
            remember(volume, site, known, evolve(trust.known, last_open=record.since, locks=locks))
            interrupt.check()
            _check_there(user, volume)


def _check_whole(volume: Volume, record: Record, user: User, site: Site) -> None:
    """See that a read-only opening shows all that was written: nothing is mended then, no journal is replayed.

    Whoever looks by hand is told. A backup from it is refused (`Refused`): what is missing would be deleted from the
    copy.
    """
    if not record.read_only or all(getattr(handle, "whole", True) for _, handle in record.layers):
        return
    message = f"volume {volume.name} was cut off while it was written to"
    if user != users.by_hand():
        hint = "open and close it once for writing (without read_only = true), where it was written"
        raise Refused(f"{message}, and read-only it may lack what was written last", hint=hint)
    site.warn(f"{message}: read-only it may lack what was written last, which an opening for writing puts right")


def _check_there(user: User, volume: Volume) -> None:
    """See that *user* did not end while we were opening: nobody would close then. Raises `Unavailable`."""
    if not user.alive():
        raise Unavailable(
            f"{user.who} has ended before volume {volume.name} was open; nothing was left open",
            hint="it was stopped or killed; start the backup again",
        )


def _warn_of_locks(volume: Volume, known: Known, site: Site) -> str:
    """Say once for each kind of store that another host could open the image meanwhile; the kind that was told of."""
    why = "" if volume.filesystem.mmp else store.local_locks(volume.image.image)
    if why and why != known.locks:
        site.warn(
            f"a lock on the image of volume {volume.name} may not reach other hosts: its store is {why}; {SECOND_HOST}"
        )
    return why


def check_data(volume: Volume) -> None:
    """See that what backups are pointed to, if it is there, is a folder and leads nowhere else. Raises `Refused`."""
    try:
        kind = volume.data.lstat().st_mode
    except FileNotFoundError:
        return
    except PermissionError:
        raise  # ours to get, and no damage
    except OSError as error:
        raise Refused(
            f"the file system of volume {volume.name} is damaged: {volume.data} cannot be read: {error.strerror}",
            hint="copy the image first, then repair the file system by hand: docs/recovery.md",
        ) from error
    if not stat.S_ISLNK(kind) and not stat.S_ISDIR(kind):
        raise Refused(
            f"{volume.data} in volume {volume.name} is not a folder",
            hint="a backup cannot be written there; open the volume by hand elsewhere and look (docs/recovery.md)",
        )
    if stat.S_ISLNK(kind):
        raise Refused(
            f"{volume.data} in volume {volume.name} is a symbolic link",
            hint="what is backed up there would go elsewhere, in the clear; open it by hand elsewhere and look",
        )


def _check_room(volume: Volume, site: Site) -> None:
    """See that a sparse image cannot outgrow its store: then the backup would be lost (`space`). Raises `NoRoom`."""
    try:
        holes = fill.holes(volume.image.image)
        free = fill.free_space(volume.image.image.parent)
    except OSError:
        return  # not there: the image's own layer tells it best
    if holes <= free:
        return
    message = (
        f"the image of volume {volume.name} may still grow by {size.show(holes)}, its store has {size.show(free)} free"
    )
    if volume.space == "refuse":
        hint = f'free space on the store, or shrink: lukshook resize {volume.name}; space = "warn" goes on all the same'
        raise NoRoom(message, hint=hint)
    site.warn(message)


def _join(record: Record, user: User, book: Book, site: Site, *, read_only: bool) -> None:
    if record.read_only and not read_only:
        users = ", ".join(u.who for u in record.users if u.alive())
        raise Unavailable(
            f"volume {record.volume} is open read-only for {users}",
            hint=f"close it first: lukshook close {record.volume}",
        )
    others = tuple(u for u in record.users if u != user and u.alive())
    if read_only and not record.read_only:
        writers = ", ".join(u.who for u in others) or "an earlier user"
        site.warn(f"volume {record.volume} is open for writing by {writers}, so it is not read-only for you either")
    book.save(evolve(record, users=(*others, user)))


def _rehearse(volume: Volume, site: Site, *, read_only: bool) -> None:
    """Show the commands of an opening."""
    opening = opening_of(volume, site, Pinned(volume.name, Known()), read_only=read_only)
    below = ""
    for name in ENGINES[engine.choose(volume)]:
        layer, spec = LAYERS[name], spec_of(volume, name)
        expected = layer.expect(spec, below, opening)
        for command in layer.open_commands(spec, below, opening):
            site.runner.run(command)
        below = expected


def close_volume(
    volume: Volume, user: User | None, site: Site, *, failed: bool = False, backup: bool = True
) -> tuple[User, ...]:
    """*user* needs *volume* no more; the last one out closes it. None closes whoever uses it.

    Returns the users that are left, empty when it is closed. *backup*: a backup ends here, and *failed* says how.
    Raises `Busy` (still open; the next try goes on where this one stopped), `NotSafe` (data lost; closed, or for those
    that are left still open).
    """
    _see_store(volume, site)
    with journal.locked(site.run_folder, volume.name) as book:
        record = book.load()
        left = _leave(record, user) if record else ()
        if record and left and user is not None:
            if not site.runner.dry:
                _part(volume, evolve(record, users=left), book, site, failed=failed and backup)
            return left
        if site.runner.dry:
            _rehearse_close(record, site)
            return ()
        if record is not None:
            # Whoever said that it is over is no user any more, also where closing has to be tried again.
            record = evolve(record, users=left, lost=record.lost or _vanished(volume, record))
            book.save(record)
        _close_last(volume, book, record, site, failed=failed, backup=backup)
        return ()


def _see_store(volume: Volume, site: Site) -> None:
    """See that the store answers. Raises `Unavailable`, or `Busy` where the volume stays open."""
    try:
        store.probe(volume.image.image, site.runner)
    except Unavailable as error:
        if journal.peek(site.run_folder, volume.name) is None:
            raise
        hint = f"what was written last may not be safe; when the store is back: lukshook close {volume.name}"
        raise Busy(f"volume {volume.name} cannot be closed: {error.message}", hint=hint) from error


def _vanished(volume: Volume, record: Record) -> str:
    """What is to be said when somebody else has unmounted the volume: nobody saw whether all was written, or "".

    umount(8) exits 0 also where writing failed.
    """
    if not record.complete or record.read_only or not record.layers:
        return ""
    handle = record.layers[-1][1]
    found = kernel.mount_at(handle.path)
    if found is not None and (found.number == handle.number or kernel.lies_on(found, handle.number)):
        return ""
    return f"volume {volume.name} was unmounted by somebody else before it was closed"


def _leave(record: Record, user: User | None) -> tuple[User, ...]:
    return tuple(other for other in record.users if other != user and other.alive())


def _part(volume: Volume, record: Record, book: Book, site: Site, *, failed: bool) -> None:
    """Let a user go while others stay. Raises `NotSafe` when what it may have written is not on the store."""
    lost = "" if record.read_only or not record.complete else _write_out(record)
    if lost:
        text = f"what was written to {volume.mountpoint} did not all reach the store: {lost}"
        record = evolve(record, lost=record.lost or text)
    book.save(record)
    known = state.load(site.state_folder, volume.name)
    if record.lost:
        remember(volume, site, known, evolve(known, last_result="not safe", unclean=known.unclean + 1))
        raise not_safe(record.lost)
    if failed and not record.read_only:
        remember(volume, site, known, evolve(known, last_result="failed"))


def _write_out(record: Record) -> str:
    """Write out an open volume; what was lost, in words, or "". The kernel tells it once, to whoever asks first."""
    name, handle = record.layers[-1]
    if not LAYERS[name].inspect(handle):
        return "it is not open any more as it was"
    try:
        descriptor = os.open(handle.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return error.strerror or "it cannot be opened"
    try:
        return mount.flush(descriptor)
    except TimedOut as error:
        return error.message
    finally:
        os.close(descriptor)


def _rehearse_close(record: Record | None, site: Site) -> None:
    for name, handle in reversed(record.layers if record else ()):
        for command in LAYERS[name].close_commands(handle):
            site.runner.run(command)


def _close_last(volume: Volume, book: Book, record: Record | None, site: Site, *, failed: bool, backup: bool) -> None:
    known = state.load(site.state_folder, volume.name)
    something = bool(leftovers(volume, book, site))
    if something:
        known = evolve(known, **_filled(volume, record))
    try:
        written = take_down(volume, book, site)
    except NotSafe:
        remember(volume, site, known, evolve(known, last_result="not safe", unclean=known.unclean + 1))
        raise
    if not something:
        return
    _prove_bare(volume, site)
    now = journal.now()
    fresh = evolve(known, last_close=now, written=written if written is not None else known.written)
    if backup and record and not record.read_only:
        fresh = evolve(
            fresh,
            last_result="failed" if failed else "done",
            duration=now - record.since,
            last_written=_bytes_between(volume, known.written, written),
            last_success=known.last_success if failed else now,
        )
    remember(volume, site, known, fresh)


def _bytes_between(volume: Volume, before: int | None, after: int | None) -> int | None:
    """How much was written between two counts of the file system; ext4's are in KiB, others' in something else."""
    if before is None or after is None or volume.filesystem.filesystem != "ext4":
        return None
    return max(after - before, 0) * 1024


def _filled(volume: Volume, record: Record | None) -> dict[str, Any]:
    """How full the volume is, for `status` while it is closed."""
    if record is None or not record.complete:
        return {}
    try:
        found = os.statvfs(volume.mountpoint)
    except OSError:  # the daemon behind it was killed
        return {}
    return {
        "capacity": found.f_blocks * found.f_frsize,
        "used": (found.f_blocks - found.f_bfree) * found.f_frsize,
    }


def _prove_bare(volume: Volume, site: Site) -> None:
    """See that the bare mount point is empty and guarded again."""
    try:
        guard.check_bare(volume.mountpoint, site.runner)
        guard.put(volume.mountpoint, site.runner)
    except LukshookError as error:
        site.warn(f"volume {volume.name} is closed, but {error.message}; {error.hint}")


@contextmanager
def held(volume: Volume, site: Site) -> Iterator[None]:
    """While something writes to *volume*: nobody unmounts it, and no lost write goes unseen.

    A descriptor that was opened before the writing sees every error since, also those that somebody else's `sync`
    has already taken (syncfs(2)). Raises `NotSafe`, and `Busy` where the store does not answer any more.
    """
    descriptor = os.open(volume.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield
        _see_store(volume, site)
        if os.stat(volume.mountpoint).st_dev != os.fstat(descriptor).st_dev:
            raise NotSafe(
                f"volume {volume.name} was unmounted while it was in use",
                hint="what was read or written there after that was not of the volume",
            )
        lost = mount.flush(descriptor)
        if lost:
            text = f"what was written to {volume.mountpoint} did not all reach the store: {lost}"
            _note_lost(volume, site, text)
            raise not_safe(text)
    finally:
        os.close(descriptor)


def _note_lost(volume: Volume, site: Site, text: str) -> None:
    """Write down what the kernel has told us and will tell nobody else: every user's closing says it."""
    with journal.locked(site.run_folder, volume.name) as book:
        record = book.load()
        if record is not None:
            book.save(evolve(record, lost=record.lost or text))
