"""A place for copies that has no files: block devices, on which a small directory tells what lies where.

The copy begins at the first byte of its device, as every tool expects it. What lies beside it for a time (the journal)
is in an annex: a device of its own, or, where there is one device alone, behind the copy on that. At the end of the
annex is the directory: two slots, written in turn, each with a digest, so that one of them is whole at any time.
docs/internals/copies.md describes the format. Who keeps the devices can write any directory: it is believed only where
it says something possible, and what lies where it says so is proven by those who read it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any, Protocol

from attrs import define

from lukshook.errors import Refused, Unavailable
from lukshook.store.target import TargetFile
from lukshook.system.digest import same

_MAGIC = b"lukshook copies 1\n"
#: Bytes of a slot, of the digest at its end, and of both slots.
_SLOT, _DIGEST = 8192, 32
DIRECTORY = 2 * _SLOT
#: Files begin at multiples of that. Their noted length grows by so much at once; what is behind their end is garbage.
_ALIGNED, _AHEAD = 1 << 16, 64 << 20
#: Bytes at the begin and at the end of a device without a directory that are zeros where nobody uses it.
_LOOKED_AT = 1 << 20
#: Bytes at the end of an annex, for a file beside the first one: a text for people is never longer.
_SHORT = 1 << 16


#: What a slot has besides its number.
_TABLES = ("copy", "beside")


class Device(Protocol):
    """A block device somewhere, or one that can be made. Its methods raise OSError, and `Unavailable`."""

    @property
    def length(self) -> int | None:
        """In bytes; None where there is none yet."""

    @property
    def can_grow(self) -> bool:
        """Whether `resize` can be used."""

    def claim(self) -> None:
        """Keep out others that have it open; nothing is written before that. Its length is the one that it has then."""

    def read(self, offset: int, length: int) -> bytes:
        """What lies there, all of it."""

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """Write all of *content* there."""

    def clear(self, offset: int, length: int) -> None:
        """Make the bytes there zeros."""

    def sync(self) -> None:
        """Wait until all of it outlives a power cut."""

    def resize(self, length: int) -> None:
        """Give it that length, or make it; what is new is zeros."""

    def remove(self) -> None:
        """Remove it, if it is there."""

    def free(self) -> int | None:
        """Bytes that the store of one that can grow still has; None where it does not say."""


@define(eq=False)
class _Place:
    """Where a file lies: from *at* on, *length* bytes, of which the directory has noted *noted*."""

    at: int
    length: int
    noted: int


class BlockFile:
    """A file on a device."""

    def __init__(self, target: BlockTarget, device: Device, place: _Place) -> None:
        self._target, self._device, self._place = target, device, place

    def close(self) -> None:
        """Nothing is held open."""

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self._place.length

    def read(self, offset: int, length: int) -> bytes:
        """What lies there; shorter only at the end of the file."""
        length = max(min(length, self.size - offset), 0)
        return self._device.read(self._place.at + offset, length) if length else b""

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """Write all of *content* there."""
        self._target.make_room(self._place, offset + len(content))
        self._device.write(self._place.at + offset, content)

    def clear(self, offset: int, length: int) -> None:
        """Make the bytes there zeros."""
        self._device.clear(self._place.at + offset, length)

    def resize(self, size: int) -> None:
        """Cut it off, or extend it with zeros."""
        self._target.resize(self._place, size)

    def take(self, source: TargetFile, start: int, offset: int, length: int) -> bool:
        """Nobody there copies for us."""
        return False

    def data(self, start: int) -> int:
        """Anything may be data."""
        return start

    def sync(self) -> None:
        """Wait until all of it, and its length, outlives a power cut."""
        self._device.sync()
        self._target.note_lengths()


class BlockTarget:
    """The copy *name* on the device *image*, and what lies beside it on *annex*, which may be the same device."""

    shows_neighbours = False

    def __init__(self, image: Device, annex: Device, name: str, shown: str) -> None:
        self.name, self.shown = name, shown
        self._image, self._annex = image, annex
        self._number = 0
        #: The copy, by the name that it has now; then the files in the annex.
        self._copy: dict[str, _Place] = {}
        self._beside: dict[str, _Place] = {}
        self._planned = 0
        self._load()

    # The directory

    def _load(self) -> None:
        if self._end >= 0:
            slots = (_unpacked(self._annex.read(self._end + index * _SLOT, _SLOT)) for index in range(2))
            self._number, self._copy, self._beside = max(slots, key=lambda slot: slot[0])
        if not self._number:
            self._check_annex()
            unlisted = self._unlisted()
            self._copy = {} if unlisted is None else {self.name: _Place(0, unlisted, unlisted)}
        if self._image.can_grow:
            self._take_length(self._image.length)
        self._check()

    def _take_length(self, length: int | None) -> None:
        """A copy that has a device of its own is as long as that is; it is gone where that is gone."""
        self._copy = {} if length is None and self.name in self._copy else self._copy
        for place in self._copy.values():
            place.length = place.noted = length or 0

    def _check(self) -> None:
        """Check that each file lies where one can. Raises `Refused`."""
        files = {**self._copy, **self._beside}
        is_possible = (
            len(self._copy) < 2
            and not any(place.at for place in self._copy.values())
            and all(name.startswith(self.name) for name in files)
            and all(place.at + place.length <= self._limit(place) for place in files.values())
        )
        if not is_possible:
            raise Refused(
                f"the directory of {self.shown} is damaged: it says something impossible",
                hint="was its device changed by others? docs/copies.md says how to begin again",
            )

    def _check_annex(self) -> None:
        """Check that an annex of its own, which has no directory, is nobody else's. Raises `Refused`."""
        if not self._is_one and _is_used(self._annex, self._end):
            raise Refused(
                f"beside {self.shown} lies something under the name of its journal that is not ours",
                hint="rename it, or name another place for the copy",
            )

    def _unlisted(self) -> int | None:
        """The length of what lies on a device without a directory; None where nothing does."""
        length = self._image.length
        if length is None or self._image.can_grow:
            return length
        return self._end if _is_used(self._image, self._end) else None

    @property
    def _end(self) -> int:
        """Where the directory begins: no block of a disk has parts of both slots, so none tears both."""
        return (self._annex.length or 0) // _SLOT * _SLOT - DIRECTORY

    @property
    def _is_one(self) -> bool:
        return self._annex is self._image

    def _save(self) -> None:
        """Write the slot whose turn it is, once all before is safe. An annex that has nothing to say is removed."""
        if not self._is_one and not self._beside and self._copy.keys() <= {self.name}:
            self._remove_annex()
            return
        if self._annex.length is None:
            self._annex.resize(_annex_length(self._planned, self._image.length or 0))
        if self._end < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for place in (*self._copy.values(), *self._beside.values()):
            place.noted = max(place.noted, place.length)
        self._write_slot()

    def _remove_annex(self) -> None:
        """What a removal that is interrupted leaves of it is still ours: it says that it has nothing, or is empty."""
        if self._annex.length is not None and self._end >= 0:
            self._write_slot()
            self._write_slot()
            for at, length in _looked_at(self._end):
                self._annex.clear(at, length)
            self._annex.sync()
        self._annex.remove()

    def _write_slot(self) -> None:
        self._annex.sync()
        self._number += 1
        tables = ({n: (p.at, p.noted) for n, p in table.items()} for table in (self._copy, self._beside))
        self._annex.write(self._end + self._number % 2 * _SLOT, _packed(self._number, tables))
        self._annex.sync()

    def note_lengths(self) -> None:
        """Note how long each file really is."""
        places = (*self._copy.values(), *self._beside.values())
        if any(place.noted != place.length for place in places):
            for place in places:
                place.noted = place.length
            self._save()

    # Room

    def plan(self, size: int, spare: str) -> None:
        """The copy is going to have *size* bytes: what lies beside it leaves the room for *spare*, which has all of it.

        What lies on a device without a directory is a copy of that length, if it is one. The file *spare* is given up
        where it lies elsewhere; any other one is short, and moves to the end.
        """
        self._planned = size
        if self._is_one and not self._number:
            for place in self._copy.values():
                place.length = place.noted = min(place.length, size)
        if self._is_too_short:
            self._beside.clear()
            self._save()
        elif spare in self._beside and self._beside[spare].at != self._begin:
            self.unlink(spare)
        for name, place in list(self._beside.items()):
            if name != spare and place.at < self._last:
                self._move(name, place)

    @property
    def _is_too_short(self) -> bool:
        """Whether an annex of its own was made for a much smaller copy: it cannot grow, its directory is at its end."""
        length = None if self._is_one else self._annex.length
        return length is not None and 2 * length < _annex_length(self._planned)

    def _move(self, name: str, place: _Place) -> None:
        """Move a short file to the end; where that is full it stays, and `free` says so."""
        content = self._annex.read(place.at, min(place.length, _SHORT))
        fresh = _Place(self._last, len(content), 0)
        others = [one for one in self._beside.values() if one is not place]
        if fresh.at >= self._begin and not any(one.at + one.length > fresh.at for one in others):
            self._annex.write(fresh.at, content)
            self._beside[name] = fresh
            self._save()

    @property
    def _begin(self) -> int:
        """Where the first file beside the copy begins."""
        ends = [self._planned, *(place.length for place in self._copy.values())] if self._is_one else [0]
        return -(-max(ends) // _ALIGNED) * _ALIGNED

    @property
    def _last(self) -> int:
        """Where one more file begins, which is short."""
        return max(self._end - _SHORT, 0) // _ALIGNED * _ALIGNED

    def _place_beside(self) -> _Place:
        """For one more file. Raises OSError where there is none: no two begin at the same place, also while empty."""
        at = self._last if any(place.at < self._last for place in self._beside.values()) else self._begin
        is_taken = any(one.at <= at < one.at + max(one.length, 1) for one in self._beside.values())
        if is_taken or (self._annex.length is not None and not self._begin <= at <= self._end):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _Place(at, 0, 0)

    def make_room(self, place: _Place, length: int) -> None:
        """A file gets so many bytes at least. Raises OSError where there are none."""
        if length > place.length:
            limit = self._limit(place)
            if place.at + length > limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            place.length = length
            if length > place.noted and place in self._beside.values():
                place.noted = min(length + _AHEAD, limit - place.at)
                self._save()

    def _limit(self, place: _Place) -> int:
        """Where a file has to end: at the next one, or at the directory."""
        if place in self._copy.values() and not self._is_one:
            return self._image.length or 0
        others = [one.at for one in self._beside.values() if one is not place and one.at >= place.at]
        return min(others, default=self._end)

    def resize(self, place: _Place, size: int) -> None:
        """Another length for a file; what is new is zeros."""
        old = place.length
        if place in self._copy.values() and self._image.can_grow:
            if size != self._image.length:
                self._image.resize(size)
            place.length = size
        elif size > old:
            self.make_room(place, size)
            place.length = old  # until they are zeros
            (self._image if place in self._copy.values() else self._annex).clear(place.at + old, size - old)
        place.length = size
        self.note_lengths()

    def claim(self) -> None:
        """Have the devices to ourselves from now on. Raises `Unavailable` where they are not as they were seen."""
        seen = self._number, self._image.length, self._annex.length
        self._image.claim()
        if not self._is_one:
            self._annex.claim()
        self._load()
        if seen != (self._number, self._image.length, self._annex.length):
            raise Unavailable(
                f"another process or host has changed {self.shown} since it was looked at",
                hint="does another host copy to the same place? else run the same command again",
            )

    # Files

    def open(self, name: str, *, writable: bool) -> BlockFile:
        """Open a file."""
        if name in self._copy:
            return BlockFile(self, self._image, self._copy[name])
        if name in self._beside:
            return BlockFile(self, self._annex, self._beside[name])
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def create(self, name: str) -> BlockFile:
        """The first file is the copy; all others lie beside it."""
        if self.exists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        if self._copy:
            self._beside[name] = self._place_beside()
        else:
            self._copy[name] = _Place(0, 0, 0)
        self._save()
        return self.open(name, writable=True)

    def clone(self, name: str, fresh: str) -> bool:
        """There are no clones."""
        return False

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._copy or name in self._beside

    def rename(self, name: str, wanted: str) -> None:
        """At once, by the directory."""
        table = self._copy if name in self._copy else self._beside
        place = table.pop(name)
        self._beside.pop(wanted, None)
        table[wanted] = place
        self._save()

    def unlink(self, name: str) -> None:
        """Forget a file; what was in it stays on the device."""
        if self.exists(name):
            self._copy.pop(name, None)
            self._beside.pop(name, None)
            self._save()

    def sync_folder(self) -> None:
        """Each change of the directory is safe once it is made."""

    def is_same_file(self, other: int) -> bool:
        """No file of this host is one there, as far as it can tell."""
        return False

    def taken(self, size: int, fresh: int) -> int:
        """A device of a fixed length has a place for each piece of what is there already, also of holes."""
        return fresh if self._image.can_grow else max(size - self._copied, 0)

    def free(self) -> int | None:
        """Bytes behind the copy for it and what `plan` spares, or what the store of a device that can grow says."""
        if self._image.can_grow:
            return self._image.free()
        others = [place.at for place in self._beside.values() if place.at != self._begin]
        return max(min(others, default=self._end) - self._copied, 0)

    @property
    def _copied(self) -> int:
        return max((place.length for place in self._copy.values()), default=0)


def _is_used(device: Device, end: int) -> bool:
    """Whether anything lies at the begin of *device*, or before *end*, where its directory would be.

    The directory itself is not looked at: its first slot may be torn.
    """
    return any(any(device.read(at, length)) for at, length in _looked_at(end))


def _looked_at(end: int) -> list[tuple[int, int]]:
    begins = (0, max(end - _LOOKED_AT, 0)) if end > 0 else ()
    return [(at, min(_LOOKED_AT, end - at)) for at in begins]


def _unpacked(slot: bytes) -> tuple[int, dict[str, _Place], dict[str, _Place]]:
    """Its number, the copy, and what lies beside it; the number 0 for a slot that is not whole, or no slot."""
    nothing: tuple[int, dict[str, _Place], dict[str, _Place]] = (0, {}, {})
    if not slot.startswith(_MAGIC) or not same(slot[-_DIGEST:], _digest_of(slot)):
        return nothing
    try:
        found = json.loads(slot[len(_MAGIC) : -_DIGEST].rstrip(b"\0"))
        copy, beside = ({name: _place(place) for name, place in found[of].items()} for of in _TABLES)
        return _number(found["number"]), copy, beside
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return nothing


def _place(said: Any) -> _Place:
    at, length = map(_number, said)
    return _Place(at, length, length)


def _number(value: Any) -> int:
    """A number as it can stand in a directory. Raises ValueError."""
    if not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError("no number of bytes")
    return value


def _packed(number: int, tables: Iterable[dict[str, tuple[int, int]]]) -> bytes:
    """A slot. Raises OSError where its names are too long."""
    said = json.dumps({"number": number, **dict(zip(_TABLES, tables, strict=True))}).encode()
    content = (_MAGIC + said).ljust(_SLOT - _DIGEST, b"\0")
    if len(content) > _SLOT - _DIGEST:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return content + _digest_of(content + bytes(_DIGEST))


def _digest_of(slot: bytes) -> bytes:
    return hashlib.blake2b(slot[:-_DIGEST], digest_size=_DIGEST).digest()


def _annex_length(*sizes: int) -> int:
    """Of an annex of its own, which takes room as it is filled: for two journals of all that a copy can have."""
    return 4 * max(sizes) + (1 << 30)
