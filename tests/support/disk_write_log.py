"""What a disk has at a moment when its cache is lost: dm-log-writes notes each write and flush, this plays them back.

The log is read as Linux writes it: Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c.
A write stands in it once it is safe (it was flushed, or sent with FUA), and in the order in which it became so.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from attrs import field, frozen

_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_MAGIC, _VERSION = 0x6A736677736872, 1
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8


@frozen
class Entry:
    """A write of *length* bytes at *offset*, whose data lies at *data* in the log; a mark has a *text* instead."""

    offset: int
    length: int
    flags: int
    data: int
    text: str

    @property
    def is_barrier(self) -> bool:
        """Whether what was logged before is on the disk, whatever becomes of the cache."""
        return bool(self.flags & (_FLUSH | _FUA))

    @property
    def is_mark(self) -> bool:
        return bool(self.flags & _MARK)


def entries_of(log: Path) -> list[Entry]:
    """All entries of a log whose device is gone."""
    with log.open("rb") as file:
        magic, version, count, sector = _SUPER.unpack(file.read(_SUPER.size))
        assert (_MAGIC, _VERSION) == (magic, version)
        return list(_entries(file.fileno(), count, sector))


def _entries(file: int, count: int, sector: int) -> Iterator[Entry]:
    at = sector
    for _ in range(count):
        head = os.pread(file, sector, at)
        start, length, flags, text_length = _ENTRY.unpack_from(head)
        at += sector
        text = head[_ENTRY.size : _ENTRY.size + text_length].decode() if flags & _MARK else ""
        yield Entry(start * sector, length * sector, flags, at, text)
        if not flags & _DISCARD:
            at += length * sector


def run(*argv: str | Path) -> str:
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True).stdout.strip()


@frozen
class Recorder:
    """A disk with ext4, mounted at *place*; its files and log lie in *folder*."""

    folder: Path
    place: Path
    size: int
    nodes: list[str] = field(factory=list)
    name: str = "recorded-disk"

    @property
    def empty(self) -> Path:
        """The disk as it was when recording began."""
        return self.folder / "empty"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        """Make the disk and mount it."""
        device = self.folder / "device"
        for file, size in ((device, self.size), (self.log, 8 << 30)):
            with file.open("wb") as made:
                made.truncate(size)
        run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", device)
        run("cp", "--sparse=always", device, self.empty)
        self.nodes.extend(run("losetup", "--find", "--show", file) for file in (device, self.log))
        run("dmsetup", "create", self.name, "--table", f"0 {self.size // 512} log-writes {' '.join(self.nodes)}")
        run("dmsetup", "mknodes", self.name)  # where no udev makes the node
        run("mount", f"/dev/mapper/{self.name}", self.place)

    def mark(self, text: str) -> None:
        """Note in the log, in one word, what has happened by now."""
        run("dmsetup", "message", self.name, "0", "mark", text)

    def stop(self) -> None:
        """Unmount and let the log be complete."""
        run("umount", self.place)
        run("dmsetup", "remove", self.name)
        while self.nodes:
            run("losetup", "--detach", self.nodes.pop())


@frozen
class Player:
    """The disk of a recorder at one moment after the other; *disk* is what is safe on it so far."""

    recorder: Recorder
    disk: Path
    played: list[int] = field(factory=lambda: [0])

    def entries(self) -> list[Entry]:
        return entries_of(self.recorder.log)

    def go_to(self, entries: list[Entry], position: int) -> None:
        """Play all up to that position, which is not before the last one."""
        if not self.disk.exists():
            run("cp", "--sparse=always", self.recorder.empty, self.disk)
        self._write(self.disk, entries[self.played[0] : position])
        self.played[0] = position

    def with_some_more(self, entries: list[Entry], chance: random.Random) -> Path:
        """A copy of the disk, with any of the writes up to the next flush: a cache writes them as it likes."""
        copy = self.disk.with_suffix(".copy")
        run("cp", "--sparse=always", self.disk, copy)
        later = entries[self.played[0] :]
        until = next((number for number, entry in enumerate(later) if entry.is_barrier), len(later))
        self._write(copy, [entry for entry in later[:until] if chance.random() < 0.5])
        return copy

    def _write(self, disk: Path, entries: list[Entry]) -> None:
        with disk.open("r+b") as target, self.recorder.log.open("rb") as source:
            for entry in entries:
                if entry.flags & _DISCARD:
                    os.pwrite(target.fileno(), bytes(entry.length), entry.offset)
                elif entry.length:
                    os.pwrite(target.fileno(), os.pread(source.fileno(), entry.length, entry.data), entry.offset)
