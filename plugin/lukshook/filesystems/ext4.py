"""Ext4: the default, the one that also shrinks, and the one that fuse2fs mounts for a user who is not root."""

from __future__ import annotations

import os
import re
import struct
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from attrs import evolve

from lukshook.filesystems import ext4_repair
from lukshook.filesystems.kind import Facts, Kind, Owners
from lukshook.system import kernel
from lukshook.system.command import LONG_SECONDS, TOOL_ENVIRONMENT, Command, Result, Runner, change, read

#: Bytes of an image that resize2fs 1.47.0 does not make more than so many times as large in one step: in a file system
#: of one block group that shall become a thousand times as large it fails, and leaves errors that e2fsck repairs
#: (seen); two steps are fine.
_TINY, _LEAP = 256 * 1024 * 1024, 512
_LAZILY, _AT_ONCE = "lazy_itable_init=1", "lazy_itable_init=0"


def _facts(descriptor: int) -> Facts | None:
    """Super block fields by the kernel's Documentation/filesystems/ext4/super.rst.

    What counts as written are KiB in the file system's life.
    """
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
        clean=state == 1 and not noted and not _is_due(block),
        unfinished=bool(struct.unpack_from("<I", block, 0x60)[0] & 4),
        unmounted=bool(state & 1),
        mmp=bool(struct.unpack_from("<I", block, 0x60)[0] & 0x100),
        last_write=float(block[0x274] << 32 | struct.unpack_from("<I", block, 0x30)[0]),
    )


def _is_due(block: bytes) -> bool:
    """Whether there is a journal to replay, or a check is due by tune2fs -c or -i: else `e2fsck -p` does nothing."""
    recover = struct.unpack_from("<I", block, 0x60)[0] & 4
    mounts, most_mounts = struct.unpack_from("<Hh", block, 0x34)
    checked, interval = struct.unpack_from("<II", block, 0x40)
    return bool(recover or 0 < most_mounts <= mounts or (interval and not checked <= time.time() < checked + interval))


def _hindrance(descriptor: int, size: int, mounted: bool) -> str:
    """Why an ext4 can never get *size* bytes, in words, or "".

    Mounted, by the kernel's fs/ext4/resize.c (Linux 6.12); else by resize/main.c and resize/resize2fs.c of e2fsprogs
    1.47, which resizes bigalloc only where it is forced to.
    """
    block, found = os.pread(descriptor, 1024, 1024), _facts(descriptor)
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


def _resize(place: str, size: int) -> Command:
    """resize2fs(8); sectors, because a plain number is one of file system blocks.

    For an ordinary user new inode tables are written out, for the reason that `_without_journal` has.
    """
    environment = {"UNIX_IO_NOZEROOUT": TOOL_ENVIRONMENT["UNIX_IO_NOZEROOUT"]}  # printed too, for a shell
    if os.geteuid():
        environment["RESIZE2FS_FORCE_ITABLE_INIT"] = "1"
    return evolve(change("resize2fs", place, f"{size // 512}s", timeout=LONG_SECONDS), environment=environment)


def _largest_step(length: int) -> int | None:
    return length * _LEAP if 0 < length < _TINY else None


def _lacks() -> str:
    """By fs/ext4/resize.c."""
    return "" if kernel.has_capability(kernel.CAP_SYS_RESOURCE) else "CAP_SYS_RESOURCE"


def _minimum(path: str, found: Facts, runner: Runner) -> int | None:
    """What `resize2fs -P` says, in blocks; it asks for a file system that is clean."""
    result = runner.run(read("resize2fs", "-P", path, ok=tuple(range(256)), timeout=LONG_SECONDS))
    match = re.search(r"minimum size of the filesystem: ([0-9]+)", result.out)
    return int(match[1]) * found.block if match and not result.code else None


def _prove(path: str, runner: Runner) -> str:
    """What a whole check that changes nothing finds wrong in *path*, in words, or "".

    e2fsck 1.47.0 exits 0 also where it has found a damaged resize inode, so what it asks, and answers itself with "no",
    counts. An extent tree that could be smaller is not an error.
    """
    result = runner.run(read("e2fsck", "-f", "-n", path, ok=tuple(range(256)), timeout=LONG_SECONDS))
    asked = next((line.strip(" \t\r") for line in result.out.split("\n") if _is_refused_repair(line)), "")
    return asked or (result.reason if result.code else "")


