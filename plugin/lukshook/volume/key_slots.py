"""The life of a key: which slot it opens, a second one beside it, one less, a new one in its place.

A key slot is proven to open, and a removed one not to, on the private copy of the header before anything of it
reaches the store. Killed at any moment, the key source and the image fit: the new key is in its place before the old
one's key slot goes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attrs import evolve, frozen

from lukshook.config import Volume
from lukshook.errors import Denied, Exists, Refused, Unavailable, Usage
from lukshook.keys import key_sources
from lukshook.luks import cryptsetup, header, header_file
from lukshook.luks.header import slots_in_words
from lukshook.store.image_file import open_image
from lukshook.system.command import Runner
from lukshook.system.secret import KEY_BYTES, Secret
from lukshook.volume import header_change, remote
from lukshook.volume.context import Site
from lukshook.volume.create import ready_key
from lukshook.volume.header_change import Seen
from lukshook.volume.judgement import Accepting
from lukshook.volume.known_state import Known
from lukshook.volume.work import Work, work_on

_MOST_SLOTS = {"luks1": 8, "luks2": 32}


@frozen
class Rotated:
    """How far a rotation is. *added*: the new key's slots; *removed*: the old one's; *waiting*: where it waits for
    the configuration to name the new source, else "".
    """

    added: tuple[int, ...]
    removed: tuple[int, ...]
    waiting: str = ""


def test(volume: Volume, site: Site) -> tuple[int, ...]:
    """The key slots that the key of *volume* opens; changes nothing, also where the header is not trusted yet.

    Raises `Refused` (header not sane, or not as known), `Denied` (it opens none).
    """
    state = site.state(volume)
    trust = header_change.trust_of(state) if state.known.pins else Accepting("", state.known)
    with remote.at_hand(volume, site), open_image(volume.image.image, writable=False) as image:
        seen = header_change.look(image, trust)
        with _asked(volume, site) as key:
            return _opened(volume, site, seen, key)


def add(volume: Volume, site: Site, source: str) -> tuple[int, ...]:
    """Let the key in *source* open *volume* as well; it is made there, where *source* can take one and has none.

    Returns its key slots. Raises `Exists` (it opens it already), `Denied` (the volume's own key does not).
    """
    with _header(volume, site) as (work, seen), _known_key(work, seen) as old, _new_key(volume, site, source) as new:
        there = cryptsetup.slots_opened(seen.copy, seen.header, new, site.runner)
        if there:
            raise Exists(
                f"the key from {key_sources.name_of(source)} already opens volume {volume.name}:"
                f" {slots_in_words(there)}",
                hint="nothing was changed",
            )
        _check_free_slot(volume, seen, new)
        return _add(work, seen, old, new, header.find_macs(seen.header))[1]


def add_new(volume: Volume, site: Site, new: Secret) -> tuple[int, ...]:
    """Let *new*, which no key source has, open *volume* as well. Returns its key slots. Raises what `add` does."""
    with _header(volume, site) as (work, seen), _known_key(work, seen) as old:
        _check_free_slot(volume, seen, new)
        return _add(work, seen, old, new, header.find_macs(seen.header))[1]


def remove(volume: Volume, site: Site, *, source: str = "", slot: int | None = None) -> tuple[int, ...]:
    """Revoke the key in *source*, or any key that opens *slot*. Returns the emptied key slots.

    Raises `Usage` where the volume's own key would no longer open anything, or there is no such slot.
    """
    with _header(volume, site) as (work, seen), _known_key(work, seen) as own:
        marks = header.find_macs(seen.header)
        if slot is not None:
            gone: tuple[int, ...] = (slot,)
        else:
            named = evolve(volume, key=(source,))
            with _asked(named, site) as key:
                gone = _opened(named, site, seen, key)
                marks.pop(header.key_id(key), None)
        _remove(work, seen, own, gone, marks)
        if slot is not None and seen.header.type == "luks1":
            _warn_of_other_slot(volume, site, seen, own, gone)
        return gone


def _warn_of_other_slot(volume: Volume, site: Site, seen: Seen, own: Secret, gone: tuple[int, ...]) -> None:
    """In LUKS1 a key has two slots, as bytes and as text (`cryptsetup.forms`): emptying one revokes only half of it."""
    others = {slot.number for slot in seen.header.slots} - {*gone, *_opened(volume, site, seen, own)}
    if len(others) % 2:
        site.warn(
            f"a key has two key slots in LUKS1, so the key of {slots_in_words(gone)} may still open the volume:"
            f" remove its other slot too; left are {slots_in_words(sorted(others))}"
        )


def rotate(volume: Volume, site: Site, source: str = "") -> Rotated:
    """Put a new key in the place of the volume's own.

    The new key is made in the volume's own key source, or taken from (or made in) *source*, which the configuration
    has to name before the old one goes: until then both open, and the same command continues from there.
    After an interruption at any point, the same command continues too.
    """
    with _header(volume, site) as (work, seen), _known_key(work, seen) as own:
        if _has_come(work.state.known, seen, own, again=source == volume.key[0]):
            _put_in_place(work, seen)
            return _settle(work, seen, own)
        with _new_key(volume, site, source or staged(volume)) as new:
            both, added = _both(work, seen, own, new)
            if source not in ("", volume.key[0]):
                return Rotated(added, (), waiting=source)
            _put_in_place(work, both)
            return evolve(_settle(work, both, new), added=added)


def _has_come(known: Known, seen: Seen, own: Secret, *, again: bool) -> bool:
    """Whether *own* is what a rotation has brought, and the old one is still there.

    *again*: the command names the key that is in place, so it means to continue, though nothing may be left to do.
    """
    return known.coming == header.key_id(own) and (again or bool(_leaving(known, seen)))


def _leaving(known: Known, seen: Seen) -> tuple[int, ...]:
    """The key slots that a rotation has to empty and that are not empty yet."""
    return tuple(slot.number for slot in seen.header.slots if slot.material in known.leaving)


def _both(work: Work, seen: Seen, own: Secret, new: Secret) -> tuple[Seen, tuple[int, ...]]:
    """Old and new key open, and it is written down which slots are the old one's."""
    old = _opened(work.volume, work.site, seen, own)
    there = cryptsetup.slots_opened(seen.copy, seen.header, new, work.runner)
    if set(old) & set(there):
        raise Exists(f"that key is already the key of volume {work.name}", hint="a rotation needs a different key")
    if not there:
        _check_free_slot(work.volume, seen, new)
    materials = tuple(slot.material for slot in seen.header.slots if slot.number in old)
    state, mark, coming = work.state, header.key_id(own), header.key_id(new)
    state.save(evolve(state.known, leaving=materials, leaving_mark=mark, coming=coming))
    if there:
        return seen, there
    return _add(work, seen, own, new, header.find_macs(seen.header))


def _settle(work: Work, seen: Seen, now: Secret) -> Rotated:
    """The new key is in its place: the old one goes, and its mark."""
    known = work.state.known
    there = _leaving(known, seen)
    if there:
        marks = header.find_macs(seen.header)
        marks.pop(known.leaving_mark, None)
        _remove(work, seen, now, there, marks)
    work.state.save(evolve(work.state.known, leaving=(), leaving_mark="", coming=""))
    return Rotated((), there)


def staged(volume: Volume) -> str:
    """Beside the first source, if that can take a new key in place of the old."""
    source, argument = key_sources.parse(volume.key[0])
    if source.staged is None:
        able = " or ".join(name for name in key_sources.SOURCES if key_sources.source_named(name).staged)
        raise Usage(
            f"the key source {key_sources.name_of(volume.key[0])} cannot store a new key",
            hint="name a source that can store it, or that already has it: "
            f"lukshook key rotate {volume.name} --key SOURCE ({able})",
        )
    return volume.key[0].partition(":")[0] + ":" + source.staged(argument)


def _put_in_place(work: Work, seen: Seen) -> None:
    """The new key that waits beside the old one takes its place; nothing where none waits that opens the volume."""
    source, argument = key_sources.parse(work.volume.key[0])
    if source.replace is not None and _waits(work.volume, work.site, seen):
        source.replace(argument)


def _waits(volume: Volume, site: Site, seen: Seen) -> bool:
    """Whether a key that opens *volume* waits beside its first source, which can take one."""
    try:
        waiting = site.ask(evolve(volume, key=(staged(volume),)))
    except Unavailable:
        return False
    try:
        return bool(cryptsetup.slots_opened(seen.copy, seen.header, waiting, site.runner))
    finally:
        waiting.wipe()


@contextmanager
def _header(volume: Volume, site: Site) -> Iterator[tuple[Work, Seen]]:
    """The judged header, locked against other commands, and with any change that was interrupted carried over first.

    The image is open for writing before anything is written down, so that a read-only store refuses at once.
    """
    with work_on(volume, site) as work, open_image(volume.image.image, writable=True) as image:
        work.complete_header_change(image)
        yield work, header_change.look(image, work.trust())


@contextmanager
def _asked(volume: Volume, site: Site) -> Iterator[Secret]:
    key = site.ask(volume)
    try:
        yield key
    finally:
        key.wipe()


@contextmanager
def _known_key(work: Work, seen: Seen) -> Iterator[Secret]:
    """The volume's own key, which the header's mark is by and which opens it."""
    with _asked(work.volume, work.site) as key:
        work.trust().vouch(seen.header, key)
        _opened(work.volume, work.site, seen, key)
        yield key


@contextmanager
def _new_key(volume: Volume, site: Site, source: str) -> Iterator[Secret]:
    key = ready_key(evolve(volume, key=(source,)), site)
    try:
        yield key
    finally:
        key.wipe()


def _opened(volume: Volume, site: Site, seen: Seen, key: Secret) -> tuple[int, ...]:
    slots = cryptsetup.slots_opened(seen.copy, seen.header, key, site.runner)
    if not slots:
        raise Denied(
            f"the key from {key_sources.name_of(volume.key[0])} opens no key slot of volume {volume.name}",
            hint="is it the right key and the right image?",
        )
    return slots


def _check_free_slot(volume: Volume, seen: Seen, new: Secret) -> None:
    kind = seen.header.type
    if len(seen.header.slots) + len(cryptsetup.forms(new, kind)) > _MOST_SLOTS[kind]:
        raise Usage(f"volume {volume.name} has no free key slot", hint=f"lukshook key remove {volume.name} --slot N")


def _add(work: Work, seen: Seen, old: Secret, new: Secret, marks: Mapping[str, str]) -> tuple[Seen, tuple[int, ...]]:
    kind, runner = seen.header.type, work.runner
    wanted = cryptsetup.forms(new, kind)
    opening = cryptsetup.form_that_opens(seen.copy, seen.header, old, runner)
    slots: tuple[int, ...] = ()

    def add_to(draft: Path) -> None:
        nonlocal slots
        for form in wanted:
            cryptsetup.add_key(draft, opening, form, runner)
        slots = _prove(draft, runner, seen, new)
        judged = _judged(draft, seen)
        if kind == "luks2":
            cryptsetup.write_marks(
                draft, {**marks, header.key_id(new): header.mac(judged, slots[0], new)}, judged, runner
            )

    return header_change.change(seen, work.state, add_to), slots


def _remove(work: Work, seen: Seen, own: Secret, gone: tuple[int, ...], marks: Mapping[str, str]) -> None:
    runner = work.runner
    _check_removable(work.volume, work.site, seen, own, gone)
    opening = cryptsetup.form_that_opens(seen.copy, seen.header, own, runner, without=gone)

    def remove_from(draft: Path) -> None:
        for slot in gone:
            cryptsetup.remove_slot(draft, slot, opening, runner)
        _prove(draft, runner, seen, own)
        if marks != header.find_macs(seen.header):
            cryptsetup.write_marks(draft, marks, _judged(draft, seen), runner)

    header_change.change(seen, work.state, remove_from)


def _check_removable(volume: Volume, site: Site, seen: Seen, own: Secret, gone: tuple[int, ...]) -> None:
    there = {slot.number for slot in seen.header.slots}
    if not set(gone) <= there:
        raise Usage(
            f"volume {volume.name} has no {slots_in_words(gone)}",
            hint=f"in use: {slots_in_words(sorted(there))}",
        )
    kept = set(_opened(volume, site, seen, own))
    touched = kept & set(gone)
    own_ones = slots_in_words(sorted(touched))
    if touched and (seen.header.type == "luks1" or kept == touched):
        raise Usage(
            f"the key of volume {volume.name} opens {own_ones}: without it, no configured key would open the volume",
            hint=f"replace the key with: lukshook key rotate {volume.name}",
        )


def _prove(draft: Path, runner: Runner, seen: Seen, key: Secret) -> tuple[int, ...]:
    """The slots that *key* opens in a changed header. Raises `Refused` when it opens none: nothing is changed then."""
    slots = cryptsetup.slots_opened(header_file.load(draft), _judged(draft, seen), key, runner)
    if not slots:
        raise Refused("the changed header does not open with the key", hint="nothing was changed on the store")
    return slots


def _judged(draft: Path, seen: Seen) -> header.Header:
    return header.judge(header_file.load(draft), seen.size)


def new_key() -> Secret:
    """32 random bytes of the kernel's."""
    return Secret(os.urandom(KEY_BYTES))
