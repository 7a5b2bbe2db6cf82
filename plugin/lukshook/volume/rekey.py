"""A new volume key in the place of the old one: all data of a closed volume is encrypted again, in place.

cryptsetup does the work, with a header in the state folder: `NAME.rekey` is there from the first step until the end,
and what it says is what counts. The header on the store is only written meanwhile, never read, so that a store
cannot bring its own volume key in. It is written after each slice of work: without this host, the image can be opened
elsewhere up to there. Killed at any moment, the same command continues; nothing else opens the volume until then.
`docs/internals/rekey.md` says why it is done like this.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from attrs import evolve, frozen

from lukshook import size
from lukshook.config import Volume
from lukshook.errors import Denied, NoRoom, NotSafe, Refused, Unavailable, Usage
from lukshook.keys import key_sources
from lukshook.layers import loop_device
from lukshook.luks import cryptsetup, header, header_file, reencryption
from lukshook.luks.allowlist import Read
from lukshook.luks.header import Header, slots_in_words
from lukshook.luks.reencryption import Progress
from lukshook.store.image_file import LOCKED, ImageFile, locked_by_others, open_image
from lukshook.system import files, signals
from lukshook.system.command import Command, CommandFailed, descriptor_path
from lukshook.system.secret import Secret
from lukshook.volume import engine_choice, header_change, key_slots, recovery
from lukshook.volume.context import Site
from lukshook.volume.header_change import Seen
from lukshook.volume.known_state import KnownState
from lukshook.volume.work import Work, work_on

#: How cryptsetup exits when no key slot opens.
_WRONG_KEY = 2


@frozen
class Asked:
    """What to do besides: *keep_key*: leave the key as it is. *drop_other_keys*: also where others open the volume.

    *verify*: compares the image with its ledger before anything is encrypted again. *progress*: bytes done, of all.
    """

    keep_key: bool
    drop_other_keys: bool
    verify: Callable[[], None]
    progress: Callable[[int, int], None]


@frozen
class Rekeyed:
    """*slots*: the key slots that the key opens now. *continued*: an interrupted replacement was completed."""

    slots: tuple[int, ...]
    continued: bool


def rekey(volume: Volume, site: Site, asked: Asked) -> Rekeyed:
    """Replace the volume key of *volume*, and its key too unless that is to be kept; or complete that.

    Raises `Unavailable` (open, in use, the store fails: the same command continues; `check_store`), `Refused` (not
    the image that was begun with), `Usage` (other keys would be lost), `Denied`, `NotSafe`.
    """
    check_store(volume)
    state = site.state(volume)
    continued = header_file.is_there(state.rekeying)
    if not continued:
        _check_source(volume)
        with _closed(volume, site) as (work, image), _key(work) as key:
            rotating = work.state.known.coming != "" and not asked.keep_key  # interrupted: two keys open it until then
            _check_possible(work, image, key, evolve(asked, drop_other_keys=asked.drop_other_keys or rotating))
        asked.verify()
        if not asked.keep_key:
            key_slots.rotate(volume, site)
    with _closed(volume, site) as (work, image), _key(work) as key:
        if not continued:
            _begin(work, image, key, asked)
        _check_begun(work, image)
        _carry_on(work, image, key, asked)
        slots = _finish(work, image, key)
        _renew_ledger(work, image)
    return Rekeyed(slots, continued)


def check_store(volume: Volume) -> None:
    """Check that no restart of a remote machine loses what was encrypted again. Raises `Unavailable`.

    A new connection hides that restart from cryptsetup, whose journal is of later data by then.
    """
    remote = volume.image.remote
    if remote is not None and not remote.abilities.synced:
        raise Unavailable(
            f"the volume key of volume {volume.name} cannot be replaced through {remote.url}: if that machine loses "
            "power meanwhile, data is lost",
            hint="name the image by sftp://, which syncs each write, until that is done; or do it where the image is",
        )


def _check_source(volume: Volume) -> None:
    """Check that the key can be read again: it is needed before and after the verification. Raises `Usage`."""
    if key_sources.is_read_once(volume.key[0]):
        raise Usage(
            f"the key source {key_sources.name_of(volume.key[0])} is read once, and key rekey reads it twice",
            hint="name another source for that time, such as prompt or file:PATH",
        )


@contextmanager
def _closed(volume: Volume, site: Site) -> Iterator[tuple[Work, ImageFile]]:
    """The image, which nobody uses meanwhile: neither lukshook, nor a loop device, nor another host with locks."""
    engine_choice.check_image(volume)
    with work_on(volume, site) as work, open_image(volume.image.image, writable=True) as image:
        if recovery.recovered(work) is not None:
            raise Unavailable(
                f"volume {volume.name} is open", hint=f"when it is not used: lukshook close {volume.name}"
            )
        if work.state.resizing.exists():
            raise Unavailable(
                f"a resize of volume {volume.name} is not complete",
                hint=f"run the same lukshook resize {volume.name} again",
            )
        _lock(image)
        yield work, image


def _lock(image: ImageFile) -> None:
    """Keep others away; the tools that work on the image inherit the lock. A store without locks has none to keep."""
    loop_device.check_unattached(image)
    try:
        if image.block:  # mapped or mounted: open(2) then refuses O_EXCL
            os.close(os.open(descriptor_path(image.descriptor), os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        fcntl.flock(image.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if not isinstance(error, LOCKED) and error.errno != errno.EBUSY:
            return
        raise locked_by_others(os.fspath(image.path)) from error


@contextmanager
def _key(work: Work) -> Iterator[Secret]:
    with signals.allowed():
        key = work.site.ask(work.volume)
    try:
        yield key
    finally:
        key.wipe()


def _check_possible(work: Work, image: ImageFile, key: Secret, asked: Asked) -> Seen:
    """The judged header; everything that can be refused is refused here."""
    work.complete_header_change(image)
    seen = header_change.look(image, work.trust())
    header.check_sectors(os.fspath(image.path), seen.header, image.size)
    work.trust().vouch(seen.header, key)
    own = cryptsetup.slots_opened(seen.copy, seen.header, key, work.runner)
    if not own:
        raise Denied(f"the key opens no key slot of volume {work.name}", hint="is it the right key?")
    others = [slot.number for slot in seen.header.slots if slot.number not in own]
    if others and not asked.drop_other_keys:
        raise Usage(
            f"other keys open volume {work.name} too ({slots_in_words(others)}), and will no longer do so",
            hint="add --drop-other-keys, and afterwards add those keys again: lukshook key add",
        )
    _check_room(work, image)
    return seen


def _check_room(work: Work, image: ImageFile) -> None:
    """Check that the store has room for the whole image: where it had holes, there will be data. Raises `NoRoom`."""
    found = work.room(image)
    if found.may_run_out:
        raise NoRoom(
            f"replacing the volume key fills the holes of the image of volume {work.name}: {size.show(found.holes)}, "
            f"and its store has {size.show(found.free or 0)} free",
            hint=f"free space on the store, or shrink the volume: lukshook resize {work.name}",
        )


def _begin(work: Work, image: ImageFile, key: Secret, asked: Asked) -> None:
    """Prepare the header that counts from now on, and the ledger: every piece of the image will change."""
    seen, state = _check_possible(work, image, key, asked), work.state
    state.make_folder()
    header_file.check_place(state.rekeying)
    draft = state.header_draft
    try:
        header_file.write(seen.copy, draft)
        slot = _slot_of(work, seen, draft, key)
        cryptsetup.remove_marks(draft, seen.header, work.runner)  # they are of the old volume key
        if seen.header.type == "luks1":
            work.runner.run(reencryption.to_luks2_command(draft))
        _run(work, image, key, lambda place: reencryption.begin_command(draft, place, slot))
        begun = reencryption.progress(draft)
        if not begun.running or begun.torn or begun.done or begun.uuid != seen.header.uuid:
            raise Refused("cryptsetup did not prepare the replacement as expected", hint="nothing was changed")
        _reserve(draft, seen.header)
        if state.ledger.is_dir():
            from lukshook.volume import ledger_keeping  # noqa: PLC0415 - only with a ledger

            ledger_keeping.accept(work, image)
        _expect(state, _heads(image))
        files.rename(draft, state.rekeying)
    finally:
        draft.unlink(missing_ok=True)


def _slot_of(work: Work, seen: Seen, draft: Path, key: Secret) -> int:
    """The key slot that the bytes of *key* open; one is added to *draft* where only their text opens any (LUKS1)."""
    if not cryptsetup.opens(seen.copy, seen.header, key, work.runner):
        cryptsetup.add_key(draft, key.text(), key, work.runner)
    copy = header_file.load(draft)
    judged = header.judge(copy, seen.size)
    numbers = {slot.number for slot in judged.slots}
    return next(
        number
        for number in sorted(numbers)
        if cryptsetup.opens(copy, judged, key, work.runner, without=numbers - {number})
    )


def _reserve(draft: Path, judged: Header) -> None:
    """Give the whole header its blocks, so that a full disk does not stop the work later. Raises `Unavailable`."""
    descriptor = os.open(draft, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.posix_fallocate(descriptor, 0, judged.offset)
        os.fsync(descriptor)
    except OSError as error:
        raise _no_room(draft.parent, error) from error
    finally:
        os.close(descriptor)


def _check_begun(work: Work, image: ImageFile) -> None:
    """Check that *image* is as the replacement left it: the header in the state folder describes no other data.

    The header on the store is not believed. An older image that was put back, or an older state folder, shows by it
    that the two are not of the same moment. So does an older file alone: the store never shows a newer header than it,
    but for the new one, at the end. Raises `Refused`.
    """
    file, known = work.state.rekeying, work.state.known
    now, data = reencryption.progress(file), file.read_bytes()
    ours, behind = now.uuid, header_file.newest(_reading(image)) > header_file.newest(_within(data))
    if behind and not now.running:
        behind = not _heads(image) & _new_heads(work.state)
    if (known.pins and known.pins["uuid"] != ours) or header_file.uuids(image.descriptor) - {ours}:
        raise Refused(
            f"this is not the image of volume {work.name}, whose volume key is being replaced", hint=_put_back(work)
        )
    if behind or not _heads(image) <= set(known.rekey_heads):
        raise Refused(
            f"the image of volume {work.name} is not as the replacement of its volume key left it: one of the image "
            f"and {file} is older than the other",
            hint=_put_back(work),
        )


def _new_heads(state: KnownState) -> frozenset[str]:
    """Of the new header, which a killed `_finish` may have begun to write."""
    files = [file for file in (state.header_next, state.header_backup) if header_file.is_there(file)]
    return frozenset().union(*(header_file.heads(header_file.load(file).read) for file in files))


def _put_back(work: Work) -> str:
    return f"keep {work.state.rekeying} and put back the image that it worked on; without that image: docs/recovery.md"


def _heads(image: ImageFile) -> frozenset[str]:
    return header_file.heads(_reading(image))


def _reading(image: ImageFile) -> Read:
    return lambda at, length: os.pread(image.descriptor, length, at)


def _within(data: bytes) -> Read:
    return lambda at, length: data[at : at + length]


def _expect(state: KnownState, heads: frozenset[str]) -> None:
    """Note what the header on the store may be from now on."""
    state.save(evolve(state.known, rekey_heads=sorted(heads)))


def _expect_also(state: KnownState, heads: frozenset[str]) -> None:
    """As `_expect`, before a header is written that an interruption may leave incomplete."""
    _expect(state, heads.union(state.known.rekey_heads))


def _carry_on(work: Work, image: ImageFile, key: Secret, asked: Asked) -> None:
    """Work on the data in slices until all of it has the new volume key.

    A slice that brought nothing is followed by one twice as long: a slow store may need that for a single hot zone.
    """
    file, shown = work.state.rekeying, b""
    seconds, last = reencryption.SLICE_SECONDS, reencryption.NOTHING
    while True:
        reencryption.repair_copies(file)
        now = reencryption.progress(file)
        if not now.running:
            return
        seconds, last = seconds * 2 if now == last else seconds, now
        _show(work, image, now, asked)
        shown = _mirror(work, image, shown)
        signals.check()
        if now.torn:
            _repair(work, image, key)
        else:
            _run(work, image, key, partial(reencryption.continue_command, file, seconds=seconds))


def _repair(work: Work, image: ImageFile, key: Secret) -> None:
    """Complete the hot zone that was interrupted; a copy of the header says so, and takes its place when that is done.

    So a kill leaves the journal of that zone and both volume keys, and completing begins again.
    """
    draft = work.state.header_draft
    try:
        _copy(work.state.rekeying, draft)
        _run(work, image, key, lambda place: reencryption.repair_command(draft, place))
        _sync(work, image)
        files.rename(draft, work.state.rekeying)
    finally:
        draft.unlink(missing_ok=True)


def _sync(work: Work, image: ImageFile) -> None:
    """Wait until the zone is on the store: cryptsetup does that in each step, but not in `repair`. Raises `NotSafe`."""
    try:
        image.sync()
    except OSError as error:
        raise NotSafe(
            f"the store of volume {work.name} did not store what was repaired: {error.strerror}",
            hint="nothing is lost; when the store works again, run the same command again",
        ) from error


def _copy(file: Path, draft: Path) -> None:
    """A copy of the whole header, journal and all. Raises `Unavailable`."""
    try:
        files.write_whole(draft, file.read_bytes(), durable=True)
    except OSError as error:
        raise _no_room(draft.parent, error) from error


def _no_room(folder: Path, error: OSError) -> Unavailable:
    return Unavailable(f"there is no room for the header in {folder}: {error.strerror}", hint="free 16 MiB there")


def _show(work: Work, image: ImageFile, now: Progress, asked: Asked) -> None:
    known = work.state.known.pins
    total = max(image.size - (known["offset"] if known else 0), 1)
    asked.progress(min(now.done, total), total)
    work.record.tell(f"replacing the volume key, {min(now.done * 100 // total, 100)} % done")


def _mirror(work: Work, image: ImageFile, shown: bytes) -> bytes:
    """Show on the store how far the work is, for a host that has to go on without this one; gives what it shows now."""
    data = work.state.rekeying.read_bytes()
    heads = header_file.heads(_within(data))
    _expect_also(work.state, heads)
    try:
        header_file.mirror(data, shown, image.descriptor)
    except OSError as error:
        raise NotSafe(
            f"the header could not be written: {error.strerror}",
            hint="it is saved on this host; when the store works again, run the same command again",
        ) from error
    _expect(work.state, heads)
    return data


def _run(work: Work, image: ImageFile, key: Secret, command: Callable[[Path], Command]) -> None:
    """One command of cryptsetup on the image, which gets the key. Raises `Unavailable`, `Denied`."""
    try:
        image.run(lambda place: evolve(command(place), stdin=key), work.runner)
    except CommandFailed as error:
        signals.check()
        if error.result.code == _WRONG_KEY:
            raise Denied(
                f"the key does not open volume {work.name}, whose volume key is being replaced",
                hint="it is the key that was used when the replacement began",
            ) from error
        raise Unavailable(
            f"replacing the volume key of volume {work.name} stopped: {error.result.reason}",
            hint="nothing is lost; when the cause is gone, run the same command again",
        ) from error


def _finish(work: Work, image: ImageFile, key: Secret) -> tuple[int, ...]:
    """The new header becomes the known one and the header backup, and replaces that on the image.

    What is left of the old volume key in the image is overwritten.
    """
    state = work.state
    if not header_file.is_there(state.header_next):  # else a killed run has made it, and has perhaps begun to write it
        _make_new(work, key, image.size)
    copy = header_file.load(state.header_next)
    slots = cryptsetup.slots_opened(copy, header.judge(copy, image.size), key, work.runner)
    _expect_also(state, header_file.heads(copy.read))
    header_change.carry_over(image, state)
    header_file.clear_rest(header_file.load(state.header_backup), image.descriptor)
    _forget(state)
    return slots


def _make_new(work: Work, key: Secret, length: int) -> None:
    """The header that the volume has from now on, from that of the replacement."""
    draft = work.state.header_draft
    try:
        _copy(work.state.rekeying, draft)
        reencryption.remove_old(draft)
        header_file.write(header_file.load(draft), draft)
        _complete(work, draft, key, length)
        header_file.write(header_file.load(draft), work.state.header_next)
    finally:
        draft.unlink(missing_ok=True)


def _complete(work: Work, draft: Path, key: Secret, length: int) -> None:
    """Give the new header in *draft* what one of lukshook has: its type, each form of the key, the key's mark."""
    known, runner = work.state.known.pins, work.runner
    if known is not None and known["type"] == "luks1":
        reencryption.number_digest(draft)
        runner.run(reencryption.to_luks1_command(draft))
        for form in cryptsetup.forms(key, "luks1")[1:]:
            cryptsetup.add_key(draft, key, form, runner)
    copy = header_file.load(draft)
    judged = header.judge(copy, length)
    slots = cryptsetup.slots_opened(copy, judged, key, runner)
    if not slots or len(slots) != len(judged.slots):
        raise Refused("the new header does not open with the key alone", hint=f"it is in {work.state.rekeying}")
    if judged.type == "luks2":
        marks = {header.key_id(key): header.mac(judged, slots[0], key)}
        cryptsetup.write_marks(draft, marks, judged, runner)


def _forget(state: KnownState) -> None:
    state.rekeying.unlink()
    files.sync_folder(state.folder)
    _expect(state, frozenset())


def _renew_ledger(work: Work, image: ImageFile) -> None:
    """Read all of the image: the ledger knows no piece of it any more. A kill here leaves that to `verify`."""
    if not work.state.ledger.is_dir():
        return
    from lukshook.volume import ledger_keeping  # noqa: PLC0415 - only with a ledger

    ledger_keeping.renew(work, image)