def _is_refused_repair(line: str) -> bool:
    return line.endswith("? no") and not line.endswith("Optimize? no")


def _errors_met(number: str) -> int:
    """How many errors the mounted ext4 on device *number* ("major:minor") has met; 0 for other kinds."""
    try:
        name = Path(f"/sys/dev/block/{number}").resolve().name
        return int(kernel.value(f"/sys/fs/ext4/{name}/errors_count"))
    except (OSError, ValueError):
        return 0


def _without_journal(make: tuple[str, ...]) -> tuple[str, ...]:
    """fuse2fs does not use the journal. When it is killed, folders may name inodes that were not written yet, and
    e2fsck 1.47.0 gives up on one that is noise; so for that the inode tables are written out.
    """
    return tuple(word.replace(_LAZILY, _AT_ONCE) for word in make)


def _owners(path: str, found: Facts, extents: Iterable[tuple[int, int]], runner: Runner) -> Owners:
    from lukshook.filesystems import ext4_owners  # noqa: PLC0415 - only for damage

    return ext4_owners.owners(path, found, extents, runner)


def _repair(path: str, result: Result, runner: Runner) -> Result:
    """e2fsck(8): 4 errors left, 8 operational error; others are added up."""
    return ext4_repair.repair(path, runner) if result.code & 12 else result


KIND = Kind(
    # 4 KiB blocks, because a mapping with 4 KiB sectors carries no smaller ones. Inode tables and journal are not
    # written out: on a fresh key their blocks decrypt to noise that no checksum fits, and the time stays the same
    # whatever the size. nodiscard keeps preallocated blocks allocated. Tables of 256 block groups lie together, as
    # Lustre has it, because growing takes one step for each such flock (docs/performance.md).
    make=(
        *("mkfs.ext4", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-e", "remount-ro", "-G", "256"),
        *("-E", f"{_LAZILY},lazy_journal_init=1,nodiscard"),
    ),
    facts=_facts,
    least=32 * 1024 * 1024,
    tools=("mkfs.ext4", "e2fsck", "resize2fs", "tune2fs"),
    resize=_resize,
    read_only=("ro", "noload"),
    # noinit_itable: nothing is written in the background that nobody asked for.
    # dioread_nolock, the default since Linux 5.6, is said, because without it ext4 makes holes in what lies below, and
    # qemu's FUSE export says yes to that and does nothing (qemu 7.2; fixed upstream by 1703eb1c27): files came out
    # wrong.
    options=("errors=remount-ro", "noinit_itable", "dioread_nolock"),
    check=("e2fsck", "-p"),
    look=("e2fsck", "-n"),
    clean=frozenset({0, 1}),  # e2fsck(8): 1, errors were repaired
    unchecked=frozenset({8}),  # e2fsck(8): operational error
    records_unmount=True,
    written_unit=1024,
    super_block=1024,
    is_sealed=ext4_repair.is_sealed,
    errors_met=_errors_met,
    protect=("tune2fs", "-O", "mmp"),
    kept_out="MMP",
    unmounted=True,
    recheck=("e2fsck", "-f", "-p"),  # resize2fs asks for one since the last mount
    hindrance=_hindrance,
    largest_step=_largest_step,
    lacks=_lacks,
    # Growing, the kernel writes out 16 GiB of tables for each TiB at once if it may write none later (fs/ext4/resize.c:
    # INODE_ZEROED). So it may later while it grows, with pauses so long that it comes to one group at most (ext4(5),
    # init_itable).
    around_growing=("init_itable=1000000", "noinit_itable"),
    minimum=_minimum,
    prove=_prove,
    prove_by_hand="e2fsck -fn",
    owners=_owners,
    without_journal=_without_journal,
    is_torn=ext4_repair.is_torn,
    is_fragile=ext4_repair.has_blank_tables,
    repair=_repair,
)
