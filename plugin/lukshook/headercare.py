"""Taking care of the header: a copy of it elsewhere, back from there, and whether all is as it should be."""

from __future__ import annotations

import os
from pathlib import Path

from lukshook import header, header_file, journal, luks, rewrite, session, state
from lukshook.config import Volume
from lukshook.errors import Denied, Exists, Refused, Unavailable
from lukshook.header import Header
from lukshook.layers.base import open_image
from lukshook.rewrite import Seen
from lukshook.secret import Secret
from lukshook.site import Site
from lukshook.state import Known
from lukshook.trust import Pinned


def back_up(volume: Volume, site: Site, to: Path | None) -> Path:
    """Keep the header of *volume* in *to*, a new file, or in its usual place.

    Raises `Refused` (not the known one, or half of it damaged: the backup is what mends that), `Exists`.
    Needs no key. The file is what `cryptsetup luksHeaderRestore` takes as well.
    """
    file = to or state.header_backup(site.state_folder, volume.name)
    if to is not None and to.exists():
        raise Exists(f"{to} is there already", hint="name a new file")
    with journal.locked(site.run_folder, volume.name):
        seen = _known(volume, site)
        _see_whole(volume, seen)
        if not site.runner.dry:
            journal.private_folder(site.state_folder)
            header_file.check_place(file)
            header_file.write(seen.copy, file)
    site.runner.note(luks.backup_line(volume.image.image, file))
    return file


def verify(volume: Volume, site: Site) -> Header:
    """See that the header is sane, the known one, whole in both its copies, and the same as in its backup.

    Needs no key. Raises `Refused` with the first fault, `Unavailable` where there is no backup.
    """
    with journal.locked(site.run_folder, volume.name):
        seen = _known(volume, site)
    _see_whole(volume, seen)
    file = state.header_backup(site.state_folder, volume.name)
    kept = _read(file, seen.size, f"make one with: lukshook header backup {volume.name}")
    if header.pins(kept.header) != header.pins(seen.header):
        raise Refused(f"{file} is not the header of the image", hint=f"lukshook header backup {volume.name}")
    return seen.header


def _see_whole(volume: Volume, seen: Seen) -> None:
    if seen.header.type == "luks2" and seen.header.copies < 2:
        raise Refused(
            f"one of the two copies of the header of volume {volume.name} is damaged",
            hint=f"the other one still opens it; mend it with: lukshook header restore {volume.name}",
        )


def _known(volume: Volume, site: Site) -> Seen:
    folder = site.state_folder
    known = state.load(folder, volume.name)
    return rewrite.look(volume.image.image, Pinned(volume.name, known, rewrite.pending(folder, volume.name)))


def restore(volume: Volume, site: Site, source: Path | None) -> tuple[int, ...]:
    """Put the header in *source*, or in the usual backup, back onto the image, and see that the key opens it.

    Nothing is written unless that header belongs to this image and the key opens it. Returns the key's slots.
    Raises `Refused` (another volume's header, an old one, none), `Denied`, `Unavailable` (the volume is open).
    """
    with journal.locked(site.run_folder, volume.name) as book:
        if book.load() is not None or session.may_be_open(volume, site):
            raise Unavailable(f"volume {volume.name} is open", hint=f"close it first: lukshook close {volume.name}")
        folder = site.state_folder
        known = state.load(folder, volume.name)
        waiting = state.header_next(folder, volume.name)
        file = source or (waiting if header_file.is_there(waiting) else state.header_backup(folder, volume.name))
        good = _read(file, _size(volume), f"name another: lukshook header restore {volume.name} --from FILE")
        _see_ours(volume, known, rewrite.pending(folder, volume.name), good, file)
        key = site.ask(volume)
        try:
            _see_opens(volume, site, known, good, key)
            if site.runner.dry:
                site.runner.note(luks.restore_line(volume.image.image, file))
                return ()
            return _put_back(volume, site, good, key)
        finally:
            key.wipe()


def _put_back(volume: Volume, site: Site, good: Seen, key: Secret) -> tuple[int, ...]:
    journal.private_folder(site.state_folder)
    header_file.write(good.copy, state.header_next(site.state_folder, volume.name))
    rewrite.finish(volume.image.image, site.state_folder, volume.name, broken=True)
    seen = _known(volume, site)
    return luks.slots_opened(seen.copy, seen.header, key, site.runner)


def _size(volume: Volume) -> int:
    descriptor = open_image(volume.image.image, writable=True)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def _read(file: Path, size: int, hint: str) -> Seen:
    try:
        copy = header_file.load(file)
    except OSError as error:
        raise Unavailable(f"the header backup {file} cannot be read: {error.strerror}", hint=hint) from error
    except Refused as error:
        raise Refused(f"{file} is no header backup: {error.message}", hint=hint) from error
    return Seen(copy, header.judge(copy, size), size)


def _see_ours(volume: Volume, known: Known, pending: dict[str, object] | None, good: Seen, file: Path) -> None:
    """The pins say what belongs to this image; where there are none, the UUID of a header that can still be read."""
    if pending is not None and header.pins(good.header) == pending:
        return
    if known.pins is not None:
        try:
            header.compare(known.pins, good.header)
        except Refused as error:
            raise Refused(
                f"{file} is not the last known header of volume {volume.name}: {error.message}",
                hint="an older one would let removed keys in again; a newer backup may lie elsewhere",
            ) from error
        return
    uuid = _uuid_there(volume)
    if uuid not in ("", good.header.uuid):
        raise Refused(
            f"{file} is the header of volume {good.header.uuid}; the image is {uuid}",
            hint="name the backup of this image's header: --from FILE",
        )


def _uuid_there(volume: Volume) -> str:
    descriptor = open_image(volume.image.image, writable=False)
    try:
        return header.judge(header.copy(descriptor), os.lseek(descriptor, 0, os.SEEK_END)).uuid
    except Refused:
        return ""
    finally:
        os.close(descriptor)


def _see_opens(volume: Volume, site: Site, known: Known, good: Seen, key: Secret) -> None:
    if known.pins is None and header.verify_mac(good.header, key) is False:
        raise Refused("that header was changed by somebody without the key", hint="do not use it")
    if not luks.slots_opened(good.copy, good.header, key, site.runner):
        raise Denied(f"the key of volume {volume.name} does not open that header", hint="nothing was written")
