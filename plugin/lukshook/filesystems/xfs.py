"""XFS: grows only, and only while it is mounted."""

from __future__ import annotations

import os
import re
import struct
import uuid

from lukshook.filesystems.kind import Facts, Kind
from lukshook.system.command import LONG_SECONDS, Command, Runner, change, read


def _facts(descriptor: int) -> Facts | None:
    """Super block fields by fs/xfs/libxfs/xfs_format.h: big-endian, magic XFSB."""
    block = os.pread(descriptor, 512, 0)
    if block[:4] != b"XFSB":
        return None
    size, blocks = struct.unpack_from(">IQ", block, 4)
    return Facts(str(uuid.UUID(bytes=block[32:48])), size * blocks, size, False, None)


def _resize(place: str, size: int) -> Command:
    """xfs_growfs(8): as far as the device goes, which is *size*."""
    return change("xfs_growfs", "-d", place, timeout=LONG_SECONDS)


def _mounted_size(mountpoint: str, runner: Runner) -> int | None:
    """Asked of xfs_info(8): mounted, it writes its super block past the page cache of the device."""
    told = re.search(
        r"^data\s+=\s+bsize=([0-9]+)\s+blocks=([0-9]+)", runner.run(read("xfs_info", mountpoint)).out, re.M
    )
    return int(told[1]) * int(told[2]) if told else None


#: Without *check*: there is nothing to run before mounting. fsck.xfs(8) does nothing, and mounting replays the log.
KIND = Kind(
    make=("mkfs.xfs", "-q", "-f", "-K"),
    facts=_facts,
    least=320 * 1024 * 1024,
    tools=("mkfs.xfs", "xfs_growfs", "xfs_info"),
    resize=_resize,
    read_only=("ro", "norecovery", "nouuid"),  # another copy of it may be mounted
    mounted_size=_mounted_size,
)
