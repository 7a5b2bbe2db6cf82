"""The ledger of a volume: the digest of every piece of its image, as it was at the last clean close.

docs/internals/ledger.md has the format. Whoever changes a ledger holds the volume's lock.
"""

from __future__ import annotations

import errno
import json
import time
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import asdict, frozen

from lukshook import size as sizes
from lukshook.ledger import digests, pieces
from lukshook.ledger.changes import Changes
from lukshook.ledger.columns import Column
from lukshook.ledger.pieces import PIECE, Run
from lukshook.ledger.reading import Reader
from lukshook.system import files, json_files, signals
from lukshook.system.ownership import private_folder

_VERSION = 1
#: What a mark of a piece says besides the day.
UNKNOWN = 1 << 15
BAD = 1 << 14
DAY = BAD - 1
#: Seconds since the epoch at which days are counted from: 2026-01-01.
_FIRST_DAY = 1767225600
#: What a verification has found.
INTACT, DAMAGED = "intact", "damaged"
_SECONDS_PER_DAY = 86400
#: The column of the marks, and the bytes of one.
MARKS, MARK_BYTES = "read", 2
_COLUMNS = ("digests", "earlier", MARKS)


def today() -> int:
    """The day as a mark has it, at least 1."""
    return min(max(int(time.time() - _FIRST_DAY) // _SECONDS_PER_DAY + 1, 1), DAY)


@frozen
class State:
    """What `ledger.json` says.

    *size*, *piece*: bytes. *uuid*: of the header. *secret*: hexadecimal. *generation*: clean closes since the ledger
    was begun. *writing*: the volume is open for writing, or was not closed cleanly. *unclean*: it was opened again
    after that. *closed*: when the digests were last brought up to date. *verified*: when the last complete verification
    began. *began* and *position*: the one that is not complete, and the piece it goes on from; *left_out*: it has left
    pieces out, because they may have been written. *grown*: bytes that a resize of ours gives the image, 0 once *size*
    has them. *result*: what the last verification that came to its end has found, `INTACT` or `DAMAGED`, "" without
    one. Times are seconds since the epoch. *written*: the file system's count of what was ever written, when the
    digests were last brought up to date, None where that is not known; *judged*: since then an opening has compared it,
    or may have written without that.
    """

    version: int
    size: int
    piece: int
    uuid: str
    secret: str
    generation: int = 0
    writing: bool = False
    unclean: bool = False
    closed: float | None = None
    verified: float | None = None
    began: float | None = None
    position: int = 0
    left_out: bool = False
    result: str = ""
    grown: int = 0
    written: int | None = None
    judged: bool = False

    @property
    def count(self) -> int:
        """How many pieces the image has."""
        return pieces.count(self.size, self.piece)

    def own_length(self, length: int) -> int:
        """As much of an image of *length* bytes as this host made: the store may make it as long as it likes."""
        return min(length, max(self.size, self.grown))

    def wrong_length(self, length: int) -> str:
        """In words how an image of *length* bytes is not as it was closed, or "", also while it may be written."""
        if self.writing or length == self.size:
            return ""
        how = "shorter" if length < self.size else "longer"
        return f"the image is {how} than at its last close: {sizes.show_instead(length, self.size)}"


class Ledger:
    """An open ledger. Closed at the end of a `with` block. Without *writable*, it cannot be changed."""

    def __init__(self, folder: Path, state: State, *, writable: bool = True) -> None:
        self.folder = folder
        self.state = state
        widths = (digests.LENGTH, digests.LENGTH, MARK_BYTES)
        self._digests, self._earlier, self._marks = (
            Column(folder / name, width, writable=writable) for name, width in zip(_COLUMNS, widths, strict=True)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for column in (self._digests, self._earlier, self._marks):
            column.close()

    @property
    def count(self) -> int:
        """How many pieces the image has."""
        return self.state.count

    @property
    def secret(self) -> bytes:
        """The key of the digests."""
        return bytes.fromhex(self.state.secret)

    def reader(self, image: int, size: int | None = None) -> Reader:
        """What reads pieces of an open image, of *size* bytes where that is not the known size."""
        return Reader(image, self.state.size if size is None else size, self.state.piece, self.secret)

    def digests(self, first: int, number: int) -> bytes:
        """The digests of *number* pieces from *first* on, 16 bytes each."""
        return self._digests.get(first, number)

    def earlier(self, piece: int) -> bytes:
        """The digest of what was in *piece* before its last change; that of a hole where nothing is known."""
        return self._earlier.get(piece, 1)

    def marks(self, first: int, number: int) -> array[int]:
        """The marks of *number* pieces from *first* on: `UNKNOWN`, `BAD`, and the day they were read last (`DAY`)."""
        found = array("H", self._marks.get(first, number))
        if _is_big_endian():
            found.byteswap()
        return found

    def mark(self, first: int, marks: array[int]) -> None:
        """Replace marks; they outlive a power cut with the next `save`. Raises OSError."""
        written = array("H", marks)
        if _is_big_endian():
            written.byteswap()
        self._marks.put(first, written.tobytes())

    def set_unknown(self, runs: Iterable[Run]) -> None:
        """Note durably that *runs* may be written from now on while nothing records it. Raises OSError."""
        for first, number in runs:
            for begin in range(first, first + number, _BATCH):
                signals.check()
                marks = self.marks(begin, min(_BATCH, first + number - begin))
                self.mark(begin, array("H", (value | UNKNOWN for value in marks)))
        self._marks.sync()

    def forget(self) -> None:
        """Nothing is known of any piece any more, nor that one is damaged. Raises OSError."""
        for first in range(0, self.count, _BATCH):
            signals.check()
            number = min(_BATCH, self.count - first)
            self.mark(first, array("H", (UNKNOWN,)) * number)
        self._marks.sync()

    def save(self, state: State) -> None:
        """Keep *state* and all marks, durably. Raises OSError."""
        self._marks.sync()
        files.write_whole(self.folder / _STATE, json.dumps(asdict(state), indent=1).encode(), durable=True)
        self.state = state

    def commit(self, entries: Iterable[tuple[int, bytes]], state: State) -> None:
        """Give pieces the digests in *entries*, and keep *state*: all of it or nothing. Raises OSError."""
        changes = Changes.write(self.folder / _CHANGES, entries, asdict(state))
        self._apply(changes)

    def _apply(self, changes: Changes) -> None:
        """May be interrupted and begun again: an earlier digest is kept before its successor is written."""
        for first, fresh in changes.stretches():
            self._keep_earlier(first, fresh)
        self._earlier.sync()
        for first, fresh in changes.stretches():
            number = len(fresh) // digests.LENGTH
            if self._digests.get(first, number) != fresh:  # holes stay holes in the column too
                self._digests.put(first, fresh)
            self.mark(first, array("H", (today(),)) * number)
        state = json_files.build(State, changes.state)
        for column in (self._digests, self._earlier, self._marks):
            column.limit(pieces.count(state.size, state.piece))
        self._digests.sync()
        self.save(state)
        changes.remove()

    def _keep_earlier(self, first: int, fresh: bytes) -> None:
        known = self._digests.get(first, len(fresh) // digests.LENGTH)
        if known == fresh:
            return
        for begin in range(0, len(fresh), digests.LENGTH):
            digest = known[begin : begin + digests.LENGTH]
            if digest != fresh[begin : begin + digests.LENGTH]:
                self._earlier.put(first + begin // digests.LENGTH, digest)

    def complete(self) -> None:
        """Complete a commit that was interrupted. Raises OSError, `json_files.Damaged`."""
        changes = Changes.load(self.folder / _CHANGES)
        if changes is not None:
            self._apply(changes)

    def found_right(self, pieces: Iterable[int]) -> None:
        """Note that what is in *pieces* is as it should be. It is kept with the next `save`. Raises OSError."""
        day = array("H", (today(),))
        for piece in pieces:
            self.mark(piece, day)

    def bad(self) -> Iterator[int]:
        """The pieces that were found damaged and have not been written or healed since."""
        for begin in range(0, self.count, _BATCH):
            marks = self.marks(begin, min(_BATCH, self.count - begin))
            if max(marks) < BAD:  # as most are
                continue
            yield from (begin + index for index, value in enumerate(marks) if value & BAD)


_STATE, _CHANGES = "ledger.json", "changes"
_BATCH = 65536


def _is_big_endian() -> bool:
    return array("H", (1,)).tobytes() != b"\1\0"


def load_state(folder: Path) -> State | None:
    """What the ledger in *folder* says of itself, or None where there is none. Raises as `load` does."""
    try:
        state = json_files.build(State, json_files.load(folder / _STATE))
    except FileNotFoundError:
        return None
    if state.version != _VERSION or not 0 < state.piece <= 1 << 20 or len(state.secret) != 64:
        raise json_files.Damaged("it has values that this version does not know")
    return state


def load(folder: Path, *, writable: bool = True) -> Ledger | None:
    """The ledger in *folder*, or None where there is none; without *writable* only to be read.

    Raises `json_files.Damaged` where it is not what we wrote, PermissionError where this user may not read it, OSError
    with EROFS where it is only to be read and a change of it is to be completed first.
    """
    state = load_state(folder)
    if state is None:
        return None
    for name in _COLUMNS:
        if not (folder / name).is_file():
            raise json_files.Damaged(f"it has no {name}")
    if not writable and (folder / _CHANGES).exists():
        raise OSError(errno.EROFS, "a change of it is not complete")
    ledger = Ledger(folder, state, writable=writable)
    ledger.complete()
    return ledger


def generation(folder: Path) -> int | None:
    """How many clean closes the ledger in *folder* has seen, for looking without a lock; None where that is not known.

    Raises PermissionError.
    """
    try:
        return json_files.build(State, json_files.load(folder / _STATE)).generation
    except (FileNotFoundError, json_files.Damaged):
        return None


def begin(folder: Path, size: int, uuid: str) -> Ledger:
    """A new ledger of an image of *size* bytes of which nothing is known. Raises OSError."""
    private_folder(folder)
    for name in (_CHANGES, _STATE, *_COLUMNS):
        (folder / name).unlink(missing_ok=True)
    ledger = Ledger(folder, State(_VERSION, size, PIECE, uuid, digests.new_secret().hex()))
    ledger.set_unknown(pieces.whole(size, PIECE))
    ledger.save(ledger.state)
    return ledger
