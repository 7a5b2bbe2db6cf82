"""Another copy of a volume, beside the volume itself: a snapshot of the store, a replica, a file that was restored.

It is opened read-only, with a record of its own. What is known of the volume decides whether it is a copy of it, and
stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from attrs import evolve, frozen

from lukshook.config import Volume
from lukshook.errors import Refused, Unavailable
from lukshook.filesystems.kinds import KINDS
from lukshook.layers import filesystem, mount_point
from lukshook.layers import image as image_layer
from lukshook.layers.base import handle_of
from lukshook.luks import header_file
from lukshook.luks.header import Copy
from lukshook.replica import held, notice
from lukshook.replica.held import Holding
from lukshook.replica.targets import is_url
from lukshook.store import liveness
from lukshook.store.image_file import Identity
from lukshook.store.origin import origin, origin_of
from lukshook.system import signals
from lukshook.volume import closing, engine_choice, opening, records, unrecorded, users
from lukshook.volume.context import Site, opening_of
from lukshook.volume.judgement import OlderCopy, Pinned
from lukshook.volume.known_state import Known
from lukshook.volume.open_layers import stands
from lukshook.volume.records import Record, User
from lukshook.volume.recovery import recovered, warn_of_damage
from lukshook.volume.stack import opening_script, push_layers, take_down, unwinding
from lukshook.volume.work import Work, work_on

#: Seconds that a drill's own check has to leave the volume, before it is ended.
_DRILL_PATIENCE = 5.0


@frozen
class Age:
    """How old the content of a copy is.

    *last_write*: when it was last written, in seconds since the epoch, by the clock of the host that wrote it, None
    where its kind of file system does not say. *behind*: how much more was written to the volume until this host closed
    it last, in *unit* bytes each (None: the kind counts something else); negative for a copy that has more, None where
    that is not known. *last_close*: when that was. *whole*: whether what was written last is in it. *own*: whether it
    is the volume's own image, under whatever name.
    """

    last_write: float | None
    behind: int | None
    unit: int | None
    last_close: float | None
    whole: bool
    own: bool


def open_copy(
    volume: Volume, copy: Volume, user: User, site: Site, *, header: Copy | None = None, trust: Pinned | None = None
) -> Age | None:
    """Open *copy* (`Volume.copy_at`) of *volume* for *user*, read-only; None in a dry run.

    *header* is used in place of the header in the copy. *trust*: what it has to agree with; by default the known volume
    at any time. When it returns, the copy is mounted and proven; when it raises, nothing of it is left open. Raises any
    `LukshookError`; `Unavailable` where the volume itself has that image open, `Refused` where it may be mixed.
    """
    place = os.fspath(copy.image.image)
    copy.image.probe(site.runner)
    _check_free(volume, copy, site)
    _check_complete(volume, copy.image.image, site)
    engine_choice.check_image(copy)
    if site.runner.dry:
        rehearse(copy, site)
        return None
    with work_on(copy, evolve(site, keeps_state=False)) as work:
        _clear(work)
        mount_point.make(copy.mount, site.runner)
        asked = work.opening(trust or OlderCopy(volume.name, work.state.known, place), read_only=True)
        with unwinding(work):
            record = push_layers(work, evolve(asked, header=header), user)
            opening.check_whole(work, record, users.by_hand())
            signals.check()
            return _age(volume, record, work.state.known)


def close_copy(volume: Volume, mountpoint: Path, site: Site) -> None:
    """Close the copy of *volume* at *mountpoint*, for all users; fine where nothing is open. Raises `Busy`."""
    copy = volume.copy_at(mountpoint, volume.image.image)
    with work_on(copy, evolve(site, keeps_state=False)) as work:
        warn_of_damage(work)
        record = work.record.load()
        if site.runner.dry:
            closing.rehearse(work, record)
            return
        found = volume.copy_at(mountpoint, image_of(record) or volume.image.image)
        _take_down(evolve(work, volume=found))
        unrecorded.refuse(found)


def open_copies(volume: Volume, site: Site) -> list[Record]:
    """What is open, or half open, of other copies of *volume*; without locks."""
    return records.copies(site.run_folder, volume.label_of_copies)


def place_of(volume: Volume, image: Path, site: Site) -> str | None:
    """Where *image*, under whatever name, is open as a copy of *volume*; None where it is not. Without locks."""
    open_on = (record for record in open_copies(volume, site) if _is_of(record, image))
    return next((record.place for record in open_on if _anything_stands(record)), None)


def load_header(file: Path) -> Copy:
    """The header in *file*, which is no image's own. Raises `Unavailable`, `Refused`."""
    try:
        return header_file.load(file)
    except OSError as error:
        raise Unavailable(
            f"the header backup {file} cannot be read: {error.strerror}", hint="name another file with a header"
        ) from error
    except Refused as error:
        raise Refused(f"{file} is not a header backup: {error.message}", hint=error.hint) from error


def make_way(work: Work) -> None:
    """Before a volume is opened: close copies that a killed run left, and end a drill of the volume's own image.

    A backup goes before a drill. Raises `Unavailable` where a person has that image open.
    """
    for record in open_copies(work.volume, work.site):
        alive = [user for user in record.users if user.alive()]
        if alive and not _is_on(record, work.volume):
            continue
        drills = [user for user in alive if user.ours]
        if drills:
            work.site.warn(f"volume {work.name} is needed: ending {', '.join(user.who for user in drills)}")
            users.end(drills, work.site.warn)
        copy = work.volume.copy_at(Path(record.place), image_of(record) or work.volume.image.image)
        site = evolve(work.site, keeps_state=False)
        if _is_private(copy, site):  # who is still in there belongs to the drill
            site = evolve(site, kill_holders=True, patience=_DRILL_PATIENCE)
        with work_on(copy, site) as other:
            _clear(other)


