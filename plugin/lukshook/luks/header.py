"""The LUKS header: copied once, judged before any key is read, compared with what we know, bound to the key.

The store can rewrite the header of an image, and cryptsetup opens what the header says: with a null cipher
in it the right key opens a volume that writes in the clear. So nothing in it is taken that is not on an
allow-list, and what was judged is what is opened. `docs/header.md` says what is checked and why.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from attrs import evolve

from lukshook.errors import Refused, Unavailable
from lukshook.luks import luks1, luks2
from lukshook.luks.allowlist import Read, refuse
from lukshook.luks.mac import find_macs, key_id, mac, token, verify_mac
from lukshook.luks.model import Copy, Digest, Header, Slot, Token
from lukshook.luks.pins import are_whole, compare, pins, same_volume_key
from lukshook.system.digest import sha256

__all__ = [
    "MAGICS",
    "SECOND_COPIES",
    "Copy",
    "Digest",
    "Header",
    "Slot",
    "Token",
    "are_whole",
    "compare",
    "copy",
    "find_macs",
    "judge",
    "key_id",
    "mac",
    "pins",
    "same_volume_key",
    "check_sectors",
    "slots_in_words",
    "token",
    "verify_mac",
]

_SECTOR = 512
_CUT = "the store truncated it"
#: Bytes: the metadata and one key slot of 512 bits and 4,000 stripes; the most that one call of posix_fadvise(2) reads
#: with the kernel's default read-ahead of 128 KiB (force_page_cache_ra in mm/readahead.c).
_USUAL, _MOST_AHEAD = 1 << 18, 1 << 17
#: How the two metadata copies begin, and where the second one can lie (LUKS2 On-Disk Format 1.1.1).
MAGICS = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")
SECOND_COPIES = luks2.SIZES


def copy(fd: int) -> Copy:
    """The LUKS header of the image or device that *fd* is open on, read once.

    Reads the metadata and the key slots' areas, never more than 16 MiB: the places and lengths are those the
    allow-list admits. Raises `Refused` where there is no LUKS header, or one that is truncated or not on the
    allow-list, and `Unavailable` where the store does not give it.
    """
    with _at_once(fd):
        read = partial(_pread, fd)
        parts, header = _parse(read)
        for slot in header.slots:
            material = read(slot.area_offset, slot.material_bytes)
            if len(material) < slot.material_bytes:
                raise Refused(f"the image ends inside key slot {slot.number}", hint=_CUT)
            parts.append((slot.area_offset, material))
    return Copy(header.offset, tuple(sorted(parts)))


def judge(copy: Copy, volume_size: int) -> Header:
    """What the header says, every part of it on the allow-list. Needs no key.

    *volume_size* is the length in bytes of the image or device. Raises `Refused` with the first fault in
    words.
    """
    _, header = _parse(copy.read)
    if header.offset != copy.size:
        refuse("data offset is not where this copy of it ends")
    if header.offset + header.sector_size > volume_size:
        refuse(f"data begins at {header.offset}, past the end of the image at {volume_size}")
    return evolve(header, slots=tuple(_with_material(slot, copy) for slot in header.slots))


def check_sectors(image: str, header: Header, length: int) -> None:
    """Check that *image*, of *length* bytes, ends with a whole sector of its own, as a mapping must. Raises `Refused`.

    An incomplete sector of 512 bytes does not count: neither a loop device nor qemu shows more of it.
    """
    inside = length // _SECTOR * _SECTOR - header.offset
    if inside % header.sector_size:
        whole = header.offset + inside - inside % header.sector_size
        raise Refused(
            f"{image} has {length} bytes, which is not a whole number of its {header.sector_size}-byte sectors",
            hint=f"the store removed or added bytes at its end; if it added them: truncate --size={whole}",
        )


def _parse(read: Read) -> tuple[list[tuple[int, bytes]], Header]:
    """The metadata to keep, as extents, and what it says."""
    start = read(0, luks1.LENGTH)
    if start[:6] == MAGICS[0] and start[6:8] == b"\0\1":
        return [(0, start)], luks1.parse(start)
    if start[:6] not in MAGICS and not any(read(size, 6) == MAGICS[1] for size in luks2.SIZES):
        hint = "is this the image? If its header was damaged: lukshook header restore NAME"
        raise Refused("there is no LUKS header", hint=hint)
    used, header = luks2.current(read)
    return [(part.offset, part.data) for part in used], header


def slots_in_words(numbers: Iterable[int]) -> str:
    """ "key slot 0", or "key slots 0, 1"."""
    shown = [str(number) for number in numbers]
    return ("key slot " if len(shown) == 1 else "key slots ") + ", ".join(shown)


def _with_material(slot: Slot, copy: Copy) -> Slot:
    material = copy.read(slot.area_offset, slot.material_bytes)
    if len(material) != slot.material_bytes:
        refuse(f"key slot {slot.number} is not in this copy of it")
    return evolve(slot, material=sha256(material).hexdigest())


@contextmanager
def _at_once(fd: int) -> Iterator[None]:
    """Let the kernel read what a header usually takes at once, and no more: a store behind a slow line is waited for
    once then.
    """
    with suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for at in range(0, _USUAL, _MOST_AHEAD):
            os.posix_fadvise(fd, at, _MOST_AHEAD, os.POSIX_FADV_WILLNEED)
    try:
        yield
    finally:
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)


def _pread(fd: int, offset: int, length: int) -> bytes:
    parts, left = [], length
    try:
        while left and (part := os.pread(fd, left, offset + length - left)):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        fault = f"the header cannot be read: {error.strerror}"
        raise Unavailable(fault, hint="is the store there?") from error
    return b"".join(parts)
