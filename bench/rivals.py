"""The engine without device-mapper beside what else encrypts a backup without it: gocryptfs and CryFS."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from rows import Curve, Row
from throughput import Load, compare
from ways import Cryfs, Gocryptfs, Lukshook, Way, available

IMAGE_MIB = 1536
#: What the bounds were set for; fuse2fs, which an ordinary user has, would take minutes for it.
ROOT, USER = Load(1024, 10_000), Load(64, 500)
_ROOT, _USER = "lukshook as root", "lukshook as an ordinary user"
_BOUNDS = {f"sequential write, {_ROOT}": 1.2, f"sequential read, {_ROOT}": 1.0, f"sequential write, {_USER}": 0.3}


def beside_gocryptfs(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """As root the stack with the kernel's file system, else the one with fuse2fs.

    The bounds as root are for qemu 10.1 and later, which encrypt on several processors.
    """
    rows = _beside(Gocryptfs(folder), folder, rounds, where)
    return [replace(row, bound=_BOUNDS.get(row.what)) for row in rows], []


def beside_cryfs(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """A part of its own, with fewer rounds: CryFS needs some ten times as long for one."""
    return _beside(Cryfs(folder), folder, max(1, rounds // 2), where), []


def _beside(other: Way, folder: Path, rounds: int, where: str) -> list[Row]:
    if not available([other]):
        print(f"{other.name} is not installed: left out", file=sys.stderr, flush=True)
        return []
    is_root = os.geteuid() == 0
    ours = Lukshook(folder, IMAGE_MIB, _ROOT if is_root else _USER, options='engine = "userspace"\nold_fuse2fs = true')
    return compare([ours, other], {}, rounds, where, ROOT if is_root else USER)
