"""Openings whose layers are asked to record where the image is written, and what they have recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from lukshook.layers import qemu
from lukshook.layers.base import Extent, LayerHandle, Opening, Recording
from lukshook.system.command import Runner, SystemRunner
from lukshook.volume import context, records, work
from support.lukshook_process import Done, nothing
from support.volume import NAME, CliVolume

PIECE = 256 << 10
_PATCH = pytest.MonkeyPatch()


@frozen
class Recorded:
    """A volume whose openings record, one bit for *piece* bytes; *prepare* is called in each lukshook."""

    volume: CliVolume
    piece: int = PIECE
    prepare: Callable[[], None] = nothing

    def lukshook(self, *arguments: str) -> Done:
        """Run lukshook to its end, as `CliVolume.lukshook` does."""
        return self.volume.start(*arguments, prepare=self._prepare).wait()

    def do(self, *arguments: str) -> str:
        """Run lukshook, which has to succeed and to warn of nothing; what it says on stdout."""
        done = self.lukshook(*arguments)
        assert (0, "") == (done.returncode, done.stderr), (arguments, done.stdout, done.stderr)
        return done.stdout

    def handle(self) -> LayerHandle:
        """The layer that records, as it is written down."""
        record = records.peek(self.volume.run_folder, NAME)
        assert record is not None
        return dict(record.layers)["qemu"]

    def live(self) -> set[int]:
        """The pieces that were written until now."""
        return pieces_of(self.handle().written(SystemRunner()), self.piece)

    def at_close(self) -> set[int]:
        """The pieces that were written, as the layer said when it was closed last."""
        return pieces_of(json.loads(self._note.read_text()), self.piece)

    def digests(self) -> list[str]:
        """One for each piece of the image."""
        with self.volume.image.open("rb") as image:
            return [hashlib.sha256(part).hexdigest() for part in iter(lambda: image.read(self.piece), b"")]

    @property
    def _note(self) -> Path:
        return self.volume.folder / "written.json"

    def _prepare(self) -> None:
        """In the process of a lukshook: have it ask for a record, and note what the record says at closing."""
        opening_of, close, note = context.opening_of, qemu.Handle.close, self._note

        def recording(*arguments: Any, **more: Any) -> Opening:
            return evolve(opening_of(*arguments, **more), recording=self.recording())

        def noting(handle: qemu.Handle, runner: Runner) -> None:
            if handle.recording and handle.inspect():
                note.write_text(json.dumps(handle.written(runner)))
            close(handle, runner)

        _PATCH.setattr(work, "opening_of", recording)
        _PATCH.setattr(qemu.Handle, "close", noting)
        self.prepare()

    def recording(self) -> Recording:
        """What is asked of the layers."""
        return Recording(self.volume.folder, self.piece, True)


def pieces_of(extents: Iterable[Extent], piece: int) -> set[int]:
    """The numbers of the pieces that *extents* touch."""
    return {number for start, size in extents for number in range(start // piece, -(-(start + size) // piece))}


def changed(before: list[str], after: list[str]) -> set[int]:
    """The pieces whose digests differ."""
    assert len(before) == len(after)
    return {number for number, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
