"""Where dm-era keeps which blocks were written: files of ours on a local disk, their size, and what is in them."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from lukshook.errors import Unavailable
from lukshook.layers.base import Extent
from lukshook.store import liveness
from lukshook.system import files
from lukshook.system.command import Runner, find_tools, read

TOOLS: tuple[str, ...] = ("era_check", "era_invalidate")
SECTOR = 512
#: Bytes of the image that share one bit. A first write into each costs a commit: 64 KiB cost 25 to 42 % of a long
#: write, 256 KiB 7 to 9 % (docs/internals/ledger.md).
BLOCK = 256 * 1024
#: Bytes of metadata for each block: 4.1 were in use right after creation. Twice that, because a block of metadata is
#: written to a new place before the old one is free, and reading an open volume keeps all old ones.
_BYTES_PER_BLOCK = 9
_LEAST_BYTES = 4 * 1024 * 1024
_PAGE = 4096
#: `era.0`, and one more for each time that the volume grew while it was open.
_NAME = re.compile(r"era\.([0-9]{1,6})")
_LISTING = "era.written"
#: struct superblock_disk of drivers/md/dm-era-target.c, packed: csum, flags, blocknr, uuid, magic, version, space map,
#: data_block_size (sectors), metadata_block_size, nr_blocks.
_SUPERBLOCK = struct.Struct("<IIQ16sQI128sIII")
_MAGIC = 2126579579
#: In the same structure, behind current_era and the current writeset: writeset_tree_root.
_TREE_ROOT = 200
#: Writes into blocks that were not written before change the metadata; a reader begins again then.
_LIVE_TRIES = 5
#: linux/fs.h, for a 64-bit long.
_FS_IOC_SETFLAGS, _FS_NOCOW_FL = 0x40086602, 0x00800000
#: For each, the whole metadata is read: 3 s for 1 TiB on a slow machine.
_READ_SECONDS = 900.0
_MARKED = re.compile(rb'<(?:block block="(\d+)"|range begin="(\d+)" end ?= ?"(\d+)")')
_END = b"</blocks>"


@frozen(repr=False)
class Superblock:
    """What the kernel wrote into a file of metadata: the size of a block in bytes, and how many blocks there are."""

    block: int
    blocks: int


def blocks_of(size: int) -> int:
    """How many blocks a device of *size* bytes has."""
    return -(-size // BLOCK)


def needed(size: int) -> int:
    """Bytes of a file of metadata for a device of *size* bytes."""
    whole = blocks_of(size) * _BYTES_PER_BLOCK + _LEAST_BYTES
    return whole + -whole % _PAGE


def files_in(folder: Path) -> tuple[Path, ...]:
    """The files of metadata in *folder*, the oldest first; none where it is not there. Raises OSError."""
    if not folder.is_dir():
        return ()
    found = ((_NAME.fullmatch(name), name) for name in os.listdir(folder))
    return tuple(folder / name for _, name in sorted((int(match[1]), name) for match, name in found if match))


def following(folder: Path) -> Path:
    """The file of metadata that comes after those that are there. Raises OSError."""
    there = files_in(folder)
    return folder / f"era.{int(there[-1].suffix[1:]) + 1 if there else 0}"


def forget(folder: Path) -> None:
    """Begin again, so that no later opening continues what is there. Raises `Unavailable`."""
    try:
        there = files_in(folder)
        for file in there:
            file.unlink()
        if there:
            files.sync_folder(folder)
    except OSError as error:
        raise Unavailable(
            f"the record of what was written cannot be removed from {folder}: {error.strerror}",
            hint="is its file system mounted and writable?",
        ) from error


def superblock(file: Path) -> Superblock | None:
    """What the kernel wrote into *file*; None where no target was loaded over it, so that nothing went through it.

    Raises OSError, `Unavailable` (it is something else).
    """
    with file.open("rb") as opened:
        start = opened.read(_SUPERBLOCK.size)
    if len(start) < _SUPERBLOCK.size or not start.strip(b"\0"):
        return None
    fields = _SUPERBLOCK.unpack(start)
    if fields[4] != _MAGIC:
        raise Unavailable(f"{file} is not what dm-era writes", hint="a new record begins with the next clean close")
    return Superblock(fields[7] * SECTOR, fields[9]) if fields[9] else None


def make(file: Path, size: int) -> None:
    """Make *file*, for a device of *size* bytes, with all of its blocks: where one lacks, the volume gets an I/O error.

    Raises OSError, `Unavailable` (the file system needs room also for what is overwritten).
    """
    file.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):  # only file systems that copy on write know it
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("l", _FS_NOCOW_FL))
        _fill(descriptor, needed(size))
        kind = liveness.copies_on_write(file)
        if kind:
            raise Unavailable(
                f"{file.parent} lies on {kind}, where an overwrite can find no room",
                hint="a state folder on ext4 or xfs has a record of what is written",
            )
    except BaseException:
        with suppress(OSError):
            file.unlink()
        raise
    finally:
        os.close(descriptor)
    files.sync_folder(file.parent)


def _fill(descriptor: int, length: int) -> None:
    """Written, not only reserved: a reserved block that is written first needs room in the file system's own tables."""
    os.posix_fallocate(descriptor, 0, length)
    zeroes = bytes(1 << 20)
    done = 0
    while done < length:
        done += os.pwrite(descriptor, zeroes[: length - done], done)
    os.fsync(descriptor)


