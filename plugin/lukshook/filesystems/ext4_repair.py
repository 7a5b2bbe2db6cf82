"""The ext4 that fuse2fs leaves when it is killed: it writes without a journal, and its super block in pieces."""

from __future__ import annotations

import os
import struct

from lukshook.system.command import LONG_SECONDS, Command, Result, Runner, change, read

_ANY = tuple(range(256))


def is_torn(path: str) -> bool:
    """Whether the super block of the ext4 in *path* has a checksum, and that fits no longer.

    libext2fs writes only what has changed of it, piece by piece, and the checksum at the end (lib/ext2fs/closefs.c of
    1.47.0): every field is whole, old or new. Layouts by the kernel's Documentation/filesystems/ext4.
    """
    return _checksum_fits(path) is False


def is_sealed(path: str) -> bool:
    """Whether the super block of the ext4 in *path* has a checksum that fits: a store can turn parts into noise."""
    return _checksum_fits(path) is True


def _checksum_fits(path: str) -> bool | None:
    """None for one without a checksum."""
    block = _read(path, 1024, 1024)
    if not struct.unpack_from("<I", block, 0x64)[0] & 0x400:
        return None
    return bool(struct.unpack_from("<I", block, 0x3FC)[0] == _crc32c(block[:0x3FC]))


def has_blank_tables(path: str) -> bool:
    """Whether inode tables of the ext4 in *path* were never written: those of the last group, which come last."""
    block = _read(path, 1024, 1024)
    first, blocks, log_size, per_group = (struct.unpack_from("<I", block, at)[0] for at in (0x14, 0x04, 0x18, 0x20))
    wide = struct.unpack_from("<I", block, 0x60)[0] & 0x80
    length = struct.unpack_from("<H", block, 0xFE)[0] if wide else 32
    high = struct.unpack_from("<I", block, 0x150)[0] if wide else 0
    last = ((high << 32 | blocks) - first - 1) // per_group
    place = (first + 1) * (1024 << log_size) + last * length
    return not struct.unpack_from("<H", _read(path, 32, place), 0x12)[0] & 4


def _read(path: str, length: int, place: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, length, place).ljust(length, b"\0")
    finally:
        os.close(descriptor)


def _crc32c(data: bytes) -> int:
    """As ext4 has it: begun with ones, and not inverted at the end."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def repair(path: str, runner: Runner) -> Result:
    """Make the file system in *path* whole, whatever that takes, and give what the last check of it says."""
    if is_torn(path):
        runner.run(_rewrite_super_block(path))
    result = runner.run(change("e2fsck", "-fy", path, ok=_ANY, timeout=LONG_SECONDS))
    if result.code & ~3:
        return result
    return runner.run(read("e2fsck", "-fn", path, ok=_ANY, timeout=LONG_SECONDS))


def _rewrite_super_block(path: str) -> Command:
    """debugfs takes it as it is (`-n`), notes that it was not unmounted, and writes it with a checksum that fits.

    e2fsck itself gives up (8), or takes the second super block, in which our count of what was written is an old one.
    """
    return change("debugfs", "-w", "-n", "-R", "set_super_value state 0", path)
