"""What the key commands change, as a script for a shell: what a dry run prints, and what to do without lukshook.

The header is worked on in a copy, as lukshook does it. What no tool can do, the pins and the key's mark, is the last
line: `lukshook trust`.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from lukshook.config import Volume
from lukshook.keys import key_sources
from lukshook.luks import cryptsetup, reencryption
from lukshook.luks.header import Header
from lukshook.system.secret import KEY_BYTES
from lukshook.volume import key_slots, remote
from lukshook.volume.context import Site


def add(volume: Volume, site: Site, source: str) -> list[str]:
    """A second key, made in *source* where it is not there yet."""
    return [*_made(source), *_changed(volume, site, _added(volume, site, source)), _trusted(volume)]


def split(volume: Volume, site: Site, needed: int, total: int) -> list[str]:
    """A second key, of which there are shares alone."""
    return [
        f"python3 -m shamir_mnemonic.cli create {needed}of{total} --strength {KEY_BYTES * 8}",
        "# type the master secret that it prints, in base64, for each line that waits for input:",
        *add(volume, site, "prompt"),
    ]


def remove(volume: Volume, site: Site, *, source: str, slot: int | None) -> list[str]:
    """Revoke the key in *source*, or any key that opens *slot*."""
    if slot is None:
        work = _removed(volume, site, source)
    else:
        work = [
            str(cryptsetup.remove_slot_command(_draft(volume, site), slot, key_sources.shown(volume.key), KEY_BYTES))
        ]
    return [*_changed(volume, site, work), _trusted(volume)]


def rotate(volume: Volume, site: Site, source: str, *, waits: bool) -> list[str]:
    """The key in *source* in the place of the volume's own; *waits*: until the configuration names it."""
    own = volume.key[0]
    both = [*_made(source), *_changed(volume, site, _added(volume, site, source))]
    if waits:
        return [
            *both,
            _trusted(volume),
            f"# after you list it first in the configuration: lukshook key rotate {volume.name}",
        ]
    source_of_own, place = key_sources.parse(own)
    by_hand = source_of_own.by_hand
    if by_hand is None:
        name = key_sources.name_of(own)
        return [
            *both,
            _trusted(volume),
            f"# then the new key replaces the old one in {name}, whose key slot is emptied",
        ]
    kept = by_hand.kept(place)
    moved = by_hand.replacing(place, key_sources.parse(source)[1])
    gone = _changed(volume, site, _removed(volume, site, f"{own.partition(':')[0]}:{kept}"))
    return [*both, *moved, *gone, f"rm -- {shlex.quote(kept)}", _trusted(volume)]


def rekey(volume: Volume, site: Site, *, keep_key: bool) -> list[str]:
    """A new volume key, and a new key before that. The image shows how far it is only at the end."""
    from lukshook.volume.rekey import check_store  # noqa: PLC0415 - only this command

    check_store(volume)
    draft, image, shown = _draft(volume, site), volume.image.image, key_sources.shown(volume.key)
    first = [] if keep_key else rotate(volume, site, key_slots.staged(volume), waits=False)
    with remote.at_hand(volume, site):
        judged = cryptsetup.read_header(image)
    if judged.type == "luks1":
        return ["# LUKS1: only lukshook can do it in place; by hand, create a new volume and back up into that"]
    dump = shlex.quote(str(draft))
    slot = max(slot.number for slot in judged.slots) if keep_key else _free_slot(judged)
    begin = str(reencryption.begin_command(draft, image, slot, shown))
    note = f"# {slot}: the key slot that the key opens (cryptsetup luksDump {dump})"
    whole = str(reencryption.whole_command(draft, image, shown))
    return [*first, *_changed(volume, site, [note, begin, whole]), _trusted(volume)]


def _free_slot(judged: Header) -> int:
    """The key slot that the next key gets: the first free one."""
    used = {slot.number for slot in judged.slots}
    return next(number for number in range(len(used) + 1) if number not in used)


def _made(source: str) -> list[str]:
    return [key_sources.making(source)] if key_sources.is_to_be_made(source) else []


def _changed(volume: Volume, site: Site, work: list[str]) -> list[str]:
    """*work* on a copy of the header, between taking it and putting it back."""
    draft = _draft(volume, site)
    return [
        f"mkdir --parents --mode=700 -- {shlex.quote(str(site.state_folder))}",
        cryptsetup.backup_line(volume.image.image, draft),
        *work,
        cryptsetup.restore_line(volume.image.image, draft),
        f"rm -f -- {shlex.quote(str(draft))}",
    ]


def _added(volume: Volume, site: Site, source: str) -> list[str]:
    draft, own = _draft(volume, site), key_sources.shown(volume.key)
    return [
        str(cryptsetup.add_key_command(draft, f"{{ {own}; {new}; }}", KEY_BYTES, length))
        for new, length in _forms(volume, site, source)
    ]


def _removed(volume: Volume, site: Site, source: str) -> list[str]:
    draft = _draft(volume, site)
    return [str(cryptsetup.remove_key_command(draft, shown, length)) for shown, length in _forms(volume, site, source)]


def _forms(volume: Volume, site: Site, source: str) -> list[tuple[str, int]]:
    """What prints a key as the header takes it, and the length of that: in LUKS1 as its text too (`luks.forms`)."""
    parsed, argument = key_sources.parse(source)
    raw = (key_sources.shown([source]), KEY_BYTES)
    text = (rf"{parsed.shown(argument)} | tr -d '\r\n'", cryptsetup.TEXT_BYTES)
    with remote.at_hand(volume, site):
        return [raw, text] if cryptsetup.read_header(volume.image.image).type == "luks1" else [raw]


def _draft(volume: Volume, site: Site) -> Path:
    return site.state_folder / f"{volume.name}.header.by-hand"


def _trusted(volume: Volume) -> str:
    return f"lukshook trust {volume.name}"
