"""A volume that is opened with a recorder, without a ledger: what it lists is compared with what has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, field, frozen

from lukshook.errors import LukshookError
from lukshook.layers import era
from lukshook.layers.base import Extent, Opening, Recording, Records, handle_of
from lukshook.system.command import Runner
from lukshook.volume import context, records
from support.kernel_volume import KernelVolume

PIECE = 256 * 1024


@frozen
class Recorder:
    """Asks for a recording in each opening, and keeps what it lists right before it is closed.

    *lists*: what was covered and where, None where it could not be read.
    """

    folder: Path
    lists: list[tuple[Records, tuple[Extent, ...] | None]] = field(factory=list)
    #: Whether the next opening begins a new record.
    fresh: list[bool] = field(factory=lambda: [True])

    def arm(self, patch: pytest.MonkeyPatch) -> None:
        """From now on every opening for writing is recorded."""
        opening_of, close = context.opening_of, era.Handle.close

        def asked(*arguments: Any, **more: Any) -> Opening:
            recording = Recording(self.folder, PIECE, self.fresh[-1])
            return evolve(opening_of(*arguments, **more), recording=recording)

        def closed(handle: era.Handle, runner: Runner) -> None:
            self.note(handle, runner)
            close(handle, runner)

        patch.setattr("lukshook.volume.work.opening_of", asked)
        patch.setattr(era.Handle, "close", closed)

    def note(self, handle: era.Handle, runner: Runner) -> None:
        """Keep what *handle* lists; one that records nothing is of a target that is only loaded for a moment."""
        if handle.records is Records.NOTHING:
            return
        try:
            self.lists.append((handle.records, handle.written(runner)))
        except LukshookError:
            self.lists.append((handle.records, None))

    @property
    def listed(self) -> set[int]:
        """The pieces that were listed last."""
        found = self.lists[-1][1]
        assert found is not None
        return pieces_in(found)


def armed(folder: Path, patch: pytest.MonkeyPatch) -> Recorder:
    """A recorder with a folder of its own in *folder*."""
    place = folder / "record"
    place.mkdir(mode=0o700, exist_ok=True)
    recorder = Recorder(place)
    recorder.arm(patch)
    return recorder


def pieces_in(extents: tuple[Extent, ...]) -> set[int]:
    """The numbers of the pieces that *extents* touch."""
    return {number for begin, length in extents for number in range(begin // PIECE, -(-(begin + length) // PIECE))}


def digests(image: Path) -> list[bytes]:
    """Of every piece of *image*."""
    with image.open("rb") as file:
        return [hashlib.blake2b(piece).digest() for piece in iter(lambda: file.read(PIECE), b"")]


def changed(before: list[bytes], after: list[bytes]) -> set[int]:
    """The numbers of the pieces that are not as before, those that are new among them."""
    return {number for number, digest in enumerate(after) if before[number : number + 1] != [digest]}


@contextmanager
def session(house: KernelVolume, recorder: Recorder) -> Iterator[None]:
    """One opening and closing, after which no piece is changed that was not listed."""
    before = digests(house.image)
    house.open()
    try:
        yield
    finally:
        house.close()
    different = changed(before, digests(house.image))
    assert different
    assert set() == different - recorder.listed


def standing(house: KernelVolume) -> era.Handle:
    """The handle of the recorder of an open volume, as its record has it."""
    record = records.peek(house.site.run_folder, house.volume.name)
    assert record is not None
    return handle_of(dict(record.layers), era.Handle)
