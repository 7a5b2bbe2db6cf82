"""Opening a volume for a user: the first one opens it, others join."""

from __future__ import annotations

from attrs import evolve

from lukshook import size
from lukshook.config import Volume
from lukshook.errors import NoRoom, Refused, Unavailable
from lukshook.layers import mount_point
from lukshook.store.image_file import ImageFile
from lukshook.store.room import Room
from lukshook.system import clock, signals
from lukshook.volume import data_folder, engine_choice, records, users
from lukshook.volume.backup_end import note_failed
from lukshook.volume.context import Site, opening_of
from lukshook.volume.open_layers import stands
from lukshook.volume.records import Record, User
from lukshook.volume.recovery import recovered
from lukshook.volume.stack import Script, opened, opening_script, push_layers, unwinding
from lukshook.volume.work import Work, work_on

#: What to do where a lock on the image may not be seen by every host.
SECOND_HOST = "where another host uses it too: mmp = true (docs/configuration.md)"


def open_volume(volume: Volume, user: User, site: Site, *, read_only: bool = False) -> None:
    """Open *volume* for *user*, or join those who have it open already.

    When it returns the volume is mounted and proven; when it raises nothing of it is left open. Raises any
    `LukshookError`.
    """
    read_only = read_only or volume.read_only
    volume.image.probe(site.runner)
    if site.runner.dry:
        rehearse(volume, site, read_only=read_only)
        return
    with work_on(volume, site) as work:
        record = recovered(work)
        if record is not None:
            _check_there(user, volume)
            check_whole(work, record, user)
            _join(note_failed(work, record), user, work, read_only=read_only)
        else:
            _make_way(work)
            _open(work, user, read_only=read_only)


def _make_way(work: Work) -> None:
    """Close what a killed run left of the volume's copies, and a drill of its image. Raises `Unavailable`."""
    if records.copies(work.site.run_folder, work.volume.label_of_copies):
        from lukshook.volume import copies  # noqa: PLC0415 - seldom

        copies.make_way(work)


def _open(work: Work, user: User, *, read_only: bool) -> None:
    """Open a volume of which nothing is open; nothing is left open when it raises."""
    engine_choice.check_image(work.volume)
    if not read_only:
        work.complete_header_change()
    trust = work.trust()
    work.secure_mount_point()
    asked = work.opening(trust, read_only=read_only)
    with unwinding(work), opened(work.volume, asked) as opening:
        if not read_only:
            _check_room(work, work.room(opening.the_image()))
        if work.volume.ledger:
            _check_pieces(work, opening.the_image(), restoring=read_only and user == users.by_hand())
        record = push_layers(work, opening, user)
        check_whole(work, record, user)
        data_folder.check_data(work.volume)
        locks = _warn_of_locks(work)
        doubted = trust.known.doubted and read_only  # else the file system was checked
        work.remember(evolve(trust.known, last_open=record.since, locks=locks, doubted=doubted))
        signals.check()
        _check_there(user, work.volume)


def _check_pieces(work: Work, image: ImageFile, *, restoring: bool) -> None:
    """Check a sample of the image. *restoring*: a person opens it to read what is intact, so damage is a warning."""
    from lukshook.volume import ledger_keeping  # noqa: PLC0415 - only with a ledger

    if not restoring:
        ledger_keeping.check_sample(work, image)
        return
    try:
        ledger_keeping.check_found(work)
        ledger_keeping.check_sample(work, image)
    except Refused as damage:
        work.site.warn(
            f"{damage.message}; it is opened read-only all the same: which files are damaged: lukshook verify "
            f"--name-files {work.name}; to repair it from a copy: lukshook heal {work.name} --from TARGET"
        )


def check_whole(work: Work, record: Record, user: User) -> None:
    """Check that a read-only opening shows all that was written: nothing is repaired then, no journal is replayed.

    Opening by hand gives a warning. A backup from it is refused (`Refused`): what is missing would be deleted from the
    copy.
    """
    if not record.read_only or all(handle.whole for _, handle in record.layers):
        return
    message = f"volume {work.name} was not closed cleanly"
    if user != users.by_hand():
        hint = "open and close it once read-write (drop read_only = true) on the host that wrote it"
        raise Refused(f"{message}; a read-only opening may be missing the most recent writes", hint=hint)
    work.site.warn(
        f"{message}; this read-only opening may be missing the most recent writes, which a read-write opening recovers"
    )


def _check_there(user: User, volume: Volume) -> None:
    """Check that *user* did not end while we were opening: then it would stay open. Raises `Unavailable`."""
    if not user.alive():
        raise Unavailable(
            f"{user.who} exited before volume {volume.name} was open; nothing is left open",
            hint="it was stopped or killed; start the backup again",
        )


def _warn_of_locks(work: Work) -> str:
    """Say once for each kind of store that another host could open the image meanwhile; the kind that was reported."""
    why = "" if work.volume.filesystem.mmp else work.volume.image.local_locks()
    if why and why != work.state.known.locks:
        work.site.warn(
            f"a lock on the image of volume {work.name} may not reach other hosts: its store is {why}; {SECOND_HOST}"
        )
    return why


def _check_room(work: Work, found: Room) -> None:
    """Check that a sparse image cannot outgrow its store: then the backup would be lost (`space`). Raises `NoRoom`."""
    if not found.may_run_out:
        return
    message = (
        f"the image of volume {work.name} may still grow by {size.show(found.holes)}, "
        f"its store has {size.show(found.free or 0)} free"
    )
    if work.volume.space == "refuse":
        hint = f'free space on the store, or shrink: lukshook resize {work.name}; space = "warn" continues anyway'
        raise NoRoom(message, hint=hint)
    work.site.warn(message)


def _join(record: Record, user: User, work: Work, *, read_only: bool) -> None:
    if record.read_only and not read_only:
        users = ", ".join(u.who for u in record.users if u.alive())
        raise Unavailable(
            f"volume {record.volume} is open read-only for {users}",
            hint=f"close it first: lukshook close {record.volume}",
        )
    others = tuple(u for u in record.users if u != user and u.alive())
    if read_only and not record.read_only:
        writers = ", ".join(u.who for u in others) or "an earlier user"
        work.site.warn(
            f"volume {record.volume} is already open read-write (by {writers}); you will have write access too"
        )
    earlier = tuple(u for u in record.users if u == user)
    joined = earlier[0] if earlier else evolve(user, since=clock.uptime())
    shared = record.shared or any(u != user for u in record.users)
    work.record.save(evolve(record, users=(*others, joined), shared=shared, failed=False))


def rehearse(volume: Volume, site: Site, *, read_only: bool) -> Script | None:
    """Show the commands of an opening; the script, or None where the volume is open already."""
    record = records.peek(site.run_folder, volume.name)
    if record is not None and record.complete and stands(record):
        site.runner.note(f"# volume {volume.name} is open already")
        return None
    engine_choice.check_image(volume)
    opening = opening_of(volume, site, read_only=read_only)
    mount_point.secure(volume.mount, site.runner)
    script = opening_script(volume, opening)
    for command in script.opening:
        site.runner.run(command)
    return script
