"""Images of other lengths than their file systems need, and what every command has to say of them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from support.volume import NAME, CliVolume

SECTOR, BLOCK, MIB = 512, 4096, 1 << 20
#: Where an image of *length* bytes ends, whose data begin at *offset*, when its end is lost.
SHORTER: dict[str, Callable[[int, int], int]] = {
    "in the header": lambda offset, length: 1000,
    "in the first key slot": lambda offset, length: 40_000,
    "before the data": lambda offset, length: offset,
    "in the first block": lambda offset, length: offset + SECTOR,
    "behind the first block": lambda offset, length: offset + BLOCK,
    "behind the super block of btrfs": lambda offset, length: offset + 128 * 1024,
    "in the middle": lambda offset, length: length // 2,
    "anywhere": lambda offset, length: random.SystemRandom().randrange(offset + BLOCK, length),
    "1 MiB before its end": lambda offset, length: length - MIB,
    "last block": lambda offset, length: length - BLOCK,
    "last sector": lambda offset, length: length - SECTOR,
    "5 bytes before its end": lambda offset, length: length - 5,
}
#: What is asked of every kind of file system; the rest of ext4 alone.
OF_EVERY_KIND = ("behind the super block of btrfs", "in the middle", "last sector", "a block and 5 bytes")
#: Ends that meet the same checks as the ones beside them.
LIKE_OTHERS = (
    *("in the first key slot", "in the first block", "anywhere"),
    *("1 MiB before its end", "5 bytes before its end"),
)
#: What a store adds that is no whole sector.
LONGER = {"5 bytes": 5, "a sector less a byte": SECTOR - 1, "a block and 5 bytes": BLOCK + 5}
LINE = "is shorter than its file system: "


def pairs(kinds: Iterable[str], ends: Iterable[str]) -> list[Any]:
    """A kind of file system with each of *ends* that is tried with it."""
    found = [(kind, end) for kind in kinds for end in ends if kind == "ext4" or end in OF_EVERY_KIND]
    return [pytest.param(*pair, marks=pytest.mark.slow if pair[1] in LIKE_OTHERS else ()) for pair in found]


def facts(volume: CliVolume) -> dict[str, object]:
    """What `status --json` says."""
    (found,) = json.loads(volume.do("status", NAME, "--json"))
    return dict(found)


def check_refused(volume: CliVolume, offset: int, length: int) -> None:
    """Cut the image to *length*: all commands refuse it for that, and not one byte of it changes."""
    os.truncate(volume.image, length)
    before = volume.digest()

    # Where the header itself is cut, reading the header says so.
    line = LINE if length > offset + SECTOR else ""
    assert line in volume.refusal(65, "before-backup", NAME, "--soft")
    assert line in volume.refusal(65, "open", NAME, "--read-only")
    assert line in volume.refusal(65, "resize", NAME, "+64MiB")
    if length > 2 * MIB:
        said = volume.refusal(65, "resize", NAME, f"{length // 2 // MIB}MiB", "--yes")
        assert line in said or "does not shrink" in said
    said = volume.refusal(65, "lukshook-resize", str(volume.image), "+64MiB", "--key", f"file:{volume.key}")
    assert line in said or "there is no file system" in said or "not a whole number" in said  # without what is known
    checked = volume.lukshook("check", NAME)
    assert (65, True) == (checked.returncode, LINE in checked.stdout), checked
    assert LINE in str(facts(volume)["problem"])

    assert (length, before) == (volume.image.stat().st_size, volume.digest())
    assert volume.is_bare()


def check_no_alarm(volume: CliVolume, more: int) -> None:
    """Make the image longer: nothing is said of that, and a backup goes through."""
    before = volume.image.stat().st_size
    os.truncate(volume.image, before + more)

    assert (0, None) == (volume.lukshook("check", NAME).returncode, facts(volume)["problem"])
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text("content")
    volume.do("after-backup", NAME)
    volume.do("before-backup", NAME)
    assert "content" == (volume.data / "file").read_text()
    volume.do("after-backup", NAME)
    assert volume.image.stat().st_size == before + more
    assert facts(volume)["problem"] is None


def offset_of(volume: CliVolume) -> int:
    """Where the data begin, by what is known of the header."""
    known = json.loads((volume.state_folder / f"{NAME}.json").read_text())
    return int(known["pins"]["offset"])


def forget_extent(volume: CliVolume) -> None:
    """Make this host one that has never seen how large the file system is."""
    file = Path(volume.state_folder / f"{NAME}.json")
    known = json.loads(file.read_text())
    known.pop("extent", None)
    file.write_text(json.dumps(known))
