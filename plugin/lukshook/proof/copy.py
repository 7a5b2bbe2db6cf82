"""`copy`: a replica elsewhere that is always one whole state of the image; only what has changed is sent.

docs/internals/copies.md has the protocol, `replica` carries it out. Here it is decided what is copied, and where to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

from attrs import frozen

from lukshook import size
from lukshook.config import Volume
from lukshook.errors import Exists, LukshookError, NoRoom, NotSafe, Refused, Unavailable, Usage
from lukshook.ledger.digests import HOLE
from lukshook.proof import newer
from lukshook.proof.source import Source, check_length, mark_of, source
from lukshook.replica import held, journal
from lukshook.replica.held import Held
from lukshook.replica.place import Place, neighbours
from lukshook.replica.replica import Replica
from lukshook.replica.targets import is_url, open_target
from lukshook.store.room import RESERVE
from lukshook.store.target import Target
from lukshook.volume import records
from lukshook.volume.closing import may_be_open
from lukshook.volume.context import Site
from lukshook.volume.work import Work, work_on

#: Told how many bytes of how many are done.
Progress = Callable[[int, int], None]
#: Where a LUKS header of either version has its UUID (LUKS2 On-Disk Format 1.1.1).
_UUID = slice(168, 208)
_MAGIC = b"LUKS\xba\xbe"


@frozen
class Asked:
    """How to copy. *image*: a snapshot of the image instead of the image itself. *adopt*: take over what lies at the
    target, after reading all of it. *new*: what this host knows of a copy there is forgotten; that copy is gone.
    """

    image: Path | None = None
    adopt: bool = False
    new: bool = False


@frozen
class Copied:
    """What a copy has done. *sent*: bytes. *unknown*: how many pieces the ledger does not know; they are copied as they
    are. *generation* of the ledger that the target has now. *finished*: an interrupted change was completed before.
    """

    sent: int
    unknown: int
    generation: int
    finished: bool


def copy(volume: Volume, site: Site, to: str, asked: Asked, progress: Progress) -> Copied | None:
    """Make the replica at *to*, a path, what the image of *volume* is; None in a dry run.

    Raises `Refused` (damage at the source or the target; nothing is changed there then), `Unavailable` (the volume is
    open or was not closed cleanly, or the copy is gone), `Exists`, `NoRoom`, `NotSafe` (the target failed; the next run
    continues).
    """
    check_place(volume, to)
    with (
        work_on(volume, site) as work,
        source(work, path=asked.image) as found,
        target_at(to, volume, site, writable=not site.runner.dry) as target,
    ):
        check_length(found)
        if asked.image is None and newer.has_other_super_block(work, found):
            raise Refused(
                f"{found.shown} is not as this host wrote it: its super block is another one; nothing was copied",
                hint=f"how much is damaged: lukshook verify {work.name}",
            )
        if target.is_same_file(found.image.descriptor):
            raise Usage(f"{to} is the image itself", hint="a copy of it belongs on another disk")
        _check_header(found, target, to)
        known = _known(work, found, target, to, asked)
        if site.runner.dry:
            _tell(work, found, known, to)
            return None
        target.claim()
        state = found.book.state

        def told(piece: int) -> None:
            progress(piece * state.piece, state.size)
            work.record.tell(f"at {piece * 100 // found.book.count} % of the image, copying to {to}")

        known = known or _begun(work, to, mark_of(found.book))
        with using(site, known):
            return _copy(found, Place(target, known, found.digest_of, state.piece, told), asked)


@contextmanager
def using(site: Site, known: Held) -> Iterator[None]:
    """Keep other commands away from the replica. Raises `Unavailable`."""
    with records.locked(site.run_folder, f"@copy-{known.holding.id}"):  # no volume can have that name
        yield


def check_place(volume: Volume, to: str) -> None:
    """Check that a copy at *to* would not be the image, nor lie inside the volume. Raises `Usage`."""
    if to == volume.image.shown:
        raise Usage(f"{to} is the image itself", hint="a copy of it belongs on another disk")
    if is_url(to):
        return
    path = Path(to)
    folder = Path(os.path.realpath(path.parent))
    if folder.is_relative_to(volume.mountpoint) or path.is_relative_to(volume.mountpoint):
        raise Usage(f"{to} lies inside volume {volume.name} itself", hint="a copy of it belongs on another disk")


def _copy(found: Source, place: Place, asked: Asked) -> Copied:
    place.held.save(ledger=mark_of(found.book))
    replica, finished = Replica(place), False
    if asked.adopt:
        replica.adopt(found.book.state.size)
    else:
        finished = replica.recover()
        replica.plan(found.book.state.size)
    with closing(place.held.digests()) as column:
        _check_room(place.target, _needed(found, place))
        send = replica.update if place.held.started else replica.first
        state = found.book.state
        sent = send(found.changes(column), state.size, state.generation)
        unknown = sum(1 for _, _, _, unknown in found.differing(column) if unknown)
    return Copied(sent, unknown, state.generation, finished)


@contextmanager
def target_at(to: str, volume: Volume, site: Site, *, writable: bool) -> Iterator[Target]:
    """The target *to* of copies of *volume*, which will be changed if *writable*; what fails is said as one line.

    Raises `NotSafe`; `Unavailable` where it is gone, and as `open_target`.
    """
    try:
        token = held.token(site.state(volume).copies, to)
        with open_target(to, site.runner, volume.access, site.agent, token, writable=writable) as target:
            yield target
    except FileNotFoundError as error:
        raise Unavailable(
            f"the copy {to} is not there, or no longer whole: {error.filename or 'a file of it'} is missing",
            hint="is its disk or store mounted? to make a new one: lukshook copy NAME TARGET --new",
        ) from error
    except OSError as error:
        raise NotSafe(
            f"the copy {to} cannot be {'written' if writable else 'read'}: {error.strerror}",
            hint="what was there before is not lost; run the same command again",
        ) from error


def _known(work: Work, found: Source, target: Target, to: str, asked: Asked) -> Held | None:
    """What this host knows of the replica; None for one that is to be made. Raises `Refused`, `Exists`."""
    known = held.of(work.state.copies, to)
    if known is not None and asked.new:
        _check_gone(target, to)
        known = None
    if asked.adopt:
        _check_ours(work, found, target, to, known)
    elif known is not None:
        _check_known(work.name, known, found, target)
    if known is None:
        _check_free(target, to, adopt=asked.adopt)
    return known


def _begun(work: Work, to: str, ledger: str) -> Held:
    """A replica that is to be made; what was known of an earlier one at *to* is forgotten."""
    earlier = held.of(work.state.copies, to)
    if earlier is not None:
        earlier.forget()
    return held.new(work.state.copies, to, ledger)


def _check_gone(target: Target, to: str) -> None:
    """Check that an earlier replica is not there any more. Raises `Exists`."""
    if target.exists(target.name):
        raise Exists(
            f"the copy {to} is still there", hint="--new is for one that is gone: leave it out, or use --adopt"
        )


def _check_free(target: Target, to: str, *, adopt: bool) -> None:
    """Check that nothing of others would be replaced. Raises `Exists`."""
    if not adopt and target.exists(target.name):
        raise Exists(
            f"{to} is already there, and is no copy that this host knows",
            hint="if it is a copy of this volume, take it over, which reads all of it: --adopt; or name another path",
        )
    other = next(filter(target.exists, neighbours(target.name)), None)
    if other is not None:
        raise Exists(
            f"{other} is already there beside {to}, and this host does not know it",
            hint="if it is of no use, remove it: docs/copies.md says how",
        )


def _check_known(name: str, known: Held, found: Source, target: Target) -> None:
    """Check that what is known fits what lies there, and this ledger. Raises `Refused`, `Unavailable`."""
    to, holding = known.holding.target, known.holding
    if known.started and not target.exists(target.name):
        raise Unavailable(
            f"the copy {to} is no longer there",
            hint=f"is its disk or store mounted? to make a new one: lukshook copy {name} {to} --new",
        )
    if holding.ledger == mark_of(found.book):
        return
    if known.started or holding.step:
        raise Refused(
            f"the ledger of volume {name} was begun again after the last copy to {to}",
            hint=f"to read all of that copy and send what differs: lukshook copy {name} {to} --adopt",
        )
    known.forget_pieces()


def _check_header(found: Source, target: Target, to: str) -> None:
    """Check that the first piece has both metadata copies of LUKS2, where no file says that a copy is mixed.

    The size of one is at byte 8 (LUKS2 On-Disk Format 1.1.1). Raises `Refused`.
    """
    start = os.pread(found.image.descriptor, 16, 0)
    is_luks2 = start.startswith(_MAGIC + b"\0\2")
    if is_luks2 and 2 * int.from_bytes(start[8:]) > found.book.state.piece and not target.shows_neighbours:
        raise Refused(
            f"the metadata of {found.shown} is too large for {to}: an interrupted change would leave a mix that opens",
            hint="make the copy at a path, sftp:// or ssh://, where a file beside it says that",
        )


def _check_ours(work: Work, found: Source, target: Target, to: str, known: Held | None) -> None:
    """Check that what lies at the target has this volume's header, or is mixed and has none. Raises `Refused`."""
    pins = work.state.known.pins
    uuid = found.book.state.uuid or (str(pins["uuid"]) if pins else "")
    with closing(target.open(target.name, writable=False)) as file:
        start = file.read(0, _UUID.stop)
    if known is not None and known.holding.step and not any(start):
        return
    if not uuid or not start.startswith(_MAGIC) or start[_UUID].rstrip(b"\0") != uuid.encode():
        raise Refused(f"{to} is no copy of volume {work.name}: it has another header", hint="name another path")


