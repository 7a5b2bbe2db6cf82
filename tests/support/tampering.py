"""A store that changes an image which is kept a ledger of: bytes, pieces, its length. What `verify` says of it."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from lukshook.ledger.pieces import PIECE
from lukshook.volume import records
from support.volume import NAME, CliVolume

#: Bytes with both headers of LUKS2 (LUKS2 On-Disk Format 1.1.1: 16 KiB each), or that of LUKS1 and its first key slot.
_HEADER = 32 << 10
_BLOCK = 4096
#: The journal's inode (the kernel's Documentation/filesystems/ext4/special_inodes.rst).
_JOURNAL = "<8>"
_DAMAGED = re.compile(r"^damaged: ([0-9]+) bytes at ([0-9]+) \(([a-z]+)\)$", re.M)

#: Stretches of an image: where each begins and ends, in bytes.
Stretches = list[tuple[int, int]]


def parts_of(volume: CliVolume, file: str) -> dict[str, Stretches]:
    """Where in the image of *volume* each of its parts lies; *file*: one in its data folder."""
    volume.do("open", "--read-only", NAME)
    record = records.peek(volume.run_folder, NAME)
    assert record is not None
    place = dict(record.layers)["filesystem"].path
    blocks = {part: _blocks(place, name) for part, name in (("journal", _JOURNAL), ("content", f"/data/{file}"))}
    with Path(place).open("rb") as plain:
        length = plain.seek(0, os.SEEK_END)
    volume.do("close", NAME)
    size = volume.image.stat().st_size
    start = size - length
    inside = {part: [(start + n * _BLOCK, start + (n + 1) * _BLOCK) for n in found] for part, found in blocks.items()}
    outside = {"anywhere": [(0, size)], "header": [(0, _HEADER)], "key slots": [(_HEADER, start)]}
    return {**outside, "holes": list(_holes(volume.image)), **inside}


def _blocks(place: str, name: str) -> list[int]:
    """The blocks of a file in an ext4."""
    argv = ["debugfs", "-R", f"blocks {name}", place]
    found = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return list(map(int, found.split()))


def _holes(image: Path) -> Iterator[tuple[int, int]]:
    with image.open("rb") as file:
        end, at = file.seek(0, os.SEEK_END), 0
        while (begin := os.lseek(file.fileno(), at, os.SEEK_HOLE)) < end:
            try:
                at = os.lseek(file.fileno(), begin, os.SEEK_DATA)
            except OSError:  # nothing but holes follows
                at = end
            yield begin, at


@frozen
class Store:
    """The store of *volume*: it has kept *older*, what the image was one backup ago; *good* is what it is."""

    volume: CliVolume
    older: bytes
    good: bytes
    chance: random.Random

    @property
    def count(self) -> int:
        """How many pieces there are."""
        return -(-len(self.good) // PIECE)

    def piece(self, content: bytes, number: int) -> bytes:
        """One piece of *content*."""
        return content[number * PIECE : (number + 1) * PIECE]

    def replaced(self) -> list[int]:
        """The pieces that the last backup has changed, and that were no holes before."""
        every = ((number, self.piece(self.older, number)) for number in range(self.count))
        return [number for number, older in every if older != self.piece(self.good, number) and any(older)]

    def change(self, pieces: Mapping[int, bytes]) -> None:
        """Put something else in the place of *pieces*."""
        with self.volume.image.open("r+b") as image:
            for number, content in pieces.items():
                image.seek(number * PIECE)
                image.write(content)

    def repair(self, pieces: Mapping[int, bytes]) -> None:
        """Put back what was there."""
        self.change({number: self.piece(self.good, number) for number in pieces})

    def check_found(self, pieces: Mapping[int, bytes], how: str, what: object) -> None:
        """*pieces* in the place of what was there are found, each of them and no other. *what*: for a message."""
        self.change(pieces)
        done = self.volume.lukshook("verify", NAME)
        found = {number for number, _ in _named(done.stdout)}
        assert (65, set(pieces)) == (done.returncode, found), (what, done.stdout, done.stderr)
        assert {how} == {one for _, one in _named(done.stdout)}, (what, done.stdout)
        self.repair(pieces)

    def check_length_found(self, length: int) -> None:
        """An image of another length is found, and so are the pieces that it lacks."""
        os.truncate(self.volume.image, length)
        done = self.volume.lukshook("verify", NAME)
        word = "shorter" if length < len(self.good) else "longer"
        assert (65, True) == (done.returncode, f"the image is {word} than" in done.stderr), (length, done)
        lost = {n for n in range(length // PIECE, self.count) if length < len(self.good)}
        assert lost <= {number for number, _ in _named(done.stdout)}, (length, done.stdout)
        os.truncate(self.volume.image, len(self.good))
        self.repair(dict.fromkeys(lost, b""))

    # What it does; in the end all is as it was

    def check_bytes(self, parts: Mapping[str, Stretches], number: int) -> list[str]:
        """Single bytes at *number* places, each in a piece of its own; the parts that they lie in."""
        touched: dict[int, bytes] = {}
        chosen = []
        while len(touched) < number:
            part = self.chance.choice(list(parts))
            begin, end = self.chance.choice(parts[part])
            place = self.chance.randrange(begin, end)
            if place // PIECE in touched:
                continue
            content = bytearray(self.piece(self.good, place // PIECE))
            content[place % PIECE] ^= self.chance.randrange(1, 256)
            touched[place // PIECE] = bytes(content)
            chosen.append(part)
        self.check_found(touched, "changed", chosen)
        return chosen

    def check_older(self, numbers: list[int]) -> None:
        """Those pieces, as they were before the last backup."""
        self.check_found({number: self.piece(self.older, number) for number in numbers}, "older", numbers)

    def check_swapped(self, pairs: int) -> None:
        """*pairs* of pieces in each other's place."""
        numbers = self.chance.sample(range(self.count - 1), 2 * pairs)  # the last may be shorter
        changed: dict[int, bytes] = {}
        for one, other in zip(numbers[::2], numbers[1::2], strict=True):
            if self.piece(self.good, one) != self.piece(self.good, other):
                changed |= {one: self.piece(self.good, other), other: self.piece(self.good, one)}
        self.check_found(changed, "changed", numbers) if changed else None


def _named(out: str) -> Iterator[tuple[int, str]]:
    """The pieces that `verify` names, each with what is wrong with it; one line may be of many."""
    for length, offset, how in _DAMAGED.findall(out):
        first = int(offset) // PIECE
        yield from ((first + number, how) for number in range(-(-int(length) // PIECE)))
