"""What a server has to have of an image, by which each new connection finds out whether it is still the same image.

A server without locks or identities (`nbd`) can come back with any image: an empty one, another one, an older copy of
ours. So the begin of the image is noted, where LUKS has its UUID, and some of the pieces that were written last. A
piece that a request is about to change counts for nothing until the server has stored what is there then.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from attrs import asdict, frozen

from lukshook.system import files, json_files

#: Bytes of a piece at least and at most. Each write is a whole number of the server's blocks, so a piece is too.
LEAST, MOST = 512, 4096
#: How many of them are known, besides the begin.
_MOST_PIECES = 16
#: The file with them in the private folder of an image.
_NAME = "pieces"
_Kept = TypeVar("_Kept")


@frozen
class Piece:
    """*digest* of so many bytes there."""

    offset: int
    length: int
    digest: str

    @staticmethod
    def of(offset: int, content: bytes) -> Piece:
        """What lies there."""
        return Piece(offset, len(content), hashlib.sha256(content).hexdigest())

    def overlaps(self, offset: int, length: int) -> bool:
        """Whether the range has a byte of it."""
        return offset < self.offset + self.length and self.offset < offset + length


class Pieces:
    """The pieces that are known, as the requests of one connection change them."""

    def __init__(self) -> None:
        self._stored: dict[int, Piece] = {}
        self._answered: dict[int, tuple[Piece, int]] = {}
        self._ranges: dict[bytes, tuple[int, int]] = {}
        self._asked: dict[bytes, Piece] = {}
        self._begin: Piece | None = None
        self._has_started = False

    def start(self, folder: Path, pieces: list[Piece]) -> None:
        """Those that the server has when the connection begins. Raises OSError."""
        self._stored = {piece.offset: piece for piece in pieces}
        self._has_started = True
        self._note(folder)

    def note_begin(self, folder: Path) -> None:
        """Note the one at the begin of the image where it has changed, in the private *folder*. Raises OSError.

        Before the request that changes it goes out, and once the server has stored what is there then. The others are
        noted at the end: a connection that is killed leaves none of them.
        """
        if self._has_started and self._stored.get(0) != self._begin:
            self._note(folder)

    def _note(self, folder: Path) -> None:
        self._begin = self._stored.get(0)
        _write(folder, [self._begin] if self._begin else [])

    def note_all(self, folder: Path) -> None:
        """The connection is over: note all that the server has stored."""
        if self._has_started:
            with suppress(OSError):
                _write(folder, list(self._stored.values()))

    def asked(self, cookie: bytes, offset: int, length: int) -> bool:
        """A request is about to change that range; whether its content can be a piece (`content`).

        In which order the server carries out two of them at the same place, nobody knows.
        """
        is_alone = not any(at < offset + length and offset < at + count for at, count in self._ranges.values())
        self._stored = {at: piece for at, piece in self._stored.items() if not piece.overlaps(offset, length)}
        self._answered = {at: one for at, one in self._answered.items() if not one[0].overlaps(offset, length)}
        self._asked = {of: piece for of, piece in self._asked.items() if not piece.overlaps(offset, length)}
        self._ranges[cookie] = offset, length
        return is_alone and length >= LEAST

    def content(self, cookie: bytes, begin: bytes) -> None:
        """What that request writes at the begin of its range."""
        self._asked[cookie] = Piece.of(self._ranges[cookie][0], begin)

    def answered(self, cookie: bytes, unsynced: int) -> None:
        """The server has done that request, as the *unsynced*-th that a flush has to store; 0 for one that is stored.

        One that failed: `failed`.
        """
        self._ranges.pop(cookie, None)
        piece = self._asked.pop(cookie, None)
        if piece is None:
            return
        if unsynced:
            self._answered[piece.offset] = piece, unsynced
            _limit(self._answered)
        else:
            self._keep(piece)

    def failed(self, cookie: bytes) -> None:
        """Nobody knows what is there now."""
        self._ranges.pop(cookie, None)
        self._asked.pop(cookie, None)

    def flushed(self, count: int) -> None:
        """The server has stored so many of those that are not synced."""
        for piece, number in list(self._answered.values()):
            if number <= count:
                del self._answered[piece.offset]
                self._keep(piece)

    def _keep(self, piece: Piece) -> None:
        self._stored.pop(piece.offset, None)
        self._stored[piece.offset] = piece
        _limit(self._stored)


def _limit(pieces: dict[int, _Kept]) -> None:
    """Forget the oldest one that is too many, never the begin."""
    if len(pieces) > _MOST_PIECES + (0 in pieces):
        del pieces[next(at for at in pieces if at)]


def _write(folder: Path, pieces: list[Piece]) -> None:
    files.write_whole(folder / _NAME, json.dumps({"pieces": [asdict(one) for one in pieces]}).encode(), durable=False)


def noted(folder: Path) -> list[Piece] | None:
    """What is noted in the private *folder* of the image; None where nothing is."""
    with suppress(OSError, json_files.Damaged):
        return [json_files.build(Piece, one) for one in json_files.objects(json_files.load(folder / _NAME), "pieces")]
    return None
