"""Taking care of the header: a copy of it elsewhere, back from there, and whether all is as it should be."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from attrs import frozen

from lukshook.config import Volume
from lukshook.errors import Denied, Exists, Refused, Unavailable
from lukshook.luks import cryptsetup, header, header_file
from lukshook.luks.header import Copy, Header
from lukshook.store.image_file import ImageFile, open_image
from lukshook.system.secret import Secret
from lukshook.volume import closing, header_change
from lukshook.volume.context import Site
from lukshook.volume.header_change import Seen
from lukshook.volume.known_state import Known
from lukshook.volume.work import Work, work_on


@frozen
class Kept:
    """The header in a file: its bytes, and what they say."""

    copy: Copy
    header: Header


#: How wipefs(8) names a LUKS header of either version.
_LUKS_SIGNATURE = "crypto_LUKS"


def back_up(volume: Volume, site: Site, to: Path | None) -> Path:
    """Keep the header of *volume* in *to*, a new file, or in its usual place.

    Raises `Refused` (not the known one, or half of it damaged: only the backup repairs that), `Exists`.
    Needs no key. The file is what `cryptsetup luksHeaderRestore` takes as well.
    """
    file = to or site.state(volume).header_backup
    if to is not None and to.exists():
        raise Exists(f"{to} already exists", hint="name a new file")
    with work_on(volume, site) as work, open_image(volume.image.image, writable=False) as image:
        seen = header_change.look(image, work.trust())
        _check_complete(volume, seen)
        if not site.runner.dry:
            work.state.make_folder()
            header_file.check_place(file)
            header_file.write(seen.copy, file)
    for line in cryptsetup.backup_script(volume.image.image, file):
        site.runner.note(line)
    return file


def verify(volume: Volume, site: Site) -> Header:
    """Check that the header is sane, the known one, complete in both its copies, and the same as in its backup.

    Needs no key. Raises `Refused` with the first fault, `Unavailable` where there is no backup.
    """
    with work_on(volume, site) as work, open_image(volume.image.image, writable=False) as image:
        seen = header_change.look(image, work.trust())
    _check_complete(volume, seen)
    file = work.state.header_backup
    kept = _read(file, seen.size, f"make one with: lukshook header backup {volume.name}")
    if header.pins(kept.header) != header.pins(seen.header):
        raise Refused(f"{file} is not the header of the image", hint=f"lukshook header backup {volume.name}")
    return seen.header


def _check_complete(volume: Volume, seen: Seen) -> None:
    if seen.header.type == "luks2" and seen.header.copies < 2:
        raise Refused(
            f"one of the two copies of the header of volume {volume.name} is damaged",
            hint=f"the other copy still works; repair the header with: lukshook header restore {volume.name}",
        )


def restore(volume: Volume, site: Site, source: Path | None) -> tuple[int, ...]:
    """Put the header in *source*, or in the usual backup, back onto the image, and check that the key opens it.

    Nothing is written unless that header belongs to this image, the key opens it, and nothing else lies in the image.
    Returns the key's slots. Raises `Refused` (another volume's header, an old one, none; another volume or a file
    system in the image), `Denied`, `Unavailable` (the volume is open).
    """
    with work_on(volume, site) as work, open_image(volume.image.image, writable=True) as image:
        if work.record.load() is not None or closing.may_be_open(volume, site):
            raise Unavailable(f"volume {volume.name} is open", hint=f"close it first: lukshook close {volume.name}")
        state = work.state
        header_change.check_settled(state)
        known, waiting = state.known, state.header_next
        file = source or (waiting if header_file.is_there(waiting) else state.header_backup)
        good = _read(file, image.size, f"name another: lukshook header restore {volume.name} --from FILE")
        _check_ours(volume, known, header_change.pending(state), good, file)
        _check_replaceable(image, good, site)
        key = site.ask(volume)
        try:
            _check_opens(volume, site, known, good, key)
            if site.runner.dry:
                site.runner.note(cryptsetup.restore_line(volume.image.image, file))
                return ()
            return _put_back(work, image, good, key)
        finally:
            key.wipe()


def _check_replaceable(image: ImageFile, good: Kept, site: Site) -> None:
    """Check that the image is this volume's, however damaged: a disk may have another name than yesterday."""
    hint = f"is it the right image? if you do not need its content: wipefs --all {shlex.quote(os.fspath(image.path))}"
    others = header_file.uuids(image.descriptor) - {good.header.uuid}
    if others:
        raise Refused(
            f"the image {image.path} has the header of another volume: {', '.join(sorted(others))}", hint=hint
        )
    foreign = [found for found in cryptsetup.signatures(image, site.runner) if found != _LUKS_SIGNATURE]
    if foreign:
        raise Refused(f"the image {image.path} is not a LUKS image; it has: {', '.join(foreign)}", hint=hint)


def _put_back(work: Work, image: ImageFile, good: Kept, key: Secret) -> tuple[int, ...]:
    work.state.make_folder()
    header_file.write(good.copy, work.state.header_next)
    header_change.carry_over(image, work.state)
    copy = header.copy(image.descriptor)
    return cryptsetup.slots_opened(copy, header.judge(copy, image.size), key, work.runner)


def _read(file: Path, size: int, hint: str) -> Kept:
    try:
        copy = header_file.load(file)
    except OSError as error:
        raise Unavailable(f"the header backup {file} cannot be read: {error.strerror}", hint=hint) from error
    except Refused as error:
        raise Refused(f"{file} is not a header backup: {error.message}", hint=hint) from error
    return Kept(copy, header.judge(copy, size))


def _check_ours(volume: Volume, known: Known, pending: dict[str, object] | None, good: Kept, file: Path) -> None:
    """The pins say what belongs to this image; where there are none, what is there decides (`_check_replaceable`)."""
    if known.pins is None or (pending is not None and header.pins(good.header) == pending):
        return
    try:
        header.compare(known.pins, good.header)
    except Refused as error:
        raise Refused(
            f"{file} is not the last known header of volume {volume.name}: {error.message}",
            hint="an older header would accept removed keys again; is there a newer backup elsewhere?",
        ) from error


def _check_opens(volume: Volume, site: Site, known: Known, good: Kept, key: Secret) -> None:
    if known.pins is None and header.verify_mac(good.header, key) is False:
        raise Refused("that header was changed without the key", hint="do not use it")
    if not cryptsetup.slots_opened(good.copy, good.header, key, site.runner):
        raise Denied(
            f"the key of volume {volume.name} does not open that header",
            hint="nothing was written; it may be older than the key: use the key of that time",
        )
