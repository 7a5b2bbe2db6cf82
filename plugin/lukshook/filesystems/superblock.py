"""What the super block of a file system says of it: one function for each kind, which reads it and nothing else."""

from __future__ import annotations

import os
import struct
import time
import uuid

from attrs import frozen


@frozen
class Facts:
    """What a super block says: uuid, size and block size in bytes, whether it notes errors, a count that only rises.

    The size is what has to fit into the device: for btrfs, which can have several, its part on this one.
    The count (ext4: KiB written in the file system's life; btrfs: generation) tells an older image from a newer one.
    None where the kind has no such count. *clean*: it was unmounted in good order, without errors, and no check is due.
    *unfinished*: the journal has something to replay. *mmp*: it keeps a second host out.
    """

    uuid: str
    size: int
    block: int
    errors: bool
    written: int | None
    clean: bool = False
    unfinished: bool = False
    mmp: bool = False


def ext4(descriptor: int) -> Facts | None:
    """Super block fields by the kernel's Documentation/filesystems/ext4/super.rst."""
    block = os.pread(descriptor, 1024, 1024)
    if len(block) < 1024 or struct.unpack_from("<H", block, 0x38)[0] != 0xEF53:
        return None
    low, log_size, state = (
        struct.unpack_from(form, block, at)[0] for form, at in (("<I", 4), ("<I", 0x18), ("<H", 0x3A))
    )
    high = struct.unpack_from("<I", block, 0x150)[0] if struct.unpack_from("<I", block, 0x60)[0] & 0x80 else 0
    blocks = high << 32 | low
    written = struct.unpack_from("<Q", block, 0x178)[0]
    noted = struct.unpack_from("<I", block, 0x194)[0]
    size = 1024 << min(log_size, 6)
    return Facts(
        str(uuid.UUID(bytes=block[0x68:0x78])),
        blocks * size,
        size,
        bool(state & 2 or noted),
        written,
        clean=state == 1 and not noted and not _ext4_due(block),
        unfinished=bool(struct.unpack_from("<I", block, 0x60)[0] & 4),
        mmp=bool(struct.unpack_from("<I", block, 0x60)[0] & 0x100),
    )


def _ext4_due(block: bytes) -> bool:
    """Whether there is a journal to replay, or a check is due by tune2fs -c or -i: else `e2fsck -p` does nothing."""
    recover = struct.unpack_from("<I", block, 0x60)[0] & 4
    mounts, most_mounts = struct.unpack_from("<Hh", block, 0x34)
    checked, interval = struct.unpack_from("<II", block, 0x40)
    return bool(recover or 0 < most_mounts <= mounts or (interval and not checked <= time.time() < checked + interval))


def no_hindrance(descriptor: int, size: int, mounted: bool) -> str:
    """For kinds that can get any size that fits."""
    return ""


def ext4_hindrance(descriptor: int, size: int, mounted: bool) -> str:
    """Why an ext4 can never get *size* bytes, in words, or "".

    Mounted, by the kernel's fs/ext4/resize.c (Linux 6.12); else by resize/main.c and resize/resize2fs.c of e2fsprogs
    1.47, which resizes bigalloc only where it is forced to.
    """
    block, found = os.pread(descriptor, 1024, 1024), ext4(descriptor)
    if found is None:
        return ""
    compat, incompat, ro_compat = struct.unpack_from("<III", block, 0x5C)
    per_group, inodes = struct.unpack_from("<I", block, 0x20)[0], struct.unpack_from("<I", block, 0x28)[0]
    reserved = struct.unpack_from("<H", block, 0xCE)[0]
    blocks, grows = size // found.block, size > found.size
    groups = -(-blocks // max(per_group, 1))
    resize_inode, meta_bg = compat & 0x10, incompat & 0x10
    reasons = (
        (mounted and compat & 0x200, "it has the feature sparse_super2"),
        (mounted and resize_inode and meta_bg, "it has both resize_inode and meta_bg"),
        (mounted and reserved and not resize_inode, "it has reserved group descriptors without resize_inode"),
        (not mounted and ro_compat & 0x200, "it has the feature bigalloc"),
        (size < found.size and compat & 0x800, "it has the feature stable_inodes"),
        (grows and blocks > 1 << 32 and not incompat & 0x80, "without the feature 64bit it has 2^32 blocks at most"),
        (grows and groups * inodes >> 32, "it would have more than 2^32 inodes"),
    )
    return next((why for holds, why in reasons if holds), "")


def xfs(descriptor: int) -> Facts | None:
    """Super block fields by fs/xfs/libxfs/xfs_format.h: big-endian, magic XFSB."""
    block = os.pread(descriptor, 512, 0)
    if block[:4] != b"XFSB":
        return None
    size, blocks = struct.unpack_from(">IQ", block, 4)
    return Facts(str(uuid.UUID(bytes=block[32:48])), size * blocks, size, False, None)


def btrfs(descriptor: int) -> Facts | None:
    """Super block fields by fs/btrfs/accessors.h: at 64 KiB, magic _BHRfS_M, dev_item at 0xc9."""
    block = os.pread(descriptor, 4096, 0x10000)
    if block[0x40:0x48] != b"_BHRfS_M":
        return None
    generation, total = struct.unpack_from("<Q", block, 0x48)[0], struct.unpack_from("<Q", block, 0xC9 + 8)[0]
    sector = struct.unpack_from("<I", block, 0x90)[0]
    return Facts(str(uuid.UUID(bytes=block[0x20:0x30])), total, sector, False, generation)