def _needed(found: Source, place: Place) -> int:
    """Bytes that have to be free at the target: for the journal, and for pieces that have no place there yet."""
    changed = fresh = 0
    with closing(place.held.digests()) as column:
        for _, want, has, unknown in found.differing(column):
            changed += 1
            fresh += has == HOLE and (unknown or want != HOLE)
    state, held = found.book.state, place.held
    own = place.target.taken(state.size, fresh * state.piece)
    return own + (journal.room(changed, state.piece) if held.started else 0)


def _check_room(target: Target, needed: int) -> None:
    free = target.free()
    if free is not None and needed and needed + RESERVE > free:
        raise NoRoom(
            f"the copy {target.shown} needs up to {size.show(needed)} more, and {size.show(RESERVE)} must stay "
            f"free; {size.show(free)} are free there",
            hint="free space there; a change needs room for all that has changed, until it is complete",
        )


def _tell(work: Work, found: Source, known: Held | None, to: str) -> None:
    with nullcontext() if known is None else closing(known.digests()) as column:
        number = sum(1 for _ in found.differing(column))
    work.runner.note(f"# up to {size.show(number * found.book.state.piece)} would be sent to {to}")


def forget(volume: Volume, site: Site, to: str) -> None:
    """Forget the copy at *to*, which is gone for good; its place is not asked, and what may lie there stays.

    Raises `Usage` for a copy that is configured, or that this host does not know.
    """
    if any(copy.path == to for copy in volume.copies):
        raise Usage(
            f"the copy {to} is configured: the next backup of volume {volume.name} would make it again",
            hint=f"first remove it from [volumes.{volume.name}.copies]",
        )
    with work_on(volume, site, attach=False) as work:
        known = held.of(work.state.copies, to)
        if known is None:
            raise Usage(
                f"this host knows of no copy of volume {work.name} at {to}",
                hint=f"those that it knows: lukshook status {work.name}",
            )
        if site.runner.dry:
            site.runner.note(f"# the copy {to} would be forgotten")
            return
        with using(site, known):
            known.forget()


def copy_after_close(volume: Volume, site: Site) -> None:
    """Bring every configured copy of *volume* up to date, now that it is closed.

    A copy that fails is a warning where it is "soft". Raises `NotSafe` where it is "hard", after the others were made.
    A job that has opened the volume again meanwhile copies when it ends.
    """
    failed: list[str] = []
    if may_be_open(volume, site):
        return
    for one in volume.copies:
        try:
            copy(volume, site, one.path, Asked(), lambda done, total: None)
        except (LukshookError, OSError) as error:
            why = error.message if isinstance(error, LukshookError) else str(error)
            text = f"volume {volume.name} is closed, but it is not copied to {one.path}: {why}"
            if one.mode == "soft":
                site.warn(f"{text}; " + (getattr(error, "hint", "") or f"try: lukshook copy {volume.name}"))
            else:
                failed.append(text)
    if failed:
        raise NotSafe("; ".join(failed), hint=f"when the cause is gone: lukshook copy {volume.name}")
