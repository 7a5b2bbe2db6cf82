"""What a target holds, as this host knows it: a digest of every piece, and how far the last change of it has come.

The files lie in STATE/NAME.copies/: for each target ID.json, and ID.digests, a column as in the ledger; the file
of `token` beside them is named by a digest of the target.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen

from lukshook.errors import Refused
from lukshook.ledger.columns import Column
from lukshook.system import files, json_files
from lukshook.system.ownership import private_folder

#: Bytes of a digest.
WIDTH = 16


@frozen
class Holding:
    """One target. *target*: as the user has named it; *id* and *key*: random, in hex; *ledger*: a mark of its secret.

    *state*: counts the whole states that the target has had, 0 for none; *generation* of the ledger and *size* in bytes
    are those of the last one. *step*: how far a change has come, "" for done: "naming" a first copy; "decided" on the
    journal of *journal_size* bytes that ends with the digest *journal* (in hex; else the last one), "applying" it,
    "applied"; "reading" what is there to take it over; "adopted" what was read there. *mixed*: that may be mixed, until
    a change is applied. *last_copy*: when the last change was done (seconds since the epoch); *sent*: bytes then.
    """

    target: str
    id: str
    key: str
    ledger: str
    state: int = 0
    generation: int = 0
    size: int = 0
    step: str = ""
    journal: str = ""
    journal_size: int = 0
    mixed: bool = False
    last_copy: float | None = None
    sent: int | None = None


class Held:
    """What one target holds. Only the command that has the volume's lock uses it."""

    def __init__(self, folder: Path, holding: Holding) -> None:
        self._folder = folder
        self.holding = holding

    @property
    def id(self) -> bytes:
        """The target's name in its journals."""
        return bytes.fromhex(self.holding.id)

    @property
    def key(self) -> bytes:
        """The secret that makes the digest of its journals."""
        return bytes.fromhex(self.holding.key)

    @property
    def started(self) -> bool:
        """Whether the target has had a whole state."""
        return self.holding.state > 0

    @property
    def is_blank(self) -> bool:
        """Whether nothing is known of any piece."""
        file = self._file("digests")
        return not file.exists() or not file.stat().st_size

    def save(self, **changed: Any) -> None:
        """Keep what has changed, so that it outlives a power cut. Raises OSError, `Unavailable`."""
        private_folder(self._folder)
        self.holding = evolve(self.holding, **changed)
        content = json.dumps(asdict(self.holding), indent=1).encode()
        files.write_whole(self._file("json"), content, durable=True)

    def digests(self) -> Column:
        """What the last whole state of the target has, or the first copy that is being made. The caller closes it."""
        return Column(self._file("digests"), WIDTH)

    def forget_pieces(self) -> None:
        """Nothing is known any more of what the target has."""
        self._file("digests").unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove all that is known of the target, and what a killed run has left of others."""
        self._file("json").unlink(missing_ok=True)
        for digests in self._folder.glob("*.digests"):
            if not digests.with_suffix(".json").exists():
                digests.unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()

    def _file(self, suffix: str) -> Path:
        return self._folder / f"{self.holding.id}.{suffix}"


def token(folder: Path, target: str) -> Path:
    """The file by which the store of *target* knows our locks, while a copy is written."""
    return folder / f"{hashlib.sha256(os.fsencode(target)).hexdigest()[:32]}.holder"


def of(folder: Path, target: str) -> Held | None:
    """What is known of *target*, None for nothing. Raises `Refused`."""
    return next((held for held in every(folder) if held.holding.target == target), None)


def new(folder: Path, target: str, ledger: str) -> Held:
    """A target that nothing was copied to yet; nothing is written before `save`."""
    return Held(folder, Holding(target, os.urandom(16).hex(), os.urandom(32).hex(), ledger))


def every(folder: Path) -> Iterator[Held]:
    """All targets that are known. Raises `Refused` for a file that is damaged."""
    for file in sorted(folder.glob("*.json")):
        yield Held(folder, _load(file))


def _load(file: Path) -> Holding:
    try:
        holding = json_files.build(Holding, json_files.load(file))
        if bytes.fromhex(holding.id).hex() != file.stem or len(bytes.fromhex(holding.key)) != 32:
            raise json_files.Damaged("it belongs to another file")
    except (json_files.Damaged, ValueError) as error:
        raise Refused(
            f"{file} is damaged: {error}", hint="remove it; then: lukshook copy NAME TARGET --adopt"
        ) from error
    return holding
