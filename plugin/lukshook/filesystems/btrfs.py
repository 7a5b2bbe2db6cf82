"""Btrfs: grows only, and only while it is mounted; its mounts have device numbers of their own."""

from __future__ import annotations

import os
import struct
import uuid

from lukshook.filesystems.kind import Facts, Kind
from lukshook.system.command import LONG_SECONDS, Command, Runner, change


def _facts(descriptor: int) -> Facts | None:
    """Super block fields by fs/btrfs/accessors.h: at 64 KiB, magic _BHRfS_M, dev_item at 0xc9.

    What counts as written is the generation.
    """
    block = os.pread(descriptor, 4096, 0x10000)
    if block[0x40:0x48] != b"_BHRfS_M":
        return None
    generation, total = struct.unpack_from("<Q", block, 0x48)[0], struct.unpack_from("<Q", block, 0xC9 + 8)[0]
    sector = struct.unpack_from("<I", block, 0x90)[0]
    return Facts(str(uuid.UUID(bytes=block[0x20:0x30])), total, sector, False, generation)


def _resize(place: str, size: int) -> Command:
    """btrfs-filesystem(8)."""
    return change("btrfs", "filesystem", "resize", str(size), place, timeout=LONG_SECONDS)


def _mounted_size(mountpoint: str, runner: Runner) -> int | None:
    """Asked of the kernel: mounted, it writes its super block past the page cache of the device."""
    found = os.statvfs(mountpoint)
    return found.f_blocks * found.f_frsize


def _is_sealed(path: str) -> bool:
    """The magic and the generation share a block of every cipher that we accept: noise in one is noise in both."""
    return True


KIND = Kind(
    make=("mkfs.btrfs", "-q", "-f", "-K"),
    facts=_facts,
    least=128 * 1024 * 1024,
    tools=("mkfs.btrfs", "btrfs"),
    resize=_resize,
    read_only=("ro", "rescue=nologreplay"),
    check=("btrfs", "check", "--readonly"),
    look=("btrfs", "check", "--readonly"),
    super_block=0x10000,
    is_sealed=_is_sealed,
    own_numbers=True,
    mounted_size=_mounted_size,
)
