"""Which files of an ext4 lie in some of its blocks: what debugfs(8) says, which only looks.

It exits with 0 whatever happens, so each answer has to name what was asked for. Metadata can be in a damaged piece of
the image: checksums are ignored (`-n`), and bitmaps are only read where they are needed (`-c`).
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from attrs import evolve

from lukshook.errors import Unavailable
from lukshook.filesystems.kind import Facts, Owners
from lukshook.system.command import LONG_SECONDS, Result, Runner, descriptor_path, read
from lukshook.system.tool_output import MOST_KEPT

#: Blocks for which all inodes are read once. An argument has at most 128 KiB (execve(2)), a block number 11 characters.
_BLOCKS = 10_000
#: Inodes for which all folders are read once: a line with a long path has 1 KiB or so, and 1 MiB of output is kept.
_INODES = 500
#: Reserved inodes (the kernel's Documentation/filesystems/ext4/special_inodes.rst); 2 is the folder at the top.
_RESERVED, _TOP = range(11), 2
#: Inodes that are the file system's own too, by their lines in the super block's list: they have no name (Debian 13's
#: mkfs makes an orphan file).
_OWN = re.compile(r"^(?:Orphan file|Project quota) inode:[ \t]+([0-9]+)$", re.M)


def owners(path: str, found: Facts, extents: Iterable[tuple[int, int]], runner: Runner) -> Owners:
    """What lies in *extents*, offsets and lengths in bytes, of the ext4 in *path*. Raises `Unavailable`."""
    blocks = _blocks(extents, found)
    inodes = _inodes(path, blocks, runner)
    own = {*_RESERVED, *_own(path, runner)} - {_TOP}
    files = sorted(set(inodes.values()) - own)
    rest = [block for block in blocks if inodes.get(block) not in files]
    unused = _unused(path, [block for block in rest if block not in inodes], runner)
    return Owners(tuple(_names(path, files, runner)), (len(rest) - unused) * found.block, unused * found.block)


def _blocks(extents: Iterable[tuple[int, int]], found: Facts) -> list[int]:
    """The blocks in *extents*, in order; what lies behind the file system is left out."""
    last = found.size // found.block
    touched = {
        block
        for offset, length in extents
        for block in range(offset // found.block, min(-(-(offset + length) // found.block), last))
    }
    return sorted(touched)


def _inodes(path: str, blocks: Sequence[int], runner: Runner) -> dict[int, int]:
    """The inodes of those blocks that have one."""
    inodes: dict[int, int] = {}
    for batch in _batches(blocks, _BLOCKS):
        result = _ask(path, ("icheck", *batch), runner)
        answers = dict(re.findall(r"^([0-9]+)\t([0-9]+|<block not found>)$", result.out, re.M))
        if {str(block) for block in batch} != set(answers):
            raise _silent(result)
        inodes |= {int(block): int(inode) for block, inode in answers.items() if inode.isdecimal()}
    return inodes


def _own(path: str, runner: Runner) -> Iterator[int]:
    """The inodes of the file system itself that have no fixed number."""
    return map(int, _OWN.findall(_ask(path, ("stats", "-h"), runner).out))


def _names(path: str, inodes: Sequence[int], runner: Runner) -> Iterator[str]:
    """A name of each inode; a file that is in no folder that can be read has its number only."""
    for batch in _batches(inodes, _INODES):
        names = {_TOP: "/"}
        for inode, name in _entries(_ask(path, ("ncheck", *batch), runner).out, frozenset(batch)):
            names.setdefault(inode, "/" + name.lstrip("/"))
        yield from (names.get(inode, f"(without a name: inode {inode})") for inode in batch)


def _entries(out: str, asked: frozenset[int]) -> Iterator[tuple[int, str]]:
    """Inode and path in each line. A name can have line ends in it: a new line begins with one of the *asked*."""
    begins = [found for found in re.finditer(r"^([0-9]+)\t(?=/)", out, re.M) if int(found[1]) in asked]
    for this, following in itertools.zip_longest(begins, begins[1:]):
        yield int(this[1]), out[this.end() : following.start() if following else None].removesuffix("\n")


def _unused(path: str, blocks: Sequence[int], runner: Runner) -> int:
    """How many of *blocks* the bitmaps say are free; none where the bitmaps cannot be believed."""
    free = 0
    for batch in _batches(blocks, MOST_KEPT // 64):
        commands = "".join(f"testb {first} {number}\n" for first, number in _runs(batch))
        free += len(re.findall(r"^Block [0-9]+ not in use$", _told(path, commands, runner).out, re.M))
    return free


def _told(path: str, commands: str, runner: Runner) -> Result:
    """What debugfs answers to lines of *commands*."""
    file = os.memfd_create("commands")
    try:
        os.write(file, commands.encode())
        command = read("debugfs", "-f", descriptor_path(file), path, ok=tuple(range(256)), timeout=LONG_SECONDS)
        return runner.run(evolve(command, fds=(file,)))
    finally:
        os.close(file)


def _ask(path: str, request: tuple[object, ...], runner: Runner) -> Result:
    words = " ".join(map(str, request))
    return runner.run(read("debugfs", "-c", "-n", "-R", words, path, ok=tuple(range(256)), timeout=LONG_SECONDS))


def _silent(result: Result) -> Unavailable:
    return Unavailable(
        f"debugfs does not tell which files are in the damaged pieces: {result.reason}",
        hint="the file system itself may be too damaged: docs/recovery.md",
    )


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The blocks as first block and number, in a row. Block 0 has the super block, and debugfs does not take it."""
    for _, group in itertools.groupby(enumerate(filter(None, blocks)), lambda each: each[1] - each[0]):
        row = [block for _, block in group]
        yield row[0], len(row)


def _batches(numbers: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), most):
        yield numbers[first : first + most]