def check(file: Path, runner: Runner) -> None:
    """Check that *file*, which no target uses, can be continued. Raises `CommandFailed`, `TimedOut`."""
    runner.run(read("era_check", "--quiet", os.fspath(file), timeout=_READ_SECONDS))


def check_tools() -> None:
    """Check that the tools are there. Raises `Unavailable` with the package to install."""
    find_tools(TOOLS)


def written(file: Path, runner: Runner) -> list[tuple[int, int]]:
    """The blocks that *file* lists, which no target uses: from, to (not included), in order.

    Raises OSError, `LukshookError`.
    """
    tool = _tool(runner)
    if tool.skips_array and not _has_writesets(file):
        raise Unavailable(
            f"era_invalidate {tool.version} cannot list {file}", hint="closing reads the whole image instead"
        )
    return _invalidated(os.fspath(file), file.parent, runner)


def written_live(file: Path, node: str, runner: Runner) -> list[tuple[int, int]]:
    """As `written`, where a target has a snapshot of *file*, which lies under the loop device *node*."""
    option = _tool(runner).snapshot
    for _ in range(_LIVE_TRIES):
        before = _start(file)
        blocks = _invalidated(node, file.parent, runner, option)
        if _start(file) == before:  # version 0.9 reads what is live, whatever the option says
            return blocks
    raise Unavailable(f"{file} changes while it is read", hint="ask again when less is being written")


@frozen(repr=False)
class _Tool:
    """The installed era_invalidate(8): its version, its option for snapshots, and whether it has a fault.

    *skips_array*: without a list of recent writes it does not look at the array of older ones (1.1.0, and the source
    of src/era/invalidate.rs, mark_blocks_since).
    """

    version: str
    snapshot: str
    skips_array: bool


def _tool(runner: Runner) -> _Tool:
    version = runner.run(read("era_invalidate", "--version")).out.strip(" \n")
    usage = runner.run(read("era_invalidate", "--help")).out
    wants_value = re.search(r"--metadata-snapshot[ =]<", usage)  # 1.1.0; no value that it takes means anything
    option = "--metadata-snapshot" + ("=yes" if wants_value else "")
    return _Tool(version, option, re.match(r"\D*0\.", version) is None)


def _invalidated(place: str, folder: Path, runner: Runner, *options: str) -> list[tuple[int, int]]:
    listing = folder / _LISTING
    listing.unlink(missing_ok=True)
    asked = ("--written-since", "1", *options, "-o", os.fspath(listing), place)
    try:
        runner.run(read("era_invalidate", *asked, timeout=_READ_SECONDS))
        with listing.open("rb") as lines:
            return listed(lines)
    finally:
        listing.unlink(missing_ok=True)


def _has_writesets(file: Path) -> bool:
    """Whether the tree of recent writes has an entry: nr_entries of struct node_header, dm-btree-internal.h."""
    with file.open("rb") as opened:
        root = int(struct.unpack_from("<Q", opened.read(_PAGE), _TREE_ROOT)[0])
        opened.seek(root * _PAGE)
        return bool(struct.unpack_from("<I", opened.read(_PAGE), 16)[0])


def _start(file: Path) -> bytes:
    """The block that changes with every commit, past the page cache. Raises OSError."""
    descriptor = files.past_the_cache(file)
    try:
        with mmap.mmap(-1, _PAGE) as page:
            files.read_past_the_cache(descriptor, page, 0)
            return page[:]
    finally:
        os.close(descriptor)


def listed(lines: Iterable[bytes]) -> list[tuple[int, int]]:
    """What era_invalidate(8) lists. Raises `Unavailable` where it is not whole: it was written to a disk without room.

    Versions 0.9 and 1.0 put blanks in other places.
    """
    blocks, whole = [], False
    for line in lines:
        whole = whole or _END in line
        blocks += [_block(match) for match in _MARKED.finditer(line)]
    if not whole:
        raise Unavailable("era_invalidate left its list incomplete", hint="is the disk of the state folder full?")
    return blocks


def _block(match: re.Match[bytes]) -> tuple[int, int]:
    return (int(match[1]), int(match[1]) + 1) if match[1] else (int(match[2]), int(match[3]))


def extents(blocks: Iterable[tuple[int, int]], size: int, *, successors: bool) -> tuple[Extent, ...]:
    """Bytes of an image of *size* bytes, in order, none twice. *successors*: the block behind each counts too."""
    more = 1 if successors else 0
    return tuple(_merged((begin * BLOCK, min((end + more) * BLOCK, size)) for begin, end in blocks))


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[Extent]:
    last: tuple[int, int] | None = None
    for begin, end in sorted(ranges):
        if begin >= end:
            continue
        if last is not None and begin <= last[1]:
            last = (last[0], max(last[1], end))
            continue
        if last is not None:
            yield (last[0], last[1] - last[0])
        last = (begin, end)
    if last is not None:
        yield (last[0], last[1] - last[0])


def reason(error: OSError) -> str:
    """Why the file system refuses, in words."""
    if error.errno == errno.ENOSPC:
        return "the disk of the state folder has no room for it"
    return f"{error.filename or 'the state folder'}: {error.strerror}"
