"""The journal of a replica: all pieces that change, written beside it before the first of them is changed in it.

docs/internals/copies.md describes the format. Numbers are little-endian. The end of a journal has a keyed digest over
its head and the heads of all records; each record's head has the ledger's digest of its content. So nobody without the
secrets of this host can make a journal, or put one record into another's place.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator

from attrs import frozen

from lukshook.store.target import TargetFile
from lukshook.system import signals
from lukshook.system.digest import same

MAGIC = b"lukshook journal"
VERSION = 1
_HEAD = struct.Struct("<16sII16sQQQQ")
_RECORD = struct.Struct("<QI16s")
#: Bytes of a ledger's digest, and that of a piece of zeros.
_HOLE = bytes(16)
_MAC_BYTES = 32
#: The head of what ends a journal.
_LAST = _RECORD.pack(2**64 - 1, _MAC_BYTES, _HOLE)
#: No ledger has larger pieces: so a damaged head cannot make us read more at once.
_LARGEST_PIECE = 1 << 22
#: Pieces after which what is written is synced: a next run continues there, and no sync takes the server too long.
BATCH = 256
#: The digest of a piece: 16 bytes, zeros for a piece of zeros.
DigestOf = Callable[[bytes], bytes]


class Damaged(ValueError):
    """The file is not a journal that this host has written, or not all of it; the text says why."""


@frozen
class Head:
    """What a journal is about: the state *before* of the target *id* (16 bytes) becomes the state *after*.

    *generation*: that of the ledger; *size*: bytes of the image then, in pieces of *piece* bytes.
    """

    piece: int
    id: bytes
    before: int
    after: int
    generation: int
    size: int

    def packed(self) -> bytes:
        """As it stands in the file."""
        numbers = (self.before, self.after, self.generation, self.size)
        return _HEAD.pack(MAGIC, VERSION, self.piece, self.id, *numbers)

    def length(self, number: int) -> int:
        """Bytes of the piece *number*."""
        return min(self.piece, self.size - number * self.piece)


@frozen
class Change:
    """A piece that the replica does not have yet: its number, its digest, and what reads it."""

    number: int
    digest: bytes
    load: Callable[[], bytes]


@frozen
class Record:
    """A piece in a journal: *length* bytes from *at* on, none for a piece of zeros."""

    number: int
    length: int
    digest: bytes
    at: int

    def packed(self) -> bytes:
        """Its head, as it stands in the file before its content."""
        return _RECORD.pack(self.number, self.length, self.digest)


@frozen
class Written:
    """What was written: the digest that ends the journal, its size, the number of its pieces, and the bytes sent."""

    mac: bytes
    size: int
    pieces: int
    sent: int


def room(pieces: int, piece: int) -> int:
    """Bytes that a journal of so many pieces takes at most."""
    return _HEAD.size + pieces * (_RECORD.size + piece) + _RECORD.size + _MAC_BYTES


def write(file: TargetFile, head: Head, key: bytes, changes: Iterable[Change], digest_of: DigestOf) -> Written:
    """Write a journal of *changes*, which rise in number. What an interrupted run has left in *file* is not sent again.

    Raises OSError, and what *changes* raises.
    """
    old = _records_left(file, digest_of)
    mac = hashlib.blake2b(head.packed(), digest_size=_MAC_BYTES, key=key)
    file.write(0, head.packed())
    at, pieces, sent = _HEAD.size, 0, _HEAD.size
    for change in changes:
        left = next(old, None)
        if left is not None and (left.number, left.digest) == (change.number, change.digest):
            record = left
        else:
            old = iter(())
            record = _append(file, at, change)
            sent += _RECORD.size + record.length
        mac.update(record.packed())
        at, pieces = record.at + record.length, pieces + 1
        if not pieces % BATCH:
            file.sync()
    end = mac.digest()
    file.write(at, _LAST + end)
    size = at + _RECORD.size + _MAC_BYTES
    file.resize(size)
    return Written(end, size, pieces, sent)


def _append(file: TargetFile, at: int, change: Change) -> Record:
    content = b"" if change.digest == _HOLE else change.load()
    record = Record(change.number, len(content), change.digest, at + _RECORD.size)
    file.write(at, record.packed() + content)
    return record


def _records_left(file: TargetFile, digest_of: DigestOf) -> Iterator[Record]:
    """The records from the start of *file* that are whole; their digests say so."""
    at = _HEAD.size
    while True:
        found = file.read(at, _RECORD.size)
        if len(found) < _RECORD.size:
            return
        number, length, digest = _RECORD.unpack(found)
        record = Record(number, length, digest, at + _RECORD.size)
        if found == _LAST or length > _LARGEST_PIECE or not _is_whole(file, record, digest_of):
            return
        yield record
        at = record.at + length


def _is_whole(file: TargetFile, record: Record, digest_of: DigestOf) -> bool:
    if not record.length:
        return record.digest == _HOLE
    content = file.read(record.at, record.length)
    return len(content) == record.length and digest_of(content) == record.digest


def head(file: TargetFile) -> Head:
    """The head of a journal, of which nothing is proven yet. Raises `Damaged`, OSError."""
    found = file.read(0, _HEAD.size)
    if len(found) < _HEAD.size:
        raise Damaged("it is too short")
    magic, version, piece, *rest = _HEAD.unpack(found)
    if magic != MAGIC:
        raise Damaged("it is not a journal")
    if version != VERSION:
        raise Damaged(f"it has the version {version} of the format")
    if not 0 < piece <= _LARGEST_PIECE:
        raise Damaged("its pieces have an impossible size")
    return Head(piece, *rest)


def check(file: TargetFile, size: int, key: bytes, digest_of: DigestOf) -> bytes:
    """Read all of a journal of *size* bytes and check it; the digest that ends it. Raises `Damaged`, OSError."""
    if file.size != size:
        raise Damaged(f"it has {file.size} instead of {size} bytes")
    for record in records(file, size, key):
        if not _is_whole(file, record, digest_of):
            raise Damaged(f"piece {record.number} in it is not what was written")
    return file.read(size - _MAC_BYTES, _MAC_BYTES)


def records(file: TargetFile, size: int, key: bytes) -> Iterator[Record]:
    """The records of a journal of *size* bytes: no more is read, for only its end proves that it is ours.

    Raises `Damaged`, at its end also where the digest over all is another; OSError.
    """
    about = head(file)
    mac = hashlib.blake2b(about.packed(), digest_size=_MAC_BYTES, key=key)
    at, last = _HEAD.size, -1
    while True:
        signals.check()
        found = file.read(at, _RECORD.size)
        at += _RECORD.size
        if len(found) < _RECORD.size or at > size:
            raise Damaged("it ends too early")
        number, length, digest = _RECORD.unpack(found)
        if found == _LAST:
            break
        _check_record(about, number, length, last)
        mac.update(found)
        yield Record(number, length, digest, at)
        at, last = at + length, number
    if at + _MAC_BYTES != size or not same(file.read(at, _MAC_BYTES), mac.digest()):
        raise Damaged("its digest is not the one that this host would give it")


def _check_record(about: Head, number: int, length: int, last: int) -> None:
    if number <= last or number * about.piece >= about.size or length not in (0, about.length(number)):
        raise Damaged("a piece in it has an impossible place or length")
