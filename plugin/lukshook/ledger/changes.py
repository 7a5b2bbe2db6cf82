"""A change of a ledger that is decided on: new digests of pieces and the state that goes with them, in one file.

It is written under another name and renamed when it is complete, so it is there as a whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lukshook.ledger.digests import LENGTH
from lukshook.system import files
from lukshook.system.json_files import Damaged

#: Bytes of the JSON object that the file begins with, filled up with blanks.
_HEAD = 4096
_ENTRY = struct.Struct(f"<Q{LENGTH}s")
_STEP = _ENTRY.size * 4096
#: Bytes of digests that are given at once.
_MOST = LENGTH * 4096


class Changes:
    """Such a change on disk. *state*: what `ledger.json` will say."""

    def __init__(self, file: Path, state: Mapping[str, Any]) -> None:
        self.file = file
        self.state = state

    @classmethod
    def write(cls, file: Path, entries: Iterable[tuple[int, bytes]], state: Mapping[str, Any]) -> Changes:
        """Decide on a change: *entries* are pieces with their new digests. Raises OSError."""
        files.write_whole(file, lambda descriptor: _write(descriptor, entries, state), durable=True)
        return cls(file, state)

    @classmethod
    def load(cls, file: Path) -> Changes | None:
        """The change that was decided on, or None. Raises `Damaged`, OSError."""
        try:
            with file.open("rb") as opened:
                head = json.loads(opened.read(_HEAD))
                if hashlib.file_digest(opened, hashlib.blake2b).hexdigest() != head["digest"]:
                    raise Damaged("its changes are not complete")
                return cls(file, head["state"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged("its changes are not what lukshook wrote") from error

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """The pieces with their new digests."""
        with self.file.open("rb") as opened:
            opened.seek(_HEAD)
            while step := opened.read(_STEP):
                yield from _ENTRY.iter_unpack(step)

    def stretches(self) -> Iterator[tuple[int, bytes]]:
        """The same for pieces in a row: the first, and their digests one after the other."""
        first, joined = 0, bytearray()
        for piece, digest in self.entries():
            if piece != first + len(joined) // LENGTH or len(joined) >= _MOST:
                if joined:
                    yield first, bytes(joined)
                first, joined = piece, bytearray()
            joined += digest
        if joined:
            yield first, bytes(joined)

    def remove(self) -> None:
        """The change is complete."""
        self.file.unlink()
        files.sync_folder(self.file.parent)


def _write(descriptor: int, entries: Iterable[tuple[int, bytes]], state: Mapping[str, Any]) -> None:
    summed = hashlib.blake2b()
    with os.fdopen(os.dup(descriptor), "wb") as out:
        out.write(bytes(_HEAD))
        for entry in entries:
            packed = _ENTRY.pack(*entry)
            summed.update(packed)
            out.write(packed)
        out.seek(0)
        out.write(json.dumps({"state": state, "digest": summed.hexdigest()}).encode().ljust(_HEAD))
