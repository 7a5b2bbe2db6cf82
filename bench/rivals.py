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


def beside_gocryptfs(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """As root the stack with the kernel's file system, else the one with fuse2fs, which has no bound.

    Reading has none either: docs/internals/userspace-engine.md says what limits it.
    """
    rows = _beside(Gocryptfs(folder), folder, rounds, where)
    return [replace(row, bound=1.2) if row.what == "sequential write, lukshook as root" else row for row in rows], []


def beside_cryfs(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """A part of its own, with fewer rounds: CryFS needs some ten times as long for one."""
    return _beside(Cryfs(folder), folder, max(1, rounds // 2), where), []


def _beside(other: Way, folder: Path, rounds: int, where: str) -> list[Row]:
    if not available([other]):
        print(f"{other.name} is not installed: left out", file=sys.stderr, flush=True)
        return []
    is_root = os.geteuid() == 0
    name = "lukshook as root" if is_root else "lukshook as an ordinary user"
    ours = Lukshook(folder, IMAGE_MIB, name, options='engine = "userspace"\nold_fuse2fs = true')
    return compare([ours, other], {}, rounds, where, ROOT if is_root else USER)
