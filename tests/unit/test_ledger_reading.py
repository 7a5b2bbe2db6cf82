"""How much of an image is read at once: much from a quick store, little from a slow one."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.ledger import reading
from lukshook.ledger.pieces import PIECE
from lukshook.ledger.reading import Reader

MIB = 1 << 20
SIZE = 40 * MIB


def lengths(image: Path, *, steady: bool = False) -> list[int]:
    """Bytes of each step that reads all of *image*, in order."""
    descriptor = os.open(image, os.O_RDONLY)
    try:
        reader = evolve(Reader(descriptor, SIZE, PIECE, bytes(32)), steady=steady)
        found = list(reader.read([(0, SIZE // PIECE)]))
    finally:
        os.close(descriptor)
    assert SIZE // PIECE == sum(stretch.number for stretch in found)
    assert [sum(one.number for one in found[:at]) for at in range(len(found))] == [one.first for one in found]
    return [stretch.number * PIECE for stretch in found]


def full(folder: Path) -> Path:
    """An image without holes."""
    image = folder / "full.img"
    image.write_bytes(os.urandom(SIZE))
    return image


def test_steps_grow_while_the_store_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is small; none is larger than a buffer."""
    monkeypatch.setattr(reading, "_QUICK", 60.0)  # on a busy machine too
    monkeypatch.setattr(reading, "_SLOW", 60.0)
    found = lengths(full(tmp_path))

    assert MIB == found[0]
    assert MIB < max(found) <= reading._MOST


def test_who_limits_the_rate_gets_small_steps(tmp_path: Path) -> None:
    """Else a rate of 1 MiB a second would come in bursts."""
    assert {MIB} == set(lengths(full(tmp_path), steady=True))


def test_a_slow_step_makes_the_next_ones_small() -> None:
    """Several large ones at once would not be answered in time."""
    pace = reading._Pace(8 * MIB)
    for _ in range(5):
        pace.learn(0.01)
    assert 8 * MIB == pace.step
    pace.learn(1.0)
    assert 8 * MIB == pace.step
    pace.learn(3.0)
    assert MIB == pace.step


def test_a_bad_place_that_the_disk_tries_for_long_is_read_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece takes its time there, all of a step take longer than a store that is gone gets: it is not gone."""
    image, piece = tmp_path / "image", MIB // 16
    image.write_bytes(os.urandom(MIB))
    read = os.preadv

    def bad(descriptor: int, places: list[memoryview], begin: int) -> int:
        if len(places[0]) > piece:
            raise OSError(errno.EIO, "bad")
        time.sleep(0.1)
        if begin < MIB // 2:
            raise OSError(errno.EIO, "bad")
        return read(descriptor, places, begin)

    monkeypatch.setattr(os, "preadv", bad)
    monkeypatch.setattr(reading, "SECONDS", 1.0)
    with image.open("rb") as file:
        found = list(Reader(file.fileno(), MIB, piece, bytes(32)).read([(0, 16)]))

    assert [digest is None for stretch in found for _, digest in stretch.each()] == [True] * 8 + [False] * 8
