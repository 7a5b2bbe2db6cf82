"""`trust`: taking over an image that was made elsewhere, or one that was put back."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from attrs import evolve, frozen

from lukshook.config import Volume
from lukshook.errors import Denied, Refused, Unavailable, Usage
from lukshook.layers import mount_point
from lukshook.luks import cryptsetup, header, header_file
from lukshook.store.image_file import ImageFile, open_image
from lukshook.system.secret import Secret
from lukshook.volume import engine_choice, header_change, ledger_keeping, records, users
from lukshook.volume.context import Site
from lukshook.volume.data_folder import check_data, make_data
from lukshook.volume.header_change import Seen
from lukshook.volume.judgement import Accepting
from lukshook.volume.known_state import Known
from lukshook.volume.stack import push_layers, take_down, unwinding
from lukshook.volume.work import Work, work_on


@frozen
class Trusted:
    """What is trusted from now on.

    *differs*: in what the header is not the one known before, or "". *older*: the image is older than when it was
    closed last at that time (seconds since the epoch), or None. *marked*: the key's mark is in the header.
    """

    kind: str
    uuid: str
    slots: tuple[int, ...]
    backup: Path
    differs: str
    older: float | None
    marked: bool


def trust(volume: Volume, site: Site, *, rollback: bool = False, break_lock: bool = False) -> Trusted | None:
    """Trust the image of *volume* in its current state; None in a dry run.

    The header has to be sane, the key has to open it, and the file system in it has to be in order; then it is
    pinned, marked and backed up. *rollback*: also where the image is older than when this host closed it last.
    *break_lock*: also where another host has left its lock file beside a remote image.
    Raises `Refused`, `Denied`, `Unavailable`.
    """
    if break_lock:
        volume = _breaking(volume)
    engine_choice.check_image(volume)
    if site.runner.dry:
        _rehearse(volume, site)
        return None
    with work_on(volume, site) as work:
        header_change.check_settled(work.state)
        _check_closed(work)
        mount_point.prepare(volume.mount, site.runner)
        with open_image(volume.image.image, writable=not volume.read_only) as image:
            return _trust(work, image, rollback=rollback)


def _breaking(volume: Volume) -> Volume:
    """*volume*, with the lock file of another host broken when its image is connected."""
    if volume.image.remote is None:
        raise Usage(
            f"the image of volume {volume.name} has no lock file",
            hint="a lock on a file of this machine goes with the process that has it",
        )
    return evolve(volume, image=evolve(volume.image, remote=volume.image.remote.breaking()))


def _trust(work: Work, image: ImageFile, *, rollback: bool) -> Trusted:
    if not work.volume.read_only:
        work.complete_header_change(image)
    accepting = Accepting(work.name, work.state.known, rollback=rollback)
    seen = header_change.look(image, accepting)
    key = work.site.ask(work.volume)
    try:
        asking = evolve(work, site=evolve(work.site, ask=lambda _: Secret(key.reveal())))
        return _take_over(asking, accepting, seen)
    finally:
        key.wipe()


def _take_over(work: Work, accepting: Accepting, seen: Seen) -> Trusted:
    before = work.state.known
    key = work.site.ask(work.volume)
    try:
        accepting.vouch(seen.header, key)
        slots = cryptsetup.slots_opened(seen.copy, seen.header, key, work.runner)
        if not slots:
            raise Denied(f"the key opens no key slot of volume {work.name}", hint="is it this image's key?")
        seen = _fit(work, seen, key)
        known = _walk(work, seen.image, accepting)
        if work.has_ledger:
            ledger_keeping.check_length(work.name, known, seen.image.size)
        work.state.save(known)
        if work.has_ledger:  # not before: an image that is refused must not count as it is
            ledger_keeping.accept(work, seen.image)
        seen = _keep(work, seen, key, slots[0])
        marked = header.key_id(key) in header.find_macs(seen.header)
    finally:
        key.wipe()
    return Trusted(
        kind=seen.header.type,
        uuid=seen.header.uuid,
        slots=slots,
        backup=work.state.header_backup,
        differs=_difference(before, seen),
        older=before.last_close if _is_older(before, accepting.known) else None,
        marked=marked,
    )


def _check_closed(work: Work) -> None:
    record = work.record.load()
    if record is not None and any(user.alive() for user in record.users):
        raise Unavailable(f"volume {work.name} is open", hint=f"close it first: lukshook close {work.name}")
    take_down(work)


def _fit(work: Work, seen: Seen, key: Secret) -> Seen:
    """The userspace engine takes the key's text alone: a LUKS1 image made with the key's bytes gets a slot for it."""
    text = key.text()
    if engine_choice.chosen(work.volume).reads_raw_keys or seen.header.type != "luks1":
        return seen
    if cryptsetup.opens(seen.copy, seen.header, text, work.runner):
        return seen
    return header_change.change(seen, work.state, lambda draft: cryptsetup.add_key(draft, key, text, work.runner))


def _walk(work: Work, image: ImageFile, accepting: Accepting) -> Known:
    """Open the volume once from the bottom to the top, and close it; what is known afterwards."""
    volume = work.volume
    opening = work.opening(accepting, read_only=volume.read_only, image=image)
    with unwinding(work):
        push_layers(work, opening, users.ourselves("lukshook trust"))
        check_data(volume)
        if not volume.read_only:
            make_data(volume)
        written = take_down(work)
    known = accepting.known
    return evolve(known, written=known.written if written is None else written, last_close=records.now())


def _keep(work: Work, seen: Seen, key: Secret, slot: int) -> Seen:
    """The key's mark into the header where it has none, and a backup of the header; writing repairs a damaged half."""
    marks = header.find_macs(seen.header)
    done = header.key_id(key) in marks and seen.header.copies == 2
    if seen.header.type == "luks1" or work.volume.read_only or done:
        header_file.write(seen.copy, work.state.header_backup)
        return seen
    fresh = {**marks, header.key_id(key): header.mac(seen.header, slot, key)}
    return header_change.change(
        seen, work.state, lambda draft: cryptsetup.write_marks(draft, fresh, seen.header, work.runner)
    )


def _difference(before: Known, seen: Seen) -> str:
    if before.pins is None:
        return ""
    try:
        header.compare(before.pins, seen.header)
    except Refused as difference:
        return difference.message
    return ""


def _is_older(before: Known, now: Known) -> bool:
    if before.filesystem != now.filesystem or before.written is None or now.written is None:
        return False
    return now.written < before.written


def _rehearse(volume: Volume, site: Site) -> None:
    """What would be changed; as remarks, because no tool alone can do it."""
    image, data = (shlex.quote(os.fspath(path)) for path in (volume.image.image, volume.data))
    site.runner.note(f"# opens {image} once, without what is known of it: mkdir --parents -- {data}")
    if engine_choice.chosen(volume).header == "luks2":
        site.runner.note(f"# the key's mark: cryptsetup token import --json-file=- -- {image}")
    site.runner.note(f"# what is known from then on: {site.state(volume).file}")