def _is_private(copy: Volume, site: Site) -> bool:
    """Whether the copy is open for work of our own, not for a person."""
    return copy.mountpoint.parent == site.mount_folder


def _take_down(work: Work) -> None:
    """Close it, and remove a mount point of our own."""
    take_down(work)
    if _is_private(work.volume, work.site):
        with suppress(OSError):
            work.volume.mountpoint.rmdir()


def _check_free(volume: Volume, copy: Volume, site: Site) -> None:
    """Check that the volume itself does not have this image open. Raises `Unavailable`."""
    if not is_same(copy.image.image, volume.image.image) or not closing.may_be_open(volume, site):
        return
    raise Unavailable(
        f"volume {volume.name} is open, and so is its image {copy.image.image}",
        hint="name another copy, such as a snapshot or a replica: --image PATH; or wait until it is closed",
    )


def _check_complete(volume: Volume, image: Path, site: Site) -> None:
    """Check that *image* is no replica that an interrupted change has left half old and half new. Raises `Refused`."""
    paths = [image]
    for holding in _holdings(volume, site):
        if is_url(holding.target) or not _lies_at(Path(holding.target), image, site):
            continue
        paths.append(Path(holding.target))
        if holding.mixed or holding.step in ("reading", "applying"):
            raise _mixed(volume, image, holding.target)
    for path in paths:
        if any(os.path.lexists(f"{path}{suffix}") for suffix in notice.UNFINISHED):
            raise _mixed(volume, image, os.fspath(path))


def _holdings(volume: Volume, site: Site) -> tuple[Holding, ...]:
    """What this host knows of the replicas; what is damaged of that stops no restore."""
    try:
        return tuple(one.holding for one in held.every(site.state(volume).copies))
    except Refused as error:
        site.warn(error.message)
        return ()


def _lies_at(target: Path, image: Path, site: Site) -> bool:
    """Whether *image* is what lies at *target*, whose store may be dead by now."""
    if target == image:
        return True
    with suppress(Unavailable):
        liveness.probe(target, site.runner)
        return is_same(target, image)
    return False


def _mixed(volume: Volume, image: Path, target: str) -> Refused:
    return Refused(
        f"a change of the copy {image} was interrupted: parts of it may be old, and others new",
        hint=f"to finish it: lukshook copy {volume.name} {target}; without the host that made it: docs/copies.md",
    )


def is_same(one: Path, other: Path) -> bool:
    """Whether both paths lead to one image: links to folders, `..`, hard links, bind mounts, loop devices and overlays
    give it other names.
    """
    found = origin(one)
    return one == other or (found is not None and found == origin(other))


def image_of(record: Record | None) -> Path | None:
    """The image that was opened, None where that was not reached."""
    return Path(record.layers[0][1].path) if record and record.layers else None


def _is_on(record: Record, volume: Volume) -> bool:
    """Whether it is the volume's own image that is open, under whatever name it was opened."""
    return _is_of(record, volume.image.image)


def _is_of(record: Record, image: Path) -> bool:
    """Whether it is *image* that is open. Where it was opened is not looked at: that store may be dead by now."""
    found = dict(record.layers).get("image")
    if not isinstance(found, image_layer.Handle):
        return False
    opened = origin_of(Path(found.path), Identity(found.device, found.inode))
    return found.path == os.fspath(image) or (opened is not None and opened == origin(image))


def _anything_stands(record: Record) -> bool:
    """Whether anything holds the image: a person may have unmounted it without `close`."""
    return any(handle.inspect() for name, handle in record.layers if name not in ("image", "filesystem"))


def _clear(work: Work) -> None:
    """Close what a killed run left open under this label. Raises `Unavailable` where it is in use."""
    record = work.record.load()
    if record is not None and record.complete and stands(record) and any(user.alive() for user in record.users):
        raise Unavailable(
            f"{image_of(record)} is open read-only as a copy of volume {work.name}, at {work.volume.mountpoint}",
            hint=f"close it first: lukshook close {work.name} --at {work.volume.mountpoint}",
        )
    if recovered(work) is not None:
        _take_down(work)


def _age(volume: Volume, record: Record, known: Known) -> Age:
    handle = handle_of(dict(record.layers), filesystem.Handle)
    found = filesystem.facts(handle.kind, handle.path)
    written = found.written if found else None
    behind = None if written is None or known.written is None else known.written - written
    return Age(
        last_write=found.last_write if found else None,
        behind=behind,
        unit=KINDS[handle.kind].written_unit,
        last_close=known.last_close,
        whole=all(layer.whole for _, layer in record.layers),
        own=_is_on(record, volume),
    )


def rehearse(copy: Volume, site: Site, work: Sequence[str] = ()) -> None:
    """Show how *copy* is opened; with *work*, lines that are shown then, also how it is closed again."""
    mount_point.make(copy.mount, site.runner)
    script = opening_script(copy, opening_of(copy, site, read_only=True))
    for command in script.opening:
        site.runner.run(command)
    for line in work:
        site.runner.note(line)
    for command in script.closing if work else ():
        site.runner.run(command)
